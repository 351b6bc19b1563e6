"""The best epoch of a phase is kept, and the step size follows the validation examples."""

import jax
import jax.numpy as jnp

from jaxcl.train.evaluation import evaluate, evaluate_all
from jaxcl.train.types import Plan


def new_plan(setup, theta, statistics):
    needs_validation = setup.select is not None or setup.patience is not None
    return Plan(
        scale=jnp.float32(1),
        patience=jnp.int32(setup.patience or 0),
        stopped=jnp.bool_(False),
        best=jnp.float32(jnp.inf),
        kept=(theta, statistics) if needs_validation else None,
    )


def to_beat(setup, learner, validation, task):
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


def follow_plan(setup, before, after, validation, task):
    """Keeps the best epoch, and divides the step size or stops as the original HAT does."""
    plan, value = before.plan, to_beat(setup, after, validation, task)
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
