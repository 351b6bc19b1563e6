"""Networks of one layer after the other."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxcl.core.convolution import max_pool
from jaxcl.core.model import LateralSpec, Wiring
from jaxcl.models.layers import (
    add_lateral,
    apply_gate,
    batch_norm,
    draw_kernels,
    drop,
    make_layer,
    make_wiring,
    relu,
)


class Unit(NamedTuple):
    """One layer of a Chain.

    Attributes:
        width: number of units or of channels.
        kernel: size of the square convolution kernel; 0 for a dense layer.
        padding: "VALID" or "SAME".
        norm: BatchNorm before the ReLU.
        dropout: rate, in [0, 1).
        pool: 2 x 2 max pooling.
    """

    width: int
    kernel: int = 0
    padding: str = "VALID"
    norm: bool = False
    dropout: float = 0.0
    pool: bool = False


class Chain(nnx.Module):
    """One layer after the other, then a linear head.

    Each layer is convolution or dense, BatchNorm (then there is no bias), plus its lateral, ReLU,
    dropout, pooling, gate.

    Args:
        shape: shape of one input: `(H, W, C)`, or `(N,)`.
        units: the layers, convolutions first.
        classes: width of the head.
        input_dropout: dropout rate of the input.
        init: how kernels are drawn: truncated normal with variance 1 / fan in ("lecun") or
            2 / fan in ("he"), uniform with variance 2 / (fan in + fan out) ("xavier"), or uniform
            in +-1 / sqrt(fan in) and biases likewise ("torch", PyTorch's default).
        dtype: in what the network computes; parameters and logits are float32.
        rngs: Flax random streams.
    """

    def __init__(
        self,
        shape: Sequence[int],
        units: Sequence[Unit],
        classes: int,
        *,
        input_dropout: float = 0.0,
        init: str = "lecun",
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.shape = tuple(shape)
        self.units = tuple(units)
        options = {"dtype": dtype, "rngs": rngs}
        plan = _plan(self.shape, self.units, classes)
        biases = [*(not unit.norm for unit in units), True]
        layers = [make_layer(*row, **options) for row in zip(plan, biases, strict=True)]
        self.layers, self.head = nnx.List(layers[:-1]), layers[-1]
        self.norms = nnx.Dict(
            {str(i): batch_norm(u.width, dtype, rngs) for i, u in enumerate(units) if u.norm}
        )
        rates = [input_dropout, *(unit.dropout for unit in units)]
        if not all(0 <= rate < 1 for rate in rates):
            raise ValueError(f"dropout: expected rates in [0, 1), not {rates}, the input's first.")
        self.dropouts = nnx.List([nnx.Dropout(r, rngs=rngs if r else None) for r in rates])
        draw_kernels(self, init, rngs.params())

    def __call__(self, x: jax.Array, *, gates: Mapping[str, jax.Array] | None = None) -> jax.Array:
        """Logits `[B, C]` of inputs `[B, ...]`; each layer is multiplied by its gate, if any."""
        return self.column(x, (None,) * len(self.layers), gates=gates)[0]

    def column(self, x, laterals, *, gates=None):
        """Logits and the inputs of the layers from the second to the head; see Model.column."""
        x = drop(self.dropouts[0], x.reshape(x.shape[0], *self.shape))
        hiddens = []
        for i, (unit, layer) in enumerate(zip(self.units, self.layers, strict=True)):
            x = x if unit.kernel else x.reshape(x.shape[0], -1)
            hiddens.append(x)
            x = layer(x)
            x = self.norms[str(i)](x) if unit.norm else x
            x = relu(add_lateral(x, laterals[i - 1] if i else None))
            x = drop(self.dropouts[i + 1], x)
            pooled: Any = max_pool(x, (2, 2), (2, 2)) if unit.pool else x
            x = apply_gate(pooled, gates, f"layer{i}")
        hiddens.append(x.reshape(x.shape[0], -1))
        logits = self.head(hiddens[-1])
        logits = add_lateral(logits, laterals[-1]) if self.units else logits
        return logits.astype(jnp.float32), tuple(hiddens[1:])

    def tables(self) -> tuple[tuple[LateralSpec, ...], Wiring]:
        """The laterals' shapes and the table of gates."""
        plan = _plan(self.shape, self.units, self.head.out_features)
        gates = {f"layer{i}": unit.width for i, unit in enumerate(self.units)}
        rows: list[tuple] = []
        source, width = None, 1
        for i, unit in enumerate(self.units):
            # Flattened in NHWC order, the channels repeat as a whole: their gate is tiled.
            repeats = plan[i].hidden[-1] // width
            norm = f"norms/{i}" if unit.norm else None
            rows.append((f"layers/{i}", norm, (source, repeats), f"layer{i}"))
            source, width = f"layer{i}", unit.width
        rows.append(("head", None, (source, plan[-1].hidden[-1] // width), None))
        return plan[1:], make_wiring(gates, rows)


def _plan(shape: tuple[int, ...], units: Sequence[Unit], classes: int) -> tuple[LateralSpec, ...]:
    """What each layer of a Chain, and then its head, maps to what."""
    plan = []
    for i, unit in enumerate((*units, Unit(classes))):
        if unit.width < 1:
            raise ValueError(f"layer {i}: expected a width of 1 or more, not {unit.width}.")
        if unit.kernel:
            if len(shape) != 3:
                raise ValueError(f"layer {i}: a convolution reads (H, W, C), not {shape}.")
            cut = unit.kernel - 1 if unit.padding == "VALID" else 0
            out = (shape[0] - cut, shape[1] - cut, unit.width)
            kernel = (unit.kernel, unit.kernel)
            plan.append(LateralSpec(shape, out, kernel, (1, 1), unit.padding))
            shape = (out[0] // 2, out[1] // 2, unit.width) if unit.pool else out
            if min(shape) < 1:
                raise ValueError(f"layer {i} leaves nothing of an input {plan[0].hidden}.")
        else:
            plan.append(LateralSpec((math.prod(shape),), (unit.width,)))
            shape = (unit.width,)
    return tuple(plan)
