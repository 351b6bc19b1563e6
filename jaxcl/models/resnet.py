"""ResNet-18 for small images."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxcl.core.model import LateralSpec, Wiring
from jaxcl.models.layers import (
    add_lateral,
    apply_gate,
    batch_norm,
    draw_kernels,
    make_layer,
    make_wiring,
    relu,
)


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
        *specs, head = _plan(self.shape, width, classes)
        stem = LateralSpec(self.shape, specs[0].hidden, (3, 3), (1, 1), "SAME")
        self.norm = norm
        self.stem = make_layer(stem, not norm, **options)
        self.stem_norm = batch_norm(width, dtype, rngs) if norm else nnx.identity
        self.blocks = nnx.List([Block(spec, norm=norm, **options) for spec in specs])
        self.head = make_layer(head, True, **options)
        draw_kernels(self, init, rngs.params())

    def __call__(self, x: jax.Array, *, gates: Mapping[str, jax.Array] | None = None) -> jax.Array:
        """Logits `[B, C]` of inputs `[B, ...]`; each layer is multiplied by its gate, if any."""
        return self.column(x, (None,) * 9, gates=gates)[0]

    def column(self, x, laterals, *, gates=None):
        """Logits and the inputs of the blocks and of the head; see Model.column."""
        x = x.reshape(x.shape[0], *self.shape)
        x = relu(self.stem_norm(self.stem(x)))
        hiddens = []
        for i, block in enumerate(self.blocks):
            hiddens.append(apply_gate(x, gates, _stream(i)))
            x = block(x, hiddens[-1], laterals[i], gates, f"block{i}")
        hiddens.append(apply_gate(x.mean((1, 2)), gates, "stage3"))
        logits = add_lateral(self.head(hiddens[-1]), laterals[-1])
        return logits.astype(jnp.float32), tuple(hiddens)

    def tables(self) -> tuple[tuple[LateralSpec, ...], Wiring]:
        """The laterals' shapes and the table of gates."""
        width = self.stem.out_features
        plan = _plan(self.shape, width, self.head.out_features)
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
        return plan, make_wiring(gates, [*rows, ("head", None, ("stage3", 1), None)])


class Block(nnx.Module):
    """A basic residual block; `spec` says what it maps to what, and by which stride."""

    def __init__(self, spec: LateralSpec, *, norm: bool, dtype: Any, rngs: nnx.Rngs):
        layer = partial(make_layer, use_bias=not norm, dtype=dtype, rngs=rngs)
        norm_layer = (
            partial(batch_norm, spec.out[-1], dtype, rngs) if norm else lambda: nnx.identity
        )
        self.conv1, self.norm1 = layer(spec), norm_layer()
        self.conv2 = layer(spec._replace(hidden=spec.out, strides=(1, 1)))
        self.norm2 = norm_layer()
        widens = spec.hidden != spec.out
        self.shortcut = layer(spec._replace(kernel=(1, 1))) if widens else None
        self.shortcut_norm = norm_layer() if widens else nnx.identity

    def __call__(self, stream, x, lateral, gates, name):
        """The next stream, from the stream and `x`, the stream behind its gate."""
        skip = stream if self.shortcut is None else self.shortcut_norm(self.shortcut(x))
        x = apply_gate(relu(self.norm1(self.conv1(x))), gates, name)
        return relu(add_lateral(self.norm2(self.conv2(x)) + skip, lateral))


def _plan(shape: tuple[int, ...], width: int, classes: int) -> tuple[LateralSpec, ...]:
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
