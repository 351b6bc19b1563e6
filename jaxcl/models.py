"""Networks: the MLP and the AlexNet-like net of HAT, ResNet-18 and VGG-16; adapters for yours.

`mlp`, `alexnet`, `resnet18` and `vgg16` give a Model; MLP, AlexNetLike, ResNet18 and VGG16 are the
Flax modules behind them. `from_nnx`, `from_linen` and `from_function` make a Model of yours.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxcl._adapters import from_function, from_linen, from_nnx, functional
from jaxcl._model import LateralSpec, Model
from jaxcl.wiring import Wiring

__all__ = [
    "MLP",
    "VGG16",
    "AlexNetLike",
    "Chain",
    "LateralSpec",
    "Model",
    "ResNet18",
    "Unit",
    "alexnet",
    "from_function",
    "from_linen",
    "from_nnx",
    "mlp",
    "parameter_count",
    "resnet18",
    "vgg16",
]

# How kernels are drawn: the distribution, and its variance from fan in and fan out.
_INITS = {
    "lecun": ("normal", lambda fan_in, fan_out: 1 / fan_in),
    "he": ("normal", lambda fan_in, fan_out: 2 / fan_in),
    "xavier": ("uniform", lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
    "torch": ("uniform", lambda fan_in, fan_out: 1 / (3 * fan_in)),
}


def mlp(
    features_in: int, hidden: Sequence[int] = (400, 400), classes: int = 10, **options
) -> Model:
    """A multilayer perceptron: MLP, whose arguments but for `rngs` it takes, as a Model.

    Raises:
        ValueError: if a width is below 1, a rate is outside [0, 1), or `init` is unknown.

    Source: HAT's network for MNIST [joansj/hat, src/networks/mlp_hat.py] is this one:

    >>> model = mlp(784, (2000, 2000), dropout=0.5, input_dropout=0.2)
    >>> parameter_count(jax.eval_shape(model.init, jax.random.key(0))[0])
    5592010
    """
    return _model(partial(MLP, features_in, hidden, classes, **options))


def alexnet(shape: Sequence[int] = (32, 32, 3), classes: int = 10, **options) -> Model:
    """HAT's AlexNet-like network: AlexNetLike, whose arguments but for `rngs` it takes, as a Model.

    Raises:
        ValueError: if the images are too small, a width is below 1, a rate is outside [0, 1), or
            `init` is unknown.
    """
    return _model(partial(AlexNetLike, shape, classes, **options))


def resnet18(shape: Sequence[int] = (32, 32, 3), classes: int = 10, **options) -> Model:
    """ResNet-18 for small images: ResNet18, whose arguments but for `rngs` it takes, as a Model.

    Raises:
        ValueError: if a width is below 1 or `init` is unknown.
    """
    return _model(partial(ResNet18, shape, classes, **options))


def vgg16(shape: Sequence[int] = (32, 32, 3), classes: int = 10, **options) -> Model:
    """VGG-16 for small images: VGG16, whose arguments but for `rngs` it takes, as a Model.

    Raises:
        ValueError: if the images are below 32 x 32, a width is below 1, a rate is outside [0, 1),
            or `init` is unknown.
    """
    return _model(partial(VGG16, shape, classes, **options))


def parameter_count(params: Any) -> int:
    """Number of entries of a pytree of arrays, or of their shapes from `jax.eval_shape`."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


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
        plan = _chain_plan(self.shape, self.units, classes)
        biases = [*(not unit.norm for unit in units), True]
        layers = [_layer(*row, **options) for row in zip(plan, biases, strict=True)]
        self.layers, self.head = nnx.List(layers[:-1]), layers[-1]
        self.norms = nnx.Dict(
            {str(i): _norm(u.width, dtype, rngs) for i, u in enumerate(units) if u.norm}
        )
        rates = [input_dropout, *(unit.dropout for unit in units)]
        if not all(0 <= rate < 1 for rate in rates):
            raise ValueError(f"dropout: expected rates in [0, 1), not {rates}, the input's first.")
        self.dropouts = nnx.List([nnx.Dropout(r, rngs=rngs if r else None) for r in rates])
        _draw(self, init, rngs.params())

    def __call__(self, x: jax.Array, *, gates: Mapping[str, jax.Array] | None = None) -> jax.Array:
        """Logits `[B, C]` of inputs `[B, ...]`; each layer is multiplied by its gate, if any."""
        return self.column(x, (None,) * len(self.layers), gates=gates)[0]

    def column(self, x, laterals, *, gates=None):
        """Logits and the inputs of the layers from the second to the head; see Model.column."""
        x = self.dropouts[0](x.reshape(x.shape[0], *self.shape))
        hiddens = []
        for i, (unit, layer) in enumerate(zip(self.units, self.layers, strict=True)):
            x = x if unit.kernel else x.reshape(x.shape[0], -1)
            hiddens.append(x)
            x = layer(x)
            x = self.norms[str(i)](x) if unit.norm else x
            x = nnx.relu(_add(x, laterals[i - 1] if i else None))
            x = self.dropouts[i + 1](x)
            x = nnx.max_pool(x, (2, 2), (2, 2)) if unit.pool else x
            x = _gate(x, gates, f"layer{i}")
        hiddens.append(x.reshape(x.shape[0], -1))
        logits = self.head(hiddens[-1])
        logits = _add(logits, laterals[-1]) if self.units else logits
        return logits.astype(jnp.float32), tuple(hiddens[1:])

    def tables(self) -> tuple[tuple[LateralSpec, ...], Wiring]:
        """The laterals' shapes and HAT's table."""
        plan = _chain_plan(self.shape, self.units, self.head.out_features)
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
        return plan[1:], _wiring(gates, rows)


class MLP(Chain):
    """A multilayer perceptron.

    Args:
        features_in: number of input features.
        hidden: widths of the hidden layers.
        classes: width of the head.
        dropout: dropout rate of the hidden layers.
        **options: input_dropout, init, dtype and rngs; see Chain.
    """

    def __init__(
        self,
        features_in: int,
        hidden: Sequence[int] = (400, 400),
        classes: int = 10,
        *,
        dropout: float = 0.0,
        **options,
    ):
        units = [Unit(width, dropout=dropout) for width in hidden]
        super().__init__((features_in,), units, classes, **options)


class AlexNetLike(Chain):
    """The AlexNet-like network of the HAT paper: three convolutions and two dense layers.

    Args:
        shape: `(H, W, C)` of one input.
        classes: width of the head.
        widths: of the five layers.
        dropout: rates of the five layers.
        **options: init, dtype and rngs; see Chain. The paper initializes by init="xavier", its
            code by "torch".

    Source: Serra et al. 2018, section 4; [joansj/hat, src/networks/alexnet_hat.py].
    """

    def __init__(
        self,
        shape: Sequence[int] = (32, 32, 3),
        classes: int = 10,
        *,
        widths: Sequence[int] = (64, 128, 256, 2048, 2048),
        dropout: Sequence[float] = (0.2, 0.2, 0.5, 0.5, 0.5),
        **options,
    ):
        if len(widths) != 5 or len(dropout) != 5:
            raise ValueError(f"widths and dropout need five entries, not {widths} and {dropout}.")
        kernels = (4, 3, 2, 0, 0)
        units = [
            Unit(width, kernel, dropout=rate, pool=kernel > 0)
            for width, kernel, rate in zip(widths, kernels, dropout, strict=True)
        ]
        super().__init__(shape, units, classes, **options)


class VGG16(Chain):
    """VGG-16: thirteen convolutions and two dense layers, which are small as the images are.

    Args:
        shape: `(H, W, C)` of one input.
        classes: width of the head.
        width: channels of the first convolution; the others have 1, 2, 4 and 8 times as many.
        hidden: widths of the dense layers.
        norm: BatchNorm after every convolution.
        dropout: dropout rate of the dense layers.
        **options: init ("he" by default), dtype and rngs; see Chain.

    Source: Simonyan & Zisserman 2015, configuration D.
    Differs: dense layers of 512 instead of 4096 units; with norm, the convolutions have no biases.
    """

    def __init__(
        self,
        shape: Sequence[int] = (32, 32, 3),
        classes: int = 10,
        *,
        width: int = 64,
        hidden: Sequence[int] = (512, 512),
        norm: bool = True,
        dropout: float = 0.5,
        init: str = "he",
        **options,
    ):
        multiples = (1, 1, 2, 2, 4, 4, 4, 8, 8, 8, 8, 8, 8)
        pooled = (1, 3, 6, 9, 12)
        convolutions = [
            Unit(width * multiple, 3, "SAME", norm=norm, pool=i in pooled)
            for i, multiple in enumerate(multiples)
        ]
        dense = [Unit(n, dropout=dropout) for n in hidden]
        super().__init__(shape, convolutions + dense, classes, init=init, **options)


class ResNet18(nnx.Module):
    """ResNet-18 with the 3 x 3 stem that small images want: eight basic blocks in four stages.

    Layers whose outputs are added share one gate: `stage<s>` scales the stream of a stage wherever
    a convolution or the head reads it, and leaves the identity path alone. Each block has its
    `block<b>` between its two convolutions. A lateral is a 3 x 3 convolution from a block's input,
    added before the block's last ReLU.

    Args:
        shape: `(H, W, C)` of one input.
        classes: width of the head.
        width: channels of the first stage; the others have 2, 4 and 8 times as many.
        norm: BatchNorm after every convolution; without it the convolutions have biases.
        init: as in Chain.
        dtype: as in Chain.
        rngs: Flax random streams.

    Source: He et al. 2016, sections 3.3 and 4.2.
    Differs: the shortcut is a 1 x 1 convolution (their option B) also for small images.
    """

    def __init__(
        self,
        shape: Sequence[int] = (32, 32, 3),
        classes: int = 10,
        *,
        width: int = 64,
        norm: bool = True,
        init: str = "he",
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.shape = tuple(shape)
        options = {"dtype": dtype, "rngs": rngs}
        *specs, head = _resnet_plan(self.shape, width, classes)
        stem = LateralSpec(self.shape, specs[0].hidden, (3, 3), (1, 1), "SAME")
        self.norm = norm
        self.stem = _layer(stem, not norm, **options)
        self.stem_norm = _norm(width, dtype, rngs) if norm else nnx.identity
        self.blocks = nnx.List([Block(spec, norm=norm, **options) for spec in specs])
        self.head = _layer(head, True, **options)
        _draw(self, init, rngs.params())

    def __call__(self, x: jax.Array, *, gates: Mapping[str, jax.Array] | None = None) -> jax.Array:
        """Logits `[B, C]` of inputs `[B, ...]`; each layer is multiplied by its gate, if any."""
        return self.column(x, (None,) * 9, gates=gates)[0]

    def column(self, x, laterals, *, gates=None):
        """Logits and the inputs of the blocks and of the head; see Model.column."""
        x = x.reshape(x.shape[0], *self.shape)
        x = nnx.relu(self.stem_norm(self.stem(x)))
        hiddens = []
        for i, block in enumerate(self.blocks):
            hiddens.append(_gate(x, gates, _stream(i)))
            x = block(x, hiddens[-1], laterals[i], gates, f"block{i}")
        hiddens.append(_gate(x.mean((1, 2)), gates, "stage3"))
        logits = _add(self.head(hiddens[-1]), laterals[-1])
        return logits.astype(jnp.float32), tuple(hiddens)

    def tables(self) -> tuple[tuple[LateralSpec, ...], Wiring]:
        """The laterals' shapes and HAT's table."""
        width = self.stem.out_features
        plan = _resnet_plan(self.shape, width, self.head.out_features)
        gates = {f"stage{i}": width * 2**i for i in range(4)}
        rows: list[tuple] = [("stem", "stem_norm", (None, self.shape[-1]), "stage0")]
        for i, block in enumerate(self.blocks):
            gates[f"block{i}"] = block.conv1.out_features
            path, source, target = f"blocks/{i}", (_stream(i), 1), _stream(i + 1)
            rows.append((f"{path}/conv1", f"{path}/norm1", source, f"block{i}"))
            rows.append((f"{path}/conv2", f"{path}/norm2", (f"block{i}", 1), target))
            if block.shortcut is not None:
                rows.append((f"{path}/shortcut", f"{path}/shortcut_norm", source, target))
        rows = rows if self.norm else [(path, None, *row) for path, _, *row in rows]
        return plan, _wiring(gates, [*rows, ("head", None, ("stage3", 1), None)])


class Block(nnx.Module):
    """A basic residual block; `spec` says what it maps to what, and by which stride."""

    def __init__(self, spec: LateralSpec, *, norm: bool, dtype: Any, rngs: nnx.Rngs):
        layer = partial(_layer, use_bias=not norm, dtype=dtype, rngs=rngs)
        norm_layer = partial(_norm, spec.out[-1], dtype, rngs) if norm else lambda: nnx.identity
        self.conv1, self.norm1 = layer(spec), norm_layer()
        self.conv2 = layer(spec._replace(hidden=spec.out, strides=(1, 1)))
        self.norm2 = norm_layer()
        widens = spec.hidden != spec.out
        self.shortcut = layer(spec._replace(kernel=(1, 1))) if widens else None
        self.shortcut_norm = norm_layer() if widens else nnx.identity

    def __call__(self, stream, x, lateral, gates, name):
        """The next stream, from the stream and `x`, the stream behind its gate."""
        skip = stream if self.shortcut is None else self.shortcut_norm(self.shortcut(x))
        x = _gate(nnx.relu(self.norm1(self.conv1(x))), gates, name)
        return nnx.relu(_add(self.norm2(self.conv2(x)) + skip, lateral))


def _model(build: Callable) -> Model:
    """A built-in network as a Model."""
    net, init, run = functional(lambda rngs: build(rngs=rngs))
    laterals, wiring = net.tables()

    def split(params):
        """Parameters and gates."""
        params = dict(params)
        gates = params.pop("gates", None) or {}
        unknown = sorted(set(gates) - set(wiring.gates))
        if unknown:
            raise ValueError(f"no gate is called {unknown[0]!r}; expected {list(wiring.gates)}.")
        return params, gates

    def apply(params, statistics, x, *, train=False, key=None, freeze_norm=False):
        params, gates = split(params)
        call = lambda net: net(x, gates=gates)  # noqa: E731
        return run(call, params, statistics, train, key, freeze_norm)

    def column(params, statistics, x, added, *, train=False, key=None):
        if len(added) != len(laterals):
            raise ValueError(f"expected {len(laterals)} laterals, one a layer, not {len(added)}.")
        params, gates = split(params)
        (logits, hiddens), statistics = run(
            lambda net: net.column(x, added, gates=gates), params, statistics, train, key
        )
        return logits, hiddens, statistics

    return Model(init, apply, column, laterals, wiring)


def _chain_plan(
    shape: tuple[int, ...], units: Sequence[Unit], classes: int
) -> tuple[LateralSpec, ...]:
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


def _resnet_plan(shape: tuple[int, ...], width: int, classes: int) -> tuple[LateralSpec, ...]:
    """What each block of a ResNet-18, and then its head, maps to what."""
    if len(shape) != 3 or width < 1 or classes < 1:
        raise ValueError(
            f"expected a shape (H, W, C), width >= 1 and classes >= 1, not {shape}, {width} and "
            f"{classes}."
        )
    plan, hidden = [], (*shape[:2], width)
    for i in range(8):
        stride = 2 if i in (2, 4, 6) else 1
        out = (-(-hidden[0] // stride), -(-hidden[1] // stride), width * 2 ** (i // 2))
        plan.append(LateralSpec(hidden, out, (3, 3), (stride, stride), "SAME"))
        hidden = out
    return (*plan, LateralSpec(hidden[-1:], (classes,)))


def _stream(block: int) -> str:
    """The gate of the stream that a block of a ResNet-18 reads, and the block before it writes."""
    return f"stage{max(block - 1, 0) // 2}"


def _wiring(gates: dict[str, int], rows: list[tuple]) -> Wiring:
    """HAT's table from rows of layer, norm or None, its source's gate and repeats, its own gate."""
    inputs = {f"{layer}/kernel": (source,) for layer, _, source, _ in rows}
    outputs = {}
    for layer, norm, _, gate in rows:
        if gate is not None:
            outputs[f"{layer}/kernel"] = gate
            shifts = [f"{norm}/scale", f"{norm}/bias"] if norm else [f"{layer}/bias"]
            outputs |= dict.fromkeys(shifts, gate)
    return Wiring(gates, inputs, outputs, native=True)


def _layer(spec: LateralSpec, use_bias: bool, *, dtype: Any, rngs: nnx.Rngs) -> Any:
    """A dense layer or a convolution, of zeros until `_draw`."""
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
        **options,
    )


def _draw(net: nnx.Module, init: str, key: jax.Array) -> None:
    """Draws a network's kernels, and for "torch" its biases.

    All come from one draw: on a CPU, XLA takes a second for each shape that is drawn.
    """
    if init not in _INITS:
        raise ValueError(f"init: expected one of {list(_INITS)}, not {init!r}.")
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


def _norm(width: int, dtype: Any, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(width, momentum=0.9, dtype=dtype, rngs=rngs)


def _add(x: jax.Array, lateral: jax.Array | None) -> jax.Array:
    return x if lateral is None else x + lateral.astype(x.dtype)


def _gate(x: jax.Array, gates: Mapping[str, jax.Array] | None, name: str) -> jax.Array:
    """Scales the last axis of `x` by its gate, in the gate's precision."""
    if not gates or name not in gates:
        return x
    gate = gates[name].reshape((1,) * (x.ndim - 1) + (-1,))
    return (x * gate).astype(x.dtype)
