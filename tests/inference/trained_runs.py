"""What the tests of inference share: tiny learners of any method, trained on noise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl import recipes, train
from jaxcl.inference.inputs import Inputs
from jaxcl.inference.predictor import predictor

INPUTS = Inputs((6,), "uint8", 0.4, 0.3, 16.0, (2, 3, 2))
TASKS = len(INPUTS.classes)


def examples(task, count=12, seed=0):
    """Stored inputs and labels of a task."""
    rng = np.random.default_rng([seed, task])
    x = rng.integers(0, 17, (count, *INPUTS.shape)).astype(np.uint8)
    return x, rng.integers(0, INPUTS.classes[task], count).astype(np.int32)


def setup_of(method, tasks=TASKS, **changes):
    """A setup for the first tasks, and room for all."""
    options = recipes.Options(hidden=(7, 5), batch=4, epochs=1, learning_rate=0.1)
    return recipes.recipe(recipes.choose(method, options, **changes), INPUTS.benchmark("mine"))({})


@functools.cache
def programs(method, **changes):
    setup = setup_of(method, **changes)

    def task(learner, data, number):
        learner = train.begin_task(setup, learner, number)
        for phase in range(len(setup.method.phases)):
            learner = train.epoch(setup, learner, data, number, phase)[0]
        return train.end_task(setup, learner, number, data)

    return setup, jax.jit(task)


def learn(method, learner, number, **changes):
    """One task of a learner's life."""
    _, task = programs(method, **changes)
    data = jax.tree.map(jnp.asarray, train.examples(*examples(number)))
    return task(learner, data, jnp.int32(number))


@functools.cache
def trained(method, tasks=TASKS, **changes):
    """A learner after some tasks, and its setup."""
    setup, _ = programs(method, **changes)
    learner = train.start(setup, jax.random.key(3), TASKS)
    for number in range(tasks):
        learner = learn(method, learner, number, **changes)
    return setup, learner


@functools.cache
def trained_predictor(method, tasks=TASKS):
    return predictor(*trained(method, tasks), tasks, INPUTS)
