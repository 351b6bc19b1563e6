"""ExpandNet: a network that grows where a task needs it. The definition is this project's own."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxcl.core import masks
from jaxcl.core.checks import check_count, check_pattern
from jaxcl.core.heads import HEAD
from jaxcl.core.method import Method, Phase, used_in
from jaxcl.core.model import Wiring
from jaxcl.core.trees import PyTree
from jaxcl.methods import units as of_units
from jaxcl.methods.finetune import finetune
from jaxcl.methods.spec import Built, Problem, Spec, check_options, option


@dataclass(frozen=True)
class ExpandNetOptions:
    """When and how far ExpandNet grows.

    Attributes:
        goal: validation accuracy below which the network grows.
        units: further units of each hidden layer whenever it grows.
        rounds: the most times that it grows for one task.
        cap: the most units of a layer, as a share of those that it starts with.
    """

    goal: float = option(0.98, least=0, most=1, sweep=True)
    units: int = option(10, least=1)
    rounds: int = option(3, least=1)
    cap: float = option(4.0, least=1)


class ExpandNetState(NamedTuple):
    """State of `expandnet`.

    Attributes:
        base: the state of the method that governs the heads.
        stamps: for each hidden layer an int32 array [room]: k for a unit that the k-th task
            brought, 0 where there is none.
        growing: bool, whether the running phase has brought units.
    """

    base: Any
    stamps: dict[str, jax.Array]
    growing: jax.Array


def expandnet(
    base: Method,
    wiring: Wiring | None,
    start: Mapping[str, int],
    *,
    goal: ArrayLike | Sequence[float] = ExpandNetOptions.goal,
    units: int = ExpandNetOptions.units,
    rounds: int = ExpandNetOptions.rounds,
    heads: str = HEAD,
) -> Method:
    """ExpandNet: each task that misses a goal adds units, which old units never see.

    A unit has the number of the task that brought it for its stamp, and sees the units of its own
    and of smaller stamps. A task trains its head on the units that there are; while its accuracy
    is below the goal it adds units to every hidden layer, and trains their incoming weights and its
    head. What an earlier task computes with does not change, so nothing is forgotten.

    Args:
        base: the method that governs the heads: `multihead(finetune(), tasks)`.
        wiring: the table of a network whose layers follow one another, and have room to grow.
        start: for each of its gates, the units that the layer starts with: the first ones.
        goal: accuracy below which the network grows, on the validation examples, or on those to
            train on if there are no others; in [0, 1], one for all tasks or one for each.
        units: further units of each hidden layer whenever it grows, while there is room.
        rounds: the most times that it grows for one task.
        heads: regular expression of the leaves that are each task's own.

    Returns:
        A method whose `theta` is that of `base`, kernels after a flattening as `[repeats, units,
        out]`. New units start as LeCun normal, each weight drawn by the numbers of its two units;
        what reads them starts at zero, so that growth by itself changes no output.

    Raises:
        ValueError: for settings out of range, a network that does not grow unit by unit, or heads
            that are not each task's own.

    >>> import jaxcl
    >>> model = jaxcl.models.mlp(4, (8,), 2)
    >>> start = {gate: 4 for gate in model.wiring.gates}
    >>> base = jaxcl.multihead(jaxcl.finetune(), 3)
    >>> expandnet(base, model.wiring, start, units=2).isolates
    True

    Source: none. The name has no paper in continual learning; this is the simplest method of its
        kind, defined here. The stamps are those of DEN (Yoon et al., 2018), without its retraining
        of old units; growing by a goal is as in CPG (Hung et al., 2019).
    """
    wiring = of_units.check_wiring("expandnet", wiring, start)
    check_pattern("expandnet: heads", heads)
    check_count("expandnet: rounds", rounds)
    check_options(ExpandNetOptions, {"goal": goal, "units": units}, "expandnet: {}".format)
    tasks = of_units.tasks_of("expandnet", base)

    def init(key, params):
        params = of_units.split_units(wiring, params)
        theta, inner = base.init(key, params)
        of_units.check_own("expandnet", heads, params, theta)
        stamps = of_units.first_units(wiring, start)
        return theta, ExpandNetState(inner, stamps, jnp.bool_(False))

    def begin_task(key, theta, state, task):
        theta, inner = base.begin_task(key, theta, state.base, task)
        theta = of_units.fresh_heads(wiring, key, theta, state.stamps, task)
        return theta, ExpandNetState(inner, state.stamps, jnp.bool_(False))

    def view(theta, state, task, progress=None):
        return _seen(wiring, base.view(theta, state.base, task, progress), state.stamps, task)

    def trainable(theta, state, task):
        given = masks.expand(base.trainable(theta, state.base, task), theta)
        share = partial(_share, wiring, heads, state.stamps, task)
        return masks.map_with_path(share, given, is_leaf=masks.is_mask)

    def grow(context, theta, state):
        """Adds units where the goal is missed and there is room."""
        task, before = context.task, state.stamps
        missed = of_units.misses(context, theta, state, goal, tasks)
        grown = of_units.claim(before, dict.fromkeys(before, units), task)
        stamps = {gate: jnp.where(missed, grown[gate], before[gate]) for gate in grown}
        new = {gate: stamps[gate] != before[gate] for gate in grown}
        theta = of_units.fresh_units(wiring, context.key, theta, stamps, new, task, heads)
        growing = jnp.stack([n.any() for n in new.values()]).any()
        return theta, ExpandNetState(state.base, stamps, growing)

    further = Phase("grow", share=0.5 / rounds, begin=grow, needed=_grows)
    return base._replace(
        init=init,
        begin_task=begin_task,
        view=view,
        trainable=trainable,
        end_task=lambda theta, state, task: (theta, state),
        phases=(Phase("train", share=0.5), *(further for _ in range(rounds))),
        measures=of_units.measures(wiring),
        isolates=True,
        used=used_in(view),
        forget_task=None,
    )


def _grows(theta: PyTree, state: ExpandNetState, task) -> jax.Array:
    """Whether the running phase has brought units to train."""
    return state.growing


def _seen(wiring: Wiring, params: PyTree, stamps, task) -> PyTree:
    """The parameters without the weights that the task's network does not have."""

    def cut(path, leaf):
        if path not in wiring.inputs and path not in wiring.outputs:
            return leaf
        own = _connected(wiring, path, leaf, stamps, task)
        return jnp.where(own, leaf, jnp.zeros_like(leaf))

    return of_units.join_units(wiring, masks.map_with_path(cut, params))


def _connected(wiring: Wiring, path: str, leaf: jax.Array, stamps, task) -> jax.Array:
    """Which weights a task's network has: from smaller stamps to larger ones, up to its own."""
    source, target = of_units.ends(wiring, path, leaf, stamps, 1, task + 1)
    return (source > 0) & (source <= target) & (target <= task + 1)


def _share(wiring: Wiring, heads: str, stamps, task, path: str, mask):
    """A task trains its head and what its own units read; the first one all that is shared."""
    if re.search(heads, path):
        return mask
    if path in wiring.outputs:
        return stamps[wiring.outputs[path]] == task + 1
    return jnp.asarray(task == 0, bool)


def _build(problem: Problem, options: ExpandNetOptions) -> Built:
    small = problem.network()
    own = f"{problem.own}|{of_units.NORMS}"
    start = of_units.widths("expandnet", small)
    further = problem.tasks * options.rounds * options.units / min(start.values())
    room = problem.network(min(options.cap, 1 + further))
    base = problem._replace(own=own).with_heads(finetune())
    grown = expandnet(
        base, room.wiring, start, goal=options.goal, units=options.units, rounds=options.rounds,
        heads=own,
    )  # fmt: skip
    return Built(grown, of_units.with_room(small, room), "per_task")


SPEC = Spec(
    name="expandnet",
    label="ExpandNet",
    words="ExpandNet (our own definition)",
    build=_build,
    options=ExpandNetOptions,
    color="#9c27b0",
    task_limits=of_units.task_limits,
    limit=of_units.LIMIT,
    example="--goal 0.9,0.95,0.98",
)
