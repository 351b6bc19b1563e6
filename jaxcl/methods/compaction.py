"""A network without the units that a task does not use, in smaller arrays."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.core import masks
from jaxcl.core.model import Wiring
from jaxcl.core.trees import PyTree


def compacted(
    wiring: Wiring, params: PyTree, gates: Mapping[str, jax.Array], statistics: PyTree
) -> tuple[PyTree, PyTree]:
    """Parameters and running statistics of the units whose gate is above 0.

    What is left out has no effect on the logits. A layer keeps one unit at least, whose weights are
    then 0. Gates between 0 and 1 scale the kernels that read them.

    Args:
        wiring: the table; grouped convolutions are not cut.
        params: the network's parameters, without gates.
        gates: for each gate [units], concrete.
        statistics: running averages, one number a unit, in the layers of the norms.

    Returns:
        Both, in the same structure and smaller shapes.

    Raises:
        ValueError: for a network of grouped convolutions.
    """
    if wiring.groups:
        raise ValueError(
            f"'{min(wiring.groups)}' is a grouped convolution, whose units cannot be left out."
        )
    values = {name: np.asarray(gate, np.float32) for name, gate in gates.items()}
    kept = {name: np.flatnonzero(gate > 0) for name, gate in values.items()}
    kept = {name: rows if len(rows) else np.array([0]) for name, rows in kept.items()}

    def cut(path, leaf):
        if path in wiring.inputs:
            rows, scale, start = [], [], 0
            for name, repeats in wiring.inputs[path]:
                width = repeats if name is None else repeats * len(values[name])
                places = np.arange(width)
                if name is not None:
                    places = np.add.outer(
                        np.arange(repeats) * len(values[name]), kept[name]
                    ).ravel()
                factors = np.ones(width) if name is None else np.tile(values[name], repeats)
                rows.append(start + places)
                scale.append(factors[places])
                start += width
            factor = np.concatenate(scale).astype(np.float32)[:, None]
            leaf = jnp.take(leaf, np.concatenate(rows), axis=-2)
            leaf = leaf * factor.reshape((1,) * (leaf.ndim - 2) + factor.shape).astype(leaf.dtype)
        if path in wiring.outputs:
            leaf = jnp.take(leaf, kept[wiring.outputs[path]], axis=-1)
        return leaf

    norms = {path.rpartition("/")[0]: gate for path, gate in wiring.outputs.items()}

    def cut_statistics(path, leaf):
        gate = norms.get(path.rpartition("/")[0])
        return leaf if gate is None else jnp.take(leaf, kept[gate], axis=-1)

    small = masks.map_with_path(cut, params)
    return small, masks.map_with_path(cut_statistics, statistics)
