"""What a learner can do: loss and accuracy of its tasks' networks."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxcl.core.trees import PyTree
from jaxcl.train.forward import network
from jaxcl.train.outputs import scores
from jaxcl.train.types import Data, Learner, Metrics, Setup, rows_of

EVALUATION_BATCHES = 4  # batches at once where nothing is kept for a backward pass


def evaluate(setup: Setup, learner: Learner, data: Data, task: ArrayLike) -> Metrics:
    """Loss and accuracy of one task's network, as it would be used after training.

    Args:
        setup: method and network.
        learner: the learner.
        data: the task's examples.
        task: the task whose network and head are used.

    Returns:
        Means over the examples; the loss is without penalty. The accuracy of a network whose loss
        is not finite is nan.
    """
    data = jax.tree.map(jnp.asarray, data)
    params, row = network(setup, learner, task)
    size = _evaluation_size(setup, data.y.shape[0])
    seen = learner.position.task if setup.scenario == "class" else None

    def add(i, totals):
        position = i * size + jnp.arange(size)
        batch = rows_of(data._replace(task=None), jnp.minimum(position, data.y.shape[0] - 1))
        weight = jnp.asarray(position < data.count, float)
        logits, _ = setup.model.apply(params, row, setup.prepare(batch.x))
        loss, right = scores(setup, logits, batch, task, seen)
        return totals[0] + jnp.sum(loss * weight), totals[1] + jnp.sum(right * weight)

    totals = jax.lax.fori_loop(0, (data.count + size - 1) // size, add, (jnp.zeros(()),) * 2)
    return means(totals, data.count)


def means(totals: Any, count: Any) -> Metrics:
    """Means from totals: nan for the accuracy where the loss is not finite."""
    loss, right = totals
    return Metrics(loss / count, jnp.where(jnp.isfinite(loss), right, jnp.nan) / count)


def evaluate_all(
    setup: Setup, learner: Learner, data: Data, number: ArrayLike | None = None
) -> Metrics:
    """`evaluate` on every task; the leaves of `data` have a leading [tasks] axis.

    Args:
        setup: method, network and optimizer.
        learner: a learner.
        data: the held-out examples of every task.
        number: how many tasks to evaluate, from the first on, which may be traced; None for all.

    Returns:
        Arrays [tasks]: nan for the tasks that are not evaluated.
    """
    data = jax.tree.map(jnp.asarray, data)
    tasks = data.y.shape[0]

    def add(task, found):
        own = evaluate(setup, learner, jax.tree.map(lambda leaf: leaf[task], data), task)
        return jax.tree.map(lambda all, one: all.at[task].set(one), found, own)

    empty = Metrics(jnp.full(tasks, jnp.nan), jnp.full(tasks, jnp.nan))
    return jax.lax.fori_loop(0, tasks if number is None else number, add, empty)


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
    return jax.tree.map(lambda f: jax.lax.collapse(f, 0, 2)[:length], features)


def _evaluation_size(setup, length):
    """Examples at a time, so that as few and as equal parts as possible make up `length`."""
    parts = -(-length // (EVALUATION_BATCHES * setup.batch))
    return -(-length // parts)
