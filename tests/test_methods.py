"""What holds for every method."""

import jax
import numpy as np
import pytest

import jaxcl
from jaxcl import masks
from tests.small import KEY, TASKS, mlp, params

METHODS = {
    "finetune": lambda: jaxcl.finetune(),
    "packnet": lambda: jaxcl.packnet(TASKS, reinit_free="random"),
    "hat": lambda: jaxcl.hat(mlp().wiring, TASKS),
    "hat hard": lambda: jaxcl.hat(mlp().wiring, TASKS, hard=True),
    "pnn": lambda: jaxcl.pnn(mlp(), TASKS)[0],
    "multihead": lambda: jaxcl.multihead(jaxcl.packnet(TASKS), TASKS),
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
