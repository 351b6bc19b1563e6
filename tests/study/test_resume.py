"""A study goes on from any event, with any method, to the same bits."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl import data, recipes, study
from jaxcl.methods import REGISTRY
from jaxcl.study.events import Cursor
from jaxcl.study.recipes import Options

NAMES = [spec.name for spec in REGISTRY]
OPTIONS = Options(hidden=(6,), epochs=3, batch=8, optimizer="adam", learning_rate=0.02)


@pytest.fixture(scope="module")
def benchmark():
    generator = np.random.default_rng(0)
    y = np.arange(60) % 4
    x = generator.normal(size=(60, 5)) + y[:, None]
    return data.split(data.from_arrays("small", [(x, y)]), 2)


def studies(method, benchmark, options=OPTIONS):
    return recipes.studies(method, benchmark, options, seeds=[3, 4], devices=jax.devices()[:1])


def bits(tree):
    """The bytes of all leaves that are arrays, keys too."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")]
    keys = [jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    arrays = [jax.random.key_data(leaf) if key else leaf for leaf, key in zip(leaves, keys)]
    return [np.asarray(array).tobytes() for array in arrays]


def course(events, keep=()):
    """Where each event is and the bits of what it found; learners, those to keep as a copy."""
    found, kept = [], {}
    for number, event in enumerate(events):
        found.append((event.cursor, bits(event)))
        if number in keep:
            kept[event.cursor] = jax.tree.map(jnp.copy, event.learners)
    return found, kept


def places(cursors):
    """For each kind of place an event, the last but one: it still has a way to go."""
    chosen = {}
    for number, (cursor, after) in enumerate(itertools.pairwise(cursors[:-1])):
        kind = "step" if cursor.step else "epoch"
        kind = "phase" if (cursor.task, cursor.phase + 1) == (after.task, after.phase) else kind
        chosen["task" if cursor == Cursor(cursor.task) else kind] = number
    return chosen


def check_resume(built, steps=2):
    """Goes on from each kind of place; returns the kinds."""
    cursors = [event.cursor for event in study.run(built, steps_at_once=steps)]
    chosen = places(cursors)
    found, kept = course(study.run(built, steps_at_once=steps), chosen.values())
    for number in chosen.values():
        cursor = cursors[number]
        again, _ = course(study.run(built, kept[cursor], cursor, steps_at_once=steps))
        assert again == found[number + 1 :], cursor
    return {*chosen}


@pytest.mark.parametrize("method", NAMES)
def test_going_on_from_anywhere(method, benchmark):
    """In the middle of an epoch or a phase, between two phases, after a task."""
    built = studies(method, benchmark)
    kinds = check_resume(built)
    assert {"step", "epoch", "task"} <= kinds
    assert ("phase" in kinds) == (len(built[0].phases) > 1)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("packnet", {"select": "loss", "epochs": 6}),
        ("hat", {"patience": 1, "epochs": 12, "learning_rate": 0.5, "schedule": "cosine"}),
        ("joint", {"select": "accuracy", "steps": 11}),
        ("er", {"scenario": "class", "steps": 11, "reset_optimizer": False}),
    ],
)
def test_going_on_with_what_is_kept(method, changes, benchmark):
    """Best epochs, step sizes that fall, optimizers that are kept, epochs that are cut short."""
    built = studies(method, benchmark, dataclasses.replace(OPTIONS, **changes))
    check_resume(built, steps=3)


def test_it_matters_where_a_study_goes_on(benchmark):
    """The broken twins: a step, an epoch or a phase too early."""
    built = studies("packnet", benchmark)
    events = study.run(built, steps_at_once=2)
    event = next(e for e in events if e.cursor.phase == 1 and e.cursor.step)
    at, learners = event.cursor, jax.tree.map(jnp.copy, event.learners)
    expected, _ = course(events)
    for wrong in (at._replace(step=0), at._replace(epoch=1), at._replace(phase=0), Cursor()):
        again, _ = course(study.run(built, jax.tree.map(jnp.copy, learners), wrong))
        assert again[-1][1] != expected[-1][1], wrong


def test_early_stopping_does_not_move_the_random_orders_of_later_phases(benchmark):
    """An epoch is the same, whenever the phase before it has ended."""
    options = dataclasses.replace(OPTIONS, patience=1, epochs=40, learning_rate=0.5)
    built = studies("packnet", benchmark, options)
    ends = [event for event in study.run(built) if isinstance(event, study.EpochEnd)]
    first = [event for event in ends if (event.task, event.cursor.phase) == (0, 0)]
    second = next(event for event in ends if event.cursor.phase == 1)
    assert first[-1].epoch < built[0].epochs[0][0] == first[-1].cursor.epoch
    assert second.epoch == built[0].epochs[0][0] + 1
    assert not ends[-1].running.all() or len(first) > 1


def test_what_the_validation_examples_say(benchmark):
    for select, sign in (("loss", 1), ("accuracy", -1)):
        built = studies("finetune", benchmark, dataclasses.replace(OPTIONS, select=select))
        for event in study.run(built):
            if isinstance(event, study.EpochEnd):
                value = np.asarray(event.learners.stopping.value)
                np.testing.assert_array_equal(event.validation, sign * value)
