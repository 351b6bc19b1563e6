"""PackNet: prune, freeze, and pack the next task into what is free."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxcl.core import masks, sharding
from jaxcl.core.checks import (
    check_choice,
    check_count,
    check_pattern,
    shorten,
)
from jaxcl.core.guard import guarded
from jaxcl.core.heads import HEAD
from jaxcl.core.method import Measure, Method, Phase, used_in
from jaxcl.core.trees import PyTree
from jaxcl.methods.pruning import (
    by_layer,
    check_room,
    group_sizes,
    is_weight,
    prune_fractions,
    stack_axes,
    weights_of,
)
from jaxcl.methods.spec import Built, Limit, Problem, Spec, all_used, check_options, option

MOST_TASKS = 254  # owners are uint8


@dataclass(frozen=True)
class PackNetOptions:
    """How PackNet divides the weights.

    Attributes:
        prune: share of its weights that a task gives up; None makes all shares equal.
        retrain_scale: step size of the retraining that follows pruning, as a share of the step size
            before it; the original has a tenth.
        room: further tasks to leave weights for, which "jaxcl extend" can train later; with 0 the
            last task keeps all that is left.
    """

    prune: float | None = option(None, least=0, most=1, sweep=True)
    retrain_scale: float = option(1.0, above=0, sweep=True, tune=(0.1, 1.0))
    room: int = option(0, least=0, most=MOST_TASKS)


class PackNetState(NamedTuple):
    """State of `packnet`.

    Attributes:
        owner: for each prunable leaf, by path, a uint8 array of its shape: 0 is free, k belongs to
            the k-th task. Task k sees `0 < owner <= k`, so this one array holds every task's mask.
        spare: values from which claimed weights start, for `reinit_free="random"`; else empty.

    >>> owner = jnp.array([[0, 1, 2]], jnp.uint8)  # free, the first task's, the second one's
    >>> state = PackNetState({"layer": owner}, {})
    >>> print((state.owner["layer"] > 0) & (state.owner["layer"] <= 1))  # what the first task sees
    [[False  True False]]
    """

    owner: dict[str, jax.Array]
    spare: dict[str, jax.Array]


def packnet(
    tasks: int,
    prune: ArrayLike | Sequence[float] | Literal["equal"] = "equal",
    *,
    prunable: Callable[[str, jax.Array], bool] | None = None,
    reinit_free: Literal["zero", "keep", "random"] = "zero",
    ties: Literal["exact", "original"] = "exact",
    scope: Literal["leaf", "global"] = "leaf",
    heads: str = HEAD,
    retrain_scale: ArrayLike = PackNetOptions.retrain_scale,
    stacked: str | Callable[[str, jax.Array], Sequence[int]] | None = None,
    room: int = PackNetOptions.room,
) -> Method:
    """PackNet: each task keeps its largest weights, and later tasks train what is left.

    A task claims the free weights and trains them beside its predecessors' frozen ones. `end_task`
    frees the smallest of its own; train once more after it, with the same method, to recover.
    Biases, norms and whatever else is not prunable train on the first task and are frozen after;
    each task gets its own by `multihead(packnet(tasks), tasks, heads="head|bias|norm")`, with your
    leaves' names, as in CPG (Hung et al., 2019).

    Args:
        tasks: number of tasks, 1 to 254.
        prune: share of a task's own weights that it gives up, in [0, 1]: one number for all tasks
            but the last, one for each task, or `"equal"`, which leaves each task the same number.
            Numbers may be traced.
        prunable: `(path, leaf) -> bool`, which leaves hold weights to share. By default those of
            two or more axes outside the heads, but for biases, scales and shifts, norms, and tables
            of tokens or positions, which are known by their names: `NOT_WEIGHTS`. An axis of
            length 1 counts in leaves called kernel, weight or w alone, a stacked one in none.
        reinit_free: where claimed weights start: at zero, at the value they had when they were
            freed, or at a fresh draw from the initial values.
        ties: see `masks.smallest_fraction`.
        scope: rank the weights of each leaf, or all of them together.
        heads: regular expression of the heads' paths, as for `multihead`.
        retrain_scale: factor on the step size after pruning, where the engine trains.
        stacked: which leaves hold many layers, such as those of a scan [layers, in, out]: the axes
            `(path, leaf)` are stacked along, such as (0,), or (); or a regular expression of the
            paths of those with one such axis, their first. Each layer is then ranked on its own.
        room: prune as if so many more tasks followed the last one.

    Returns:
        A method whose `theta` is the parameters. `masks.summary(params, state.owner)` tells which
        leaves it prunes.

    Raises:
        ValueError: for settings out of range; and at `init` if no leaf is prunable, or if some task
            would find no free weight.

    >>> params = {"layer": jnp.ones((4, 6)), "head": jnp.ones((6, 2))}
    >>> method = packnet(tasks=3)
    >>> theta, state = jax.eval_shape(method.init, jax.random.key(0), params)
    >>> {path: owner.dtype.name for path, owner in state.owner.items()}
    {'layer': 'uint8'}

    Source: Mallya and Lazebnik, PackNet (2018), Sec. 3; the order of events is that of the
        authors' code. `"equal"` is (T - k) / (T - k + 1) for the k-th of T tasks.
    Differs: the original finds the current task in its first mask and applies masks in place; here
        the task is given and nothing is overwritten. With `ties="exact"` exactly the stated number
        is pruned.
    """
    _check(tasks, room, reinit_free, ties, scope, heads, retrain_scale, stacked)
    fractions, draws = prune_fractions(tasks + room, prune), reinit_free == "random"
    stack_of = partial(stack_axes, stacked)
    is_prunable = prunable or partial(is_weight, heads, stack_of)
    rank = partial(masks.smallest_fraction, ties=ties, scope=scope)
    smallest = rank if stacked is None else partial(by_layer, rank, stack_of)

    def init(key, params):
        weights = weights_of(params, is_prunable)
        check_room(group_sizes(weights, stacked), fractions, scope)
        owner = {path: sharding.zeros_like(leaf, jnp.uint8) for path, leaf in weights.items()}
        return params, PackNetState(owner, _shuffled(key, weights) if draws else {})

    def view(theta, state, task, progress=None):
        if progress is not None and reinit_free != "keep":
            return theta  # in training every weight that the task must not see is zero already
        return _where_owned(lambda owner: (owner > 0) & (owner <= task + 1), theta, state.owner)

    def end_task(theta, state, task):
        weights = {p: leaf for p, leaf in masks.leaves_by_path(theta).items() if p in state.owner}
        own = jax.tree.map(lambda o: o == task + 1, state.owner)
        with jax.enable_x64(True):  # numbers that are not traced keep Python's precision
            fraction = jnp.asarray(fractions)[task]
        freed = smallest(weights, among=own, fraction=fraction)
        owner = jax.tree.map(lambda o, f: jnp.where(f, 0, o).astype(jnp.uint8), state.owner, freed)
        if reinit_free != "keep":
            theta = _where_owned(lambda owner: owner > 0, theta, owner)
        return theta, state._replace(owner=owner)

    method = Method(
        init=init,
        begin_task=_claim,
        view=view,
        trainable=_trainable,
        end_task=end_task,
        measures=(Measure("capacity", _capacity),),
        phases=(
            Phase("train", share=2 / 3),
            Phase("retrain", share=1 / 3, step_scale=retrain_scale, closed=True),
        ),
        isolates=True,
        tasks=tasks,
        divided=lambda state: state.owner,
        used=used_in(view),
        forget_task=partial(_forget, reinit_free == "keep"),
    )
    return guarded("packnet", method)


def _check(tasks, room, reinit_free, ties, scope, heads, retrain_scale, stacked) -> None:
    """Raises ValueError for settings of `packnet` out of range."""
    check_count("packnet: tasks", tasks, MOST_TASKS)
    check_choice("packnet: reinit_free", reinit_free, ("zero", "keep", "random"))
    check_choice("packnet: ties", ties, masks.TIES)
    check_choice("packnet: scope", scope, masks.SCOPES)
    check_pattern("packnet: heads", heads)
    given = {"retrain_scale": retrain_scale, "room": room}
    check_options(PackNetOptions, given, "packnet: {}".format)
    check_count("packnet: tasks and room", tasks + room, MOST_TASKS)
    if isinstance(stacked, str):
        check_pattern("packnet: stacked", stacked)
    if stacked is not None and scope == "global":
        raise ValueError("packnet: scope='global' ranks all layers together, stacked or not.")


def _claim(key, theta: PyTree, state: PackNetState, task) -> tuple[PyTree, PackNetState]:
    """Gives all free weights to the task that begins."""

    def start(path, leaf):
        if path not in state.spare:
            return leaf
        return jnp.where((state.owner[path] == 0) & (task > 0), state.spare[path], leaf)

    claim = jnp.asarray(task + 1).astype(jnp.uint8)
    owner = jax.tree.map(lambda o: jnp.where(o == 0, claim, o), state.owner)
    return masks.map_with_path(start, theta), state._replace(owner=owner)


def _trainable(theta: PyTree, state: PackNetState, task) -> PyTree:
    """A task trains its own weights; what is shared trains on the first task alone."""
    first = jnp.asarray(task == 0, bool)
    return masks.map_with_path(
        lambda path, leaf: state.owner[path] == task + 1 if path in state.owner else first, theta
    )


def _where_owned(seen: Callable, theta: PyTree, owner: dict[str, jax.Array]) -> PyTree:
    """Zero where `seen(owner)` is not; leaves without owners stay."""
    return masks.map_with_path(
        lambda path, leaf: (
            jnp.where(seen(owner[path]), leaf, jnp.zeros_like(leaf)) if path in owner else leaf
        ),
        theta,
    )


def _forget(
    keeps: bool, theta: PyTree, state: PackNetState, memory, task: int, kept: np.ndarray, fresh
) -> tuple[PyTree, PackNetState, PyTree]:
    """All later tasks read what a task owns, so the first of them inherits it; else it is free."""
    later = task + 1 + np.flatnonzero(kept[task + 1 :])
    heir = int(later[0]) + 1 if len(later) else 0

    def renew(path, leaf, new):
        if path not in state.owner:  # the first task's, which every task reads
            return leaf if kept.any() else new
        new = new if keeps else jnp.zeros_like(leaf)
        return leaf if heir else jnp.where(state.owner[path] == task + 1, new, leaf)

    owner = jax.tree.map(lambda o: jnp.where(o == task + 1, jnp.uint8(heir), o), state.owner)
    return masks.map_with_path(renew, theta, fresh), state._replace(owner=owner), memory


def _capacity(theta: PyTree, state: PackNetState) -> jax.Array:
    """Share of the prunable weights that have an owner."""
    return masks.capacity(jax.tree.map(lambda o: o > 0, state.owner))


def ledger(state: PackNetState, tasks: int) -> dict[str, jax.Array]:
    """How many weights of each prunable leaf are free, and how many each task owns.

    Args:
        state: PackNet's state.
        tasks: number of tasks.

    Returns:
        For each prunable leaf, by path, an int array [tasks + 1]: the free weights, then those of
        the first task, and so on. They add up to the leaf's size.

    >>> owner = jnp.array([[0, 1, 1], [0, 2, 0]], jnp.uint8)
    >>> ledger(PackNetState({"layer": owner}, {}), tasks=2)["layer"]
    Array([3, 2, 1], dtype=int32)
    """
    return {
        path: jnp.bincount(owner.ravel(), length=tasks + 1) for path, owner in state.owner.items()
    }


def _shuffled(key: jax.Array, weights: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Each leaf's initial values in another order: fresh draws from them."""
    keys = jax.random.split(key, len(weights))
    return {
        path: sharding.like(jax.random.permutation(k, leaf.ravel()).reshape(leaf.shape), leaf)
        for k, (path, leaf) in zip(keys, weights.items())
    }


def _build(problem: Problem, options: PackNetOptions) -> Built:
    prune = "equal" if options.prune is None else options.prune
    isolated = packnet(
        problem.tasks, prune, retrain_scale=options.retrain_scale, room=options.room
    )  # fmt: skip
    return Built(problem.with_heads(isolated), problem.network(), problem.norm)


def _about(learner) -> str:
    """How much of the network is divided among the tasks."""
    owner = learner.state.owner
    return f"{masks.summary(learner.theta, owner).splitlines()[-1]} ({shorten(sorted(owner))})"


def _extended(options: PackNetOptions, more: int) -> PackNetOptions:
    """With more tasks, so much less room."""
    return replace(options, room=max(0, options.room - more))


SPEC = Spec(
    name="packnet",
    label="PackNet",
    build=_build,
    options=PackNetOptions,
    color="#00876a",
    divides=True,
    about=_about,
    limit=Limit(
        all_used,
        "no weight is free for it, so that it trains its head alone",
        "a larger network, a larger --prune, or --room where a run is extended, leaves more",
    ),
    extended=_extended,
    example="--prune 0.25,0.5,0.75",
    reference="Mallya and Lazebnik, PackNet (2018)",
    by_default=True,
    presets={
        "permuted_mnist": {"learning_rate": 0.02},
        "split_digits": {"retrain_scale": 0.1},
        "split_mnist5k": {"learning_rate": 0.02},
    },
)
