"""LwF: the distillation and its gradient against numpy, a teacher that stands still."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxcl
from jaxcl import models, train
from jaxcl.core.method import Batch
from jaxcl.methods.lwf import LwFState, distillation
from jaxcl.train.forward import lend

INPUTS, WIDTH, N = 3, 4, 6
TASKS, CLASSES = 3, (2, 3, 2)
RNG = np.random.default_rng(0)
BODY = RNG.normal(0, 1, (INPUTS, WIDTH)).astype("f4")
X = RNG.normal(0, 1, (N, INPUTS)).astype("f4")
Y = np.array([0, 1, 1, 0, 1, 0])
WEIGHT = np.array([1, 1, 1, 1, 0, 0], "f4")  # the last two fill up the batch
T = 2.0


def linear(scenario="task", **options):
    """Two linear layers, the second of which is the head."""
    outputs = sum(CLASSES) if scenario == "class" else max(CLASSES)
    params = {"body": jnp.asarray(BODY), "head": jnp.ones((WIDTH, outputs))}
    model = models.from_function(lambda params, x: x @ params["body"] @ params["head"], params)
    base = jaxcl.finetune()
    base = jaxcl.multihead(base, TASKS) if scenario == "task" else base
    method = jaxcl.lwf(base, scenario=scenario, **options)
    return train.Setup(method, model, optax.sgd(0.1), batch=N, classes=CLASSES, scenario=scenario)


def heads(scenario, seed):
    """The student's and the teacher's."""
    shape = {"task": (TASKS, WIDTH, 3), "domain": (WIDTH, 3), "class": (WIDTH, 7)}[scenario]
    rng = np.random.default_rng(seed)
    return {"body": BODY + 0.1 * seed, "head": rng.normal(0, 1, shape).astype("f4")}


def lesson(setup, task, teacher=None):
    """Value and gradient of the term that the method adds."""
    theta = jax.tree.map(jnp.asarray, heads(setup.scenario, 1))
    state = LwFState((), teacher or jax.tree.map(jnp.asarray, heads(setup.scenario, 2)), {})
    batch = Batch(X, Y, weight=WEIGHT)
    context = lend(setup, {}, task, jax.random.key(0), 0.0)

    def term(theta):
        logits = context.logits(theta, state, batch, train=True)
        return setup.method.auxiliary(context, theta, state, (), batch, logits)

    return jax.jit(jax.value_and_grad(term))(theta)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kd(new, old, known):
    """By numpy: the mean over the rows that are real, and its gradient in the new logits."""
    p, q = softmax(old[:, :known] / T), softmax(new[:, :known] / T)
    gradient = np.zeros_like(new)
    gradient[:, :known] = WEIGHT[:, None] * (q - p) / T / WEIGHT.sum()
    return (WEIGHT * -(p * np.log(q)).sum(1)).sum() / WEIGHT.sum(), gradient


def expected(scenario, task, weighting="sum"):
    """Value, and gradients of body and head."""
    student, teacher = (
        {k: v.astype("f8") for k, v in heads(scenario, seed).items()} for seed in (1, 2)
    )
    value, body, head = 0.0, 0.0, np.zeros_like(student["head"])
    for old in range(task):
        known = sum(CLASSES[:task]) if scenario == "class" else CLASSES[old]
        at = old if scenario == "task" else slice(None)
        h, h_old = student["head"][at], teacher["head"][at]
        hidden = X @ student["body"]
        if scenario == "domain":
            known = CLASSES[task]
        loss, gradient = kd(hidden @ h, X @ teacher["body"] @ h_old, known)
        share = 1 / task if weighting == "mean" or scenario == "class" else 1
        value += share * loss
        head[at] += share * hidden.T @ gradient
        body += share * X.T @ gradient @ h.T
    return value, {"body": body, "head": head}


def close(a, b, tolerance=1e-4):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * 1e-1)


@pytest.mark.parametrize("weighting", ["sum", "mean"])
@pytest.mark.parametrize("task", [1, 2])
@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_distillation_and_its_gradient(scenario, task, weighting):
    setup = linear(scenario, strength=3.0, temperature=T, weighting=weighting)
    value, gradient = lesson(setup, task)
    loss, exact = expected(scenario, task, weighting)
    close(value, 3 * loss)
    jax.tree.map(lambda found, e: close(found, 3 * e), gradient, exact)


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_a_running_teacher_teaches_nothing(scenario):
    """The broken twin: without a gradient, whatever the network does."""
    student = jax.tree.map(jnp.asarray, heads(scenario, 1))
    _, gradient = lesson(linear(scenario), 2, teacher=student)
    assert all(np.abs(leaf).max() < 1e-6 for leaf in jax.tree.leaves(gradient))
    _, exact = expected(scenario, 2)
    assert all(np.abs(leaf).max() > 0.01 for leaf in jax.tree.leaves(exact))


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_the_first_task_has_no_teacher(scenario):
    value, gradient = lesson(linear(scenario), 0)
    assert value == 0
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(gradient))


def test_distillation_is_softened():
    rng = np.random.default_rng(0)
    new, old = rng.normal(0, 3, (2, 5, 4)).astype("f4")
    visible = jnp.ones((5, 4), bool)
    at = {t: np.asarray(distillation(new, old, visible, t)) for t in (1.0, 2.0)}
    for t, found in at.items():
        close(found, -(softmax(old / t) * np.log(softmax(new / t))).sum(-1))
    assert not np.allclose(at[1.0], at[2.0], rtol=0.1)


class Net(nnx.Module):
    """A network with running statistics."""

    def __init__(self, rngs):
        self.hidden = nnx.Linear(INPUTS, 5, rngs=rngs)
        self.norm = nnx.BatchNorm(5, momentum=0.5, rngs=rngs)
        self.head = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(jax.nn.relu(self.norm(self.hidden(x))))


def test_the_teacher_is_the_network_at_the_tasks_start_statistics_included():
    setup = linear()._replace(
        model=models.from_nnx(Net), optimizer=optax.adam(0.05), norm="shared", batch=4
    )
    epoch = jax.jit(functools.partial(train.epoch, setup))
    learner, data = train.start(setup, jax.random.key(0), TASKS), train.examples(X, Y)
    shapes = jax.eval_shape(lambda: learner)
    for task in range(2):
        before = learner
        learner = train.begin_task(setup, learner, task)
        assert jax.tree.structure(shapes) == jax.tree.structure(learner)
        for index in range(2):
            learner, _ = epoch(learner, data, task, index)
    context = lend(setup, learner.statistics, 1, jax.random.key(0), 0.0)
    rows = Batch(X, Y, jnp.zeros(N, int))
    state = learner.state
    taught = context.logits(state.teacher, state, rows, statistics=state.statistics)
    view, statistics = train.network(setup, before, 0)
    close(taught, setup.model.apply(view, statistics, X)[0])
    running = context.logits(state.teacher, state, rows)  # the broken twin: statistics move
    assert not np.allclose(taught, running, rtol=0.01)
    # Old heads are trained, those of tasks to come are not.
    moved = jnp.abs(learner.theta["head"]["kernel"] - before.theta["head"]["kernel"]).max((1, 2))
    assert (moved[:2] > 1e-4).all() and moved[2] == 0


def test_fine_tuning_leaves_old_heads_alone():
    """The broken twin of the last lines."""
    setup = linear()
    plain = setup._replace(method=jaxcl.multihead(jaxcl.finetune(), TASKS))
    learner = train.begin_task(plain, train.start(plain, jax.random.key(0), TASKS), 1)
    after, _ = jax.jit(functools.partial(train.epoch, plain))(learner, train.examples(X, Y), 1, 0)
    assert (np.asarray(after.theta["head"][0]) == np.asarray(learner.theta["head"][0])).all()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"strength": -1.0}, "lwf: strength must be at least 0, got -1.0"),
        ({"temperature": 0.0}, "lwf: temperature must be above 0, got 0.0"),
        ({"weighting": "max"}, "lwf: weighting must be one of 'sum', 'mean', got 'max'"),
        ({"scenario": "stream"}, "lwf: scenario must be one of 'task', 'domain', 'class'"),
    ],
)
def test_refuses(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        jaxcl.lwf(jaxcl.finetune(), **options)


def test_refuses_a_set_up_without_classes():
    with pytest.raises(ValueError, match=r"lwf: Setup\.classes is needed"):
        lesson(linear()._replace(classes=None), 1)
