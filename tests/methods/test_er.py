"""ER: one step against numpy, on the rows that the memory drew."""

import functools

import jax
import numpy as np
import pytest
from linear_tasks import TASKS, N, X, Y, agrees, data, gradients, learn, make_setup

import jaxcl
from jaxcl import train
from jaxcl.core.method import Batch
from jaxcl.methods import replay

REPLAYED = 5


def er(base):
    return jaxcl.er(base, 9, replay_batch=REPLAYED)


@functools.partial(jax.jit, static_argnums=2)
def drawn(buffer, key, use):
    return replay.draw(buffer, jax.random.fold_in(key, use), REPLAYED)[0]


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_a_step_is_on_the_mean_of_new_and_replayed_rows(scenario):
    for task, before, after, key, metrics in learn(make_setup(scenario, er)):
        rows = jax.device_get(drawn(before.memory, key, replay.DRAW))
        filled = bool(before.memory.count[0] > 0)
        assert (rows.weight == filled).all()
        new = Batch(X[task], Y[task], np.full(N, task), np.ones(N))

        def of(new, replayed):
            both = [np.concatenate(pair) for pair in zip(new[:4], replayed[:4])]
            return gradients(before.theta, scenario, task, *both)  # noqa: B023

        agree = functools.partial(agrees, before.theta, after.theta)
        gradient, losses = of(new, rows)
        assert agree(gradient)
        np.testing.assert_allclose(metrics.loss, losses[:N].mean(), rtol=1e-5)  # of the new alone
        if filled:  # the broken twins
            nothing = rows._replace(weight=np.zeros(REPLAYED))
            mean_of_each = rows._replace(weight=np.full(REPLAYED, N / REPLAYED))
            running = rows._replace(task=np.full(REPLAYED, task), y=rows.y % 2)
            assert not agree(of(new, nothing)[0])
            assert not agree(of(new, mean_of_each)[0])
            if scenario == "task" and (rows.task != task).any():
                assert not agree(of(new, running)[0])


def test_replay_moves_the_heads_of_tasks_seen_and_of_no_other():
    steps = [(before.theta["head"], after.theta["head"]) for _, before, after, _, _ in
             learn(make_setup("task", er))]  # fmt: skip
    moved = [(np.asarray(steps[a][0]) != steps[a + 1][1]).any((1, 2)).tolist() for a in (0, 2, 4)]
    assert moved == [[True, False, False], [True, True, False], [True, True, True]]


def test_needs_the_number_of_classes_and_shared_statistics():
    setup = make_setup("task", er)
    learner = train.begin_task(setup, train.start(setup, jax.random.key(0), TASKS), 0)
    for change, says in (
        ({"classes": None}, "rows of several tasks needs classes"),
        ({"norm": "per_task"}, "rows of several tasks needs norm='shared', got 'per_task'"),
    ):
        epoch = functools.partial(train.epoch, setup._replace(**change))
        with pytest.raises(ValueError, match=says):
            jax.eval_shape(epoch, learner, data(0), 0, 0)
