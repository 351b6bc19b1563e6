"""What holds for every method."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcl
from jaxcl import masks
from jaxcl.core import guard
from jaxcl.core import isolate as isolation
from tests.methods.small import KEY, TASKS, equal, mlp, params

METHODS = {
    "finetune": lambda: jaxcl.finetune(),
    "packnet": lambda: jaxcl.packnet(TASKS, reinit_free="random"),
    "packnet keep": lambda: jaxcl.packnet(TASKS, reinit_free="keep"),
    "hat": lambda: jaxcl.hat(mlp().wiring, TASKS),
    "hat hard": lambda: jaxcl.hat(mlp().wiring, TASKS, hard=True),
    "pnn": lambda: jaxcl.pnn(mlp(), TASKS)[0],
    "multihead": lambda: jaxcl.multihead(jaxcl.packnet(TASKS), TASKS),
    "multihead hat": lambda: jaxcl.multihead(jaxcl.hat(mlp().wiring, TASKS), TASKS, "head|bias"),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_traced_from_its_start_to_its_end(name):
    method = METHODS[name]()

    @jax.jit
    def learn(key, params, task):
        theta, state = method.init(key, params)
        theta, state = method.begin_task(key, theta, state, task)
        mask = masks.resolve(method.trainable(theta, state, task), theta)
        view = method.view(theta, state, task, 0.5)
        penalty = method.penalty(theta, state, task, 0.5)
        theta, state = method.end_task(method.project(theta), state, task)
        return mask, penalty, method.capacity(theta, state), view, (theta, state)

    mask, penalty, capacity, _, last = learn(KEY, params(), 1)
    assert all(np.all((leaf >= 0) & (leaf <= 1)) for leaf in jax.tree.leaves(mask))
    assert penalty.shape == capacity.shape == ()
    assert np.isfinite(penalty)
    assert 0 <= capacity <= 1
    rows = jax.vmap(learn, in_axes=(0, None, None))(jax.random.split(KEY, 2), params(), 1)
    shapes = jax.tree.map(np.shape, last)
    assert jax.tree.map(lambda leaf: leaf.shape[1:], rows[-1]) == shapes


@pytest.mark.parametrize("name", [name for name in METHODS if name != "finetune"])
@pytest.mark.parametrize("task", [-1, TASKS, np.int32(TASKS)])
def test_a_task_out_of_range_is_refused(name, task):
    method = METHODS[name]()
    theta, state = jax.eval_shape(method.init, KEY, params())
    words = f"{name.split()[0]}: task must be a whole number from 0 to 2, got {task}"
    for call in (
        lambda: method.begin_task(KEY, theta, state, task),
        lambda: method.view(theta, state, task),
        lambda: method.trainable(theta, state, task),
        lambda: method.penalty(theta, state, task),
        lambda: method.end_task(theta, state, task),
    ):
        with pytest.raises(ValueError, match=words):
            call()


# Donation: what a method or `isolate` hands out shares no memory with what is kept.


def donating_loop(method, optimizer):
    """Every task once, in a step that eats its parameters and its optimizer's state."""
    given = jax.tree.map(jnp.array, params())
    mask = jax.tree.map(jnp.array, method.trainable(*method.init(KEY, given), 0))
    tx = jaxcl.isolate(optimizer, mask)

    def step(theta, opt_state):
        gradient = jax.tree.map(jnp.ones_like, theta)
        updates, opt_state = tx.update(gradient, opt_state, theta)
        return optax.apply_updates(theta, updates), opt_state

    step = jax.jit(step, donate_argnums=(0, 1))
    theta, state = method.init(KEY, given)
    for task in range(TASKS):
        theta, state = method.begin_task(KEY, theta, state, task)
        view = method.view(theta, state, task)
        opt_state = jaxcl.set_trainable(tx.init(theta), method.trainable(theta, state, task))
        theta, opt_state = step(*step(theta, opt_state))
        jax.tree.map(lambda leaf: leaf.delete(), view)
        theta, state = method.end_task(theta, state, task)
    return jax.device_get((given, mask, theta, state, opt_state))


@pytest.mark.parametrize("name", METHODS)
def test_all_that_a_loop_holds_may_be_donated(name):
    method = METHODS[name]()
    given, *_ = donating_loop(method, optax.contrib.schedule_free_adamw(0.1))
    equal(given, params())  # as many methods may begin with it as one likes


@pytest.mark.parametrize("name", ["finetune", "packnet", "hat"])
def test_donation_bites_what_is_shared(name, monkeypatch):
    """The broken twin of the test above."""
    for module in (isolation, guard):
        monkeypatch.setattr(module, "apart", lambda tree, *kept: tree)
    with pytest.raises((RuntimeError, ValueError), match=r"deleted|donate"):
        donating_loop(METHODS[name](), optax.contrib.schedule_free_adamw(0.1))
