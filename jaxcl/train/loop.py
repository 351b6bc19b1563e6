"""The training engine: one learner, one task, one epoch, as pure functions.

Everything here can be jitted, vmapped over learners and placed on a mesh by the caller; `study`
does. `task`, `epoch` and all numbers are traced, so one compiled program serves a whole sequence.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike

from jaxcl.core import masks
from jaxcl.core.checks import check_choice, check_count, check_number, shorten
from jaxcl.core.isolate import IsolateState, isolate
from jaxcl.core.method import Method

PyTree = Any

EVALUATION_BATCHES = 4  # batches at once where nothing is kept for a backward pass


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


def start(
    setup: Setup,
    key: jax.Array,
    tasks: int,
    params: PyTree | None = None,
    statistics: PyTree | None = None,
) -> Learner:
    """A new learner.

    Args:
        setup: method, network and optimizer.
        key: typed key.
        tasks: number of tasks.
        params: initial parameters, such as a pretrained trunk; by default the model's own.
        statistics: running statistics that go with them; likewise. They broadcast against the
            model's own: for PNN, those of one column serve all.

    Returns:
        A learner that has seen no task.

    Raises:
        ValueError: if a setting is out of its range, the method is made for another number of
            tasks, `params` are not the model's, or the model has running statistics and
            `setup.norm` is not declared.
    """
    check(setup, tasks)
    model_key, method_key = jax.random.split(jax.random.fold_in(key, 0))
    fresh, initial = setup.model.init(model_key)
    if statistics is not None:  # for PNN of one column, which all columns then start from
        initial = jax.tree.map(
            lambda new, old: jnp.broadcast_to(new, old.shape), statistics, initial
        )
    statistics = initial
    names = sorted(masks.leaves_by_path(statistics))
    if setup.norm is None and names:
        raise ValueError(
            f"The model keeps running statistics ({shorten(names, 3)}); "
            f"declare what becomes of them: Setup(norm='frozen') or 'per_task' to isolate tasks, "
            f"'shared' for methods that do not."
        )
    if setup.norm == "frozen" and names and not _takes(setup.model.apply, "freeze_norm"):
        raise ValueError(
            "Setup: norm='frozen' needs a model whose apply takes freeze_norm=True. PNN's does "
            "not, as each column has statistics of its own: declare norm='shared'."
        )
    if params is not None:
        _check_params(params, fresh)
    theta, state = setup.method.init(method_key, fresh if params is None else params)
    rows = tasks if _has_rows(setup) else 1
    statistics = jax.tree.map(lambda leaf: jnp.stack([leaf] * rows), statistics)
    learner = Learner(theta, state, statistics, (), _new_plan(setup, theta, statistics), key)
    return begin_phase(setup, learner, 0)


def _check_params(params: PyTree, fresh: PyTree) -> None:
    """Raises ValueError, naming the leaf, for parameters that the model does not have."""
    given, own = masks.leaves_by_path(params), masks.leaves_by_path(fresh)
    for path in sorted(given.keys() | own.keys()):
        shapes = [np.shape(leaves[path]) if path in leaves else None for leaves in (given, own)]
        if shapes[0] != shapes[1]:
            has, needs = ("no such leaf" if s is None else f"shape {s}" for s in shapes)
            raise ValueError(f"start: params have {has} at '{path}', where the model has {needs}.")


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
    if setup.mixed and _has_rows(setup):
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


def begin_task(setup: Setup, learner: Learner, task: ArrayLike) -> Learner:
    """Prepares a learner for its next task: the method's own preparation, a fresh optimizer."""
    key = jax.random.fold_in(jax.random.fold_in(learner.key, 1), task)
    theta, state = setup.method.begin_task(key, learner.theta, learner.state, task)
    statistics = learner.statistics
    if _has_rows(setup):
        statistics = jax.tree.map(
            lambda rows: rows.at[task].set(rows[jnp.maximum(task - 1, 0)]), statistics
        )
    learner = learner._replace(theta=theta, state=state, statistics=statistics)
    return begin_phase(setup, learner, task)


def grow(setup: Setup, learner: Learner, tasks: int) -> Learner:
    """A learner with room for more tasks, between two of them: the old arrays lead the new ones."""
    fresh = start(setup, learner.key, tasks)

    def keep(new, old):
        return jax.lax.dynamic_update_slice(new, old, (0,) * old.ndim)

    kept = {
        name: jax.tree.map(keep, getattr(fresh, name), getattr(learner, name))
        for name in ("theta", "state", "statistics")
    }
    return fresh._replace(**kept)


def begin_phase(
    setup: Setup, learner: Learner, task: ArrayLike, validation: Data | None = None
) -> Learner:
    """Renews the optimizer and the plan: at a task's start, and before PackNet's retraining.

    Args:
        setup: method, network and optimizer.
        learner: the learner.
        task: the task.
        validation: where `setup` keeps the best state, the examples on which the one that the
            phase begins with competes with those of its epochs; None if the first epoch is to win.

    Returns:
        The learner, ready for `epoch`.

    Source: the authors' code. PackNet keeps the pruned network if retraining never beats it; HAT
        starts every task from an infinite loss.
    """
    plan = _new_plan(setup, learner.theta, learner.statistics)
    if plan.kept is not None and validation is not None:
        plan = plan._replace(best=_to_beat(setup, learner, validation, task))
    return learner._replace(opt_state=setup.optimizer.init(learner.theta), plan=plan)


def end_task(setup: Setup, learner: Learner, task: ArrayLike) -> Learner:
    """Closes a task: PackNet prunes, HAT accumulates its attention, PNN freezes its column."""
    theta, state = setup.method.end_task(learner.theta, learner.state, task)
    return learner._replace(theta=theta, state=state)


def end_phase(setup: Setup, learner: Learner) -> Learner:
    """Goes back to the best state of the phase, where one is kept."""
    if learner.plan.kept is None:
        return learner
    theta, statistics = learner.plan.kept
    return learner._replace(theta=theta, statistics=statistics)


def epoch(
    setup: Setup,
    learner: Learner,
    data: Data,
    task: ArrayLike,
    index: ArrayLike,
    validation: Data | None = None,
    features: PyTree | None = None,
) -> tuple[Learner, Metrics]:
    """One epoch on one task, in a fresh random order.

    Args:
        setup: method, network and optimizer.
        learner: a learner whose task has begun.
        data: the task's examples.
        task: the task, an integer scalar counted from 0.
        index: the epoch's number, which selects its random order.
        validation: examples that choose the best epoch and pace the step size, where `setup` asks;
            for `setup.mixed` those of all tasks, with a leading [tasks] axis.
        features: what the network's `frozen` part gives for each example of `data`, [length, ...].

    Returns:
        The learner after the epoch, and the means of its training loss and accuracy; those of a
        learner that has stopped are of an epoch that is thrown away.

    Raises:
        ValueError: if `setup` needs validation examples and there are none.
    """
    if learner.plan.kept is not None and validation is None:
        raise ValueError("epoch: Setup.select and Setup.patience need validation examples.")
    data = jax.tree.map(jnp.asarray, data)
    key = jax.random.fold_in(learner.key, 2)
    key = jax.random.fold_in(jax.random.fold_in(key, task), index)
    order = _random_order(key, data.y.shape[0], data.count)
    steps = (data.count + setup.batch - 1) // setup.batch
    tx = isolate(setup.optimizer)
    trainable = setup.method.trainable(learner.theta, learner.state, task)
    opt_state = IsolateState(jax.tree.map(jnp.asarray, trainable), learner.opt_state)

    def step(i, carry):
        theta, statistics, opt_state, totals = carry
        seen = i * setup.batch
        position = seen + jnp.arange(setup.batch)
        rows = order[position % data.count]  # the last batch is filled up with weight 0
        weight = jnp.asarray(position < data.count, float)
        batch = jax.tree.map(lambda leaf: leaf[rows], (data.x, data.y, data.task, features))
        if setup.axis is not None:
            batch = jax.lax.with_sharding_constraint(batch, PartitionSpec(setup.axis))
        if setup.annealing == "paper":
            progress = jnp.asarray(i, float) / jnp.maximum(steps - 1, 1)
        else:
            progress = jnp.asarray(seen, float) / data.count

        def objective(theta):
            logits, new = _logits(
                setup, theta, learner.state, statistics, batch, task, progress,
                jax.random.fold_in(key, i),
            )  # fmt: skip
            loss, correct = _scores(setup, logits, batch, task)
            loss = jnp.sum(loss * weight)
            penalty = setup.method.penalty(theta, learner.state, task, progress)
            totals = loss, jnp.sum(correct * weight)
            return loss / jnp.sum(weight) + penalty, (new, totals)

        gradient, (statistics, new_totals) = jax.grad(objective, has_aux=True)(theta)
        updates, opt_state = tx.update(gradient, opt_state, theta)
        if setup.patience is not None:
            updates = jax.tree.map(lambda u: u * learner.plan.scale.astype(u.dtype), updates)
        theta = setup.method.project(optax.apply_updates(theta, updates))
        totals = jax.tree.map(jnp.add, totals, new_totals)
        return theta, statistics, opt_state, totals

    carry = (learner.theta, learner.statistics, opt_state, (jnp.zeros(()),) * 2)
    theta, statistics, opt_state, totals = jax.lax.fori_loop(0, steps, step, carry)
    trained = learner._replace(theta=theta, statistics=statistics, opt_state=opt_state.inner)
    metrics = Metrics(*(total / data.count for total in totals))
    if learner.plan.kept is None:
        return trained, metrics
    return _follow_plan(setup, learner, trained, validation, task), metrics


def evaluate(
    setup: Setup,
    learner: Learner,
    data: Data,
    task: ArrayLike,
) -> Metrics:
    """Loss and accuracy of one task's network, as it would be used after training.

    Args:
        setup: method and network.
        learner: the learner.
        data: the task's examples.
        task: the task whose network and head are used.

    Returns:
        Means over the examples; the loss is without penalty.
    """
    data = jax.tree.map(jnp.asarray, data)
    params, row = network(setup, learner, task)
    size = _evaluation_size(setup, data.y.shape[0])

    def add(i, totals):
        position = i * size + jnp.arange(size)
        rows = jnp.minimum(position, data.y.shape[0] - 1)
        weight = jnp.asarray(position < data.count, float)
        logits, _ = setup.model.apply(params, row, setup.prepare(data.x[rows]))
        loss, correct = _scores(setup, logits, (None, data.y[rows], None, None), task)
        return totals[0] + jnp.sum(loss * weight), totals[1] + jnp.sum(correct * weight)

    totals = jax.lax.fori_loop(0, (data.count + size - 1) // size, add, (jnp.zeros(()),) * 2)
    return Metrics(*(total / data.count for total in totals))


def network(
    setup: Setup, learner: Learner, task: ArrayLike, progress: ArrayLike | None = None
) -> tuple[PyTree, PyTree]:
    """One task's network: `(params, statistics)` for `setup.model.apply`."""
    params = setup.method.view(learner.theta, learner.state, task, progress)
    return params, _row(setup, learner.statistics, task)


def evaluate_all(setup: Setup, learner: Learner, data: Data) -> Metrics:
    """`evaluate` on every task; the leaves of `data` have a leading [tasks] axis."""
    tasks = jnp.arange(data.y.shape[0])
    return jax.lax.map(lambda args: evaluate(setup, learner, *args), (data, tasks))


def frozen_features(setup: Setup, learner: Learner, data: Data, task: ArrayLike) -> PyTree:
    """What the network's frozen part gives for each example: it does not change during a task.

    Returns:
        Arrays with the leading axis of `data.x`, to be passed to `epoch`.
    """
    params, row = network(setup, learner, task, 0.0)
    length = data.y.shape[0]
    size = _evaluation_size(setup, length)

    def run(i):
        rows = jnp.minimum(i * size + jnp.arange(size), length - 1)
        return setup.model.frozen(params, row, setup.prepare(data.x[rows]))

    features = jax.lax.map(run, jnp.arange(-(-length // size)))
    return jax.tree.map(lambda f: f.reshape(-1, *f.shape[2:])[:length], features)


def _logits(setup, theta, state, statistics, batch, task, progress, key):
    """The network's logits on a training batch, and the statistics that follow."""
    x, _, tasks_of_x, features = batch
    x = setup.prepare(x)
    extra = {} if features is None else {"features": features}

    def apply(params, row, **mode):
        return setup.model.apply(params, row, x, train=True, key=key, **extra, **mode)

    if setup.mixed:
        tasks = len(setup.classes)
        row = _row(setup, statistics, 0)
        logits, row = jax.vmap(
            lambda t: apply(setup.method.view(theta, state, t, progress), row),
            out_axes=(0, None),
        )(jnp.arange(tasks))  # only what depends on the task, the heads, is computed repeatedly
        logits = logits[tasks_of_x, jnp.arange(x.shape[0])]
    else:
        params = setup.method.view(theta, state, task, progress)
        row = _row(setup, statistics, task)
        if setup.norm == "frozen" and jax.tree.leaves(statistics):
            logits, row = jax.lax.cond(
                task == 0,
                lambda p: apply(p, row),
                lambda p: (apply(p, row, freeze_norm=True)[0], row),
                params,
            )
        else:
            logits, row = apply(params, row)
    at = task if _has_rows(setup) else 0
    return logits, jax.tree.map(lambda rows, new: rows.at[at].set(new), statistics, row)


def _evaluation_size(setup, length):
    """Examples at a time, so that as few and as equal parts as possible make up `length`."""
    parts = -(-length // (EVALUATION_BATCHES * setup.batch))
    return -(-length // parts)


def _row(setup, statistics, task):
    return jax.tree.map(lambda rows: rows[task if _has_rows(setup) else 0], statistics)


def _has_rows(setup):
    """Whether the running statistics have one row for each task."""
    return setup.norm in ("frozen", "per_task")


def _scores(setup, logits, batch, task):
    """Cross-entropy and correctness of each example, over its own task's classes alone."""
    _, y, tasks_of_x, _ = batch
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if setup.classes is not None:
        classes = jnp.asarray(setup.classes)[task if tasks_of_x is None else tasks_of_x]
        numbers = jnp.arange(logits.shape[-1])[None]
        absent = jnp.broadcast_to(numbers >= jnp.reshape(classes, (-1, 1)), logits.shape)
        logits = jnp.where(absent, -1e30, logits)
    labels = jax.nn.one_hot(y, logits.shape[-1], dtype=logits.dtype)
    loss = jax.nn.logsumexp(logits, axis=-1) - jnp.sum(labels * logits, axis=-1)
    return loss, (jnp.argmax(logits, axis=-1) == y).astype(jnp.float32)


def _random_order(key, length, count):
    """A permutation of the first `count` of `length` rows; what follows them is never read."""
    rank = jax.random.bits(key, (length,), "uint32") >> 1
    rank = jnp.where(jnp.arange(length) < count, rank, jnp.uint32(0xFFFFFFFF))
    return jnp.argsort(rank)


def _takes(function, name):
    kinds = inspect.signature(function).parameters
    return name in kinds or any(p.kind is p.VAR_KEYWORD for p in kinds.values())


def _new_plan(setup, theta, statistics):
    needs_validation = setup.select is not None or setup.patience is not None
    return Plan(
        scale=jnp.float32(1),
        patience=jnp.int32(setup.patience or 0),
        stopped=jnp.bool_(False),
        best=jnp.float32(jnp.inf),
        kept=(theta, statistics) if needs_validation else None,
    )


def _to_beat(setup, learner, validation, task):
    """What the best state has the lowest of, with the network that would be stored."""
    if setup.mixed:  # the tasks so far, each with its own head
        share = (jnp.arange(len(setup.classes)) <= task) / (task + 1)
        each = evaluate_all(setup, learner, validation)
        metrics = jax.tree.map(lambda values: jnp.sum(share * values), each)
    else:
        metrics = evaluate(setup, learner, validation, task)
    if setup.select == "accuracy":
        return -metrics.accuracy
    return metrics.loss + setup.method.penalty(learner.theta, learner.state, task, None)


def _follow_plan(setup, before, after, validation, task):
    """Keeps the best epoch, and divides the step size or stops as the original HAT does."""
    plan, value = before.plan, _to_beat(setup, after, validation, task)
    better = value < plan.best
    found = (after.theta, after.statistics)
    plan = plan._replace(
        best=jnp.where(better, value, plan.best),
        kept=jax.tree.map(lambda new, old: jnp.where(better, new, old), found, plan.kept),
    )
    if setup.patience is not None:
        left = jnp.where(better, setup.patience, plan.patience - 1)
        scale = jnp.where(left > 0, plan.scale, plan.scale / 3)
        plan = plan._replace(
            scale=scale,
            patience=jnp.where(left > 0, left, setup.patience),
            stopped=scale < setup.least_scale,
        )
    return jax.tree.map(
        lambda new, old: jnp.where(before.plan.stopped, old, new), after._replace(plan=plan), before
    )
