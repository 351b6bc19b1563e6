"""Training that is no longer finite: it ends, is named, and its first NaN is found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl import data, recipes, study
from jaxcl.cli import running
from jaxcl.study import comparison
from jaxcl.study.events import EpochEnd, TaskEnd
from jaxcl.study.recipes import Options

OPTIONS = Options(hidden=(4,), epochs=3, learning_rate=1e30)


@pytest.fixture(scope="module")
def benchmark():
    return data.load("split_digits", tasks=2)


def course(benchmark, rates, *, method="finetune", **options):
    studies = recipes.studies(
        method, benchmark, OPTIONS, seeds=[0] * len(rates), devices=jax.devices()[:1],
        settings={"learning_rate": rates},
    )  # fmt: skip
    return study.run(studies, **options)


def test_it_ends_once_no_replica_is_finite(benchmark):
    events = list(course(benchmark, [1e30, 1e29]))
    epochs = [event for event in events if isinstance(event, EpochEnd)]
    ends = [event for event in events if isinstance(event, TaskEnd)]
    assert [(event.task, event.epoch) for event in epochs] == [(0, 1)]
    assert [event.task for event in ends] == [0, 1]
    assert not ends[1].finite.any() and np.isnan(ends[1].accuracy).all()


def test_one_of_several_is_left_out_and_the_others_go_on(benchmark):
    events = list(course(benchmark, [0.05, 1e30]))
    epochs = [event for event in events if isinstance(event, EpochEnd)]
    assert [(event.task, event.epoch) for event in epochs] == [
        (t, e) for t in (0, 1) for e in (1, 2, 3)
    ]
    assert [event.finite.tolist() for event in epochs] == [[True, False]] * 6
    np.testing.assert_array_equal(np.isnan(events[-1].accuracy).all(axis=1), [False, True])


def test_it_does_not_begin_again_where_it_had_ended(benchmark):
    for event in course(benchmark, [1e30]):
        if isinstance(event, TaskEnd):
            learners, cursor = jax.tree.map(jnp.copy, event.learners), event.cursor
            break
    studies = recipes.studies(
        "finetune", benchmark, OPTIONS, seeds=[0], devices=jax.devices()[:1],
        settings={"learning_rate": [1e30]},
    )  # fmt: skip
    assert [type(event) for event in study.run(studies, learners, cursor)] == [TaskEnd]


def test_the_first_nan_is_found(benchmark):
    """The seed and setting that diverged, the step, the operation and its line of our source."""
    words = r"seed 0, learning_rate = 1e\+30, task 1, epoch 1, step \d: the first NaN comes from "
    words += r"the operation \w+ in .*jaxcl.*\.py, line \d+ \(\w+\)\."
    with pytest.raises(FloatingPointError, match=words):
        list(course(benchmark, [0.05, 1e30], debug_nans=True))
    events = course(benchmark, [0.05], debug_nans=True)
    assert isinstance(next(events), EpochEnd)  # all is well


def test_what_is_full_is_said_before_the_task(benchmark):
    def words(method, done, **measures):
        run = comparison.begin(recipes.choose(method, Options(hidden=(4,))), benchmark, [3, 4])
        return running.full(run, {n: np.array(v) for n, v in measures.items()}, done)

    (line,) = words("packnet", 1, capacity=[1.0, 0.5])
    assert line.startswith("warning: packnet, seed 3: before task 2, no weight is free for it")
    assert "a larger --prune" in line and line.endswith("the tasks before it stay as they are")
    (line,) = words("hat", 1, capacity=[1.0, 1.0])
    assert line.startswith("warning: hat: before task 2, no weight is free for it")
    run = comparison.begin(recipes.choose("expandnet", Options(hidden=(4,))), benchmark, [3, 4])
    ((gate, room),) = ((gate, len(stamp)) for gate, stamp in run.learner.state.stamps.items())
    full = {f"units {gate}": [room, room - 1]}
    (line,) = words("expandnet", 1, **full)
    assert "seed 3: before task 2, every layer has as many units as it may" in line
    assert words("packnet", 1, capacity=[0.9, 0.5]) == []
    assert words("packnet", 2, capacity=[1.0, 1.0]) == []  # there is no further task
    assert words("finetune", 1) == []


def test_what_columns_grow_to_is_said_beside_the_devices_memory(benchmark, monkeypatch):
    run = comparison.begin(recipes.choose("pnn", Options(hidden=(4,))), benchmark, [0])
    assert running.about(run) == []
    monkeypatch.setattr(running, "limit_bytes", lambda layout: 10_000)
    (line,) = running.about(run)
    assert "warning: pnn: once all tasks are there, 1 learner take" in line
    assert "of the 10.0 kB that a device has" in line and "--column-width" in line
