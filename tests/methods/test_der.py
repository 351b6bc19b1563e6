"""DER and DER++: one step against numpy, on the rows that the memory drew; what is stored."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_tasks import (
    CLASSES,
    TASKS,
    N,
    X,
    Y,
    agrees,
    data,
    gradients,
    learn,
    make_setup,
    step_key,
)

import jaxcl
from jaxcl import train
from jaxcl.methods import replay

REPLAYED, ALPHA, BETA = 6, 0.7, 0.4
METHODS = {
    "der": functools.partial(jaxcl.der, memory=9, alpha=ALPHA, replay_batch=REPLAYED),
    "derpp": functools.partial(
        jaxcl.derpp, memory=9, alpha=ALPHA, beta=BETA, replay_batch=REPLAYED
    ),
}


@functools.partial(jax.jit, static_argnums=2)
def drawn(buffer, key, use):
    return replay.draw(buffer, jax.random.fold_in(key, use), REPLAYED)


def outputs(theta, scenario, x, task):
    """Each row's logits by numpy, and which of them count while `running` is in training."""
    heads = np.asarray(theta["head"], "f8")
    heads = heads[task] if scenario == "task" else np.stack([heads] * len(x))
    return np.einsum("bi,ij,bjc->bc", x.astype("f8"), np.asarray(theta["trunk"], "f8"), heads)


def visible(scenario, running, task, width):
    count = np.array(CLASSES)[task]
    if scenario == "class":
        count = np.full(len(task), sum(CLASSES[: running + 1]))
    return np.arange(width) < count[:, None]


def of_logits(theta, scenario, running, rows, stored, squared=False):
    """The gradient of the mean squared difference to the stored logits, by numpy."""
    now = outputs(theta, scenario, rows.x, rows.task)
    counts = visible(scenario, running, rows.task, now.shape[1])
    wrong = np.where(counts, 2 * (now - stored), 0) / (len(now) if squared else counts.sum())
    trunk, heads = np.asarray(theta["trunk"], "f8"), np.asarray(theta["head"], "f8")
    found = {"trunk": np.zeros_like(trunk), "head": np.zeros_like(heads)}
    for x, error, task in zip(rows.x.astype("f8"), wrong, rows.task):
        head = heads[task] if scenario == "task" else heads
        found["trunk"] += np.outer(x, head @ error)
        into = found["head"][task] if scenario == "task" else found["head"]
        into += np.outer(x @ trunk, error)
    return found


def total(*parts):
    """The sum of weighted gradients."""
    return {name: sum(weight * tree[name] for weight, tree in parts) for name in parts[0][1]}


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_is_on_new_labels_stored_logits_and_stored_labels(method, scenario):
    for task, before, after, key, _ in learn(make_setup(scenario, METHODS[method])):
        labels = functools.partial(gradients, before.theta, scenario, task)
        logits = functools.partial(of_logits, before.theta, scenario, task)
        agree = functools.partial(agrees, before.theta, after.theta)
        new, _ = labels(X[task], Y[task], np.full(N, task), np.ones(N))
        if before.memory.count[0] == 0:
            assert agree(new)
            continue
        rows, stored = jax.device_get(drawn(before.memory, key, replay.DRAW))
        parts = [(1, new), (ALPHA, logits(rows, stored))]
        if method == "der":
            assert agree(total(*parts))
        else:
            second, _ = jax.device_get(drawn(before.memory, key, replay.SECOND_DRAW))
            assert agree(total(*parts, (BETA, labels(*second[:4])[0])))
            # The broken twins: one draw for both; stored labels without their weight.
            assert not agree(total(*parts, (BETA, labels(*rows[:4])[0])))
            assert not agree(total(*parts, (1, labels(*second[:4])[0])))
            continue
        # The broken twins: the paper's norm for the mean; the logits of the network as it is now.
        assert not agree(total(parts[0], (ALPHA, logits(rows, stored, squared=True))))
        now = outputs(before.theta, scenario, rows.x, rows.task)
        assert task == 0 or not agree(total(parts[0], (ALPHA, logits(rows, now))))


def test_two_draws_of_derpp_are_independent():
    """Over many steps, a row of one draw says nothing about the same row of the other."""
    held = 9
    nothing, x = jnp.zeros(held, jnp.int32), jnp.arange(held, dtype=jnp.float32)[:, None]
    buffer = replay.Buffer(x, nothing, nothing, (), jnp.array([20], jnp.uint32))
    keys = jax.random.split(jax.random.key(9), 500)

    def equal(first, second):
        draws = [
            jax.vmap(lambda key, use=use: drawn(buffer, key, use)[0].x[:, 0])(keys)
            for use in (first, second)
        ]
        return np.mean(np.asarray(draws[0] == draws[1]))

    chance, error = 1 / held, np.sqrt(1 / held / (500 * REPLAYED))
    assert abs(equal(replay.DRAW, replay.SECOND_DRAW) - chance) < 4 * error
    assert equal(replay.DRAW, replay.DRAW) == 1  # the twin


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_stored_logits_are_those_before_the_step(scenario):
    seen = 0
    for task, before, after, _, _ in learn(make_setup(scenario, METHODS["der"])):
        old, new = jax.device_get((before.memory, after.memory))
        fresh = (old.logits != new.logits).any(1)
        x = new.x[fresh]
        assert (new.task[fresh] == task).all()
        stored = new.logits[fresh]
        expected = outputs(before.theta, scenario, x, new.task[fresh])
        np.testing.assert_allclose(stored, expected, atol=1e-4)
        later = outputs(after.theta, scenario, x, new.task[fresh])  # the broken twin
        assert fresh.sum() == 0 or not np.allclose(stored, later, atol=1e-3)
        seen += fresh.sum()
    assert seen > 12


def test_unseen_logits_are_compared_where_they_are_kept():
    """As mammoth does, which compares all logits: as if all classes were seen."""
    setup = make_setup("class", METHODS["der"])._replace(unseen="kept")
    agreed = []
    for task, before, after, key, _ in learn(setup):
        rows, stored = jax.device_get(drawn(before.memory, key, replay.DRAW))
        if rows.weight.all():
            for running in (TASKS - 1, task):  # the latter is the broken twin
                new = gradients(
                    before.theta, "class", TASKS - 1, X[task], Y[task], np.full(N, task), np.ones(N)
                )[0]
                logits = of_logits(before.theta, "class", running, rows, stored)
                step = total((1, new), (ALPHA, logits))
                agreed.append((running, agrees(before.theta, after.theta, step)))
    assert all(agree == (running == TASKS - 1) for running, agree in agreed) and len(agreed) == 10


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_nan_where_nothing_is_stored(method):
    setup = make_setup("task", METHODS[method])
    learner = train.begin_task(setup, train.start(setup, jax.random.key(0), TASKS), 0)
    rows, _ = drawn(learner.memory, step_key(learner, 0, 0), replay.DRAW)
    assert (rows.weight == 0).all()
    learner, metrics = jax.jit(functools.partial(train.epoch, setup))(learner, data(0), 0, 0)
    assert jnp.isfinite(metrics.loss) and jnp.isfinite(learner.theta["trunk"]).all()


@pytest.mark.parametrize(
    ("make", "options", "says"),
    [
        (jaxcl.der, {"alpha": -0.1}, "der: alpha must be at least 0, got -0.1"),
        (jaxcl.derpp, {"beta": float("nan")}, "derpp: beta must be finite"),
        (jaxcl.derpp, {"replay_batch": 1.5}, "derpp: replay_batch must be a whole number"),
        (jaxcl.der, {"memory": -1}, "der: memory must be a whole number"),
    ],
)
def test_refusals(make, options, says):
    with pytest.raises(ValueError, match=says):
        make(jaxcl.finetune(), **options)
