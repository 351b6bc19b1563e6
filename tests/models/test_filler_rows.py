"""Rows that only fill up the last batch of an epoch take no part in running statistics."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import jaxcl
from jaxcl import models, train

ROWS, BATCH = 21, 8  # two full batches, and one of five rows
X = np.asarray(jax.random.normal(jax.random.key(0), (ROWS, 6, 6, 2)) * 3 + 1)
Y = np.arange(ROWS) % 3


class OwnNorm(nnx.BatchNorm):
    """A user's kind, which calls the original as it likes."""

    def __call__(self, x, **kwargs):
        return 2 * super().__call__(x, **kwargs)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.norm, self.own = nnx.BatchNorm(4, rngs=rngs), OwnNorm(4, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        return self.head(self.own(x.mean((1, 2))))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.BatchNorm(not train)(nn.Conv(4, (3, 3))(x)))
        x = nn.BatchNorm(use_running_average=not train)(x=x.mean((1, 2)))
        return nn.Dense(3)(x)


NETWORKS = {
    "nnx": lambda: models.from_nnx(Net),
    "linen": lambda: models.from_linen(LinenNet(), X[:1]),
    "built-in": lambda: models.vgg16((32, 32, 3), 3, width=1, hidden=(4,), dropout=0.0),
}


def without_weight(model):
    """The twin, which is not told."""

    def apply(params, statistics, x, *, train=False, key=None, freeze_norm=False):
        return model.apply(params, statistics, x, train=train, key=key, freeze_norm=freeze_norm)

    return model._replace(apply=apply)


def inputs(name):
    return X if name != "built-in" else np.resize(X, (ROWS, 32, 32, 3))


def by_the_engine(model, x):
    """Running statistics after an epoch, and the order of its rows."""
    order = []

    def prepare(rows):
        jax.debug.callback(lambda seen: order.append(np.asarray(seen)), rows[:, 0, 0, 0])
        return rows

    setup = train.Setup(
        jaxcl.finetune(), model, optax.sgd(0.1), prepare, batch=BATCH, norm="shared"
    )
    learner = train.start(setup, jax.random.key(0), 1)
    learner = train.begin_task(setup, learner, 0)
    data = train.examples(x, Y)
    after, _ = jax.jit(lambda learner: train.epoch(setup, learner, data, 0, 0))(learner)
    jax.effects_barrier()
    row = jax.tree.map(lambda leaf: leaf[0], learner.statistics)
    return learner.theta, row, jax.tree.map(lambda leaf: leaf[0], after.statistics), order


def by_hand(model, x, params, statistics, batches):
    """Plain steps, the last on fewer rows."""

    def loss(params, statistics, rows, labels):
        logits, statistics = model.apply(
            params, statistics, rows, train=True, key=jax.random.key(9)
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), statistics

    step = jax.jit(jax.grad(loss, has_aux=True))
    for batch in batches:
        gradient, statistics = step(params, statistics, x[batch], Y[batch])
        params = jax.tree.map(lambda p, g: p - np.float32(0.1) * g, params, gradient)
    return statistics


@pytest.mark.parametrize("name", NETWORKS)
def test_running_statistics_are_those_of_a_small_last_batch(name):
    model, x = NETWORKS[name](), inputs(name)
    if name == "built-in":  # whose rows are told apart by their first entry
        x = x + np.arange(ROWS, dtype=np.float32)[:, None, None, None] / 100
    where = {float(value): i for i, value in enumerate(x[:, 0, 0, 0])}
    assert len(where) == ROWS
    params, start, found, order = by_the_engine(model, x)
    batches = [[where[float(value)] for value in batch] for batch in order]
    assert [len(batch) for batch in batches] == [BATCH] * 3
    batches[-1] = batches[-1][: ROWS - 2 * BATCH]
    assert sorted(i for batch in batches for i in batch) == list(range(ROWS))
    expected = by_hand(model, x, params, start, batches)
    close = partial(np.allclose, rtol=1e-3, atol=1e-5)
    assert all(jax.tree.leaves(jax.tree.map(close, found, expected)))
    *_, counted, _ = by_the_engine(without_weight(model), x)
    assert not all(jax.tree.leaves(jax.tree.map(close, counted, expected)))


@pytest.mark.parametrize("name", ["nnx", "linen"])
def test_a_full_batch_is_as_if_there_were_no_weights(name):
    """To the bit, where the number of entries that are averaged is a power of two."""
    model, x = NETWORKS[name](), X[:8, :4, :4]
    params, statistics = model.init(jax.random.key(0))
    apply = partial(model.apply, params, statistics, x, train=True, key=jax.random.key(1))
    assert jax.tree.all(jax.tree.map(np.array_equal, apply(), apply(weight=jnp.ones(8))))
    frozen, some = partial(apply, freeze_norm=True), jnp.arange(8) < 5
    assert jax.tree.all(jax.tree.map(np.array_equal, frozen(), frozen(weight=some)))


def test_only_rows_of_the_batch_are_left_out():
    """A layer whose input has other rows, or whose features come first, counts all of them."""

    class Folded(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.BatchNorm(2, rngs=rngs)
            self.first = nnx.BatchNorm(4, axis=0, rngs=rngs)

        def __call__(self, x):
            x = self.norm(x.reshape(-1, 2)).reshape(x.shape)
            return self.first(x)

    model, x = models.from_nnx(Folded), X[:4, 0]
    params, statistics = model.init(jax.random.key(0))
    apply = partial(model.apply, params, statistics, x, train=True)
    plain, weighed = apply(), apply(weight=jnp.array([1.0, 1, 0, 0]))
    assert jax.tree.all(jax.tree.map(np.array_equal, plain, weighed))


def test_columns_pass_it_on():
    model = NETWORKS["built-in"]()
    x = inputs("built-in")[:8]
    some = jnp.asarray(jnp.arange(8) < 5, float)
    for lateral in ("adapter", None):
        method, network = jaxcl.pnn(model, 2, lateral)
        theta, state = method.init(jax.random.key(0), network.init(jax.random.key(0))[0])
        _, statistics = network.init(jax.random.key(0))
        view = method.view(theta, state, jnp.int32(0), jnp.float32(0))
        run = jax.jit(partial(network.apply, view, statistics, train=True, key=jax.random.key(1)))
        _, found = run(x, weight=some)
        _, small = run(x[:5])
        _, whole = run(x)
        close = partial(np.allclose, rtol=1e-4, atol=1e-6)
        assert jax.tree.all(jax.tree.map(close, found, small))
        assert not jax.tree.all(jax.tree.map(close, found, whole))
