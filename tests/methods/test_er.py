"""ER: one step against numpy, on the rows that the memory drew."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcl
from jaxcl import models, train
from jaxcl.core.method import Batch
from jaxcl.methods import replay

TASKS, INPUTS, UNITS, CLASSES, N, REPLAYED = 3, 4, 5, (3, 2, 3), 8, 5
RNG = np.random.default_rng(0)
X = RNG.normal(0, 1, (TASKS, N, INPUTS)).astype("f4")
Y = np.stack([RNG.integers(0, count, N) for count in CLASSES])
RATE = 0.1


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
    """What is compiled here runs for milliseconds."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def network(logits):
    """A linear trunk and a linear head: two matrices."""
    shapes = {"trunk": (INPUTS, UNITS), "head": (UNITS, logits)}
    params = {name: jnp.asarray(RNG.normal(0, 0.5, shape), float) for name, shape in shapes.items()}
    return models.from_function(lambda params, x: x @ params["trunk"] @ params["head"], params)


def make_setup(scenario, **options):
    """A batch is the whole task, so that its order is of no account."""
    sample = jax.ShapeDtypeStruct((INPUTS,), jnp.float32)
    base, logits = jaxcl.finetune(), sum(CLASSES) if scenario == "class" else max(CLASSES)
    if scenario == "task":
        base = jaxcl.multihead(base, TASKS)
    method = jaxcl.er(base, 9, replay_batch=REPLAYED, **options)
    return train.Setup(
        method, network(logits), optax.sgd(RATE), batch=N, sample=sample, classes=CLASSES,
        scenario=scenario,
    )  # fmt: skip


def step_key(learner, task, index):
    """The key of the only step of an epoch."""
    key = jax.random.fold_in(learner.key, 2)
    for number in (task, index, 0):
        key = jax.random.fold_in(key, number)
    return key


def learn(setup):
    """Every step of three tasks: the learner before and after it, and what it replayed."""
    learner = train.start(setup, jax.random.key(0), TASKS)
    epoch = jax.jit(functools.partial(train.epoch, setup))
    begin = jax.jit(functools.partial(train.begin_task, setup))
    draw = jax.jit(functools.partial(replay.draw, size=REPLAYED))
    for task in range(TASKS):
        learner = begin(learner, task)
        for index in range(2):
            key = jax.random.fold_in(step_key(learner, task, index), replay.DRAW)
            rows, _ = jax.device_get(draw(learner.memory, key))
            data = train.examples(X[task], Y[task].astype("i4"))
            before, (learner, metrics) = learner, epoch(learner, data, task, index)
            yield task, before, learner, rows, metrics


def gradients(theta, scenario, running, x, y, task, weight):
    """Of the weighted mean of the rows' cross-entropies, by numpy; and the rows' losses."""
    trunk, heads = np.asarray(theta["trunk"], "f8"), np.asarray(theta["head"], "f8")
    found, losses = {"trunk": np.zeros_like(trunk), "head": np.zeros_like(heads)}, []
    offset = np.cumsum(CLASSES) - CLASSES if scenario == "class" else np.zeros(TASKS, int)
    for row, label, t, w in zip(x.astype("f8"), y, task, weight / np.sum(weight)):
        head = heads[t] if scenario == "task" else heads
        present = np.arange(head.shape[1]) < (
            sum(CLASSES[: running + 1]) if scenario == "class" else CLASSES[t]
        )
        p = np.where(present, np.exp(row @ trunk @ head), 0)
        p /= p.sum()
        wrong = w * (p - np.eye(len(p))[label + offset[t]])
        losses.append(-np.log(p[label + offset[t]]))
        found["trunk"] += np.outer(row, head @ wrong)
        into = found["head"][t] if scenario == "task" else found["head"]
        into += np.outer(row @ trunk, wrong)
    return found, np.array(losses)


def agrees(before, after, gradient):
    """Whether a step was plain gradient descent along this gradient."""
    return all(
        np.allclose(after[name], before[name] - RATE * leaf, atol=1e-5)
        for name, leaf in gradient.items()
    )


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_a_step_is_on_the_mean_of_new_and_replayed_rows(scenario):
    for task, before, after, rows, metrics in learn(make_setup(scenario)):
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
             learn(make_setup("task"))]  # fmt: skip
    moved = [(np.asarray(steps[a][0]) != steps[a + 1][1]).any((1, 2)).tolist() for a in (0, 2, 4)]
    assert moved == [[True, False, False], [True, True, False], [True, True, True]]


def test_needs_the_number_of_classes_and_shared_statistics():
    setup = make_setup("task")
    learner = train.begin_task(setup, train.start(setup, jax.random.key(0), TASKS), 0)
    data = train.examples(X[0], Y[0].astype("i4"))
    for change, says in (
        ({"classes": None}, "rows of several tasks needs classes"),
        ({"norm": "per_task"}, "rows of several tasks needs norm='shared', got 'per_task'"),
    ):
        epoch = functools.partial(train.epoch, setup._replace(**change))
        with pytest.raises(ValueError, match=says):
            jax.eval_shape(epoch, learner, data, 0, 0)
