"""The training engine: one learner, one task, one epoch, as pure functions.

Everything here can be jitted, vmapped over learners and placed on a mesh by the caller; `study`
does. `task`, `epoch` and all numbers are traced, so one compiled program serves a whole sequence.
"""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike

from jaxcl.core.isolate import IsolateState, isolate
from jaxcl.core.trees import PyTree
from jaxcl.train.evaluation import scores, statistics_row
from jaxcl.train.stopping import follow_plan
from jaxcl.train.types import Data, Learner, Metrics, Setup, has_rows


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
            logits, new = training_logits(
                setup, theta, learner.state, statistics, batch, task, progress,
                jax.random.fold_in(key, i),
            )  # fmt: skip
            loss, correct = scores(setup, logits, batch, task)
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
    return follow_plan(setup, learner, trained, validation, task), metrics


def training_logits(setup, theta, state, statistics, batch, task, progress, key):
    """The network's logits on a training batch, and the statistics that follow."""
    x, _, tasks_of_x, features = batch
    x = setup.prepare(x)
    extra = {} if features is None else {"features": features}

    def apply(params, row, **mode):
        return setup.model.apply(params, row, x, train=True, key=key, **extra, **mode)

    if setup.mixed:
        tasks = len(setup.classes)
        row = statistics_row(setup, statistics, 0)
        logits, row = jax.vmap(
            lambda t: apply(setup.method.view(theta, state, t, progress), row),
            out_axes=(0, None),
        )(jnp.arange(tasks))  # only what depends on the task, the heads, is computed repeatedly
        logits = logits[tasks_of_x, jnp.arange(x.shape[0])]
    else:
        params = setup.method.view(theta, state, task, progress)
        row = statistics_row(setup, statistics, task)
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


def _random_order(key, length, count):
    """A permutation of the first `count` of `length` rows; what follows them is never read."""
    rank = jax.random.bits(key, (length,), "uint32") >> 1
    rank = jnp.where(jnp.arange(length) < count, rank, jnp.uint32(0xFFFFFFFF))
    return jnp.argsort(rank)
