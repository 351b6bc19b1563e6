"""A-GEM: the projection against numpy, and a step on the rows that the memory drew."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_tasks import N, X, Y, agrees, gradients, learn, make_setup

import jaxcl
from jaxcl.methods import agem, replay

RNG = np.random.default_rng(0)


def dot(a, b):
    return sum(np.sum(np.asarray(a[name], "f8") * np.asarray(b[name], "f8")) for name in a)


def by_numpy(gradient, reference):
    product = dot(gradient, reference)
    share = product / dot(reference, reference) if product < 0 else 0
    return {name: gradient[name] - share * reference[name] for name in gradient}


def trees(seed):
    rng = np.random.default_rng(seed)
    shapes = {"head": (3, 2), "trunk": (5,)}
    return [
        {name: rng.normal(0, 1, shape).astype("f4") for name, shape in shapes.items()}
        for _ in range(2)
    ]


def unguarded(gradient, reference, mask):
    """The twin that divides by g_ref . g_ref whatever it is."""
    product, length = agem._dot(gradient, reference), agem._dot(reference, reference)
    share = jnp.where(product <= 0, product / length, 0)
    return jax.tree.map(lambda g, r: g - share * r, gradient, reference)


def test_projection_turns_what_points_against_the_reference():
    turned = 0
    for seed in range(20):
        gradient, reference = trees(seed)
        found = agem.projected(gradient, reference, {"head": True, "trunk": True})
        assert dot(found, reference) >= -1e-5
        expected = by_numpy(gradient, reference)
        for name in found:
            np.testing.assert_allclose(found[name], expected[name], atol=1e-5)
        if dot(gradient, reference) < 0:
            turned += 1
            assert abs(dot(found, reference)) < 1e-5  # and not further than needed
        else:
            jax.tree.map(np.testing.assert_array_equal, found, gradient)
    assert 5 < turned < 15


def test_a_reference_of_zero_changes_nothing():
    gradient, reference = trees(0)
    nothing = jax.tree.map(np.zeros_like, reference)
    mask = {"head": True, "trunk": True}
    found = agem.projected(gradient, nothing, mask)
    jax.tree.map(np.testing.assert_array_equal, found, gradient)
    assert np.isnan(unguarded(gradient, nothing, mask)["trunk"]).all()


def test_what_may_not_move_takes_no_part():
    gradient, reference = trees(1)
    mask = {"head": np.array([[True], [False], [True]]), "trunk": np.float32(1)}
    reference["head"][1] = -1e3 * gradient["head"][1]  # would decide alone
    found = agem.projected(gradient, reference, mask)
    movable = {name: np.where(mask[name] != 0, reference[name], 0) for name in reference}
    expected = by_numpy(gradient, movable)
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)
    twin = agem.projected(gradient, reference, {"head": True, "trunk": True})
    assert not np.allclose(twin["trunk"], expected["trunk"], atol=0.01)


@functools.partial(jax.jit, static_argnums=2)
def drawn(buffer, key, task):
    key = jax.random.fold_in(key, replay.DRAW)
    return replay.draw(buffer, key, N, among=buffer.task < task)[0]


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_a_step_goes_along_the_projected_gradient(scenario):
    """The reference is of earlier tasks alone, each example through its own task's head."""
    wrap = functools.partial(jaxcl.agem, memory=10, tasks=3)
    turned = 0
    for task, before, after, key, _ in learn(make_setup(scenario, wrap), 4):
        of = functools.partial(gradients, before.theta, scenario, task)
        gradient, _ = of(X[task], Y[task], np.full(N, task), np.ones(N))
        agree = functools.partial(agrees, before.theta, after.theta)
        if task == 0:  # although there are examples of it in the memory
            assert agree(gradient)
            continue
        rows = jax.device_get(drawn(before.memory, key, task))
        assert (rows.weight == 1).all() and (rows.task < task).all()
        reference, _ = of(rows.x, rows.y, rows.task, rows.weight)
        assert agree(by_numpy(gradient, reference))
        turned += dot(gradient, reference) < 0
        assert agree(gradient) == (dot(gradient, reference) >= 0)  # the twin that never turns
    assert turned > 0


def test_rings_hold_the_latest_of_each_task():
    *_, (_, _, after, _, _) = learn(make_setup("task", functools.partial(jaxcl.agem, memory=10)))
    np.testing.assert_array_equal(after.memory.task, np.repeat([0, 1, 2], 3))
    for x, task in zip(np.asarray(after.memory.x), np.asarray(after.memory.task)):
        assert (x == X[task]).all(1).any()
