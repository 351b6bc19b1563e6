"""What the tests of growing methods share: tiny tasks, and a learner's whole course by hand."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcl import data, models, train
from jaxcl.models import builtin
from jaxcl.models.chain import Chain, Unit

TASKS, CLASSES = 3, 3
OPTIMIZERS = {
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(0.05),
    "adamw": optax.adamw(0.05, weight_decay=0.1),
    "muon": optax.contrib.muon(0.05, weight_decay=0.1),
}
NETS = {
    "mlp": ((6,), lambda a, b: models.mlp(6, (a, b), CLASSES)),
    # Its dense layer reads 2 x 2 of every channel.
    "conv": (
        (6, 6, 1),
        lambda a, b: builtin.as_model(
            functools.partial(
                Chain, (6, 6, 1), [Unit(a, 3, norm=True, pool=True), Unit(b)], CLASSES
            )
        ),
    ),
}


def any_of(optimizers):
    """All the optimizers in one program; the state's first entry chooses."""

    def init(params):
        return jnp.int32(0), tuple(tx.init(params) for tx in optimizers)

    def update(updates, state, params):
        which, states = state

        def branch(i):
            def run(updates):
                new, inner = optimizers[i].update(updates, states[i], params)
                return new, (*states[:i], inner, *states[i + 1 :])

            return run

        updates, states = jax.lax.switch(which, [*map(branch, range(len(optimizers)))], updates)
        return updates, (which, states)

    return optax.GradientTransformation(init, update)


def examples(kind, count=20):
    """Three tasks of 20, 16 and 12 examples."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (TASKS, count, *NETS[kind][0])).astype("f4")
    y = rng.integers(0, CLASSES, (TASKS, count))
    return train.Data(jnp.asarray(x), jnp.asarray(y), jnp.array([20, 16, 12]))


def few_digits(tasks):
    """Permuted digits, of which a few are enough here; tasks differ in length."""
    full = data.permuted_digits(tasks)

    def cut(split, count):
        return data.Split(split.x[:count], split.y[:count])

    def cut_all(task, number):
        train_count = 40 + 3 * number
        return task._replace(
            train=cut(task.train, train_count), val=cut(task.val, 20), test=cut(task.test, 9)
        )

    return full._replace(tasks=tuple(cut_all(task, i) for i, task in enumerate(full.tasks)))


class Course(NamedTuple):
    """The compiled steps of a learner's life."""

    setup: train.Setup
    tasks: train.Data
    begin: object
    begin_phase: object
    epoch: object
    end: object

    def start(self, which=0):
        learner = train.start(self.setup, jax.random.key(0), TASKS)
        return learner._replace(opt_state=(jnp.int32(which), learner.opt_state[1]))

    def run(self, learner, task, see=lambda learner: None):
        """One task with all its phases; the optimizer's state is carried through everything."""
        task = jnp.int32(task)
        learner, ended = self.begin(learner, task), False
        for i, phase in enumerate(self.setup.method.phases):
            if phase.closed and not ended:
                learner, ended = self.end(learner, task), True
            if i:
                learner = self.begin_phase(learner, task, i)
            see(learner)
            learner = self.epoch(learner, task, i)
            see(learner)
        return learner if ended else self.end(learner, task)


def course(setup, kind):
    tasks = examples(kind)

    def of(task):
        return jax.tree.map(lambda leaf: leaf[task], tasks)

    @jax.jit
    def begin(learner, task):
        return train.begin_task(setup, learner, task)._replace(opt_state=learner.opt_state)

    @functools.partial(jax.jit, static_argnums=2)
    def begin_phase(learner, task, phase):
        begun = train.begin_phase(setup, learner, task, phase=phase, examples=of(task))
        return begun._replace(opt_state=learner.opt_state)

    @functools.partial(jax.jit, static_argnums=2)
    def epoch(learner, task, phase):
        return train.epoch(setup, learner, of(task), task, phase, phase=phase)[0]

    @jax.jit
    def end(learner, task):
        return train.end_task(setup, learner, task)

    return Course(setup, tasks, begin, begin_phase, epoch, end)


def forgotten(setup, kind, names):
    """Law 1: the optimizers under which something of a finished task changes, to the bit."""
    made = course(setup._replace(optimizer=any_of([OPTIMIZERS[name] for name in names])), kind)

    @jax.jit
    def finished(learner, task):
        view, statistics = train.network(setup, learner, task)
        return view, setup.model.apply(view, statistics, made.tasks.x[0, :7])[0]

    def run(which):
        learner, kept, changed = made.start(which), [], False

        def see(learner):
            nonlocal changed
            for k, before in enumerate(kept):
                after = jax.device_get(finished(learner, k))
                same = jax.tree.map(np.array_equal, before, after)
                changed |= not all(jax.tree.leaves(same))

        for task in range(TASKS):
            learner = made.run(learner, task, see)
            see(learner)
            kept.append(jax.device_get(finished(learner, task)))
        return changed, learner

    found = {name: run(which) for which, name in enumerate(names)}
    return [name for name, (changed, _) in found.items() if changed], found
