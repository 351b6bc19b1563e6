"""PackNet: prune, freeze, and pack the next task into what is free."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxcl.core import masks
from jaxcl.core.checks import (
    check_choice,
    check_count,
    check_number,
    check_pattern,
    is_concrete,
    shorten,
)
from jaxcl.core.guard import guarded
from jaxcl.core.heads import HEAD
from jaxcl.core.method import Measure, Method, Phase, used_in
from jaxcl.core.trees import PyTree
from jaxcl.methods.spec import Built, Limit, Problem, Spec, all_used, check_options, option

MOST_TASKS = 254  # owners are uint8

# Leaves of two or more axes that are no weights all the same, by their names in Flax, Haiku and
# the usual code of one's own.
NOT_WEIGHTS = (
    r"(bias|scale|offset|shift|gamma|beta|gain)$",  # biases; what norms and layers multiply by, add
    r"(^|/)b$",
    r"(norm_?\d*|(^|/)(bn|ln|gn)_?\w?)/[^/]+$",  # whatever else a norm has
    r"(^|/|_)(emb|embeds?|embeddings?|wte|wpe)$",  # tables of tokens
    r"(^|/)(\w+_)?pos(itions?)?(_\w+)?$",  # and of positions
)
WEIGHTS = r"(^|/)(kernel|weight|w)$"  # also where one of their axes has length 1


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
    retrain_scale: float = option(1.0, above=0, sweep=True)
    room: int = option(0, least=0, most=MOST_TASKS)


class PackNetState(NamedTuple):
    """State of `packnet`.

    Attributes:
        owner: for each prunable leaf, by path, a uint8 array of its shape: 0 is free, k belongs to
            the k-th task. Task k sees `0 < owner <= k`, so this one array holds every task's mask.
        spare: values from which claimed weights start, for `reinit_free="random"`; else empty.
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

    Source: Mallya and Lazebnik, PackNet (2018), Sec. 3; the order of events is that of the
        authors' code. `"equal"` is (T - k) / (T - k + 1) for the k-th of T tasks.
    Differs: the original finds the current task in its first mask and applies masks in place; here
        the task is given and nothing is overwritten. With `ties="exact"` exactly the stated number
        is pruned.
    """
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
    fractions, draws = prune_fractions(tasks + room, prune), reinit_free == "random"
    stack_of = partial(_stack, stacked)
    is_prunable = prunable or partial(_is_weight, heads, stack_of)

    def init(key, params):
        weights = _weights(params, is_prunable)
        stacks = {path: stack_of(path, leaf) for path, leaf in weights.items()}
        if stacked is not None and not any(stacks.values()):
            raise ValueError(
                f"packnet: stacked={stacked!r} finds no prunable leaf; those are "
                f"{shorten(sorted(weights))}."
            )
        _check_room(_sizes(weights, stacks), fractions, scope)
        owner = {path: jnp.zeros(leaf.shape, jnp.uint8) for path, leaf in weights.items()}
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
        smallest = partial(masks.smallest_fraction, fraction=fraction, ties=ties, scope=scope)
        if stacked is None:
            freed = smallest(weights, among=own)
        else:
            freed = {
                path: _by_layer(smallest, stack_of(path, leaf), leaf, own[path])
                for path, leaf in weights.items()
            }
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
    """
    return {
        path: jnp.bincount(owner.ravel(), length=tasks + 1) for path, owner in state.owner.items()
    }


def prune_fractions(tasks: int, prune: Any) -> Any:
    """The share that each task gives up, [tasks]; the last task keeps all unless a list says else.

    Args:
        tasks: number of tasks.
        prune: as in `packnet`.

    Returns:
        An array of `tasks` floats in [0, 1]: float64, or if they are traced float32.

    Raises:
        ValueError: for a share outside [0, 1], a list of another length, or a task before the last
            that would leave no free weight.

    >>> print(prune_fractions(4, "equal"))
    [0.75       0.66666667 0.5        0.        ]
    """
    if isinstance(prune, str):
        if prune != "equal":
            raise ValueError(f"packnet: prune must be shares in [0, 1] or 'equal', got {prune!r}.")
        left = np.arange(tasks - 1, -1, -1)
        return left / (left + 1)
    check_number("packnet: prune", prune, least=0, most=1)
    numpy = np if all(map(is_concrete, jax.tree.leaves(prune))) else jnp
    if np.ndim(prune) == 0:
        shares = numpy.where(np.arange(tasks) < tasks - 1, prune, 0.0)
    elif len(prune) == tasks:
        shares = numpy.asarray(prune)
    else:
        raise ValueError(
            f"packnet: prune must list one share for each of {tasks} tasks, got {len(prune)}."
        )
    shares = shares.astype(np.float64 if numpy is np else np.float32)
    if isinstance(shares, np.ndarray) and not np.all(shares[:-1]):
        keeper = int(np.argmin(shares[:-1])) + 1
        raise ValueError(
            f"packnet: task {keeper} gives up no weight, so none is free for task {keeper + 1}; "
            f"expected a share above 0 for every task but the last."
        )
    return shares


def _weights(params: PyTree, is_prunable: Callable) -> dict[str, jax.Array]:
    """The prunable leaves, by path."""
    leaves = masks.leaves_by_path(params)
    weights = {path: leaf for path, leaf in leaves.items() if is_prunable(path, leaf)}
    if not weights:
        raise ValueError(
            "packnet: no leaf is prunable; by default those of two or more axes outside the "
            "heads are, but for biases, norms and embeddings. The leaves are "
            f"{shorten(sorted(leaves))}."
        )
    return weights


def _sizes(weights: dict[str, jax.Array], stacks: Mapping[str, Sequence[int]]) -> list[int]:
    """The number of weights of each group that is ranked together."""
    sizes = []
    for path, leaf in weights.items():
        layers = math.prod(leaf.shape[axis] for axis in stacks[path])
        sizes += [leaf.size // layers] * layers
    return sizes


def _shuffled(key: jax.Array, weights: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Each leaf's initial values in another order: fresh draws from them."""
    keys = jax.random.split(key, len(weights))
    return {
        path: jax.random.permutation(k, leaf.ravel()).reshape(leaf.shape)
        for k, (path, leaf) in zip(keys, weights.items())
    }


def _is_weight(heads, stack_of, path, leaf):
    """Whether a leaf holds weights to share, by its name and by its shape within one layer."""
    if re.search(heads, path) or any(re.search(p, path, re.IGNORECASE) for p in NOT_WEIGHTS):
        return False
    shape = [size for axis, size in enumerate(leaf.shape) if axis not in stack_of(path, leaf)]
    return len(shape if re.search(WEIGHTS, path) else [size for size in shape if size > 1]) > 1


def _stack(stacked, path, leaf):
    """The axes along which a leaf holds one layer after the other."""
    if stacked is None or isinstance(stacked, str):
        return (0,) if stacked and re.search(stacked, path) else ()
    axes = tuple(stacked(path, leaf))
    if len({*axes} & {*range(leaf.ndim)}) < len(axes) or len(axes) >= max(leaf.ndim, 1):
        raise ValueError(
            f"packnet: stacked gives the axes {axes} for '{path}' of shape {tuple(leaf.shape)}; "
            f"expected some of its axes, but not all, counted from 0."
        )
    return axes


def _by_layer(smallest, stack, leaf, own):
    """`smallest` of each of the layers that are stacked along some axes of a leaf."""
    first = range(len(stack))

    def layers(array):
        moved = jnp.moveaxis(array, stack, first)
        return moved.reshape(-1, *moved.shape[len(stack) :])

    freed = jax.vmap(lambda w, o: smallest(w, among=o))(layers(leaf), layers(own))
    return jnp.moveaxis(freed.reshape(jnp.moveaxis(own, stack, first).shape), first, stack)


def _check_room(sizes, fractions, scope):
    """Raises ValueError if some task would find no free weight, as far as the shares are known."""
    if not isinstance(fractions, np.ndarray):
        return
    free = np.array(sizes if scope == "leaf" else [sum(sizes)])
    for task, fraction in enumerate(fractions[:-1], start=2):
        free = np.round(fraction * free)
        if not free.any():
            raise ValueError(
                f"packnet: no weight is free for task {task} of {len(fractions)}: its predecessors "
                f"keep all {sum(sizes):,}; let them give up more, or train fewer tasks."
            )


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
    presets={"permuted_mnist": {"learning_rate": 0.02}, "split_digits": {"retrain_scale": 0.1}},
)
