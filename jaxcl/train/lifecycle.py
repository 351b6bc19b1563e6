"""The boundaries of training: a learner starts, begins and ends phases and tasks, and grows."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxcl.core import masks
from jaxcl.core.checks import shorten
from jaxcl.core.trees import PyTree
from jaxcl.train.stopping import new_plan, to_beat
from jaxcl.train.types import Data, Learner, Setup, check, has_rows


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
    if setup.norm == "frozen" and names and not takes(setup.model.apply, "freeze_norm"):
        raise ValueError(
            "Setup: norm='frozen' needs a model whose apply takes freeze_norm=True. PNN's does "
            "not, as each column has statistics of its own: declare norm='shared'."
        )
    if params is not None:
        _check_params(params, fresh)
    theta, state = setup.method.init(method_key, fresh if params is None else params)
    rows = tasks if has_rows(setup) else 1
    statistics = jax.tree.map(lambda leaf: jnp.stack([leaf] * rows), statistics)
    learner = Learner(theta, state, statistics, (), new_plan(setup, theta, statistics), key)
    return begin_phase(setup, learner, 0)


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
    plan = new_plan(setup, learner.theta, learner.statistics)
    if plan.kept is not None and validation is not None:
        plan = plan._replace(best=to_beat(setup, learner, validation, task))
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


def takes(function, name):
    kinds = inspect.signature(function).parameters
    return name in kinds or any(p.kind is p.VAR_KEYWORD for p in kinds.values())
