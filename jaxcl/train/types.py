"""What training is made of: the set-up, the data, and the learner that changes."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax

from jaxcl.core.checks import check_choice, check_count, check_number
from jaxcl.core.method import Method
from jaxcl.core.trees import PyTree


class Setup(NamedTuple):
    """What stays the same while a learner learns.

    Attributes:
        method: what is trained, protected and evaluated.
        model: the network, `init` and `apply` as in `models.Model`.
        optimizer: any optax optimizer; the engine wraps it in `isolate`.
        prepare: stored batch -> the network's input, such as a normalization of bytes.
        classes: int [tasks], the number of each task's classes; the logits beyond it take no part
            in the loss and the prediction. None if every task uses all logits.
        batch: examples in a step. The last, partial batch of an epoch is kept.
        norm: what becomes of BatchNorm's running statistics, to be declared for a model that has
            them: `"shared"` by all tasks, which protects none; `"frozen"` after the first, when
            the norms also run in inference mode while training; or one set `"per_task"`.
        annealing: how an epoch's progress is counted: `"paper"` reaches 1 at the last batch,
            `"original"` is the share of the examples seen before the batch.
        mixed: train on examples of all tasks so far, each with its own task's head: joint training,
            for a method that isolates nothing.
        select: keep the state of the epoch with the best validation `"loss"` or `"accuracy"`.
        patience: epochs without a better one, by the loss unless `select` says otherwise, before
            the step size is divided by 3; training stops once it is below `least_scale`. None to
            train all epochs.
        least_scale: smallest share of the step size to train with; the original HAT goes from 0.05
            down to 1e-4.
        axis: name of an automatic mesh axis that shares out the examples of each batch. Only the
            speed depends on it: XLA sums up whatever is formed over a batch.
    """

    method: Method
    model: Any
    optimizer: optax.GradientTransformation
    prepare: Callable[[jax.Array], jax.Array] = lambda x: x
    classes: jax.Array | np.ndarray | Sequence[int] | None = None
    batch: int = 64
    norm: Literal["shared", "frozen", "per_task"] | None = None
    annealing: Literal["paper", "original"] = "paper"
    mixed: bool = False
    select: Literal["loss", "accuracy"] | None = None
    patience: int | None = None
    least_scale: float = 0.002
    axis: str | None = None


class Data(NamedTuple):
    """Examples of one task, padded to a common length.

    Attributes:
        x: array [length, ...], in any stored type.
        y: int array [length], classes counted from 0 within the task.
        count: number of examples that are real, an integer scalar; they come first.
        task: int array [length], each example's task, for `Setup.mixed`; else None.
    """

    x: Any
    y: Any
    count: Any
    task: Any = None


class Plan(NamedTuple):
    """How far a phase of training has come.

    Attributes:
        scale: the factor on the optimizer's updates, from 1 downwards.
        patience: epochs left before the next reduction.
        stopped: True once the phase is over; the learner no longer changes.
        best: the lowest validation loss, or the negative of the highest accuracy.
        kept: `(theta, statistics)` of that epoch; None unless `Setup.select` or `patience`.
    """

    scale: jax.Array
    patience: jax.Array
    stopped: jax.Array
    best: jax.Array
    kept: PyTree


class Learner(NamedTuple):
    """All that a learner is: one pytree, to be saved, restored, vmapped and placed on devices.

    Attributes:
        theta: what the optimizer moves.
        state: the method's state.
        statistics: the model's running statistics, with a leading axis of one row, or one a task.
        opt_state: the optimizer's state.
        plan: the running phase.
        key: the learner's own typed key; all its randomness is folded in from it.
    """

    theta: PyTree
    state: PyTree
    statistics: PyTree
    opt_state: optax.OptState
    plan: Plan
    key: jax.Array


class Metrics(NamedTuple):
    """Means over the examples of an epoch or an evaluation, scalars."""

    loss: jax.Array
    accuracy: jax.Array


def check(setup: Setup, tasks: int) -> None:
    """Raises ValueError, naming the setting, for what a setup cannot mean."""
    for name, known in (
        ("norm", (None, "shared", "frozen", "per_task")),
        ("annealing", ("paper", "original")),
        ("select", (None, "loss", "accuracy")),
    ):
        check_choice(f"Setup: {name}", getattr(setup, name), known)
    check_count("Setup: batch", setup.batch)
    if setup.patience is not None:
        check_count("Setup: patience", setup.patience)
    check_number("Setup: least_scale", setup.least_scale, least=0, most=1)
    if setup.method.tasks not in (None, tasks):
        raise ValueError(f"The method is made for {setup.method.tasks} tasks, not for {tasks}.")
    if setup.classes is not None:
        if len(setup.classes) != tasks:
            raise ValueError(f"Setup: classes has {len(setup.classes)} entries for {tasks} tasks.")
        check_number("Setup: classes", setup.classes, least=1)
    if setup.mixed and setup.classes is None:
        raise ValueError("Setup: mixed training needs classes, the number of each task's classes.")
    if setup.mixed and has_rows(setup):
        raise ValueError(f"Setup: mixed training needs norm='shared', got {setup.norm!r}.")


def examples(x: Any, y: Any, *, length: int | None = None) -> Data:
    """A task's examples as arrays for training, checked.

    Args:
        x: array [N, ...] of any type.
        y: int array [N], classes counted from 0 within the task.
        length: common length of all tasks' examples, to which these are filled up with zeros.

    Returns:
        Data of numpy arrays.

    Raises:
        ValueError: for labels that are no integers or negative, no examples, values that are not
            finite, or lengths that do not fit.
    """
    x, y = np.asarray(x), np.asarray(y)
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"labels must be one integer for each example, got {y.dtype}{y.shape}.")
    if not 0 < y.size == len(x) <= (length or y.size):
        raise ValueError(f"{len(x)} examples and {y.size} labels do not fit length {length}.")
    if y.min() < 0:
        raise ValueError(f"labels must be counted from 0, got {y.min()}.")
    if np.issubdtype(x.dtype, np.floating) and not np.isfinite(x).all():
        raise ValueError("the examples hold NaN or infinity.")
    short = (length or y.size) - y.size
    filler = [(0, short)] + [(0, 0)] * (x.ndim - 1)
    x, rows = (np.pad(x, filler) if short else x), np.pad(y.astype(np.int32), (0, short))
    return Data(x, rows, np.int32(y.size))


def has_rows(setup):
    """Whether the running statistics have one row for each task."""
    return setup.norm in ("frozen", "per_task")
