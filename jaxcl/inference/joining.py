"""Checkpoints of one method with other seeds, as one."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxcl.core.trees import PyTree

TOGETHER = ("learners", "accuracy", "measures", "curves", "diverged")  # a row for each replica


def join(parts: Sequence[tuple[Mapping[str, Any], Sequence[int]]], seeds: Sequence[int]) -> PyTree:
    """What one checkpoint holds whose parts were trained apart.

    Args:
        parts: for each part what its checkpoint holds, as `Trained.content` reads it, and its
            seeds, in the order of its rows.
        seeds: the wanted ones, in order; the first part that has one gives its row.

    Returns:
        The same as a part's, for all seeds.

    Raises:
        ValueError: if no part has a seed.
    """
    places = {}
    for i, (_, numbers) in enumerate(parts):
        for row, seed in enumerate(numbers):
            places.setdefault(seed, (i, row))
    missing = [seed for seed in seeds if seed not in places]
    if missing:
        raise ValueError(f"no part has seed {missing[0]}.")
    chosen = [places[seed] for seed in seeds]
    used = [i for i in range(len(parts)) if any(part == i for part, _ in chosen)]
    contents = [parts[i][0] for i in used]
    found = dict(contents[0])
    for name in TOGETHER:
        if name in found:
            trees = [content[name] for content in contents]
            found[name] = jax.tree.map(lambda *leaves: _rows(leaves, used, chosen), *trees)
    for name in ("seconds", "compilations"):
        total = sum(np.asarray(content[name]) for content in contents)
        found[name] = np.asarray(total, np.asarray(contents[0][name]).dtype)
    return found


def _rows(leaves: Sequence[Any], used: Sequence[int], chosen: Sequence[tuple[int, int]]) -> Any:
    """The rows of several arrays, or of typed keys, one for each seed."""
    of = dict(zip(used, leaves))
    picked = [of[part][row : row + 1] for part, row in chosen]
    stack = jax.numpy if isinstance(leaves[0], jax.Array) else np
    return stack.concatenate(picked)
