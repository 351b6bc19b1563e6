"""PackNet: prune, freeze, and pack the next task into what is free."""

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxcl import masks
from jaxcl._checks import (
    check_choice,
    check_count,
    check_number,
    check_pattern,
    is_concrete,
    shorten,
)
from jaxcl._method import HEAD, Method, finetune, guarded

PyTree = Any
MOST_TASKS = 254  # owners are uint8


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
            two or more axes outside the heads, but for biases and scales.
        reinit_free: where claimed weights start: at zero, at the value they had when they were
            freed, or at a fresh draw from the initial values.
        ties: see `masks.smallest_fraction`.
        scope: rank the weights of each leaf, or all of them together.
        heads: regular expression of the heads' paths, as for `multihead`.

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
    fractions = prune_fractions(tasks, prune)
    not_weights = f"{heads}|(bias|scale)$"
    is_prunable = prunable or (
        lambda path, leaf: leaf.ndim > 1 and not re.search(not_weights, path)
    )

    def with_owner(function, theta, owner):
        """Maps over the prunable leaves and their owners; the rest stays."""
        return masks.map_with_path(
            lambda path, leaf: function(leaf, owner[path]) if path in owner else leaf, theta
        )

    def init(key, params):
        leaves = masks.leaves_by_path(params)
        weights = {path: leaf for path, leaf in leaves.items() if is_prunable(path, leaf)}
        if not weights:
            raise ValueError(
                "packnet: no leaf is prunable; by default those of two or more axes outside the "
                f"heads are. The leaves are {shorten(sorted(leaves))}."
            )
        _check_room([leaf.size for leaf in weights.values()], fractions, scope)
        owner = {path: jnp.zeros(leaf.shape, jnp.uint8) for path, leaf in weights.items()}
        spare = {}
        if reinit_free == "random":
            keys = jax.random.split(key, len(weights))
            spare = {
                path: jax.random.permutation(k, leaf.ravel()).reshape(leaf.shape)
                for k, (path, leaf) in zip(keys, weights.items())
            }
        return params, PackNetState(owner, spare)

    def begin_task(key, theta, state, task):
        def start(path, leaf):
            if path not in state.spare:
                return leaf
            return jnp.where((state.owner[path] == 0) & (task > 0), state.spare[path], leaf)

        theta = masks.map_with_path(start, theta)
        claim = jnp.asarray(task + 1).astype(jnp.uint8)
        owner = jax.tree.map(lambda o: jnp.where(o == 0, claim, o), state.owner)
        return theta, state._replace(owner=owner)

    def view(theta, state, task, progress=None):
        if progress is not None and reinit_free != "keep":
            return theta  # in training every weight that the task must not see is zero already
        return with_owner(
            lambda w, o: jnp.where((o > 0) & (o <= task + 1), w, jnp.zeros_like(w)),
            theta,
            state.owner,
        )

    def trainable(theta, state, task):
        return masks.map_with_path(
            lambda path, leaf: (
                state.owner[path] == task + 1
                if path in state.owner
                else jnp.asarray(task == 0, bool)
            ),
            theta,
        )

    def end_task(theta, state, task):
        weights = {p: leaf for p, leaf in masks.leaves_by_path(theta).items() if p in state.owner}
        own = jax.tree.map(lambda o: o == task + 1, state.owner)
        with jax.enable_x64(True):  # numbers that are not traced keep Python's precision
            fraction = jnp.asarray(fractions)[task]
        freed = masks.smallest_fraction(weights, fraction, own, ties=ties, scope=scope)
        owner = jax.tree.map(lambda o, f: jnp.where(f, 0, o).astype(jnp.uint8), state.owner, freed)
        if reinit_free != "keep":
            theta = with_owner(lambda w, o: jnp.where(o > 0, w, jnp.zeros_like(w)), theta, owner)
        return theta, state._replace(owner=owner)

    method = finetune()._replace(
        init=init,
        begin_task=begin_task,
        view=view,
        trainable=trainable,
        end_task=end_task,
        capacity=lambda theta, state: masks.capacity(jax.tree.map(lambda o: o > 0, state.owner)),
        tasks=tasks,
        owned=lambda state: state.owner,
    )
    return guarded("packnet", method)


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
