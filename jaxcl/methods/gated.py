"""What gates do to the weights that they feed and read: scaled, cut, protected, counted."""

import math

import jax
import jax.numpy as jnp

from jaxcl.core import masks
from jaxcl.core.model import Wiring
from jaxcl.core.trees import PyTree


def input_factor(wiring: Wiring, path: str, leaf: jax.Array, gates: PyTree) -> jax.Array:
    """The gates along a kernel's input axis, as an array that broadcasts against the kernel.

    Raw input counts as always used: 1. A channel that a flattening spreads over space repeats its
    gate (NHWC: the whole vector is tiled). In a grouped convolution each output sees its own
    group's inputs alone.
    """
    segments = [
        jnp.ones(repeats) if name is None else jnp.tile(gates[name], repeats)
        for name, repeats in wiring.inputs[path]
    ]
    factor = jnp.concatenate(segments)[:, None]
    groups = wiring.groups.get(path, 1)
    if groups > 1:
        factor = jnp.repeat(factor.reshape(groups, -1), leaf.shape[-1] // groups, axis=0).T
    return factor.reshape((1,) * (leaf.ndim - 2) + factor.shape)


def fold(wiring: Wiring, params: PyTree, gates: PyTree) -> PyTree:
    """Scales each kernel's input axis by the gates that feed it.

    This equals multiplying the activations, whatever the activation function, if the gate is the
    last operation before the kernel.
    """

    def scale(path, leaf):
        if path not in wiring.inputs:
            return leaf
        return leaf * input_factor(wiring, path, leaf, gates).astype(leaf.dtype)

    return masks.map_with_path(scale, params)


def cut_unattended(wiring: Wiring, params: PyTree, gates: PyTree) -> PyTree:
    """Zeroes what feeds a unit whose gate is 0 and what reads it: a task's network is only its own.

    Later tasks move what is cut, so it is not multiplied by zero, but replaced: 0 * inf is nan. For
    gates of 0 and 1 this is what `fold` computes.
    """

    def cut(path, leaf):
        if path in wiring.outputs:
            leaf = jnp.where(gates[wiring.outputs[path]] == 0, jnp.zeros_like(leaf), leaf)
        if path in wiring.inputs:
            closed = input_factor(wiring, path, leaf, gates) == 0
            leaf = jnp.where(closed, jnp.zeros_like(leaf), leaf)
        return leaf

    return masks.map_with_path(cut, params)


def attended_weights(wiring: Wiring, params: PyTree, attention: PyTree) -> PyTree:
    """Which weights lie between two attended units: bool, one array for each gated kernel.

    Source: HAT (2018), Sec. 4.4: capacity used is the share of these weights.
    """
    leaves = masks.leaves_by_path(params)
    return {
        path: jnp.broadcast_to(
            masks.dense(
                masks.Attended(
                    input_factor(wiring, path, leaves[path], attention),
                    attention[wiring.outputs[path]],
                )
            )
            < 0.5,
            leaves[path].shape,
        )
        for path in wiring.inputs
        if path in wiring.outputs
    }


def protection(wiring: Wiring, path: str, leaf: jax.Array, attention: PyTree) -> jax.Array:
    """The smaller of the attentions at a leaf's two ends, 1 where there is no gate: broadcasts."""
    source = target = jnp.ones((1,) * leaf.ndim)
    if path in wiring.inputs:
        source = input_factor(wiring, path, leaf, attention)
    if path in wiring.outputs:
        target = attention[wiring.outputs[path]].reshape((1,) * (leaf.ndim - 1) + (-1,))
    return jnp.minimum(source, target)


def overlap(wiring: Wiring, params: PyTree, embeddings: PyTree) -> jax.Array:
    """The share of the network's weights that both of two tasks use: between two open gates.

    Args:
        wiring: HAT's table.
        params: the network's parameters, or their shapes.
        embeddings: for each gate [tasks, units]; a gate is open where the embedding is positive.

    Returns:
        [tasks, tasks], in [0, 1]; the diagonal is what each task uses by itself.
    """
    gates = jax.tree.map(lambda e: (e > 0).astype(jnp.float32), embeddings)
    leaves, both, total = masks.leaves_by_path(params), jnp.float32(0), 0
    for path in [path for path in wiring.inputs if path in wiring.outputs]:
        leaf, target = leaves[path], gates[wiring.outputs[path]]
        source = jax.vmap(lambda g: input_factor(wiring, path, leaf, g))(gates)  # noqa: B023
        source = source.reshape(*source.shape[:1], *source.shape[-2:])
        if source.shape[-1] == 1:  # all outputs have the same inputs
            used = jnp.einsum("tik,sik->ts", source, source) * (target @ target.T)
        else:
            used = jnp.einsum("tio,sio,to,so->ts", source, source, target, target)
        both += used * math.prod(leaf.shape[:-2])
        total += leaf.size
    return both / max(total, 1)
