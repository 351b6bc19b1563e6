"""Every method of the registry meets the laws that it declares."""

import functools

import jax
import numpy as np
import optax
import pytest

from jaxcl import data, recipes, study
from jaxcl.methods import REGISTRY
from jaxcl.testing import assert_compiles_once, assert_isolated, assert_rows_are_single_runs

OPTIONS = recipes.Options(hidden=(6, 5), batch=8)


@functools.cache
def digits(tasks=2):
    """Permuted digits, of which a few are enough here."""
    full = data.permuted_digits(tasks)

    def cut(split, count):
        return data.Split(split.x[:count], split.y[:count])

    def few(task):
        return task._replace(
            train=cut(task.train, 29), val=cut(task.val, 9), test=cut(task.test, 9)
        )

    return full._replace(tasks=tuple(map(few, full.tasks)))


def recipe(spec, tasks=2):
    return recipes.recipe(recipes.choose(spec, OPTIONS), digits(tasks))


def has_retraining(spec):
    return int(any(phase.closed for phase in recipe(spec)({}).method.phases))


@pytest.mark.parametrize("spec", REGISTRY, ids=lambda spec: spec.name)
def test_law_2_a_replica_is_the_run_of_its_seed_alone_and_law_3_compile_once(spec):
    rates = np.array([0.05, 0.02], np.float32)
    assert_rows_are_single_runs(
        recipe(spec), digits(), [3, 1], settings={"learning_rate": rates},
        retrain_epochs=has_retraining(spec), epochs=2,
    )  # fmt: skip


def test_law_3_a_third_task_compiles_nothing():
    for spec in REGISTRY[:2]:
        assert_compiles_once(recipe(spec, 3), digits(3), epochs=1)


ISOLATING = [spec for spec in REGISTRY if recipe(spec)({}).method.isolates]


@pytest.mark.parametrize("spec", ISOLATING, ids=lambda spec: spec.name)
def test_law_1_finished_tasks_stay_as_they_are(spec):
    setup = recipe(spec)({})
    x = jax.random.normal(jax.random.key(4), (12, 64))
    assert_isolated(setup.method, setup.model, optax.adamw(0.05, weight_decay=0.1), x)


def test_law_1_bites_fine_tuning():
    setup = recipe(REGISTRY[0])({})
    x = jax.random.normal(jax.random.key(4), (12, 64))
    with pytest.raises(AssertionError, match="the logits of task 1 differ by"):
        assert_isolated(setup.method, setup.model, optax.sgd(0.05), x)


def test_laws_2_and_3_bite(monkeypatch):
    """Replicas that run with another seed; and an epoch that is traced anew each time."""
    build = study.build

    def other_seeds(*args, **options):
        built = build(*args, **options)
        return built._replace(seeds=built.seeds + (len(built.seeds) > 1))

    def traced_anew(*args, **options):
        built = build(*args, **options)

        def epoch(*args):
            jax.clear_caches()
            return built.programs["epoch_0"](*args)

        return built._replace(programs={**built.programs, "epoch_0": epoch})

    monkeypatch.setattr(study, "build", other_seeds)
    with pytest.raises(AssertionError, match="is not that of the run of this seed alone"):
        assert_rows_are_single_runs(recipe(REGISTRY[0]), digits(), [3, 1])
    monkeypatch.setattr(study, "build", traced_anew)
    for law in (assert_rows_are_single_runs, assert_compiles_once):
        with pytest.raises(AssertionError, match=r"compiled more than once: .*'epoch': \d"):
            law(recipe(REGISTRY[0]), digits(), [3, 1])
