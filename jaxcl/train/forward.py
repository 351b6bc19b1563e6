"""The passes through a task's network, in training and as it is evaluated."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxcl.core.method import Batch, Context
from jaxcl.core.trees import PyTree
from jaxcl.train.outputs import labels, scores, visible
from jaxcl.train.types import Learner, Setup, has_rows


def network(
    setup: Setup, learner: Learner, task: ArrayLike, progress: ArrayLike | None = None
) -> tuple[PyTree, PyTree]:
    """One task's network: `(params, statistics)` for `setup.model.apply`."""
    params = setup.method.view(learner.theta, learner.state, task, progress)
    return params, statistics_of(setup, learner.statistics, task)


def statistics_of(setup: Setup, statistics: PyTree, task: Any) -> PyTree:
    """A task's running statistics."""
    return jax.tree.map(lambda rows: rows[task if has_rows(setup) else 0], statistics)


def takes(function, name: str) -> bool:
    """Whether a function has a parameter of this name."""
    kinds = inspect.signature(function).parameters
    return name in kinds or any(p.kind is p.VAR_KEYWORD for p in kinds.values())


def training_logits(setup, theta, state, statistics, batch, task, progress, key):
    """The network's logits on a training batch, and the statistics that follow."""
    x = setup.prepare(batch.x)
    extra = {} if batch.features is None else {"features": batch.features}
    if jax.tree.leaves(statistics) and takes(setup.model.apply, "weight"):
        extra["weight"] = batch.weight  # norms leave out the rows that fill up a batch

    def apply(params, row, **mode):
        return setup.model.apply(params, row, x, train=True, key=key, **extra, **mode)

    if batch.task is not None:
        _check_several_tasks(setup)
        row = statistics_of(setup, statistics, 0)
        logits, row = jax.vmap(
            lambda t: apply(setup.method.view(theta, state, t, progress), row),
            out_axes=(0, None),
        )(jnp.arange(len(setup.classes)))  # only what depends on the task, the heads, is repeated
        logits = logits[batch.task, jnp.arange(x.shape[0])]
    else:
        params = setup.method.view(theta, state, task, progress)
        row = statistics_of(setup, statistics, task)
        if setup.norm == "frozen" and jax.tree.leaves(statistics):
            logits, row = jax.lax.cond(
                task == 0,
                lambda p: apply(p, row),
                lambda p: (apply(p, row, freeze_norm=True)[0], row),
                params,
            )
        else:
            logits, row = apply(params, row)
    at = task if has_rows(setup) else 0
    return logits, jax.tree.map(lambda rows, new: rows.at[at].set(new), statistics, row)


def _check_several_tasks(setup: Setup) -> None:
    if setup.classes is None:
        raise ValueError(
            "Setup: training on rows of several tasks needs classes, the number of each task's."
        )
    if has_rows(setup):
        raise ValueError(
            f"Setup: training on rows of several tasks needs norm='shared', got {setup.norm!r}."
        )


def evaluation_logits(setup, theta, state, statistics, batch, task):
    """The logits of a batch as its tasks' networks are evaluated."""
    x = setup.prepare(batch.x)

    def logits(t):
        params = setup.method.view(theta, state, t, None)
        return setup.model.apply(params, statistics_of(setup, statistics, t), x)[0]

    if batch.task is None:
        return logits(task)
    each = jax.vmap(logits)(jnp.arange(len(setup.classes)))
    return each[batch.task, jnp.arange(x.shape[0])]


def lend(
    setup: Setup,
    statistics: PyTree,
    task: Any,
    key: Any,
    progress: Any = None,
    examples: Any = None,
    validation: Any = None,
) -> Context:
    """What a method is lent: see Context."""

    def logits(theta, state, batch: Batch, train=False, statistics=statistics, key=key):
        if train:
            args = setup, theta, state, statistics, batch, task, progress, key
            return training_logits(*args)[0]
        return evaluation_logits(setup, theta, state, statistics, batch, task)

    return Context(
        task=task,
        key=key,
        progress=progress,
        logits=logits,
        visible=lambda shape, batch: visible(setup, shape, batch, task),
        labels=lambda batch: labels(setup, batch, task),
        loss=lambda logits, batch: scores(setup, logits, batch, task)[0],
        classes=setup.classes,
        examples=examples,
        validation=validation,
        statistics=statistics,
        augment=setup.augment or (lambda key, x: x),
        metric=lambda logits, batch: scores(setup, logits, batch, task)[1],
    )
