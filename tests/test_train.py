"""The engine's plan: which state of a phase is kept, when a seed slows down, and when it stops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl import data, recipes, study

OPTIONS = recipes.Options(hidden=(6,), batch=16, prune=0.9)
RATE = np.float32(0.05)


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
    """What is compiled here runs for milliseconds."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@functools.cache
def digits():
    """Two tasks of permuted digits, a few of each."""
    full = data.permuted_digits(2)

    def cut(split, count):
        return data.Split(split.x[:count], split.y[:count])

    def few(task):
        return task._replace(
            train=cut(task.train, 80), val=cut(task.val, 40), test=cut(task.test, 8)
        )

    return full._replace(tasks=tuple(map(few, full.tasks)))


def build(method, plan, seeds, options=OPTIONS, **epochs):
    """A study on one device, whose step size is a setting."""
    recipe = recipes.recipe(method, digits(), options)
    return study.build(
        lambda settings: recipe(settings)._replace(**plan), digits(), seeds,
        settings={"learning_rate": np.full(len(seeds), RATE)},
        devices=jax.devices()[:1], **epochs,
    )  # fmt: skip


def equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


# Retraining


def retrained(built, rate, drop_validation=False):
    """The first task's parameters after pruning and after a retraining at this step size."""
    seen = []

    def epoch(learners, fixed, data, task, index, validation):
        settings, features = fixed
        if index >= built.epochs:
            settings = {"learning_rate": jnp.full_like(settings["learning_rate"], rate)}
        return programs["epoch"](learners, (settings, features), data, task, index, validation)

    def end(learners, fixed, task, validation):
        validation = None if drop_validation else validation
        learners = programs["end"](learners, fixed, task, validation)
        seen.append(jax.device_get(learners.theta))
        return learners

    programs = built.programs
    built = built._replace(programs=programs | {"epoch": epoch, "end": end})
    last = next(event for event in study.run(built) if isinstance(event, study.TaskEnd))
    return seen[0], jax.device_get(last.learners.theta)


def test_a_pruned_network_that_retraining_never_beats_is_kept():
    """PackNet's original keeps the checkpoint that it pruned."""
    built = build("packnet", {"select": "loss"}, [0], epochs=4, retrain_epochs=2)
    assert equal(*retrained(built, rate=3.0))
    assert not equal(*retrained(built, rate=RATE))  # but one that does is not
    assert not equal(*retrained(built, rate=3.0, drop_validation=True))  # the broken twin
