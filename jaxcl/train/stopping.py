"""The best epoch of a phase is kept, and the step size follows the validation examples."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxcl.core.method import Phase
from jaxcl.train.evaluation import evaluate, evaluate_all
from jaxcl.train.types import Data, EarlyStopping, Learner, Setup


def watches(setup: Setup) -> bool:
    """Whether the validation examples choose an epoch or pace the step size."""
    return setup.select is not None or setup.patience is not None


def new_stopping(setup: Setup, learner: Learner, phase: Phase, task: Any) -> EarlyStopping:
    """At the start of a phase: nothing is known, nothing has to be beaten."""
    needed = True
    if phase.needed is not None:
        needed = phase.needed(learner.theta, learner.state, task)
    return EarlyStopping(
        scale=jnp.asarray(phase.step_scale, jnp.float32),
        patience=jnp.int32(setup.patience or 0),
        stopped=~jnp.asarray(needed, bool),
        best=jnp.float32(jnp.inf),
        value=jnp.float32(jnp.inf),
        kept=candidate(learner) if watches(setup) else None,
    )


def candidate(learner: Learner) -> tuple:
    """What is kept of the best epoch."""
    return learner.theta, learner.statistics, learner.memory


def to_beat(setup: Setup, learner: Learner, validation: Data, task: Any) -> jax.Array:
    """What the best state has the lowest of, with the network that would be stored."""
    if setup.mixed:  # the tasks so far, each with its own head
        share = (jnp.arange(validation.y.shape[0]) <= task) / (task + 1)
        each = evaluate_all(setup, learner, validation)
        metrics = jax.tree.map(lambda values: jnp.sum(share * values), each)
    else:
        metrics = evaluate(setup, learner, validation, task)
    if setup.select == "accuracy":
        return -metrics.accuracy
    return metrics.loss + setup.method.penalty(learner.theta, learner.state, task, None)


def follow(setup: Setup, learner: Learner, validation: Data, task: Any) -> Learner:
    """Keeps the best epoch, and divides the step size or stops, as Serra et al. (2018) do."""
    stopping, value = learner.stopping, to_beat(setup, learner, validation, task)
    better = (value < stopping.best) & ~stopping.stopped
    new = stopping._replace(
        best=jnp.where(better, value, stopping.best),
        value=value,
        kept=jax.tree.map(
            lambda new, old: jnp.where(better, new, old), candidate(learner), stopping.kept
        ),
    )
    if setup.patience is not None:
        left = jnp.where(better, setup.patience, stopping.patience - 1)
        scale = jnp.where(left > 0, stopping.scale, stopping.scale / 3)
        new = new._replace(
            scale=scale,
            patience=jnp.where(left > 0, left, setup.patience),
            stopped=stopping.stopped | (scale < setup.least_scale),
        )
    return learner._replace(stopping=new)
