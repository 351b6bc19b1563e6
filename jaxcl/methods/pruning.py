"""What a pruning method shares out: which leaves hold weights, and which share a task gives up."""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.core import masks
from jaxcl.core.checks import check_number, is_concrete, shorten
from jaxcl.core.trees import PyTree

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


def weights_of(params: PyTree, is_prunable: Callable) -> dict[str, jax.Array]:
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


def group_sizes(weights: dict[str, jax.Array], stacked: Any) -> list[int]:
    """The number of weights of each group that is ranked together.

    Raises:
        ValueError: if leaves are said to be stacked, and none of these is.
    """
    stacks = {path: stack_axes(stacked, path, leaf) for path, leaf in weights.items()}
    if stacked is not None and not any(stacks.values()):
        raise ValueError(
            f"packnet: stacked={stacked!r} finds no prunable leaf; those are "
            f"{shorten(sorted(weights))}."
        )
    sizes = []
    for path, leaf in weights.items():
        layers = math.prod(leaf.shape[axis] for axis in stacks[path])
        sizes += [leaf.size // layers] * layers
    return sizes


def is_weight(heads: str, stack_of: Callable, path: str, leaf: jax.Array) -> bool:
    """Whether a leaf holds weights to share, by its name and by its shape within one layer."""
    if re.search(heads, path) or any(re.search(p, path, re.IGNORECASE) for p in NOT_WEIGHTS):
        return False
    shape = [size for axis, size in enumerate(leaf.shape) if axis not in stack_of(path, leaf)]
    return len(shape if re.search(WEIGHTS, path) else [size for size in shape if size > 1]) > 1


def stack_axes(stacked: Any, path: str, leaf: jax.Array) -> tuple[int, ...]:
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


def by_layer(
    smallest: Callable, stack_of: Callable, weights: dict[str, jax.Array],
    among: dict[str, jax.Array], fraction: Any,
) -> dict[str, jax.Array]:  # fmt: skip
    """`smallest` of each layer by itself, of those that `stack_of(path, leaf)` says are stacked."""

    def one(path, leaf, own):
        stack = stack_of(path, leaf)
        first = range(len(stack))

        def layers(array):
            moved = jnp.moveaxis(array, stack, first)
            return moved.reshape(-1, *moved.shape[len(stack) :])

        ranked = jax.vmap(lambda w, o: smallest(w, among=o, fraction=fraction))
        freed = ranked(layers(leaf), layers(own))
        return jnp.moveaxis(freed.reshape(jnp.moveaxis(own, stack, first).shape), first, stack)

    return {path: one(path, leaf, among[path]) for path, leaf in weights.items()}


def check_room(sizes: list[int], fractions: Any, scope: str) -> None:
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
