"""MAS: the output's sensitivity against numpy, sums and averages over tasks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcl
from jaxcl import models, train
from jaxcl.methods import importance

INPUTS, CLASSES, N = 3, 4, 6
RNG = np.random.default_rng(0)
W = RNG.normal(0, 1, (INPUTS, CLASSES)).astype("f4")
X = RNG.normal(0, 1, (N, INPUTS)).astype("f4")
Y = np.array([0, 1, 2, 2, 1, 0])


def ended(tasks=1, length=None, labels=Y, unseen="masked", **options):
    """A linear network's learner once some tasks on the same examples ended without training."""
    model = models.from_function(lambda params, x: x @ params["w"], {"w": jnp.asarray(W)})
    method = jaxcl.mas(jaxcl.finetune(), heads=None, **options)
    setup = train.Setup(
        method, model, optax.sgd(0.1), batch=4, classes=(2, 1), scenario="class", unseen=unseen
    )
    learner = train.start(setup, jax.random.key(0), 2)
    data = train.examples(X, labels, length=length)
    end = jax.jit(functools.partial(train.end_task, setup))
    for task in range(tasks):
        learner = end(learner, task, data)._replace(theta={"w": learner.theta["w"] + 1.0})
    return setup, learner


def found(**options):
    return np.asarray(ended(**options)[1].state.importance["w"])


def of_linear(w, visible):
    """mean_n |d sum_c (x w_c)^2 / dw| = mean_n 2 |x_i (x w_c)| for the logits that are visible."""
    logits = np.where(np.arange(CLASSES) < visible, X.astype("f8") @ w, 0)
    return np.mean(2 * np.abs(X[:, :, None] * logits[:, None]), 0)


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * 1e-1)


@pytest.mark.parametrize("side_by_side", [1, 4])
def test_importance_is_the_mean_of_absolute_gradients(side_by_side, monkeypatch):
    monkeypatch.setattr(importance, "SIDE_BY_SIDE", {"cpu": side_by_side})
    close(found(), of_linear(W, 2))
    close(found(length=9), of_linear(W, 2))
    close(found(unseen="kept"), of_linear(W, CLASSES))
    logits = np.where(np.arange(CLASSES) < 2, X.astype("f8") @ W, 0)
    of_mean = np.abs(np.mean(2 * X[:, :, None] * logits[:, None], 0))  # the broken twin
    assert not np.allclose(found(), of_mean, rtol=0.1)


def test_no_label_is_read():
    np.testing.assert_array_equal(found(labels=Y), found(labels=np.zeros_like(Y)))


def test_importances_add_up_or_are_averaged():
    first, second = of_linear(W, 2), of_linear(W + 1, 3)
    close(found(tasks=2), first + second)
    close(found(tasks=2, accumulate="average"), (first + second) / 2)
    close(found(tasks=1, accumulate="average"), first)


def test_penalty_holds_to_the_latest_task_without_a_half():
    setup, learner = ended(tasks=2, strength=3.0)
    omega = of_linear(W, 2) + of_linear(W + 1, 3)
    moved = {"w": jnp.asarray(W + 1.5)}
    close(setup.method.penalty(moved, learner.state, 1), 3 * 0.25 * omega.sum())
    close(jax.grad(setup.method.penalty)(moved, learner.state, 1)["w"], 3 * 2 * 0.5 * omega)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"strength": -1.0}, "mas: strength must be at least 0, got -1.0"),
        ({"accumulate": "max"}, "mas: accumulate must be one of 'sum', 'average', got 'max'"),
        ({"examples": 1.5}, "mas: examples must be a whole number of at least 1, got 1.5"),
    ],
)
def test_refuses(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        jaxcl.mas(jaxcl.finetune(), **options)
