"""What a learner can do: loss and accuracy of its tasks' networks."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxcl.core.trees import PyTree
from jaxcl.train.types import Data, Learner, Metrics, Setup, has_rows

EVALUATION_BATCHES = 4  # batches at once where nothing is kept for a backward pass


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
        loss, correct = scores(setup, logits, (None, data.y[rows], None, None), task)
        return totals[0] + jnp.sum(loss * weight), totals[1] + jnp.sum(correct * weight)

    totals = jax.lax.fori_loop(0, (data.count + size - 1) // size, add, (jnp.zeros(()),) * 2)
    return Metrics(*(total / data.count for total in totals))


def network(
    setup: Setup, learner: Learner, task: ArrayLike, progress: ArrayLike | None = None
) -> tuple[PyTree, PyTree]:
    """One task's network: `(params, statistics)` for `setup.model.apply`."""
    params = setup.method.view(learner.theta, learner.state, task, progress)
    return params, statistics_row(setup, learner.statistics, task)


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


def _evaluation_size(setup, length):
    """Examples at a time, so that as few and as equal parts as possible make up `length`."""
    parts = -(-length // (EVALUATION_BATCHES * setup.batch))
    return -(-length // parts)


def statistics_row(setup, statistics, task):
    return jax.tree.map(lambda rows: rows[task if has_rows(setup) else 0], statistics)


def scores(setup, logits, batch, task):
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
