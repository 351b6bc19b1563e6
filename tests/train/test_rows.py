"""A step with the running task's rows alone is the step with all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcl
from jaxcl import models, train
from jaxcl.train.rows import cut

X = np.random.default_rng(0).standard_normal((24, 4)).astype(np.float32)
DATA = train.examples(X, (X[:, 0] > 0).astype(int))


def setup_of(method, optimizer):
    model = models.mlp(4, (8,), 2)
    method = jaxcl.hat(model.wiring, 3, s_max=5.0) if method == "hat" else jaxcl.finetune()
    return train.Setup(jaxcl.multihead(method, 3), model, optimizer, classes=[2] * 3, batch=8)


def trained(setup):
    """A learner before and after an epoch on the second of three tasks."""
    learner = train.begin_task(setup, train.start(setup, jax.random.key(0), 3), 1)
    return learner, jax.jit(lambda new: train.epoch(setup, new, DATA, 1, 0)[0])(learner)


@pytest.mark.parametrize("method", ["finetune", "hat"])
def test_an_epoch_is_the_same_as_with_all_rows(method):
    setup = setup_of(method, optax.adamw(0.1))
    before, after = trained(setup)
    _, whole = trained(setup._replace(method=setup.method._replace(rows=None)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-5),
        (after.theta, after.opt_state), (whole.theta, whole.opt_state),
    )  # fmt: skip
    found = jaxcl.masks.leaves_by_path(after.theta)
    rows = [path for path in found if setup.method.rows.has(path)]
    assert len(rows) == (3 if method == "hat" else 2)  # the head's, and of HAT's one gate
    for path in rows:
        old = jaxcl.masks.leaves_by_path(before.theta)[path]
        moved = jnp.any(found[path] != old, axis=tuple(range(1, old.ndim)))
        np.testing.assert_array_equal(moved, [False, True, False])


def test_a_loop_carries_one_row_but_for_an_optimizer_of_other_shapes():
    for optimizer, rows in (
        (optax.adam(0.1), 1),
        (optax.adafactor(0.1, min_dim_size_to_factor=2), 3),
    ):
        setup = setup_of("finetune", optimizer)
        learner = jax.eval_shape(lambda s=setup: train.start(s, jax.random.key(0), 3))
        (phase,) = setup.method.phases
        new, _ = jax.eval_shape(
            lambda old, s=setup, p=phase: cut(s, p, old, s.method.trainable(old.theta, (), 1), 1),
            learner,
        )
        assert new.theta["head"]["kernel"].shape == (rows, 8, 2)


def test_a_penalty_of_ones_own_sees_all_rows():
    """A method that is made of another by `_replace` promises nothing."""
    seen = []

    def penalty(theta, state, task, progress=None):
        seen.append(theta["head"]["kernel"].shape)
        return 0.0

    setup = setup_of("finetune", optax.sgd(0.1))
    trained(setup._replace(method=setup.method._replace(penalty=penalty)))
    assert {*seen} == {(3, 8, 2)}
