"""A linear network of two matrices, three tasks, and their gradients by numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxcl
from jaxcl import models, train

TASKS, INPUTS, UNITS, CLASSES, N = 3, 4, 5, (3, 2, 3), 8
RNG = np.random.default_rng(1)
X = RNG.normal(0, 1, (TASKS, N, INPUTS)).astype("f4")
Y = np.stack([RNG.integers(0, count, N) for count in CLASSES])
RATE = 0.5


def network(logits):
    """A linear trunk and a linear head: two matrices."""
    shapes = {"trunk": (INPUTS, UNITS), "head": (UNITS, logits)}
    params = {name: jnp.asarray(RNG.normal(0, 0.5, shape), float) for name, shape in shapes.items()}
    return models.from_function(lambda params, x: x @ params["trunk"] @ params["head"], params)


def make_setup(scenario, wrap):
    """A batch is the whole task, so that its order is of no account."""
    sample = jax.ShapeDtypeStruct((INPUTS,), jnp.float32)
    base, logits = jaxcl.finetune(), sum(CLASSES) if scenario == "class" else max(CLASSES)
    if scenario == "task":
        base = jaxcl.multihead(base, TASKS)
    return train.Setup(
        wrap(base), network(logits), optax.sgd(RATE), batch=N, sample=sample, classes=CLASSES,
        scenario=scenario,
    )  # fmt: skip


def step_key(learner, task, index):
    """The key of the only step of an epoch."""
    key = jax.random.fold_in(learner.key, 2)
    for number in (task, index, 0):
        key = jax.random.fold_in(key, number)
    return key


def learn(setup, epochs=2):
    """Every step of the three tasks: the task, the learner before and after, key and metrics."""
    learner = train.start(setup, jax.random.key(0), TASKS)
    epoch = jax.jit(functools.partial(train.epoch, setup))
    begin = jax.jit(functools.partial(train.begin_task, setup))
    for task in range(TASKS):
        learner = begin(learner, task)
        for index in range(epochs):
            before, key = learner, step_key(learner, task, index)
            learner, metrics = epoch(learner, data(task), task, index)
            yield task, before, learner, key, metrics


def data(task):
    return train.examples(X[task], Y[task].astype("i4"))


def gradients(theta, scenario, running, x, y, task, weight):
    """Of the weighted mean of the rows' cross-entropies, by numpy; and the rows' losses."""
    trunk, heads = np.asarray(theta["trunk"], "f8"), np.asarray(theta["head"], "f8")
    found, losses = {"trunk": np.zeros_like(trunk), "head": np.zeros_like(heads)}, []
    offset = np.cumsum(CLASSES) - CLASSES if scenario == "class" else np.zeros(TASKS, int)
    for row, label, t, w in zip(x.astype("f8"), y, task, weight / np.sum(weight)):
        head = heads[t] if scenario == "task" else heads
        present = np.arange(head.shape[1]) < (
            sum(CLASSES[: running + 1]) if scenario == "class" else CLASSES[t]
        )
        p = np.where(present, np.exp(row @ trunk @ head), 0)
        p /= p.sum()
        wrong = w * (p - np.eye(len(p))[label + offset[t]])
        losses.append(-np.log(p[label + offset[t]]))
        found["trunk"] += np.outer(row, head @ wrong)
        into = found["head"][t] if scenario == "task" else found["head"]
        into += np.outer(row @ trunk, wrong)
    return found, np.array(losses)


def agrees(before, after, gradient):
    """Whether a step was plain gradient descent along this gradient."""
    return all(
        np.allclose(after[name], before[name] - RATE * leaf, atol=1e-5)
        for name, leaf in gradient.items()
    )
