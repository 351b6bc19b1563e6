"""What training is made of: the set-up, the data, and the learner that changes."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcl.core.checks import check_choice, check_count, check_number
from jaxcl.core.method import Batch, Method
from jaxcl.core.trees import PyTree
from jaxcl.train.losses import accuracy, cross_entropy


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
        least_scale: smallest share of the step size to train with; Serra et al. (2018) go from 0.05
            down to 1e-4.
        axis: name of an automatic mesh axis that shares out the examples of each batch. Only the
            speed depends on it: XLA sums up whatever is formed over a batch.
        scenario: which logits a row competes with, and how its label counts: `"task"`, those of
            its own task, by the task's own head; `"domain"`, the same by one head for all;
            `"class"`, those of all classes seen so far, numbered from task to task.
        unseen: in the scenario `"class"`, whether logits of classes that are still to come are
            `"masked"` or `"kept"` in the loss and the prediction. Both are published.
        loss: `(logits [B, C], labels [B]) -> [B]`; logits that take no part are -1e30.
        metric: likewise; what is reported as accuracy.
        reset: renew the optimizer's state at the start of every phase, or keep it.
        schedule: factor on the step size by the share of the phase that is done, in [0, 1]; None
            for a constant one.
        order: of the examples in an epoch: `"each"` learner draws its own; `"one"` for all is given
            from outside, as windows (Data.first), so that it can be streamed.
        augment: `(key, x) -> x`, stored examples to those that a training step sees; None for none.
        sample: shape and type of one stored example's x, for methods with a memory of examples.

    >>> import jaxcl, optax
    >>> method = jaxcl.multihead(Method(lambda key, params: (params, ())), tasks=2)
    >>> Setup(method, jaxcl.models.mlp(4, (8,), 3), optax.sgd(0.1), classes=[3, 3]).batch
    64
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
    scenario: Literal["task", "domain", "class"] = "task"
    unseen: Literal["masked", "kept"] = "masked"
    loss: Callable[[jax.Array, jax.Array], jax.Array] = cross_entropy
    metric: Callable[[jax.Array, jax.Array], jax.Array] = accuracy
    reset: bool = True
    schedule: Callable[[jax.Array], jax.Array] | None = None
    sample: jax.ShapeDtypeStruct | None = None
    order: Literal["each", "one"] = "each"
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None


class Data(NamedTuple):
    """Examples of one task, padded to a common length.

    Attributes:
        x: array [length, ...], in any stored type.
        y: array [length]; int, classes counted from 0 within the task, unless `Setup.loss` takes
            other labels.
        count: number of examples that are real, an integer scalar; they come first.
        task: int array [length], each example's task, for `Setup.mixed`; else None.
        first: of a window, which holds the batches of some steps one after the other, filled up,
            the first step; `count` is then that of the whole epoch. None for all examples.
    """

    x: Any
    y: Any
    count: Any
    task: Any = None
    first: Any = None


class EarlyStopping(NamedTuple):
    """What the validation examples say of the running phase.

    Attributes:
        scale: the factor on the optimizer's updates, from the phase's own downwards.
        patience: epochs left before the next reduction.
        stopped: True once the phase is over; the learner no longer changes.
        best: the lowest validation loss, or the negative of the highest accuracy.
        value: likewise, of the epoch that was judged last.
        kept: `(theta, statistics, memory)` of that epoch; None unless `Setup.select` or `patience`.
    """

    scale: jax.Array
    patience: jax.Array
    stopped: jax.Array
    best: jax.Array
    value: jax.Array
    kept: PyTree


class Metrics(NamedTuple):
    """Means over the examples of an epoch or an evaluation, scalars."""

    loss: jax.Array
    accuracy: jax.Array


class Position(NamedTuple):
    """Where a learner stands.

    Attributes:
        task: the task that began last, an integer scalar; -1 before the first.
        totals: of the running epoch: loss and accuracy, summed over the examples so far.
        finite: False once a loss or an entry of `theta` is not finite.
    """

    task: jax.Array
    totals: Metrics
    finite: jax.Array


class Learner(NamedTuple):
    """All that a learner is: one pytree, to be saved, restored, vmapped and placed on devices.

    Attributes:
        theta: what the optimizer moves.
        state: the method's state, which no step changes.
        statistics: the model's running statistics, with a leading axis of one row, or one a task.
        opt_state: the optimizer's state.
        stopping: what the validation examples say of the running phase.
        key: the learner's own typed key; all its randomness is folded in from it.
        memory: what the method carries through every step; () unless it is `online`.
        position: where the learner stands.
    """

    theta: PyTree
    state: PyTree
    statistics: PyTree
    opt_state: optax.OptState
    stopping: EarlyStopping
    key: jax.Array
    memory: PyTree
    position: Position


def check(setup: Setup, tasks: int) -> None:
    """Raises ValueError, naming the setting, for what a setup cannot mean."""
    for name, known in (
        ("norm", (None, "shared", "frozen", "per_task")),
        ("annealing", ("paper", "original")),
        ("select", (None, "loss", "accuracy")),
        ("scenario", ("task", "domain", "class")),
        ("order", ("each", "one")),
        ("unseen", ("masked", "kept")),
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
    elif setup.scenario == "class":
        raise ValueError("Setup: scenario='class' needs classes, the number of each task's.")
    if setup.mixed:
        _check_mixed(setup)


def _check_mixed(setup: Setup) -> None:
    if setup.method.isolates:
        raise ValueError(
            "Setup: mixed training lets every task change everything, which a method that "
            "isolates tasks does not; give it one that protects nothing."
        )
    if setup.classes is None:
        raise ValueError("Setup: mixed training needs classes, the number of each task's classes.")
    if has_rows(setup):
        raise ValueError(f"Setup: mixed training needs norm='shared', got {setup.norm!r}.")


def examples(x: Any, y: Any, *, length: int | None = None) -> Data:
    """A task's examples as arrays for training, checked.

    Args:
        x: array [N, ...] of any type.
        y: int array [N], classes counted from 0 within the task; or floats, for a loss of numbers.
        length: common length of all tasks' examples, to which these are filled up with zeros.

    Returns:
        Data of numpy arrays.

    Raises:
        ValueError: for labels that are no numbers or negative, no examples, values that are not
            finite, or lengths that do not fit.

    >>> data = examples(np.ones((3, 2), np.float32), [0, 1, 0], length=5)
    >>> data.x.shape, int(data.count)
    ((5, 2), 3)
    """
    x, y = np.asarray(x), np.asarray(y)
    whole = np.issubdtype(y.dtype, np.integer)
    if y.ndim < 1 or not ((whole and y.ndim == 1) or np.issubdtype(y.dtype, np.floating)):
        raise ValueError(f"labels must be one integer for each example, got {y.dtype}{y.shape}.")
    if not 0 < len(y) == len(x) <= (length or len(y)):
        raise ValueError(f"{len(x)} examples and {len(y)} labels do not fit length {length}.")
    if whole and y.min() < 0:
        raise ValueError(f"labels must be counted from 0, got {y.min()}.")
    for values in (x, y):
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            raise ValueError("the examples hold NaN or infinity.")
    short = (length or len(y)) - len(y)

    def filled(values):
        return np.pad(values, [(0, short)] + [(0, 0)] * (values.ndim - 1)) if short else values

    return Data(filled(x), filled(y.astype(np.int32 if whole else np.float32)), np.int32(len(y)))


def has_rows(setup: Setup) -> bool:
    """Whether the running statistics have one row for each task."""
    return setup.norm in ("frozen", "per_task")


def trainable(setup: Setup, theta: PyTree, state: PyTree, task: Any, mask: Any = None) -> PyTree:
    """What a task may change; in mixed training the heads of all tasks so far are among it."""
    method = setup.method
    chosen = (setup.mixed and method.trainable_seen) or mask or method.trainable
    return jax.tree.map(lambda m: m if m is True else jnp.asarray(m), chosen(theta, state, task))


def rows_of(data: Data, rows: Any, features: PyTree = None) -> Batch:
    """Some examples as a batch."""
    pick = lambda leaf: leaf[rows]  # noqa: E731
    own = None if data.task is None else data.task[rows]
    return Batch(pick(data.x), pick(data.y), own, features=jax.tree.map(pick, features))
