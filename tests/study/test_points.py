"""Accuracy within the tasks: at the points that were asked for, the same however a run is cut."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl import checkpoint, data, recipes, study
from jaxcl.study import comparison, points, replicas
from jaxcl.study.comparison import Stopped
from jaxcl.study.pace import Interval
from jaxcl.study.points import Evaluated, Every, every
from jaxcl.study.recipes import Options

OPTIONS = Options(hidden=(6,), epochs=4, batch=8, learning_rate=0.05)


@pytest.fixture(scope="module", autouse=True)
def quick():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def benchmark():
    generator = np.random.default_rng(0)
    y = np.arange(60) % 4
    x = generator.normal(size=(60, 5)) + y[:, None]
    return data.split(data.from_arrays("small", [(x, y)]), 2)


def begun(benchmark, distance, folder=None, method="packnet", options=OPTIONS):
    choice, one = recipes.choose(method, options), jax.devices()[:1]
    return comparison.begin(
        choice, benchmark, [3, 4], folder=folder, evaluate_every=distance, devices=one
    )


def last(run, **options):
    *_, (_, record) = comparison.advance(run, **options)
    return record


def after_each_step(run):
    """Accuracy after every single step of each task, by an evaluation of one's own."""
    (one,), found = run.studies, {}
    settings = replicas.place(one.settings, one.layout)
    held_out = study.stack([task.test for task in one.benchmark.tasks])
    done = 0
    for event in study.run(run.studies, steps_at_once=1):
        if isinstance(event, study.TaskEnd):
            done = 0
            continue
        done += 1
        metrics, *_ = one.programs["evaluate"](event.learners, (settings,), held_out, 2)
        found[event.task, done] = np.asarray(metrics.accuracy)[:2]
    return found


def test_points_by_steps_are_where_they_are_said_to_be(benchmark):
    steps = 5
    run = begun(benchmark, Every(steps=steps))
    expected, found = after_each_step(run), last(run).during["accuracy"]
    total = max(done for task, done in expected)
    assert found.shape == (2, 2, 1 + total // steps, 2)
    for task, point in itertools.product(range(2), range(1, found.shape[2])):
        there = expected[task, point * steps][:, : task + 1]
        np.testing.assert_array_equal(found[:, task, point, : task + 1], there)
    late = [  # the broken twin: a step too late
        np.array_equal(found[:, t, p, : t + 1], expected[t, p * steps + 1][:, : t + 1])
        for t, p in itertools.product(range(2), range(1, found.shape[2]))
        if p * steps < total
    ]
    assert not all(late)
    assert np.isnan(found[:, 0, :, 1]).all() and np.isfinite(found[:, 1]).all()


def test_points_by_epochs_are_those_of_the_events(benchmark):
    run, place, shown = begun(benchmark, Every(epochs=2)), (), []
    for event, record in comparison.advance(run):
        if isinstance(event, Evaluated):
            place = (event.task, event.point)
        elif isinstance(event, study.EpochEnd) and event.epoch % 2 == 0:
            shown.append((place, (event.task, event.epoch // 2)))
        elif isinstance(event, study.TaskEnd):  # the last point is the end of the task
            np.testing.assert_array_equal(
                record.during["accuracy"][:, event.task, -1, : event.task + 1],
                event.accuracy[:, : event.task + 1],
            )
    assert len(shown) == 4 and all(before == after for before, after in shown)


@pytest.mark.parametrize("method", ["packnet", "pnn"])
def test_nothing_else_changes(method, benchmark):
    def numbers(distance):
        run = begun(benchmark, distance, method=method)
        record = last(run)
        traces = [dict(one.traces) for one in run.studies]
        theta = jax.tree.map(np.asarray, (record.learners.theta, record.accuracy, record.curves))
        return theta, traces

    plain, often = numbers(None), numbers(Every(steps=3))
    jax.tree.map(np.testing.assert_array_equal, plain[0], often[0])
    assert plain[1] == often[1]  # no program more


@pytest.mark.parametrize("events", [1, 6])
def test_a_run_that_was_stopped_has_the_same_points(events, benchmark, tmp_path):
    distance, count = Every(steps=3), itertools.count(1)
    expected = last(begun(benchmark, distance)).during["accuracy"]
    run = begun(benchmark, distance, tmp_path)
    comparison.make_room(run)
    with pytest.raises(Stopped):
        for _ in comparison.advance(
            run, save_every=Interval(epochs=1), stop=lambda: next(count) >= events
        ):
            pass
    assert checkpoint.latest(tmp_path)
    record = last(comparison.restore(begun(benchmark, distance, tmp_path)))
    np.testing.assert_array_equal(record.during["accuracy"], expected)


def test_one_order_for_all_seeds_has_the_same_points(benchmark, monkeypatch):
    from jaxcl.study import feed

    options = Options(**{**vars(OPTIONS), "order": "one"})
    whole = last(begun(benchmark, Every(steps=3), options=options))
    monkeypatch.setattr(feed, "WINDOW_BYTES", 2 * 8 * 5 * 4)  # two steps
    small = last(begun(benchmark, Every(steps=3), options=options))
    np.testing.assert_array_equal(whole.during["accuracy"], small.during["accuracy"])
    jax.tree.map(np.testing.assert_array_equal, whole.learners.theta, small.learners.theta)


def test_a_seed_that_has_stopped_has_no_more_points(benchmark):
    options = Options(**{**vars(OPTIONS), "patience": 1, "epochs": 30, "learning_rate": 0.5})
    run, running = begun(benchmark, Every(epochs=1), method="finetune", options=options), {}
    for event, now in comparison.advance(run):
        record = now
        if isinstance(event, study.EpochEnd):
            running[event.task, event.epoch] = event.running
    found = record.during["accuracy"]
    for (task, epoch), expected in running.items():
        np.testing.assert_array_equal(np.isfinite(found[:, task, epoch, 0]), expected)
    assert not all(each.all() for each in running.values())


def test_words():
    assert (every("3"), every("1epochs"), every("20 steps")) == (
        Every(epochs=3), Every(epochs=1), Every(steps=20),
    )  # fmt: skip
    for wrong in ("", "0", "-1", "2.5", "5m", "many", "3 days", "0steps"):
        with pytest.raises(ValueError, match="must be a number of epochs or of steps"):
            every(wrong)


def test_a_distance_that_no_task_is_long_enough_for(benchmark):
    with pytest.raises(ValueError, match="each 5 epochs, but task 1 is trained for 4 epochs only"):
        begun(benchmark, Every(epochs=5), method="finetune")
    assert points.most(begun(benchmark, None, method="finetune").studies[-1], Every(epochs=4)) == 1


def test_from_where_it_goes_on_is_no_point(benchmark):
    """Learners of the event after a point go on to the points that follow."""
    run = begun(benchmark, None)
    events = [*study.run(run.studies, evaluate_every=Every(epochs=1))]
    at = next(i for i, e in enumerate(events) if isinstance(e, study.EpochEnd) and e.epoch == 2)
    course = study.run(run.studies, evaluate_every=Every(epochs=1))
    event = list(itertools.islice(course, at + 1))[-1]
    kept = jax.tree.map(jnp.copy, event.learners)
    again = study.run(run.studies, kept, event.cursor, evaluate_every=Every(epochs=1))
    expected = [e for e in events[at + 1 :] if isinstance(e, Evaluated)]
    found = [e for e in again if isinstance(e, Evaluated)]
    assert [(e.task, e.point) for e in found] == [(e.task, e.point) for e in expected]
    for one, other in zip(found, expected):
        np.testing.assert_array_equal(one.accuracy, other.accuracy)
