"""SI: the path integral against numpy and the loss, what becomes of it at a task's end."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcl
from jaxcl import models, train

INPUTS, CLASSES, N = 3, 4, 8
RNG = np.random.default_rng(0)
W = RNG.normal(0, 1, (INPUTS, CLASSES)).astype("f4")
X = RNG.normal(0, 1, (2, N, INPUTS)).astype("f4")
Y = RNG.integers(0, CLASSES, (2, N))
OPTIMIZERS = {"momentum": optax.sgd(0.1, momentum=0.9), "adam": optax.adam(0.05)}


def linear(optimizer, **options):
    """A linear softmax, of which a batch is the whole task."""
    model = models.from_function(lambda params, x: x @ params["w"], {"w": jnp.asarray(W)})
    sample = jax.ShapeDtypeStruct((INPUTS,), jnp.float32)
    method = jaxcl.si(jaxcl.finetune(), heads=None, **options)
    return train.Setup(method, model, optimizer, batch=N, sample=sample, reset=False)


def loss_and_gradient(w, task):
    """Of the cross-entropy, by numpy."""
    logits = X[task].astype("f8") @ w
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    picked = np.eye(CLASSES)[Y[task]]
    return -np.mean(np.log((p * picked).sum(1))), X[task].T.astype("f8") @ (p - picked) / N


def learn(setup, steps):
    """Two tasks of full-batch steps: theta at every moment, and the learner before and after end.

    Returns:
        By task, (weights [steps + 1], learner after the last step, learner after the task's end).
    """
    step, end = (jax.jit(functools.partial(f, setup)) for f in (train.epoch, train.end_task))
    learner, found = train.start(setup, jax.random.key(0), 2), []
    for task in range(2):
        learner = train.begin_task(setup, learner, task)
        data = train.examples(X[task], Y[task])
        path = [np.asarray(learner.theta["w"])]
        for index in range(steps):
            learner, _ = step(learner, data, task, index)
            path.append(np.asarray(learner.theta["w"]))
        last, learner = learner, end(learner, task, data)
        found.append((np.array(path, "f8"), last, learner))
    return found


def integral(path, task, gradient=lambda w: 0.0):
    """What the definition sums up; `gradient` is added to the task's own."""
    return sum(
        -(loss_and_gradient(before, task)[1] + gradient(before)) * (after - before)
        for before, after in itertools.pairwise(path)
    )


def close(a, b, tolerance=1e-3):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * 1e-2)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_path_integral_is_of_the_tasks_loss_and_the_steps_taken(optimizer):
    strength, xi = 5.0, 0.05
    first, second = learn(linear(OPTIMIZERS[optimizer], strength=strength, xi=xi), 6)
    path, last, ended = first
    close(last.memory["w"], integral(path, 0))
    omega = np.maximum(integral(path, 0) / ((path[-1] - path[0]) ** 2 + xi), 0)
    close(ended.state.importance["w"], omega)
    np.testing.assert_array_equal(ended.state.anchor["w"], ended.theta["w"])
    np.testing.assert_array_equal(ended.memory["w"], 0)

    path, last, ended = second
    close(last.memory["w"], integral(path, 1))
    part = integral(path, 1) / ((path[-1] - path[0]) ** 2 + xi)
    close(ended.state.importance["w"], np.maximum(omega + part, 0))

    # The broken twin: the penalty's gradient is read as well.
    anchor = path[0]
    total = integral(path, 1, lambda w: 2 * strength * omega * (w - anchor))
    assert not np.allclose(last.memory["w"], total, rtol=0.05)


def test_path_integral_is_the_decrease_of_the_loss_for_small_steps():
    path, last, _ = learn(linear(optax.sgd(0.02, momentum=0.5)), 50)[0]
    decrease = loss_and_gradient(path[0], 0)[0] - loss_and_gradient(path[-1], 0)[0]
    assert decrease > 0.3
    np.testing.assert_allclose(last.memory["w"].sum(), decrease, rtol=0.03)
    # The broken twin: the step that the gradient alone would be, which momentum doubles.
    plain = sum(0.02 * loss_and_gradient(w, 0)[1] ** 2 for w in path[:-1])
    assert abs(plain.sum() / decrease - 1) > 0.3


def consolidated(importance, w, moved, **options):
    """The importance after a task's end, of scalars."""
    method = linear(optax.sgd(0.1), xi=0.5, **options).method
    _, state = method.init(jax.random.key(0), {"w": jnp.zeros(())})
    state = state._replace(importance={"w": jnp.float32(importance)})
    state, path = method.consolidate(None, {"w": moved}, state, {"w": jnp.float32(w)})
    assert path["w"] == 0 and state.anchor["w"] == moved
    return float(state.importance["w"])


@pytest.mark.parametrize("part", [-2.0, -0.5, 0.75])
@pytest.mark.parametrize("before", [0.0, 1.0])
def test_negative_parts_are_cut_off_the_total_or_each_task(before, part):
    w, moved = part * 1.5, jnp.float32(1)  # the part is w / (1^2 + 0.5)
    total = consolidated(before, w, moved)
    of_task = consolidated(before, w, moved, rectify="task")
    np.testing.assert_allclose(total, max(before + part, 0), atol=1e-6)
    np.testing.assert_allclose(of_task, before + max(part, 0), atol=1e-6)
    assert (total != of_task) == (before > 0 > part)  # each would be taken for the other


def test_penalty_has_no_half():
    method = linear(optax.sgd(0.1), strength=3.0).method
    _, state = method.init(jax.random.key(0), {"w": jnp.asarray(W)})
    state = state._replace(importance={"w": jnp.full(W.shape, 2.0)})
    moved = {"w": jnp.asarray(W + 0.5)}
    close(method.penalty(moved, state, 1), 3 * 2 * 0.25 * W.size)
    close(jax.grad(method.penalty)(moved, state, 1)["w"], np.full(W.shape, 3 * 2 * 2 * 0.5))


def test_what_a_task_may_not_change_has_no_importance():
    """The heads of other tasks neither move nor count; their own head is left out."""
    method = jaxcl.si(jaxcl.multihead(jaxcl.finetune(), 2))
    model = models.mlp(INPUTS, (4,), CLASSES)
    sample = jax.ShapeDtypeStruct((INPUTS,), jnp.float32)
    setup = train.Setup(method, model, optax.adam(0.05), batch=N, sample=sample)
    learner = train.begin_task(setup, train.start(setup, jax.random.key(0), 2), 0)
    learner, _ = jax.jit(functools.partial(train.epoch, setup))(
        learner, train.examples(X[0], Y[0]), 0, 0
    )
    assert {path.split("/")[0] for path in learner.memory} == {"layers"}
    assert all(np.abs(leaf).max() > 0 for leaf in learner.memory.values())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"strength": -1.0}, "si: strength must be at least 0, got -1.0"),
        ({"xi": 0.0}, "si: xi must be above 0, got 0.0"),
        ({"rectify": "never"}, "si: rectify must be one of 'total', 'task', got 'never'"),
    ],
)
def test_refuses(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        jaxcl.si(jaxcl.finetune(), **options)
    with pytest.raises(ValueError, match="si: the base method brings consolidate of its own"):
        jaxcl.si(jaxcl.ewc(jaxcl.finetune()))
