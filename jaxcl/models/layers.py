"""What the built-in networks are made of: layers, norms, gates, and their table's rows."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxcl.core.checks import check_choice
from jaxcl.core.convolution import conv_general_dilated
from jaxcl.core.model import LateralSpec, Wiring

# How kernels are drawn: the distribution, and its variance from fan in and fan out.
_INITS = {
    "lecun": ("normal", lambda fan_in, fan_out: 1 / fan_in),
    "he": ("normal", lambda fan_in, fan_out: 2 / fan_in),
    "xavier": ("uniform", lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
    "torch": ("uniform", lambda fan_in, fan_out: 1 / (3 * fan_in)),
}


def make_layer(spec: LateralSpec, use_bias: bool, *, dtype: Any, rngs: nnx.Rngs) -> Any:
    """A dense layer or a convolution, of zeros until `draw_kernels`."""
    zeros = jax.nn.initializers.zeros
    options = {"use_bias": use_bias, "kernel_init": zeros, "dtype": dtype, "rngs": rngs}
    if spec.kernel is None:
        return nnx.Linear(spec.hidden[0], spec.out[0], **options)
    return nnx.Conv(
        spec.hidden[-1],
        spec.out[-1],
        spec.kernel,
        spec.strides,
        padding=spec.padding or "SAME",
        conv_general_dilated=conv_general_dilated,
        **options,
    )


def batch_norm(width: int, dtype: Any, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(width, momentum=0.9, dtype=dtype, rngs=rngs)


def add_lateral(x: jax.Array, lateral: jax.Array | None) -> jax.Array:
    return x if lateral is None else x + lateral.astype(x.dtype)


@jax.custom_jvp
def relu(x: jax.Array) -> jax.Array:
    """max(x, 0), whose derivative reads the result: what goes in need not be kept."""
    return jnp.maximum(x, 0)


@relu.defjvp
def _relu_jvp(primals, tangents):
    y = relu(*primals)
    return y, jnp.where(y > 0, tangents[0], jnp.zeros_like(tangents[0]))


def apply_gate(x: jax.Array, gates: Mapping[str, jax.Array] | None, name: str) -> jax.Array:
    """Scales the last axis of `x` by its gate, in the gate's precision; a bool gate selects."""
    if not gates or name not in gates:
        return x
    gate = gates[name].reshape((1,) * (x.ndim - 1) + (-1,))
    if gate.dtype == bool:  # a closed unit is 0 even where it has no finite value
        return jnp.where(gate, x, jnp.zeros_like(x))
    return (x * gate).astype(x.dtype)


def drop(layer: nnx.Dropout, x: jax.Array) -> jax.Array:
    """`layer(x)` of half as many random bits, which take most of its time on a CPU.

    An entry is dropped by 16 bits, so its rate is a multiple of 2^-16; what is left is scaled by
    that rate, and keeps the mean.
    """
    limit = min(round(layer.rate * 2**16), 2**16 - 1)
    if limit == 0 or layer.deterministic or layer.rngs is None:
        return layer(x)
    words = jax.random.bits(layer.rngs(), (*x.shape[:-1], -(-x.shape[-1] // 2)), "uint32")
    halves = jnp.concatenate([words & 0xFFFF, words >> 16], -1)[..., : x.shape[-1]]
    return jnp.where(halves >= limit, x / (1 - limit / 2**16), jnp.zeros_like(x))


def draw_kernels(net: nnx.Module, init: str, key: jax.Array) -> None:
    """Draws a network's kernels, and for "torch" its biases.

    All come from one draw: on a CPU, XLA takes a second for each shape that is drawn.
    """
    check_choice("init", init, tuple(_INITS))
    distribution, variance = _INITS[init]
    layers = [m for _, m in nnx.iter_modules(net) if isinstance(m, nnx.Linear | nnx.Conv)]
    shapes = [layer.kernel.shape for layer in layers]
    ends = list(itertools.accumulate(math.prod(shape) + shape[-1] for shape in shapes))
    if distribution == "normal":  # cut at two standard deviations, which leaves 0.8796 of one
        draws = jax.random.truncated_normal(key, -2, 2, ends[-1:]) / 0.87962566103423978
    else:
        draws = jax.random.uniform(key, ends[-1:], minval=-(3**0.5), maxval=3**0.5)
    for layer, shape, draw in zip(layers, shapes, jnp.split(draws, ends[:-1]), strict=True):
        fan_in = math.prod(shape[:-1])
        draw = draw * variance(fan_in, fan_in // shape[-2] * shape[-1]) ** 0.5
        layer.kernel.set_value(draw[: -shape[-1]].reshape(shape))
        if init == "torch" and layer.bias is not None:
            layer.bias.set_value(draw[-shape[-1] :])


def make_wiring(gates: dict[str, int], rows: list[tuple]) -> Wiring:
    """The table of gates: rows of layer, norm or None, source's gate and repeats, own gate."""
    inputs = {f"{layer}/kernel": (source,) for layer, _, source, _ in rows}
    outputs = {}
    for layer, norm, _, gate in rows:
        if gate is not None:
            outputs[f"{layer}/kernel"] = gate
            shifts = [f"{norm}/scale", f"{norm}/bias"] if norm else [f"{layer}/bias"]
            outputs |= dict.fromkeys(shifts, gate)
    return Wiring(gates, inputs, outputs, native=True)
