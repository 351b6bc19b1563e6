"""DEN's units: which of them reach a class, which drifted, and how one becomes two."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcl.core import masks
from jaxcl.core.model import Wiring
from jaxcl.core.trees import PyTree
from jaxcl.methods import units as of_units


def reaching(
    wiring: Wiring, leaves: Mapping[str, jax.Array], classes: jax.Array
) -> dict[str, jax.Array]:
    """The units from which a path of non-zero weights leads to some class; for each layer [units].

    Args:
        wiring: the table.
        leaves: by path, with the running task's head, their units split; 0 where no unit is.
        classes: bool [C], the classes that count.
    """
    readers = {
        gate: [p for p, ((g, _),) in wiring.inputs.items() if g == gate] for gate in wiring.gates
    }

    def reach(gate):
        found = jnp.zeros(wiring.gates[gate], bool)
        for path in readers[gate]:
            leaf = leaves[path]
            ends_well = reach(wiring.outputs[path]) if path in wiring.outputs else classes
            ends_well = ends_well.reshape((1,) * (leaf.ndim - 1) + (-1,))
            axes = (*range(leaf.ndim - 2), leaf.ndim - 1)
            found |= jnp.any((leaf != 0) & ends_well, axis=axes)
        return found

    return {gate: reach(gate) for gate in wiring.gates}


def drift_of(
    wiring: Wiring, leaves: Mapping[str, jax.Array], before: Mapping[str, jax.Array],
    stamps: Mapping[str, jax.Array], task: Any,
) -> dict[str, jax.Array]:  # fmt: skip
    """How far each older unit's incoming weights from older units moved; 0 for the other units."""
    old = {gate: (stamp > 0) & (stamp <= task) for gate, stamp in stamps.items()}
    found = {}
    for path, gate in wiring.outputs.items():
        if path in wiring.inputs:
            source, target = of_units.ends(wiring, path, leaves[path], old, True, True)
            moved = jnp.where(source & target, leaves[path] - before[path], 0.0)
            found[gate] = jnp.sqrt(jnp.sum(moved**2, axis=range(moved.ndim - 1)))
    return found


class Copies(NamedTuple):
    """Which units of a layer are split.

    Attributes:
        source: int [units], the unit that each is a copy of; its own number for most.
        split: bool [units], the units that a copy is made of.
    """

    source: jax.Array
    split: jax.Array


def plan_copies(drift: jax.Array, stamp: jax.Array, limit: Any, most: int, first: str) -> Copies:
    """Copies of the units that drifted further than a limit, in the places that are free.

    Args:
        drift: float [units].
        stamp: int [units]; 0 is free.
        limit: the drift beyond which a unit is split.
        most: the most units that are.
        first: whether the `"most"` or the `"least"` drifted of them go first.
    """
    moved = drift > limit
    order = jnp.argsort(jnp.where(moved, -drift if first == "most" else drift, jnp.inf))
    places = jnp.argsort(stamp != 0, stable=True)
    number = min(most, stamp.size)
    rank = jnp.arange(number)
    valid = (rank < jnp.sum(moved)) & (rank < jnp.sum(stamp == 0))
    own = jnp.arange(stamp.size)
    source = own.at[places[:number]].set(jnp.where(valid, order[:number], places[:number]))
    split = jnp.zeros(stamp.size, bool).at[order[:number]].set(valid)
    return Copies(source, split)


def split_units(
    wiring: Wiring, theta: PyTree, before: Mapping[str, jax.Array], copies: Mapping[str, Copies],
    stamps: Mapping[str, jax.Array], task: Any, heads: str,
) -> PyTree:  # fmt: skip
    """Each copy takes over its unit's weights, and the unit gets back those before the task.

    What the running task alone has, its head, its new units and the copies, reads the copy in the
    place of the unit; older units go on reading the unit.

    Args:
        wiring: the table.
        theta: parameters, their units split; the leaves that match `heads` have a leading [tasks]
            axis, of which the running task's row is written.
        before: the other leaves, by path, before the task.
        copies: for each layer, who is a copy of whom.
        stamps: for each layer [units], the copies not among them.
        task: the running task.
        heads: regular expression of the leaves that are each task's own.
    """
    old = {gate: (stamp > 0) & (stamp <= task) for gate, stamp in stamps.items()}
    source_of = {gate: copy.source for gate, copy in copies.items()}
    is_split = {gate: copy.split for gate, copy in copies.items()}
    is_copy = {gate: source != jnp.arange(source.size) for gate, source in source_of.items()}
    is_new = {gate: is_copy[gate] | (stamps[gate] == task + 1) for gate in copies}

    def place(path, leaf):
        if path not in wiring.inputs and path not in wiring.outputs:
            return leaf
        own = re.search(heads, path) is not None
        new = leaf[task] if own else leaf
        from_split, to_split = of_units.ends(wiring, path, new, is_split, False, False)
        from_copy, _ = of_units.ends(wiring, path, new, is_copy, False, False)
        _, to_new = of_units.ends(wiring, path, new, is_new, False, True)
        if path in wiring.inputs and (gate := wiring.inputs[path][0][0]) is not None:
            new = jnp.take(new, source_of[gate], axis=-2)
        if path in wiring.outputs:
            new = jnp.take(new, source_of[wiring.outputs[path]], axis=-1)
        new = jnp.where(jnp.where(to_new, from_split, from_copy), 0.0, new)
        if own:
            return leaf.at[task].set(new)
        from_old, _ = of_units.ends(wiring, path, leaf, old, True, True)
        return jnp.where(to_split, jnp.where(from_old, before[path], 0.0), new)

    return masks.map_with_path(place, theta)
