"""What the methods' tests share: a small network, noise for training, comparisons."""

import functools

import jax
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from jaxcl import masks, models

KEY = jax.random.key(0)
TASKS = 3
quickly = settings(deadline=None, max_examples=25, database=None)
SEEDS = st.integers(0, 2**16)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def close(a, b, tolerance=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, tolerance, tolerance), a, b)


def row(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


def noise(seed, tree, scale=1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: scale * rng.normal(0, 1, leaf.shape).astype("f4"), tree)


def move(seed, method, theta, state, task):
    """Training as a method sees it: everything that is trainable ends somewhere else."""
    mask = masks.resolve(method.trainable(theta, state, task), theta)
    return jax.tree.map(lambda leaf, m, n: leaf + m * n, theta, mask, noise(seed, theta))


@functools.cache
def mlp(**options):
    model = models.mlp(4, (5, 3), 2, **options)
    return model._replace(init=jax.jit(model.init))


@functools.cache
def params():
    return noise(0, mlp().init(KEY)[0])
