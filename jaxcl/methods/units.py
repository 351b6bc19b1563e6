"""What methods that grow share: units in arrays with room, of which the method says who is there.

A unit's stamp is 0 where nobody is there yet, and k if the k-th task brought it. Kernels that read
a flattened image are kept as [repeats, units, out], so that every unit has a row of its own, and an
array with more room begins with the one that has less.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.core import masks
from jaxcl.core.method import Batch, Context, Measure, Method
from jaxcl.core.model import Model, Wiring
from jaxcl.core.trees import PyTree
from jaxcl.methods.spec import Limit

NORMS = r"(^|/)norms?(/|$)"  # each task's own: statistics are of the units that there are
TASKS = 8  # that the first program has room for
ROWS = 512  # examples at a time where a network is judged
MOST_UNITS = 1 << 16  # of a layer, each with a number of its own among the draws


def check_wiring(name: str, wiring: Wiring | None, start: Mapping[str, int]) -> Wiring:
    """A network whose layers follow one another, with room for the units that it starts with.

    Raises:
        ValueError: for a network that cannot grow unit by unit, or a start that does not fit.
    """
    if wiring is None:
        raise ValueError(f"{name}: the model has no wiring; derive it with jaxcl.trace_wiring.")
    kernels = [gate for path, gate in wiring.outputs.items() if path in wiring.inputs]
    chain = all(len(segments) == 1 for segments in wiring.inputs.values()) and not wiring.groups
    if not chain or sorted(kernels) != sorted(wiring.gates):
        raise ValueError(
            f"{name}: it grows networks whose layers follow one another, as those of an MLP, an "
            f"AlexNet or a VGG do; this one adds, joins or groups the outputs of layers."
        )
    if start.keys() != wiring.gates.keys():
        raise ValueError(f"{name}: start names {sorted(start)}, not {sorted(wiring.gates)}.")
    for gate, room in wiring.gates.items():
        if not 1 <= start[gate] <= room < MOST_UNITS:
            raise ValueError(
                f"{name}: {gate} starts with {start[gate]} units and has room for {room}; expected "
                f"at least 1, at most its room, and that below {MOST_UNITS}."
            )
    return wiring


def widths(name: str, model: Model) -> dict[str, int]:
    """The units of each hidden layer of a network that can grow."""
    gates = {} if model.wiring is None else model.wiring.gates
    return dict(check_wiring(name, model.wiring, gates).gates)


def tasks_of(name: str, base: Method) -> int:
    """The number of tasks of the method that governs the heads."""
    if base.tasks is None:
        raise ValueError(f"{name}: base has one head for all tasks; give multihead(finetune()).")
    return base.tasks


def check_own(name: str, heads: str, params: PyTree, theta: PyTree) -> None:
    """Raises ValueError where the base and the method disagree on what is each task's own."""
    stacked = masks.leaves_by_path(theta)
    for path, leaf in masks.leaves_by_path(params).items():
        meant = re.search(heads, path) is not None
        if meant != (stacked[path].ndim > leaf.ndim):
            raise ValueError(
                f"{name}: by heads={heads!r} '{path}' is {'' if meant else 'not '}each task's own, "
                f"but by its base it is {'not ' if meant else ''}so; give both the same pattern."
            )


def split_units(wiring: Wiring, params: PyTree) -> PyTree:
    """Gives each unit that a flattening repeats one row: [repeats * units, out] by its repeats."""

    def split(path, leaf):
        ((gate, repeats),) = wiring.inputs.get(path, ((None, 1),))
        return leaf if gate is None or repeats == 1 else leaf.reshape(repeats, -1, leaf.shape[-1])

    return masks.map_with_path(split, params)


def join_units(wiring: Wiring, params: PyTree) -> PyTree:
    """What `split_units` was given."""

    def join(path, leaf):
        ((gate, repeats),) = wiring.inputs.get(path, ((None, 1),))
        return leaf if gate is None or repeats == 1 else leaf.reshape(-1, leaf.shape[-1])

    return masks.map_with_path(join, params)


def with_room(model: Model, room: Model) -> Model:
    """The network `room`, whose first units start as those of the smaller `model`.

    A seed's network starts from the same numbers however much room there is.
    """
    small, large = model.wiring, room.wiring
    if small is None or large is None:
        raise ValueError("the model has no wiring; derive it with jaxcl.trace_wiring.")

    def init(key):
        params = split_units(small, model.init(key)[0])
        start, statistics = room.init(key)
        start = jax.tree.map(
            lambda whole, part: jax.lax.dynamic_update_slice(whole, part, (0,) * part.ndim),
            split_units(large, start), params,
        )  # fmt: skip
        return join_units(large, start), statistics

    return room._replace(init=init)


def first_units(wiring: Wiring, start: Mapping[str, int]) -> dict[str, jax.Array]:
    """The stamps before the first task: 1 for each of the units that a layer starts with."""
    return {
        gate: jnp.asarray(jnp.arange(room) < start[gate], jnp.int32)
        for gate, room in wiring.gates.items()
    }


def claim(stamps: Mapping[str, jax.Array], units: Mapping[str, int], task) -> dict[str, jax.Array]:
    """The stamps once every layer has so many further units, as far as there is room.

    >>> print(claim({"layer": jnp.array([1, 0, 1, 0, 0])}, {"layer": 2}, task=1)["layer"])
    [1 2 1 2 0]
    """

    def of_layer(stamp, number):
        free = stamp == 0
        return jnp.where(free & (jnp.cumsum(free) <= number), task + 1, stamp)

    return {gate: of_layer(stamp, units[gate]) for gate, stamp in stamps.items()}


def ends(wiring: Wiring, path: str, leaf: jax.Array, values: PyTree, source, target):
    """What the units at a leaf's two ends have, as arrays that broadcast against the leaf.

    Args:
        wiring: the table.
        path: of the leaf.
        leaf: the leaf, its units split.
        values: for each layer [units].
        source: what raw input has, and what feeds a bias.
        target: what logits have.
    """
    lead = (1,) * (leaf.ndim - 2)
    if path in wiring.inputs and wiring.inputs[path][0][0] is not None:
        source = values[wiring.inputs[path][0][0]].reshape(*lead, -1, 1)
    if path in wiring.outputs:
        target = values[wiring.outputs[path]].reshape((1,) * (leaf.ndim - 1) + (-1,))
    return source, target


def draw_by_index(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Normal values, cut at two standard deviations, each drawn by the numbers of its two units.

    Args:
        key: a typed key.
        shape: [..., in, out], with fewer than `MOST_UNITS` units. More of them change no value.

    Returns:
        Float array of variance 1.
    """
    *taps, units, out = shape

    def entry(i, j):
        own = jax.random.fold_in(key, i * MOST_UNITS + j)
        return jax.random.truncated_normal(own, -2, 2, tuple(taps)) / 0.87962566103423978

    rows, columns = jnp.arange(units, dtype="uint32"), jnp.arange(out, dtype="uint32")
    drawn = jax.vmap(lambda i: jax.vmap(lambda j: entry(i, j))(columns))(rows)
    return jnp.moveaxis(drawn, (0, 1), (-2, -1))


def fresh_kernel(key: jax.Array, leaf: jax.Array, present) -> jax.Array:
    """A start for a kernel: LeCun normal over the source units that are there, zero for the rest.

    Args:
        key: a typed key.
        leaf: kernel [..., in, out], its units split.
        present: bool, whether a source unit is there; broadcasts against the kernel.
    """
    present = jnp.broadcast_to(present, (*(1,) * (leaf.ndim - 2), leaf.shape[-2], 1))
    fan_in = math.prod(leaf.shape[:-2]) * jnp.maximum(jnp.sum(present), 1)
    return jnp.where(present, draw_by_index(key, leaf.shape) / jnp.sqrt(fan_in), 0.0)


def _key_of(wiring: Wiring, key: jax.Array, path: str) -> jax.Array:
    """A kernel's own key."""
    return jax.random.fold_in(key, sorted(wiring.inputs).index(path))


def fresh_heads(
    wiring: Wiring, key: jax.Array, theta: PyTree, stamps: Mapping[str, jax.Array], task: Any
) -> PyTree:
    """Draws a later task's row of the heads anew, by the units that are there and not by the room.

    Args:
        wiring: the table.
        key: a typed key.
        theta: parameters whose heads have a leading [tasks] axis, their units split.
        stamps: for each layer [units].
        task: the task; the first one's head stays as it is.
    """

    def start(path, leaf):
        if path not in wiring.inputs or path in wiring.outputs:
            return leaf
        old = leaf[task]
        stamp, _ = ends(wiring, path, old, stamps, 1, 1)
        drawn = fresh_kernel(_key_of(wiring, key, path), old, stamp > 0)
        return leaf.at[task].set(jnp.where(task > 0, drawn, old))

    return masks.map_with_path(start, theta)


def fresh_units(
    wiring: Wiring, key: jax.Array, theta: PyTree, stamps: Mapping[str, jax.Array],
    new: Mapping[str, jax.Array], task: Any, heads: str,
) -> PyTree:  # fmt: skip
    """Starts new units: their incoming weights are drawn, and what reads them is zero.

    So growth by itself changes no output, and yet every new weight gets a gradient in the end.

    Args:
        wiring: the table.
        key: a typed key.
        theta: parameters, their units split; the leaves that match `heads` have a leading [tasks]
            axis, of which the running task's row is written.
        stamps: for each layer [units], the new ones included.
        new: likewise bool, which units are new.
        task: the running task.
        heads: regular expression of the leaves that are each task's own.
    """

    def start(path, leaf):
        if path not in wiring.inputs and path not in wiring.outputs:
            return leaf
        own = re.search(heads, path) is not None
        old = leaf[task] if own else leaf
        from_new, to_new = ends(wiring, path, old, new, False, False)
        fresh = jnp.ones_like(old) if path.endswith("scale") else jnp.zeros_like(old)
        if path in wiring.inputs:
            stamp, _ = ends(wiring, path, old, stamps, 1, 1)
            drawn = fresh_kernel(_key_of(wiring, key, path), old, stamp > 0)
            fresh = jnp.where(to_new, drawn, fresh)
        fresh = jnp.where(from_new | to_new, fresh, old)
        return leaf.at[task].set(fresh) if own else fresh

    return masks.map_with_path(start, theta)


def misses(context: Context, theta: PyTree, state: PyTree, goal: Any, tasks: int) -> jax.Array:
    """Whether the running task's network is below its goal: one for all tasks, or one for each."""
    goals = jnp.broadcast_to(jnp.asarray(goal, float), (tasks,))
    return accuracy(context, theta, state) < goals[context.task]


def accuracy(context: Context, theta: PyTree, state: PyTree) -> jax.Array:
    """The set-up's metric of the running task's network: the share of examples it gets right.

    It is judged by the validation examples; by those to train on where there are no others.
    """
    held_out = context.validation
    data = context.examples if held_out is None else held_out
    return _mean(context, theta, state, data, context.metric)


def loss(context: Context, theta: PyTree, state: PyTree) -> jax.Array:
    """The running task's loss over its examples to train on, as its network is evaluated."""
    return _mean(context, theta, state, context.examples, context.loss)


def _mean(context, theta, state, data, of) -> jax.Array:
    """The mean of `of(logits, batch)` over examples, a few at a time."""
    if data is None:
        raise ValueError("a phase that judges the network needs examples; give examples=.")
    data = jax.tree.map(jnp.asarray, data)
    length = data.y.shape[0]
    size = min(ROWS, length)

    def add(i, total):
        position = i * size + jnp.arange(size)
        rows = jnp.minimum(position, length - 1)
        batch = Batch(data.x[rows], data.y[rows])
        value = of(context.logits(theta, state, batch), batch)
        return total + jnp.sum(jnp.where(position < data.count, value, 0.0))

    return jax.lax.fori_loop(0, (data.count + size - 1) // size, add, jnp.zeros(())) / data.count


def measures(wiring: Wiring) -> tuple[Measure, ...]:
    """The number of units of each hidden layer, of a state with `stamps`."""

    def count(gate):
        return lambda theta, state: jnp.sum(state.stamps[gate] > 0).astype(jnp.float32)

    return tuple(Measure(f"units {gate}", count(gate)) for gate in wiring.gates)


def at_cap(measures: Mapping[str, Any], learner: PyTree) -> Any:
    """`Limit.reached` of a network that grows: no layer has room for a further unit."""
    room = {f"units {gate}": stamp.shape[0] for gate, stamp in learner.state.stamps.items()}
    return np.all([measures[name] >= count for name, count in room.items()], axis=0)


LIMIT = Limit(
    at_cap, "every layer has as many units as it may, so that it can grow no more",
    "a larger --cap leaves room",
)  # fmt: skip


def task_limits(tasks: int) -> list[int]:
    """The numbers of tasks that the programs have room for, one program after the other.

    A step computes with all units that there is room for. So the room doubles, from `TASKS` on.

    >>> task_limits(20)
    [8, 16, 20]
    """
    return [*(TASKS << i for i in range(tasks) if TASKS << i < tasks), tasks]
