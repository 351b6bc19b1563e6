"""One epoch on one task, or a part of one: the loop over its batches, and its step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike

from jaxcl.core.isolate import IsolateState, isolate
from jaxcl.core.method import Batch, Phase, Step
from jaxcl.core.trees import PyTree
from jaxcl.train.evaluation import means
from jaxcl.train.forward import lend, training_logits
from jaxcl.train.outputs import scores
from jaxcl.train.rows import cut, put_back
from jaxcl.train.stopping import follow
from jaxcl.train.types import Data, Learner, Metrics, Setup, rows_of, trainable

AUGMENTATION = 1 << 20  # folded into a step's key, which dropout has as it is


def epoch(
    setup: Setup,
    learner: Learner,
    data: Data,
    task: ArrayLike,
    index: ArrayLike,
    validation: Data | None = None,
    features: PyTree | None = None,
    *,
    phase: int = 0,
    done: ArrayLike = 0.0,
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
        phase: the phase, an index into the method's; it is not traced.
        done: see `steps`.

    Returns:
        The learner after the epoch, and the means of its training loss and accuracy; those of a
        learner that has stopped are of an epoch that is thrown away.

    Raises:
        ValueError: if `setup` needs validation examples and there are none.
    """
    number = (data.count + setup.batch - 1) // setup.batch
    learner, metrics = steps(
        setup, learner, data, task, index, 0, number, features, phase=phase, done=done
    )
    return end_epoch(setup, learner, task, validation), metrics


def end_epoch(
    setup: Setup, learner: Learner, task: ArrayLike, validation: Data | None = None
) -> Learner:
    """Judges an epoch by the validation examples, where `setup` asks."""
    if learner.stopping.kept is None:
        return learner
    if validation is None:
        raise ValueError("epoch: Setup.select and Setup.patience need validation examples.")
    return follow(setup, learner, validation, task)


class _Epoch(NamedTuple):
    """What no step of an epoch changes."""

    setup: Setup
    phase: Phase
    learner: Learner
    data: Data
    features: PyTree
    order: Any  # [length], the epoch's rows; None in a window
    count: Any  # of steps in the whole epoch
    key: jax.Array
    task: Any
    mask: PyTree  # what may change
    tx: optax.GradientTransformationExtraArgs
    scale: Any  # of the updates; None for 1


class _Carry(NamedTuple):
    """What every step changes."""

    theta: PyTree
    statistics: PyTree
    opt_state: PyTree
    memory: PyTree
    totals: jax.Array  # [2], of the loss and the accuracy


def steps(
    setup: Setup,
    learner: Learner,
    data: Data,
    task: ArrayLike,
    index: ArrayLike,
    first: ArrayLike,
    last: ArrayLike,
    features: PyTree | None = None,
    *,
    phase: int = 0,
    done: ArrayLike = 0.0,
) -> tuple[Learner, Metrics]:
    """A part of an epoch: the steps from `first` to before `last`, which may be traced.

    Args:
        setup: method, network and optimizer.
        learner: a learner whose task has begun; one that has done the steps before `first`.
        data: the task's examples.
        task: the task.
        index: the epoch's number.
        first: the first step.
        last: the step before which to stop, at most the number of the epoch's batches.
        features: as for `epoch`.
        phase: the phase, an index into the method's; it is not traced.
        done: the share of the phase's epochs that are done, for `Setup.schedule`: one number, or
            two, before and after this epoch.

    Returns:
        The learner, and the means over the examples of the epoch so far.
    """
    data = jax.tree.map(jnp.asarray, data)
    key = epoch_key(learner.key, task, index)
    chosen = setup.method.phases[phase]
    mask = trainable(setup, learner.theta, learner.state, task, chosen.trainable)
    whole = learner
    learner, mask = cut(setup, chosen, learner, mask, task)
    run = _Epoch(
        setup, chosen, learner, data, features,
        order=None if data.first is not None else random_order(key, data.y.shape[0], data.count),
        count=(data.count + setup.batch - 1) // setup.batch,
        key=key, task=task, mask=mask, tx=isolate(setup.optimizer),
        scale=_scale(setup, learner, done),
    )  # fmt: skip
    totals = jnp.where(first == 0, 0.0, jnp.stack(learner.position.totals))
    carry = _Carry(learner.theta, learner.statistics, learner.opt_state, learner.memory, totals)
    carry = jax.lax.fori_loop(first, last, lambda i, carry: _step(run, i, carry), carry)
    after = whole._replace(
        theta=carry.theta, statistics=carry.statistics, opt_state=carry.opt_state,
        memory=carry.memory,
    )  # fmt: skip
    after = put_back(whole, after, task)
    totals = Metrics(*carry.totals)
    finite = jnp.isfinite(totals.loss)
    if setup.patience is not None or chosen.needed is not None:  # a stopped learner stands still
        stopped = learner.stopping.stopped
        after = jax.tree.map(lambda new, old: jnp.where(stopped, old, new), after, whole)
        finite |= stopped
    finite &= learner.position.finite
    position = learner.position._replace(totals=totals, finite=finite)
    seen = jnp.minimum(last * setup.batch, data.count)
    return after._replace(position=position), means(totals, seen)


def _step(run: _Epoch, i, carry: _Carry) -> _Carry:
    """One batch: the loss, its gradient, the optimizer's step."""
    setup, task, theta, state = run.setup, run.task, carry.theta, run.learner.state
    method, online = setup.method, setup.method.online
    new_rows, progress = _batch(run, i)
    size = new_rows.y.shape[0]
    real = jnp.asarray(jnp.minimum(run.data.count - i * size, size), float)  # the weights' sum
    key = jax.random.fold_in(run.key, i)
    context = lend(setup, carry.statistics, task, key, progress)
    batch = new_rows
    if online is not None and online.extend is not None:
        batch = online.extend(context, new_rows, carry.memory)
    replays = batch is not new_rows
    if setup.augment is not None:
        batch = batch._replace(x=setup.augment(jax.random.fold_in(key, AUGMENTATION), batch.x))
    penalty = run.phase.penalty or method.penalty

    def task_loss(theta):
        logits, statistics = training_logits(
            setup, theta, state, carry.statistics, batch, task, progress, key
        )
        loss, right = (each * batch.weight for each in scores(setup, logits, batch, task))
        mean = jnp.sum(loss) / (jnp.sum(batch.weight) if replays else real)
        if method.auxiliary is not None:
            mean += method.auxiliary(context, theta, state, carry.memory, batch, logits)
        # Without what is replayed.
        totals = jnp.stack([jnp.sum(loss[:size]), jnp.sum(right[:size])])
        return mean, (statistics, totals, logits)

    def objective(theta):
        loss, aux = task_loss(theta)
        return loss + penalty(theta, state, task, progress), aux

    separately = online is not None
    (value, aux), gradient = jax.value_and_grad(
        task_loss if separately else objective, has_aux=True
    )(theta)
    statistics, totals, logits = aux
    of_task = gradient
    if separately:
        extra = jax.grad(lambda theta: penalty(theta, state, task, progress))(theta)
        gradient = jax.tree.map(jnp.add, gradient, extra)
        if online.gradient is not None:
            gradient = online.gradient(context, new_rows, gradient, theta, state, carry.memory)
    updates, opt_state = run.tx.update(
        gradient, IsolateState(run.mask, carry.opt_state), theta,
        **_extra_arguments(run, value, gradient, objective),
    )  # fmt: skip
    if run.scale is not None:
        scale = run.scale(progress)
        updates = jax.tree.map(lambda u: u * scale.astype(u.dtype), updates)
    after = optax.apply_updates(theta, updates)
    own = run.phase.project
    after = method.project(after) if own is None else own(after, state, task)
    memory = carry.memory
    if online is not None and online.update is not None:
        step = Step(new_rows, logits[:size], of_task, theta, after)
        memory = online.update(context, memory, step)
    inner: Any = opt_state  # an IsolateState
    return _Carry(after, statistics, inner.inner, memory, carry.totals + totals)


def _batch(run: _Epoch, i) -> tuple[Batch, jax.Array]:
    """The rows of step `i`, and how far the epoch is."""
    setup, data = run.setup, run.data
    seen = i * setup.batch
    position = seen + jnp.arange(setup.batch)
    if run.order is None:
        rows = position - data.first * setup.batch
    else:
        rows = run.order[position % data.count]  # the last batch is filled up with weight 0
    batch = rows_of(data, rows, run.features)
    if setup.axis is not None:
        batch = jax.lax.with_sharding_constraint(batch, PartitionSpec(setup.axis))
    batch = batch._replace(weight=jnp.asarray(position < data.count, float))
    if setup.annealing == "paper":
        # The last batch is at 1, and so is the only one.
        last = jnp.maximum(run.count - 1, 1)
        progress = jnp.asarray(i + (run.count == 1), float) / last
    else:
        progress = jnp.asarray(seen, float) / data.count
    return batch, progress


def _scale(setup: Setup, learner: Learner, done) -> Any:
    """The factor on the updates by the epoch's progress; None where it is 1 throughout."""
    alike = all(isinstance(p.step_scale, float) and p.step_scale == 1 for p in setup.method.phases)
    if alike and setup.patience is None and setup.schedule is None:
        return None
    scale, schedule = learner.stopping.scale, setup.schedule
    if schedule is None:
        return lambda progress: scale
    start, end = jnp.broadcast_to(jnp.asarray(done, float), (2,))
    return lambda progress: scale * schedule(start + (end - start) * progress)


def _extra_arguments(run: _Epoch, value, gradient, objective) -> dict:
    """What optax's protocol names for optimizers that ask for more than the gradient."""
    if not isinstance(run.setup.optimizer, optax.GradientTransformationExtraArgs):
        return {}
    return {"value": value, "grad": gradient, "value_fn": lambda theta: objective(theta)[0]}


def epoch_key(key: jax.Array, task: ArrayLike, index: ArrayLike) -> jax.Array:
    """The key of all that is random in an epoch, from a learner's own."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, 2), task), index)


def random_order(key, length, count):
    """A permutation of the first `count` of `length` rows; what follows them is never read."""
    rank = jax.random.bits(key, (length,), "uint32") >> 1
    rank = jnp.where(jnp.arange(length) < count, rank, jnp.uint32(0xFFFFFFFF))
    return jnp.argsort(rank)
