"""A task is taken out: no other task's logits change by a bit, and what it alone had is gone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl import masks, train
from jaxcl.methods import REGISTRY, replay
from tests.inference import trained_runs
from tests.inference.trained_runs import TASKS, examples

ABLE = [s.name for s in REGISTRY if trained_runs.setup_of(s.name).method.forget_task is not None]


@functools.cache
def program(method):
    setup, _ = trained_runs.programs(method)

    def logits(learner, task):
        params, statistics = train.network(setup, learner, task)
        x = setup.prepare(jnp.asarray(examples(task, seed=9)[0]))
        return setup.model.apply(params, statistics, x)[0]

    return jax.jit(logits, static_argnums=1)


def changed(method, before, after, tasks=TASKS):
    """The law: the tasks whose logits are not the same to the bit."""
    run = program(method)
    return [t for t in range(tasks) if not np.array_equal(run(before, t), run(after, t))]


def without(task, tasks=TASKS):
    """The finished tasks that stay."""
    return np.array([t < tasks and t != task for t in range(TASKS)])


def test_who_can():
    assert {"packnet", "hat", "pnn", "er", "agem", "der", "derpp"} <= {*ABLE}
    assert not {"ewc", "si", "mas", "lwf", "den", "cpg", "expandnet"} & {*ABLE}


@pytest.mark.parametrize("method", ABLE)
@pytest.mark.parametrize("task", range(TASKS))
def test_other_tasks_stay_as_they_are(method, task):
    setup, learner = trained_runs.trained(method)
    found = train.forget_task(setup, learner, task, without(task))
    assert changed(method, learner, found) == [task]
    assert not any(
        np.asarray(rows).any() for rows in heads_that_moved(method, learner, found, task)
    )


def heads_that_moved(method, before, after, task):
    """By how much the rows of the other tasks' heads differ."""
    if method in ("pnn", "independent"):
        return []
    leaves = [masks.leaves_by_path(one.theta) for one in (before, after)]
    rows = [path for path in leaves[0] if "head" in path]
    assert rows
    return [np.delete(np.asarray(leaves[0][p] - leaves[1][p]), task, 0) for p in rows]


def test_broken_twins_are_seen():
    """Weights that are freed though later tasks read them; and a task that stays."""
    setup, learner = trained_runs.trained("packnet")
    alone = np.array([False, False, False])
    freed = train.forget_task(setup, learner, 0, alone)  # as if nobody came after it
    assert changed("packnet", learner, freed) == [0, 1, 2]
    setup, learner = trained_runs.trained("hat")
    assert 2 in changed("hat", learner, train.forget_task(setup, learner, 0, alone))
    assert changed("hat", learner, learner) == []


def test_weights_pass_to_the_first_that_reads_them_or_become_free():
    setup, learner = trained_runs.trained("packnet")

    def owners(learner):
        return np.concatenate([np.asarray(o).ravel() for o in learner.state.owner.values()])

    before = owners(learner)
    passed = owners(train.forget_task(setup, learner, 0, without(0)))
    np.testing.assert_array_equal(passed, np.where(before == 1, 2, before))
    freed = train.forget_task(setup, learner, 2, without(2))
    np.testing.assert_array_equal(owners(freed), np.where(before == 3, 0, before))
    values = np.concatenate([np.asarray(masks.leaves_by_path(freed.theta)[p]).ravel()
                             for p in freed.state.owner])  # fmt: skip
    assert not values[before == 3].any()
    both = train.forget_task(setup, freed, 1, np.array([True, False, False]))
    np.testing.assert_array_equal(owners(both), np.where(before == 1, 1, 0))


def test_attention_is_that_of_the_tasks_that_stay():
    setup, learner = trained_runs.trained("hat")
    found = train.forget_task(setup, learner, 1, np.array([True, False, False]))
    for gate, table in learner.theta["embeddings"].items():
        expected = np.asarray(table > 0)[0]
        np.testing.assert_array_equal(found.state.attention[gate], expected)
        assert not np.array_equal(found.theta["embeddings"][gate][1], table[1])
    fresh = train.start(setup, jax.random.fold_in(learner.key, 2**31 + 1), TASKS).theta["params"]
    protected = [
        masks.leaves_by_path(
            masks.resolve(setup.method.trainable(one.theta, one.state, 2), one.theta)["params"]
        )
        for one in (learner, found)
    ]
    renewed = 0
    for path, leaf in masks.leaves_by_path(found.theta["params"]).items():
        if "head" in path:
            continue
        free = (np.asarray(protected[0][path]) == 0) & (np.asarray(protected[1][path]) == 1)
        old, new = (masks.leaves_by_path(t)[path] for t in (learner.theta["params"], fresh))
        np.testing.assert_array_equal(leaf, np.where(free, new, old))
        renewed += free.sum()
    assert renewed


def test_columns_that_others_read_keep_all_but_their_head():
    setup, learner = trained_runs.trained("pnn")
    read = train.forget_task(setup, learner, 0, without(0)).state.columns["column"]
    last = train.forget_task(setup, learner, 2, without(2)).state.columns
    assert not np.asarray(read["head"]["kernel"][0]).any()
    assert all(np.asarray(leaf[0]).any() for leaf in jax.tree.leaves(read["layers"]))
    assert not any(np.asarray(leaf[2]).any() for leaf in jax.tree.leaves(last))


def test_a_column_that_goes_takes_its_statistics_along():
    method = trained_runs.setup_of("pnn").method
    old, new = ({"mean": jnp.full((1, 3, 2), value)} for value in (1.0, 0.0))
    read = method.forget_statistics(old, 0, without(0), new)["mean"]  # by the columns that stay
    last = method.forget_statistics(old, 2, without(2), new)["mean"]
    np.testing.assert_array_equal(read, 1)
    np.testing.assert_array_equal(last[0, :, 0], [1, 1, 0])


@pytest.mark.parametrize("method", ["packnet", "hat", "pnn", "er"])
def test_a_new_task_trains_on_what_is_free(method):
    """The last of two is forgotten; the third learns, and the first stays as it was."""
    setup, learner = trained_runs.trained(method, 2)
    kept = np.array([True, False, False])
    forgotten = train.forget_task(setup, learner, 1, kept)
    found = trained_runs.learn(method, forgotten, 2)
    if method != "er":
        assert 0 not in changed(method, learner, found)
    assert 2 in changed(method, forgotten, found)
    if method == "packnet":

        def owned(learner):
            return sum(int((o == 3).sum()) for o in learner.state.owner.values())

        assert owned(found) > owned(trained_runs.learn(method, learner, 2))


def test_examples_that_are_replayed_go_with_their_task():
    setup, learner = trained_runs.trained("er")
    assert (np.asarray(learner.memory.task) == 1)[: int(learner.memory.count[0])].any()
    memory = train.forget_task(setup, learner, 1, without(1)).memory
    count = int(memory.count[0])
    assert set(np.asarray(memory.task)[:count].tolist()) == {0, 2}
    assert not np.asarray(memory.x)[count:].any()


@pytest.mark.parametrize(("policy", "cells"), [("reservoir", 1), ("ring", 3), ("balanced", 6)])
def test_a_buffer_without_a_task(policy, cells):
    """Against rows of numpy; cells that lose nothing are as they were."""
    rng = np.random.default_rng(1)
    size = 4
    count = np.array([2, 9, 4, 0, 7, 3], np.uint32)[:cells]
    task = rng.integers(0, 3, cells * size).astype(np.int32)
    if policy != "reservoir":
        task = np.repeat(np.arange(cells) * 3 // cells, size).astype(np.int32)
    x = rng.integers(1, 9, (cells * size, 2)).astype(np.uint8)
    buffer = replay.Buffer(*map(jnp.asarray, (x, task + 5, task)), (), jnp.asarray(count))
    found = replay.without(buffer, 1)
    for cell in range(cells):
        rows = slice(cell * size, (cell + 1) * size)
        filled = min(count[cell], size)
        stay = [i for i in range(filled) if task[rows][i] != 1]
        if len(stay) == filled:
            np.testing.assert_array_equal(found.x[rows], x[rows])
            assert found.count[cell] == count[cell]
        else:
            np.testing.assert_array_equal(found.x[rows][: len(stay)], x[rows][stay])
            assert not np.asarray(found.x[rows][len(stay) :]).any()
            assert found.count[cell] == len(stay)


def test_who_cannot_says_so():
    setup, learner = trained_runs.trained("finetune")
    other = setup._replace(method=setup.method._replace(forget_task=None))
    with pytest.raises(ValueError, match="the method cannot forget"):
        train.forget_task(other, learner, 0, without(0))
    with pytest.raises(ValueError, match="all tasks share one head"):
        train.forget_task(setup._replace(scenario="class"), learner, 0, without(0))
    with pytest.raises(ValueError, match=r"kept must be bool \[tasks\]"):
        train.forget_task(setup, learner, 0, without(1))
    with pytest.raises(ValueError, match="task must be a whole number from 0 to 2"):
        train.forget_task(setup, learner, 7, without(7))
