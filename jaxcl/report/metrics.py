"""Numbers that sum up what a network keeps of a sequence of tasks.

Nearly all of them are read off the *accuracy matrix* `R`: `R[t, k]` is the test accuracy on task
`k` after training on task `t`, both counted from 0. Row `t` is what the network can do at that
moment, column `k` is the life of one task. Leading axes (seeds, settings) are carried along:
`[S, T, T]` gives `S` numbers.

Entries above the diagonal belong to tasks that are not trained yet. Where there is no network for
a task before its training, as the column of a progressive network, they are `nan`: an accuracy
there would be that of an untrained head. Only `forward_transfer` reads them and, if told to,
`forgetting`, which then passes over those that are `nan`. Any other `nan` that a metric reads makes
its result `nan`: what was not measured is not averaged away.

These are host-side numbers: jax arrays are welcome, numpy computes, in float64.
"""

from typing import Any, NamedTuple

import numpy as np

from jaxcl.core.checks import check_choice

__all__ = [
    "Interval",
    "anytime_accuracy",
    "average_accuracy",
    "backward_transfer",
    "confidence_interval",
    "forgetting",
    "forgetting_ratio",
    "forward_transfer",
    "free",
    "learning_accuracy",
    "learning_curve_area",
    "reuse",
]


class Interval(NamedTuple):
    """A mean and its uncertainty: `mean - half_width` to `mean + half_width`.

    >>> Interval(0.9, 0.02).mean
    0.9
    """

    mean: Any
    half_width: Any


def average_accuracy(accuracy):
    """Mean accuracy over all tasks at the end (ACC).

    Args:
        accuracy: accuracy matrix [..., T, T].

    Returns:
        [...], in the unit of `accuracy`.

    Raises:
        ValueError: if the last two axes are not square.

    >>> R = [[0.9, 0.2, 0.1],
    ...      [0.7, 0.8, 0.3],
    ...      [0.6, 0.9, 0.9]]
    >>> round(float(average_accuracy(R)), 6)  # (0.6 + 0.9 + 0.9) / 3
    0.8

    Source: Chaudhry et al. 2019 (A-GEM), Eqs. 1-3.
    """
    return _matrix(accuracy)[..., -1, :].mean(axis=-1)


def anytime_accuracy(accuracy):
    """Mean over all moments of the mean accuracy on the tasks trained so far.

    Args:
        accuracy: accuracy matrix [..., T, T].

    Returns:
        [...], in the unit of `accuracy`: mean over t of the mean over k <= t of `R[t, k]`.

    Raises:
        ValueError: if the last two axes are not square.

    >>> R = [[0.9, 0.2, 0.1], [0.7, 0.8, 0.3], [0.6, 0.9, 0.9]]
    >>> round(float(anytime_accuracy(R)), 6)  # (0.9 + (0.7 + 0.8) / 2 + (0.6 + 0.9 + 0.9) / 3) / 3
    0.816667
    """
    matrix = _matrix(accuracy)
    tasks = matrix.shape[-1]
    seen = np.where(np.tri(tasks, dtype=bool), matrix, 0).sum(axis=-1) / np.arange(1, tasks + 1)
    return seen.mean(axis=-1)


def learning_accuracy(accuracy):
    """Mean accuracy on each task just after training on it: the diagonal.

    Args:
        accuracy: accuracy matrix [..., T, T].

    Returns:
        [...], in the unit of `accuracy`.

    Raises:
        ValueError: if the last two axes are not square.

    >>> R = [[0.9, 0.2, 0.1], [0.7, 0.8, 0.3], [0.6, 0.9, 0.9]]
    >>> round(float(learning_accuracy(R)), 6)  # (0.9 + 0.8 + 0.9) / 3
    0.866667
    """
    return np.diagonal(_matrix(accuracy), axis1=-2, axis2=-1).mean(axis=-1)


def backward_transfer(accuracy):
    """How training on later tasks changes the earlier ones (BWT); negative when it harms them.

    Args:
        accuracy: accuracy matrix [..., T, T].

    Returns:
        [...]: mean over k < T-1 of `R[T-1, k] - R[k, k]`; 0 when there is one task only.

    Raises:
        ValueError: if the last two axes are not square.

    >>> R = [[0.9, 0.2, 0.1], [0.7, 0.8, 0.3], [0.6, 0.9, 0.9]]
    >>> round(float(backward_transfer(R)), 6)  # ((0.6 - 0.9) + (0.9 - 0.8)) / 2
    -0.1

    Source: Lopez-Paz and Ranzato 2017 (GEM), backward transfer.
    """
    matrix = _matrix(accuracy)
    change = matrix[..., -1, :] - np.diagonal(matrix, axis1=-2, axis2=-1)
    return _mean(change[..., :-1])


def forward_transfer(accuracy, baseline):
    """What training on earlier tasks already gives to a task that is not trained yet (FWT).

    Args:
        accuracy: accuracy matrix [..., T, T], measured above the diagonal too.
        baseline: accuracy of an untrained network, or chance, on each task: [..., T], or one
            number for all.

    Returns:
        [...]: mean over k >= 1 of `R[k-1, k] - baseline[k]`; 0 when there is one task only. It is
        `nan` if one of these was not measured: a method that makes a task's network when the task
        begins has no forward transfer in this sense.

    Raises:
        ValueError: if the last two axes are not square, or `baseline` has another number of tasks.

    >>> R = [[0.9, 0.2, 0.1], [0.7, 0.8, 0.3], [0.6, 0.9, 0.9]]
    >>> round(float(forward_transfer(R, [0.1, 0.1, 0.1])), 6)  # ((0.2 - 0.1) + (0.3 - 0.1)) / 2
    0.15

    Source: Lopez-Paz and Ranzato 2017 (GEM), forward transfer.
    """
    matrix = _matrix(accuracy)
    baseline = _per_task(baseline, matrix.shape[-1], "baseline")
    before = np.diagonal(matrix, offset=1, axis1=-2, axis2=-1)
    return _mean(before - baseline[..., 1:])


def forgetting(accuracy, since: str = "own"):
    """Mean drop of each earlier task from the best it ever had to what is left at the end.

    Args:
        accuracy: accuracy matrix [..., T, T].
        since: from when on the best counts: "own", the task's own training; or "first", the first
            row, so that a task can also forget what it had before it was trained. Entries above
            the diagonal that are `nan` then count for nothing.

    Returns:
        [...]: mean over k < T-1 of the largest `R[t, k]` with k <= t < T-1 ("first": t < T-1),
        minus `R[T-1, k]`; 0 when there is one task only. Negative when the earlier tasks are at
        their best at the end; never less than `-backward_transfer`.

    Raises:
        ValueError: if the last two axes are not square, or `since` is neither.

    >>> R = [[0.9, 0.2, 0.1], [0.7, 0.8, 0.3], [0.6, 0.9, 0.9]]
    >>> round(float(forgetting(R)), 6)  # ((0.9 - 0.6) + (0.8 - 0.9)) / 2
    0.1
    >>> R = [[0.9, 0.95, 0.1], [0.9, 0.6, 0.1], [0.9, 0.6, 0.9]]
    >>> round(float(forgetting(R)), 6)  # ((0.9 - 0.9) + (0.6 - 0.6)) / 2
    0.0
    >>> round(float(forgetting(R, since="first")), 6)  # ((0.9 - 0.9) + (0.95 - 0.6)) / 2
    0.175

    Source: Chaudhry et al. 2019 (A-GEM), Eqs. 1-3, which is "first".
    Differs: by default, the accuracy on a task before its own training is no best to fall from. It
    says nothing of the task's own network, which may not exist yet.
    """
    matrix = _matrix(accuracy)
    check_choice("since", since, ("own", "first"))
    untrained = np.triu(np.ones(matrix.shape[-2:], bool), 1)
    unread = untrained & (np.isnan(matrix) | (since == "own"))
    earlier = np.where(unread, -np.inf, matrix)[..., :-1, :-1]
    return _mean(earlier.max(axis=-2, initial=-np.inf) - matrix[..., -1, :-1])


def forgetting_ratio(accuracy, random, joint):
    """Where each accuracy stands between chance (-1) and joint training (0).

    Args:
        accuracy: accuracy matrix [..., T, T].
        random: accuracy of a random stratified classifier on each task: [..., T], or one number
            for all.
        joint: [..., T, T]: `[t, k]` is the accuracy on task `k` of one multi-head model trained on
            the tasks 0 to `t` together. Above the diagonal it is not read.

    Returns:
        ratio [..., T, T]: `(R[t, k] - random[k]) / (joint[t, k] - random[k]) - 1`, and `nan` above
            the diagonal. Below it, `nan` where an accuracy or a joint one is.
        mean [..., T]: the mean of `ratio[t, k]` over the tasks k <= t; `nan` where one of them is.

    Raises:
        ValueError: if the shapes do not fit, or a joint model is exactly at chance.

    >>> R = [[0.9, 0.2, 0.1], [0.7, 0.8, 0.3], [0.6, 0.9, 0.9]]
    >>> J = [[0.9, 0.0, 0.0], [0.9, 0.9, 0.0], [0.9, 0.9, 0.9]]
    >>> ratio, mean = forgetting_ratio(R, 0.1, J)
    >>> ratio.round(3) + 0.0
    array([[ 0.   ,    nan,    nan],
           [-0.25 , -0.125,    nan],
           [-0.375,  0.   ,  0.   ]])
    >>> mean.round(4) + 0.0  # 0, (-0.25 - 0.125) / 2, (-0.375 + 0 + 0) / 3
    array([ 0.    , -0.1875, -0.125 ])

    Source: Serra et al. 2018, Eq. 6.
    """
    matrix, joint = _matrix(accuracy), _matrix(joint, "joint")
    tasks = matrix.shape[-1]
    if joint.shape[-1] != tasks:
        raise ValueError(
            f"joint must have shape [..., {tasks}, {tasks}] like accuracy, but has {joint.shape}."
        )
    random = _per_task(random, tasks, "random")[..., None, :]
    seen = np.tril(np.ones((tasks, tasks), bool))
    span = joint - random
    if np.any(seen & (span == 0)):
        *_, t, k = np.argwhere(seen & (span == 0))[0]
        raise ValueError(
            f"joint[{t}, {k}] equals the accuracy of a random classifier on task {k}; "
            "the forgetting ratio needs a joint model that has learned something."
        )
    ratio = np.where(seen, (matrix - random) / np.where(seen, span, 1) - 1, np.nan)
    mean = np.where(seen, ratio, 0).sum(axis=-1) / np.arange(1, tasks + 1)
    return ratio, mean


def learning_curve_area(curve, beta: int | None = None):
    """Area under the first steps of learning (LCA): how fast tasks are learned.

    Args:
        curve: [..., T, B]: `[k, b]` is the accuracy on task `k` after `b` batches of task `k`.
        beta: batches that count, so that columns 0 to `beta` are averaged; None takes all of them.

    Returns:
        [...], in the unit of `curve`; `nan` if an entry that counts is.

    Raises:
        ValueError: if `curve` has no such axes, or fewer than `beta + 1` columns.

    >>> round(float(learning_curve_area([[0.1, 0.5, 0.9], [0.3, 0.7, 0.9]], beta=1)), 6)
    0.4

    Source: Chaudhry et al. 2019 (A-GEM), learning curve area.
    """
    curve = np.asarray(curve, dtype=np.float64)
    if curve.ndim < 2 or curve.size == 0:
        raise ValueError(f"curve must have shape [..., T, B], but has {curve.shape}.")
    columns = curve.shape[-1] if beta is None else beta + 1
    if not 1 <= columns <= curve.shape[-1]:
        raise ValueError(f"beta must lie in 0 to {curve.shape[-1] - 1}, but is {beta}.")
    return curve[..., :columns].mean(axis=(-2, -1))


def free(capacity):
    """The share of the network that is free when each task begins.

    Args:
        capacity: [..., T], the share that is used after each task.

    Returns:
        [..., T]: 1 for the first task, then what its predecessors left; `nan` after a `nan`.

    Raises:
        ValueError: if `capacity` has no axis.

    >>> print(free([0.5, 0.75, 1.0]))
    [1.   0.5  0.25]
    """
    capacity = np.asarray(capacity, dtype=np.float64)
    if capacity.ndim == 0:
        raise ValueError(
            f"capacity must have shape [..., T], the share in use after each task, but is one "
            f"number, {capacity}."
        )
    return 1 - np.concatenate([np.zeros_like(capacity[..., :1]), capacity[..., :-1]], axis=-1)


def reuse(overlap):
    """Which share of each task's weights each other task uses too.

    Args:
        overlap: [..., T, T], the share of the network that both of two tasks use.

    Returns:
        [..., T, T]: entry [i, j] is the share of task i's weights that task j uses; row i is 0 if
        task i uses none, and `nan` where the overlap or its diagonal is.

    Raises:
        ValueError: if the last two axes are not square.

    >>> print(reuse([[0.4, 0.1], [0.1, 0.2]]))
    [[1.   0.25]
     [0.5  1.  ]]

    Source: Serra et al. 2018, Sec. 4.4.
    """
    overlap = _matrix(overlap, "overlap")
    own = np.diagonal(overlap, axis1=-2, axis2=-1)[..., None]
    return np.divide(overlap, own, out=np.zeros_like(overlap), where=own != 0)


def confidence_interval(values, level: float = 0.95) -> Interval:
    """Mean over seeds and its Student t interval.

    Args:
        values: [S, ...], one entry along the first axis for each independent seed.
        level: probability that the interval covers the true mean, in (0, 1).

    Returns:
        `Interval(mean [...], half_width [...])`. One seed says nothing of the spread, so its half
        width is `nan`; both are where a value is.

    Raises:
        ValueError: if there is no seed, or `level` is not between 0 and 1.

    >>> mean, half_width = confidence_interval([1.0, 2.0, 3.0])
    >>> round(float(mean), 3), round(float(half_width), 3)  # 4.303 * 1 / sqrt(3)
    (2.0, 2.484)
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim == 0 or values.shape[0] == 0:
        raise ValueError(
            f"values must have a first axis of at least one seed, but has shape {values.shape}."
        )
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, but is {level}.")
    seeds, mean = values.shape[0], values.mean(axis=0)
    if seeds == 1:
        return Interval(mean, np.nan * mean)
    from scipy.special import stdtrit  # the quantile of Student's t; scipy comes with jax

    error = values.std(axis=0, ddof=1) / np.sqrt(seeds)
    return Interval(mean, stdtrit(seeds - 1, (1 + level) / 2) * error)


def _matrix(accuracy, name: str = "accuracy") -> np.ndarray:
    matrix = np.asarray(accuracy, dtype=np.float64)
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2] or matrix.shape[-1] == 0:
        raise ValueError(
            f"{name} must have shape [..., T, T], a row and a column for each task, "
            f"but has {matrix.shape}."
        )
    return matrix


def _mean(values: np.ndarray):
    """Mean over the last axis; 0 where it is empty (a sequence of one task)."""
    return values.sum(axis=-1) / max(values.shape[-1], 1)


def _per_task(values, tasks: int, name: str) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim == 0:
        return np.full(tasks, values)
    if values.shape[-1] != tasks:
        raise ValueError(
            f"{name} must be one number or have shape [..., {tasks}], but has {values.shape}."
        )
    return values
