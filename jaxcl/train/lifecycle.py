"""The boundaries of training: a learner starts, begins and ends phases and tasks, and grows."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxcl.core import masks
from jaxcl.core.checks import shorten
from jaxcl.core.method import Batch
from jaxcl.core.trees import PyTree
from jaxcl.train.forward import lend, takes
from jaxcl.train.stopping import new_stopping, to_beat
from jaxcl.train.types import (
    Data,
    EarlyStopping,
    Learner,
    Metrics,
    Position,
    Setup,
    check,
    has_rows,
)


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
            model's own: where it has columns, those of one serve all.

    Returns:
        A learner that has seen no task.

    Raises:
        ValueError: if a setting is out of its range, the method is made for another number of
            tasks, `params` are not the model's, or the model has running statistics and
            `setup.norm` is not declared.

    >>> import jaxcl, optax
    >>> method = jaxcl.multihead(jaxcl.Method(lambda key, params: (params, ())), tasks=2)
    >>> setup = Setup(method, jaxcl.models.mlp(4, (8,), 3), optax.sgd(0.1), classes=[3, 3])
    >>> learner = jax.eval_shape(lambda key: start(setup, key, 2), jax.random.key(0))
    >>> learner.theta["head"]["kernel"].shape
    (2, 8, 3)
    """
    check(setup, tasks)
    model_key, method_key = jax.random.split(jax.random.fold_in(key, 0))
    fresh, initial = setup.model.init(model_key)
    if statistics is not None:  # of one column, which all columns then start from
        initial = jax.tree.map(
            lambda new, old: jnp.broadcast_to(new, old.shape), statistics, initial
        )
    _check_norm(setup, sorted(masks.leaves_by_path(initial)))
    if params is not None:
        _check_params(params, fresh)
    theta, state = setup.method.init(method_key, fresh if params is None else params)
    rows = tasks if has_rows(setup) else 1
    statistics = jax.tree.map(lambda leaf: jnp.stack([leaf] * rows), initial)
    totals = Metrics(jnp.zeros(()), jnp.zeros(()))
    nothing = EarlyStopping(
        jnp.float32(1), jnp.int32(0), jnp.bool_(False), jnp.float32(0), jnp.float32(0), None
    )
    learner = Learner(
        theta, state, statistics, (), nothing, key, (),
        Position(jnp.int32(-1), totals, jnp.bool_(True)),
    )  # fmt: skip
    learner = learner._replace(memory=_memory(setup, learner))
    return begin_phase(setup, learner, 0)


def _memory(setup: Setup, learner: Learner) -> PyTree:
    """The method's fast memory, empty."""
    if setup.method.online is None:
        return ()
    if setup.sample is None:
        raise ValueError(
            "Setup: the method keeps a memory of examples; sample needs the shape and type of one "
            "stored example, a jax.ShapeDtypeStruct."
        )
    x = jax.ShapeDtypeStruct((1, *setup.sample.shape), setup.sample.dtype)
    label = jax.ShapeDtypeStruct((1,), jnp.int32)
    context = lend(setup, learner.statistics, 0, learner.key)
    logits = jax.eval_shape(
        lambda x: context.logits(learner.theta, learner.state, Batch(x, None)), x
    )
    return setup.method.online.init(Batch(x, label, label, features=logits), learner.theta)


def _check_norm(setup: Setup, names: list[str]) -> None:
    if setup.norm is None and names:
        raise ValueError(
            f"The model keeps running statistics ({shorten(names, 3)}); "
            f"declare what becomes of them: Setup(norm='frozen') or 'per_task' to isolate tasks, "
            f"'shared' for methods that do not."
        )
    if setup.norm == "frozen" and names and not takes(setup.model.apply, "freeze_norm"):
        raise ValueError(
            "Setup: norm='frozen' needs a model whose apply takes freeze_norm=True. That of a "
            "network of columns does not, as each column has statistics of its own: declare "
            "norm='shared'."
        )


def _check_params(params: PyTree, fresh: PyTree) -> None:
    """Raises ValueError, naming the leaf, for parameters that the model does not have."""
    given, own = masks.leaves_by_path(params), masks.leaves_by_path(fresh)
    for path in sorted(given.keys() | own.keys()):
        shapes = [np.shape(leaves[path]) if path in leaves else None for leaves in (given, own)]
        if shapes[0] != shapes[1]:
            has, needs = ("no such leaf" if s is None else f"shape {s}" for s in shapes)
            raise ValueError(f"start: params have {has} at '{path}', where the model has {needs}.")


def begin_task(setup: Setup, learner: Learner, task: ArrayLike) -> Learner:
    """Prepares a learner for its next task: the method's own preparation, a fresh optimizer."""
    key = jax.random.fold_in(jax.random.fold_in(learner.key, 1), task)
    theta, state = setup.method.begin_task(key, learner.theta, learner.state, task)
    statistics = learner.statistics
    if has_rows(setup):
        statistics = jax.tree.map(
            lambda rows: rows.at[task].set(rows[jnp.maximum(task - 1, 0)]), statistics
        )
    position = learner.position._replace(task=jnp.asarray(task, jnp.int32))
    learner = learner._replace(theta=theta, state=state, statistics=statistics, position=position)
    return begin_phase(setup, learner, task)


def grow(setup: Setup, learner: Learner, tasks: int) -> Learner:
    """A learner with room for more tasks, between two of them: the old arrays lead the new ones."""
    fresh, online = start(setup, learner.key, tasks), setup.method.online

    def keep(new, old):
        return jax.lax.dynamic_update_slice(new, old, (0,) * old.ndim)

    names = ("theta", "state", "statistics", "memory", "position")
    if online is not None and online.grow is not None:
        key = jax.random.fold_in(learner.key, 2**31 - 1)
        fresh = fresh._replace(memory=online.grow(key, learner.memory, fresh.memory))
        names = tuple(name for name in names if name != "memory")
    names += () if setup.reset else ("opt_state",)  # which the next task goes on with
    kept = {
        name: jax.tree.map(keep, getattr(fresh, name), getattr(learner, name)) for name in names
    }
    return fresh._replace(**kept)


def begin_phase(
    setup: Setup,
    learner: Learner,
    task: ArrayLike,
    validation: Data | None = None,
    *,
    phase: int = 0,
    examples: Data | None = None,
) -> Learner:
    """Renews the optimizer and what is kept: at a task's start, and before each further phase.

    Args:
        setup: method, network and optimizer.
        learner: the learner.
        task: the task.
        validation: where `setup` keeps the best state, the examples on which the one that the
            phase begins with competes with those of its epochs; None if the first epoch is to win.
        phase: the phase, an index into the method's; it is not traced.
        examples: the task's examples, or a sample, for a method whose phases begin with a look.

    Returns:
        The learner, ready for `epoch`.

    Source: the authors' code of Mallya and Lazebnik (2018) keeps the pruned network if retraining
        never beats it; that of Serra et al. (2018) starts every task from an infinite loss.
    """
    chosen = setup.method.phases[phase]
    if chosen.begin is not None:
        key = jax.random.fold_in(jax.random.fold_in(learner.key, 3 + phase), task)
        context = lend(setup, learner.statistics, task, key, None, examples, validation)
        theta, state = chosen.begin(context, learner.theta, learner.state)
        learner = learner._replace(theta=theta, state=state)
    stopping = new_stopping(setup, learner, chosen, task)
    if stopping.kept is not None and validation is not None:
        stopping = stopping._replace(best=to_beat(setup, learner, validation, task))
    fresh = setup.reset or learner.opt_state == ()
    opt_state = setup.optimizer.init(learner.theta) if fresh else learner.opt_state
    return learner._replace(opt_state=opt_state, stopping=stopping)


def end_task(
    setup: Setup,
    learner: Learner,
    task: ArrayLike,
    examples: Data | None = None,
    validation: Data | None = None,
) -> Learner:
    """Closes a task: the method prunes, accumulates attention, freezes a column.

    Args:
        setup: method and network.
        learner: the learner.
        task: the task.
        examples: the task's examples, or a sample, for a method that consolidates on them.
        validation: its validation examples, likewise.

    Raises:
        ValueError: if the method consolidates, and there are no examples.
    """
    state, memory = learner.state, learner.memory
    if setup.method.consolidate is not None:
        if examples is None:
            raise ValueError("end_task: the method needs the task's examples; give examples=.")
        key = jax.random.fold_in(jax.random.fold_in(learner.key, 2), 2**32 - 1)
        context = lend(
            setup, learner.statistics, task, jax.random.fold_in(key, task), None,
            jax.tree.map(jnp.asarray, examples), validation,
        )  # fmt: skip
        state, memory = setup.method.consolidate(context, learner.theta, state, memory)
    theta, state = setup.method.end_task(learner.theta, state, task)
    return learner._replace(theta=theta, state=state, memory=memory)


def end_phase(setup: Setup, learner: Learner) -> Learner:
    """Goes back to the best state of the phase, where one is kept."""
    if learner.stopping.kept is None:
        return learner
    theta, statistics, memory = learner.stopping.kept
    return learner._replace(theta=theta, statistics=statistics, memory=memory)


def forget_task(setup: Setup, learner: Learner, task: int, kept: Any) -> Learner:
    """Takes a finished task out of a learner, between two tasks: its head, and all it alone used.

    What later tasks read of it is the first one's of them from then on; the rest starts anew, and
    can be trained by a new task. No logit of the other tasks changes.

    Args:
        setup: method and network.
        learner: the learner.
        task: the task to forget, counted from 0.
        kept: bool [tasks], the finished tasks that stay.

    Raises:
        ValueError: for a method that cannot tell apart what a task left, tasks that share a head,
            or a task that is to be kept.
    """
    if setup.method.forget_task is None:
        raise ValueError("the method cannot forget: what a task left in it cannot be told apart.")
    if setup.scenario != "task":
        raise ValueError(
            f"in the scenario {setup.scenario!r} all tasks share one head: none can be forgotten."
        )
    kept = np.asarray(kept)
    fresh = start(setup, jax.random.fold_in(learner.key, 2**31 + task), len(kept))
    theta, state, memory = setup.method.forget_task(
        learner.theta, learner.state, learner.memory, task, kept, fresh.theta
    )
    statistics = learner.statistics
    if setup.norm == "per_task":
        statistics = jax.tree.map(
            lambda rows, new: rows.at[task].set(new[task]), statistics, fresh.statistics
        )
    if setup.method.forget_statistics is not None:
        statistics = setup.method.forget_statistics(statistics, task, kept, fresh.statistics)
    renewed = learner._replace(
        theta=theta, state=state, memory=memory, statistics=statistics, opt_state=()
    )
    return begin_phase(setup, renewed, 0)  # the optimizer, and what was kept, know the task too
