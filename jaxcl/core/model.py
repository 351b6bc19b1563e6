"""What the library trains: a network as pure functions. Loads no Flax."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax

from jaxcl.core.trees import PyTree


class Wiring(NamedTuple):
    """Which axis of which leaf each gate scales, protects, or both.

    An entry of a leaf is protected by the smaller of the gates at its two ends. An axis without a
    gate counts as always used, and so do leaves that are in neither table.

    Attributes:
        gates: number of units of each gate. Layers whose outputs are added share one gate.
        inputs: for a kernel's path, what feeds its input axis (-2): segments (gate, repeats) in
            the axis' order. `repeats` > 1 tiles the gate, as flattening NHWC features does. A
            segment (None, width) is raw input, which has no gate.
        outputs: for a leaf's path, the gate on its output axis (-1): kernels, biases, and the
            scales and shifts of per-unit norms.
        native: the model multiplies its activations by `params["gates"]` itself.
        groups: for the path of a grouped convolution's kernel, the number of groups G. Its input
            segments then span all inputs, G times the kernel's axis: output o reads slice
            o // (outputs / G).

    >>> wiring = Wiring({"unit": 4}, {"head": (("unit", 1),)}, {"hidden": "unit"})
    >>> wiring.gates, wiring.outputs["hidden"]
    ({'unit': 4}, 'unit')
    """

    gates: Mapping[str, int]
    inputs: Mapping[str, tuple[tuple[str | None, int], ...]]
    outputs: Mapping[str, str]
    native: bool = False
    groups: Mapping[str, int] = {}


class LateralSpec(NamedTuple):
    """Where a lateral connection of a progressive network leaves and arrives; no batch axis.

    Attributes:
        hidden: shape of the source activation, the layer's input: `[H, W, C]` or `[N]`.
        out: shape of the pre-activation that the lateral is added to.
        kernel: spatial size of the lateral convolution; None if the lateral is dense.
        strides: strides of the lateral convolution; None if dense.
        padding: "SAME" or "VALID"; None if dense.
    """

    hidden: tuple[int, ...]
    out: tuple[int, ...]
    kernel: tuple[int, int] | None = None
    strides: tuple[int, int] | None = None
    padding: str | None = None


class Model(NamedTuple):
    """A network as pure functions: they may be jitted, vmapped, differentiated and scanned.

    Parameters are nested dicts of float32 arrays. `statistics` is everything else that the network
    carries from step to step, above all the running averages of BatchNorm; `{}` where there is
    nothing. With `train=True` dropout is on, BatchNorm normalizes with the batch's own statistics,
    and the statistics returned are the updated ones; otherwise they come back as they were.

    Attributes:
        init: `init(key) -> (params, statistics)`.
        apply: `apply(params, statistics, x, *, train=False, key=None) -> (logits, statistics)`,
            with x `[B, ...]` and logits `[B, C]`. The built-in models multiply each layer's output
            by `params["gates"][name]` `[N]` if there are gates; bool gates select. A model with
            statistics also takes `freeze_norm=True`: in training, norms use their running averages
            and leave them alone. If it takes `weight` `[B]`, it is told which rows only fill up a
            batch, by a 0, to leave them out of its statistics.
        column: `column(params, statistics, x, laterals, *, train=False, key=None) -> (logits,
            hiddens, statistics)`, and `weight` likewise. `laterals[i]`, or nothing where it is
            None, is added to the pre-activation of `Model.laterals[i]`; `hiddens[i]` is that
            layer's input.
        laterals: one LateralSpec for each layer from the second to the head.
        wiring: the table of gates, for the built-in models.
        frozen: `frozen(params, statistics, x) -> features`: the part of the network that does not
            change while a task trains, if there is one. `apply` then takes `features=` to save it.

    >>> import jax.numpy as jnp
    >>> model = Model(
    ...     init=lambda key: ({"head": jax.random.normal(key, (3, 2))}, {}),
    ...     apply=lambda params, statistics, x, **_: (x @ params["head"], statistics),
    ... )
    >>> params, statistics = model.init(jax.random.key(0))
    >>> jax.eval_shape(model.apply, params, statistics, jnp.ones((5, 3)))[0].shape
    (5, 2)
    """

    init: Callable[[jax.Array], tuple[PyTree, PyTree]]
    apply: Callable[..., tuple[jax.Array, PyTree]]
    column: Callable | None = None
    laterals: tuple[LateralSpec, ...] = ()
    wiring: Wiring | None = None
    frozen: Callable[..., PyTree] | None = None
