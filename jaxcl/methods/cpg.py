"""CPG: compacting, picking and growing, on PackNet's owners."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxcl.core import masks
from jaxcl.core.checks import check_count, check_pattern
from jaxcl.core.method import Measure, Method, Phase, used_in
from jaxcl.core.model import Wiring
from jaxcl.core.trees import PyTree
from jaxcl.methods import units as of_units
from jaxcl.methods.finetune import finetune
from jaxcl.methods.packnet import MOST_TASKS
from jaxcl.methods.pruning import prune_fractions
from jaxcl.methods.spec import Built, Problem, Spec, check_options, option

START = 0.01  # of every picking mask
TINY = 1e-37  # above zero
THRESHOLD = 0.005  # above which a weight is picked
HEADS = r"(^|/)head(/|$)|(^|/)(bias|scale)$"  # each task's own


@dataclass(frozen=True)
class CPGOptions:
    """How CPG compacts, picks and grows.

    Attributes:
        goal: validation accuracy below which the network grows, and down to which it is compacted.
        widen: further units whenever it grows, as a share of those that a layer starts with.
        rounds: the most times that it grows for one task.
        cap: the most units of a layer, as a share of those that it starts with.
        prune: share of its weights that a task gives up in the end; None makes all shares equal.
        prune_steps: in how many steps.
        pick_scale: step size of the picking masks, as a share of the weights'.
    """

    goal: float = option(0.98, least=0, most=1, sweep=True)
    widen: float = option(0.5, above=0)
    rounds: int = option(1, least=1)
    cap: float = option(1.5, least=1)
    prune: float | None = option(None, least=0, most=1, sweep=True)
    prune_steps: int = option(2, least=1)
    pick_scale: float = option(1.0, least=0, most=1, sweep=True)


class CPGState(NamedTuple):
    """State of `cpg`.

    Attributes:
        base: the state of the method that governs what is each task's own.
        stamps: for each hidden layer an int32 array [room]: k for a unit that the k-th task
            brought, 0 where there is none.
        owner: for each kernel of the hidden layers, by path, a uint8 array of its shape: 0 is free,
            k belongs to the k-th task.
        picked: likewise bool [tasks, ...]: the earlier tasks' weights that a finished task uses.
        current: the running task, int32; its picks are those of `theta`.
        growing: bool, whether the running phase has brought units.
        floor: float32, the accuracy down to which the running task is compacted.
    """

    base: Any
    stamps: dict[str, jax.Array]
    owner: dict[str, jax.Array]
    picked: dict[str, jax.Array]
    current: jax.Array
    growing: jax.Array
    floor: jax.Array


def binarize(mask: jax.Array) -> jax.Array:
    """1 where a real-valued mask is above the threshold, else 0; its gradient passes as it is.

    >>> print(binarize(jnp.array([0.01, 0.004])))
    [1. 0.]
    """
    hard = (mask > THRESHOLD).astype(mask.dtype)
    return hard + (mask - jax.lax.stop_gradient(mask))


def cpg(
    base: Method,
    wiring: Wiring | None,
    start: Mapping[str, int],
    *,
    goal: ArrayLike | Sequence[float] = CPGOptions.goal,
    widen: float = CPGOptions.widen,
    rounds: int = CPGOptions.rounds,
    prune: ArrayLike | Sequence[float] | Literal["equal"] = "equal",
    prune_steps: int = CPGOptions.prune_steps,
    pick_scale: ArrayLike = CPGOptions.pick_scale,
    heads: str = HEADS,
) -> Method:
    """CPG: a task trains the free weights, picks among the older ones, grows, and is compacted.

    A task claims every free weight, as in PackNet, and learns for each weight of its predecessors a
    real-valued mask: it uses those above a threshold, unchanged. If it misses its goal, every layer
    gets further units. Then the smallest of its own weights are freed step by step, while it holds
    the goal. Biases and norms are each task's own.

    Args:
        base: the method that governs what is each task's own: `multihead(finetune(), tasks, heads)`
            with the same `heads`.
        wiring: the table of a network whose layers follow one another, and have room to grow.
        start: for each of its gates, the units that the layer starts with: the first ones.
        goal: accuracy on the validation examples, or on those to train on if there are no others;
            in [0, 1], one for all tasks or one for each. The paper's is that of a network trained
            on the task alone.
        widen: further units whenever it grows, as a share of `start`, while there is room.
        rounds: the most times that it grows for one task.
        prune: share of its weights that a task gives up in the end, as in `packnet`.
        prune_steps: in how many steps, by the cubic schedule; the first is always made.
        pick_scale: step size of the masks as a share of the weights', in [0, 1].
        heads: regular expression of the leaves that are each task's own.

    Returns:
        A method whose `theta` is `{"params": that of base, "picks": a mask for each kernel}`.

    Raises:
        ValueError: for settings out of range, a network that does not grow unit by unit, or heads
            that are not each task's own.

    >>> import jaxcl
    >>> heads, model = "head|bias", jaxcl.models.mlp(4, (8,), 2)
    >>> start = {gate: 4 for gate in model.wiring.gates}
    >>> base = jaxcl.multihead(jaxcl.finetune(), 3, heads)
    >>> cpg(base, model.wiring, start, heads=heads).isolates
    True

    Source: Hung et al., Compacting, Picking and Growing (2019); masks from 0.01 with threshold
        0.005 and a straight-through gradient, ranking together with the free weights, and the cubic
        schedule as in the authors' code.
    Differs: the original prunes every ten steps, in rounds of a tenth from checkpoint to
        checkpoint, and goes back to the last that held the goal. Here each phase begins with one
        step, and a task that misses the goal (or what it had reached, if that is less) goes on at
        the share that it has. The original trains anew where it grows, with one optimizer for
        masks and one for weights (5e-4 and 1e-2).
    """
    wiring = of_units.check_wiring("cpg", wiring, start)
    check_pattern("cpg: heads", heads)
    given = {"goal": goal, "widen": widen, "rounds": rounds, "prune_steps": prune_steps}
    check_options(CPGOptions, given | {"pick_scale": pick_scale}, "cpg: {}".format)
    tasks = of_units.tasks_of("cpg", base)
    check_count("cpg: tasks", tasks, MOST_TASKS)
    rules = _Rules(
        base=base,
        wiring=wiring,
        start=start,
        kernels=tuple(path for path in wiring.inputs if path in wiring.outputs),
        tasks=tasks,
        goals=jnp.broadcast_to(jnp.asarray(goal, float), (tasks,)),
        widen={gate: max(1, int(widen * number + 1e-6)) for gate, number in start.items()},
        fractions=prune_fractions(tasks, prune),
        steps=prune_steps,
        pick_scale=pick_scale,
        heads=heads,
    )
    wider = Phase(
        "grow", 0.2 / rounds, begin=partial(_grow, rules), needed=lambda t, state, k: state.growing
    )
    steps = [
        Phase("compact", 0.3 / prune_steps, begin=partial(_compact, rules, step + 1))
        for step in range(prune_steps)
    ]
    return base._replace(
        init=partial(_init, rules),
        begin_task=partial(_begin_task, rules),
        view=partial(_view, rules),
        trainable=partial(_trainable, rules),
        end_task=_end_task,
        phases=(Phase("train", share=0.5), *[wider] * rounds, *steps),
        measures=(Measure("capacity", partial(_capacity, rules)), *of_units.measures(wiring)),
        isolates=True,
        params_prefix="params/",
        used=used_in(partial(_view, rules), "params"),
        forget_task=None,
    )


class _Rules(NamedTuple):
    """What `cpg` is asked for; `kernels` are those between two layers of units."""

    base: Method
    wiring: Wiring
    start: Mapping[str, int]
    kernels: tuple[str, ...]
    tasks: int
    goals: jax.Array
    widen: Mapping[str, int]
    fractions: np.ndarray | jax.Array
    steps: int
    pick_scale: ArrayLike
    heads: str


def _init(rules: _Rules, key, params):
    params = of_units.split_units(rules.wiring, params)
    theta, inner = rules.base.init(key, params)
    of_units.check_own("cpg", rules.heads, params, theta)
    leaves, kernels = masks.leaves_by_path(theta), rules.kernels
    state = CPGState(
        base=inner,
        stamps=of_units.first_units(rules.wiring, rules.start),
        owner={p: jnp.zeros(leaves[p].shape, jnp.uint8) for p in kernels},
        picked={p: jnp.zeros((rules.tasks, *leaves[p].shape), bool) for p in kernels},
        current=jnp.int32(-1),
        growing=jnp.bool_(False),
        floor=jnp.float32(0),
    )
    return {"params": theta, "picks": _picks(leaves, kernels)}, state


def _picks(leaves: Mapping[str, jax.Array], kernels: Sequence[str]) -> PyTree:
    """The picking masks before a task: all alike."""
    return {f"{path}/pick": jnp.full_like(leaves[path], START) for path in kernels}


def _present(rules: _Rules, leaves, stamps) -> dict[str, jax.Array]:
    """Which weights lie between two units that are there."""
    both = {p: of_units.ends(rules.wiring, p, leaves[p], stamps, 1, 1) for p in rules.kernels}
    return {p: jnp.broadcast_to((a > 0) & (b > 0), leaves[p].shape) for p, (a, b) in both.items()}


def _claimed(rules: _Rules, params, stamps, owner, task) -> dict[str, jax.Array]:
    """The owners once the task has all that is free."""
    here = _present(rules, masks.leaves_by_path(params), stamps)
    mine = jnp.asarray(task + 1).astype(jnp.uint8)
    return {p: jnp.where((o == 0) & here[p], mine, o) for p, o in owner.items()}


def _begin_task(rules: _Rules, key, theta, state, task):
    params, inner = rules.base.begin_task(key, theta["params"], state.base, task)
    params = of_units.fresh_heads(rules.wiring, key, params, state.stamps, task)
    theta = {"params": params, "picks": _picks(masks.leaves_by_path(params), rules.kernels)}
    return theta, state._replace(
        base=inner,
        owner=_claimed(rules, params, state.stamps, state.owner, task),
        current=jnp.asarray(task, jnp.int32),
        growing=jnp.bool_(False),
    )


def _view(rules: _Rules, theta, state, task, progress=None):
    """A task's own weights, those of its predecessors that it picks, and nothing of absent units.

    Source: Hung et al. (2019) Sec. 3.1, "picking".
    """
    params = rules.base.view(theta["params"], state.base, task, progress)

    def chosen(path):
        gate = binarize(theta["picks"][f"{path}/pick"])
        if progress is not None:
            return gate
        return jnp.where(state.current == task, gate, state.picked[path][task])

    def use(path, leaf):
        if path in rules.kernels:
            owner = state.owner[path]
            older = jnp.where((owner > 0) & (owner <= task), leaf * chosen(path), 0.0)
            return jnp.where(owner == task + 1, leaf, older)
        if path not in rules.wiring.inputs and path not in rules.wiring.outputs:
            return leaf
        source, target = of_units.ends(rules.wiring, path, leaf, state.stamps, 1, 1)
        return jnp.where((source > 0) & (target > 0), leaf, jnp.zeros_like(leaf))

    return of_units.join_units(rules.wiring, masks.map_with_path(use, params))


def _trainable(rules: _Rules, theta, state, task):
    """The task's own weights; and the masks of its predecessors', at their own step size."""
    own = rules.base.trainable(theta["params"], state.base, task)

    def share(path, mask):
        if re.search(rules.heads, path):
            return mask
        if path in rules.kernels:
            return state.owner[path] == task + 1
        return jnp.asarray(task == 0, bool)

    older = {p: (o > 0) & (o <= task) for p, o in state.owner.items()}
    return {
        "params": masks.map_with_path(
            share, masks.expand(own, theta["params"]), is_leaf=masks.is_mask
        ),
        "picks": {f"{p}/pick": jnp.where(old, rules.pick_scale, 0.0) for p, old in older.items()},
    }


def _grow(rules: _Rules, context, theta, state):
    """Adds units where the goal is missed and there is room; the task owns their weights."""
    task, before = context.task, state.stamps
    missed = of_units.misses(context, theta, state, rules.goals, rules.tasks)
    grown = of_units.claim(before, rules.widen, task)
    stamps = {gate: jnp.where(missed, grown[gate], before[gate]) for gate in grown}
    new = {gate: stamps[gate] != before[gate] for gate in grown}
    params = of_units.fresh_units(
        rules.wiring, context.key, theta["params"], stamps, new, task, rules.heads
    )
    return theta | {"params": params}, state._replace(
        stamps=stamps,
        owner=_claimed(rules, params, stamps, state.owner, task),
        growing=jnp.stack([n.any() for n in new.values()]).any(),
    )


def _compact(rules: _Rules, step: int, context, theta, state):
    """Frees the smallest weights up to this step's share, while the goal is held."""
    task, reached = context.task, of_units.accuracy(context, theta, state)
    floor = jnp.minimum(rules.goals[task], reached) if step == 1 else state.floor
    with jax.enable_x64(True):  # numbers that are not traced keep Python's precision
        fraction = jnp.asarray(rules.fractions * cubic(step, rules.steps))[task]
    leaves = masks.leaves_by_path(theta["params"])
    here = _present(rules, leaves, state.stamps)
    free = {p: here[p] & (o == 0) for p, o in state.owner.items()}
    own = {p: o == task + 1 for p, o in state.owner.items()}
    ranked = {  # together, the free weights before any of the task's own
        p: jnp.where(own[p], jnp.maximum(jnp.abs(leaves[p]), TINY), 0.0) for p in own
    }
    small = masks.smallest_fraction(ranked, fraction, {p: free[p] | own[p] for p in own})
    freed = {p: small[p] & own[p] & (reached >= floor) for p in own}
    params = masks.map_with_path(
        lambda p, leaf: jnp.where(freed[p], 0.0, leaf) if p in freed else leaf, theta["params"]
    )
    owner = {p: jnp.where(freed[p], 0, o).astype(jnp.uint8) for p, o in state.owner.items()}
    return theta | {"params": params}, state._replace(owner=owner, floor=floor)


def _end_task(theta, state, task):
    picks = {p: theta["picks"][f"{p}/pick"] > THRESHOLD for p in state.picked}
    picked = {p: before.at[task].set(picks[p]) for p, before in state.picked.items()}
    return theta, state._replace(picked=picked, current=jnp.int32(-1))


def _capacity(rules: _Rules, theta, state):
    """Share of the weights that are there which have an owner."""
    here = _present(rules, masks.leaves_by_path(theta["params"]), state.stamps)
    return masks.count({p: o > 0 for p, o in state.owner.items()}) / masks.count(here)


def cubic(step: int, steps: int) -> float:
    """The share of the final sparsity after a step, from 1 to `steps`: 1 - (1 - step / steps)^3.

    >>> [cubic(i, 2) for i in (1, 2)]
    [0.875, 1.0]
    """
    return 1 - (1 - step / steps) ** 3


def _build(problem: Problem, options: CPGOptions) -> Built:
    small = problem.network()
    own = f"{problem.own}|{HEADS}"
    start, room = of_units.widths("cpg", small), problem.network(options.cap)
    grown = cpg(
        problem._replace(own=own).with_heads(finetune()), room.wiring, start, goal=options.goal,
        widen=options.widen, rounds=options.rounds,
        prune="equal" if options.prune is None else options.prune,
        prune_steps=options.prune_steps, pick_scale=options.pick_scale, heads=own,
    )  # fmt: skip
    return Built(grown, of_units.with_room(small, room), "per_task")


SPEC = Spec(
    name="cpg",
    label="CPG",
    build=_build,
    options=CPGOptions,
    color="#4d5d18",
    parameters=lambda problem, options, learner: sum(
        leaf.size for leaf in jax.tree.leaves(learner.theta["params"])
    ),
    divides=True,
    limit=of_units.LIMIT,
    example="--cpg.goal 0.9,0.95,0.98",
    reference="Hung et al., Compacting, Picking and Growing for unforgetting learning (2019)",
)
