"""What was measured within the tasks: how fast each is learned, and what is known at any time.

`during[t, p, k]` is the test accuracy on task `k` at point `p` of the training on task `t`. Point 0
is before the first step, so that it is that of a network which has seen nothing of the task yet.
Leading axes (seeds) are carried along. Entries that are `nan` were not measured: tasks that are not
trained yet, and points of epochs that early stopping left out.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

__all__ = ["anytime_accuracy", "learning_curve_area", "learning_curves", "summed_up"]


def learning_curves(during) -> np.ndarray:
    """The accuracy on each task at the points of its own training.

    Args:
        during: [..., T, P, T].

    Returns:
        [..., T, P].

    Raises:
        ValueError: for another shape.

    >>> learning_curves([[[0.1, np.nan], [0.9, np.nan]], [[0.9, 0.2], [0.8, 0.7]]])
    array([[0.1, 0.9],
           [0.2, 0.7]])
    """
    found = _checked(during)
    return np.moveaxis(np.diagonal(found, axis1=-3, axis2=-1), -1, -2)


def learning_curve_area(during) -> np.ndarray:
    """How fast tasks are learned (LCA): the mean of each task's own curve, of all tasks.

    Args:
        during: [..., T, P, T].

    Returns:
        [...]: the mean over tasks of the mean over the points of a task, point 0 included, of the
        accuracy on the task itself. Where all tasks have beta + 1 points it is LCA at beta, counted
        in points.

    Raises:
        ValueError: for another shape.

    >>> round(float(learning_curve_area([[[0.1], [0.5], [0.9]]])), 6)  # (0.1 + 0.5 + 0.9) / 3
    0.5

    Source: Chaudhry et al. 2019 (A-GEM), learning curve area.
    Differs: it counts points, which need not be single batches.
    """
    curves = learning_curves(during)
    known = np.isfinite(curves)
    sums = np.where(known, curves, 0).sum(axis=-1)
    return np.mean(_over(sums, known.sum(axis=-1)), axis=-1)


def anytime_accuracy(during) -> np.ndarray:
    """The mean over all points of the mean accuracy on the tasks seen so far.

    Args:
        during: [..., T, P, T].

    Returns:
        [...]. The task that is being trained is among those seen. Points 0, at which nothing of it
        is seen yet, do not count.

    Raises:
        ValueError: for another shape.

    >>> during = [[[0.1, np.nan], [0.9, np.nan]], [[0.9, 0.2], [0.8, 0.7]]]
    >>> round(float(anytime_accuracy(during)), 6)  # (0.9 + (0.8 + 0.7) / 2) / 2
    0.825
    """
    found = _checked(during)[..., 1:, :]
    tasks = found.shape[-1]
    seen = np.tri(tasks, dtype=bool)[:, None, :]
    means = np.where(seen, found, 0).sum(axis=-1) / np.arange(1, tasks + 1)[:, None]
    known = np.isfinite(means)
    sums = np.where(known, means, 0).sum(axis=(-2, -1))
    return _over(sums, known.sum(axis=(-2, -1)))


MEASURES: Mapping[str, Callable] = {
    "anytime_accuracy": anytime_accuracy,
    "learning_curve_area": learning_curve_area,
}


def summed_up(during) -> dict[str, Any]:
    """Both numbers of each seed, by name."""
    return {name: of(during) for name, of in MEASURES.items()}


def _over(sums, counts) -> np.ndarray:
    """A mean; nan of nothing."""
    return np.divide(sums, counts, out=np.full(np.shape(sums), np.nan), where=counts > 0)


def _checked(during) -> np.ndarray:
    found = np.asarray(during, np.float64)
    if found.ndim < 3 or found.shape[-3] != found.shape[-1] or 0 in found.shape:
        raise ValueError(f"during must have shape [..., T, P, T], but has {found.shape}.")
    return found
