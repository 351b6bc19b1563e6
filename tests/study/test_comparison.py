"""A method that is stopped anywhere goes on from its folder as if it had not been."""

import itertools
import shutil

import jax
import numpy as np
import pytest

from jaxcl import checkpoint, data, recipes
from jaxcl.study import archive, comparison, pace
from jaxcl.study.comparison import Stopped
from jaxcl.study.pace import Interval, Pace, interval
from jaxcl.study.recipes import Options

OPTIONS = Options(hidden=(6,), epochs=4, batch=8, learning_rate=0.05)
EACH = Interval(epochs=1)
ABOUT = {"settings": "a", "data": "b"}


@pytest.fixture(scope="module")
def benchmark():
    generator = np.random.default_rng(0)
    y = np.arange(60) % 4
    x = generator.normal(size=(60, 5)) + y[:, None]
    return data.split(data.from_arrays("small", [(x, y)]), 2)


def begun(benchmark, folder=None, method="packnet", options=OPTIONS, about=ABOUT):
    choice = recipes.choose(method, options)
    one = jax.devices()[:1]
    return comparison.begin(choice, benchmark, [3, 4], folder=folder, about=about, devices=one)


def numbers(record):
    """The bits of what is found, but for what times and counts."""
    kept = record._replace(seconds=0, compilations=0)
    key = lambda leaf: jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # noqa: E731
    leaves = [leaf for leaf in jax.tree.leaves(kept) if hasattr(leaf, "dtype")]
    return [np.asarray(jax.random.key_data(x) if key(x) else x).tobytes() for x in leaves]


def last(run, **options):
    *_, (_, record) = comparison.advance(run, **options)
    return record


def stopped_after(run, events):
    """Advances until it is asked to stop, which is noticed after so many events."""
    count = itertools.count(1)
    with pytest.raises(Stopped):
        for _ in comparison.advance(run, save_every=EACH, stop=lambda: next(count) >= events):
            pass


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def expected(benchmark):
    return numbers(last(begun(benchmark)))


@pytest.mark.parametrize("events", [1, 3, 5, 7, 9])
def test_stopped_and_restored(events, benchmark, expected, tmp_path):
    """In the first step, in the first phase, between the phases and in the second task."""
    run = begun(benchmark, tmp_path)
    comparison.make_room(run)
    stopped_after(run, events)
    again = comparison.restore(begun(benchmark, tmp_path))
    assert again.found == tmp_path / checkpoint.latest(tmp_path)[1].name
    record = last(again, save_every=EACH)
    assert numbers(record) == expected
    assert np.isfinite(record.curves["loss"]).all()
    assert len(names(tmp_path)) == 2 and names(tmp_path)[0] == "task_2"
    finished = comparison.restore(begun(benchmark, tmp_path))
    assert finished.record.learners is None and [*comparison.advance(finished)] == []
    whole = comparison.restore(begun(benchmark, tmp_path), finished=True)
    assert numbers(whole.record) == expected


def test_a_growing_network_stops_and_goes_on(benchmark, tmp_path):
    expected = numbers(last(begun(benchmark, method="pnn")))
    for events in (2, 4, 7):
        folder = tmp_path / f"after_{events}"
        comparison.make_room(begun(benchmark, folder, "pnn"))
        stopped_after(begun(benchmark, folder, "pnn"), events)
        again = comparison.restore(begun(benchmark, folder, "pnn"))
        assert numbers(last(again)) == expected


@pytest.fixture
def halfway(benchmark, tmp_path):
    folder = tmp_path / "run"
    run = begun(benchmark, folder)
    comparison.make_room(run)
    stopped_after(run, 5)
    return folder


def flip(path):
    """One bit of the largest file of a checkpoint."""
    file = max((f for f in path.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def truncate(path):
    for file in path.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def lose(path):
    shutil.rmtree(path / "state" / "d")


@pytest.mark.parametrize("damage", [flip, truncate, lose])
def test_a_damaged_checkpoint_within_a_task(damage, halfway, benchmark, expected):
    """The one before is taken, to the same end, and what is damaged is put aside."""
    older, newest = sorted(names(halfway), key=checkpoint.order)
    damage(halfway / newest)
    run = comparison.restore(begun(benchmark, halfway))
    assert (run.found, run.passed_over) == (halfway / older, halfway / newest)
    comparison.make_room(run)
    assert names(halfway) == sorted([older, f"{newest}{archive.ASIDE}_1"])
    assert numbers(last(run, save_every=EACH)) == expected


def test_no_checkpoint_that_can_be_read(halfway, benchmark):
    for path in halfway.iterdir():
        lose(path)
    with pytest.raises(ValueError, match=r"is damaged|no checkpoint"):
        comparison.restore(begun(benchmark, halfway))


def test_checkpoints_of_another_run(halfway, benchmark):
    for name in ABOUT:
        other = begun(benchmark, halfway, about={**ABOUT, name: "else"})
        with pytest.raises(ValueError, match=f"was written with other {name}"):
            comparison.restore(other)
    with pytest.raises(ValueError, match=r"has a leaf|has no leaf|expected"):
        comparison.restore(begun(benchmark, halfway, "hat"))


def test_only_what_the_run_wrote_is_removed(halfway, benchmark):
    """What a killed process left half written goes; a user's own files and links stay."""
    (halfway / "task_1_epoch_9.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    (halfway / "notes.orbax-checkpoint-tmp").mkdir()
    (halfway / "task_x.orbax-checkpoint-tmp").mkdir()
    precious = halfway.parent / "precious"
    precious.mkdir()
    (precious / "thesis.tex").touch()
    (halfway / "task_2.orbax-checkpoint-tmp").symlink_to(precious)
    (halfway / "task_2_epoch_1").write_text("a file")
    before = {*names(halfway)}
    comparison.make_room(comparison.restore(begun(benchmark, halfway)))
    assert before - {*names(halfway)} == {"task_1_epoch_9.orbax-checkpoint-tmp", "task_2_epoch_1"}
    assert {*names(halfway)} - before == {"task_2_epoch_1.unreadable_1"}
    assert (precious / "thesis.tex").exists()


def test_the_newest_whole_checkpoint_outlives_a_save_that_fails(halfway, benchmark, monkeypatch):
    before = names(halfway)

    def full(path, *_):
        (path.parent / f"{path.name}.orbax-checkpoint-tmp").mkdir(parents=True)
        raise ValueError("RESOURCE_EXHAUSTED: Error writing [os_error_code='28']")

    monkeypatch.setattr(checkpoint, "save_async", full)
    with pytest.raises(OSError, match="No space left") as error:
        last(comparison.restore(begun(benchmark, halfway)), save_every=EACH)
    assert error.value.filename.startswith(str(halfway))
    assert names(halfway) == before


def test_a_save_that_fails_in_the_background(halfway, benchmark, monkeypatch):
    class Handle:
        def result(self, timeout=None):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_async", lambda *_: Handle())
    with pytest.raises(OSError, match="No space left"):
        last(comparison.restore(begun(benchmark, halfway)), save_every=EACH)


# When it saves, and how long a part of an epoch takes


def test_intervals():
    assert interval("30s") == Interval(seconds=30)
    assert interval("1.5h") == Interval(seconds=5400)
    for wrong in ("", "5", "0m", "0epochs", "-1s", "5 m", "1.5epochs", "nan"):
        with pytest.raises(ValueError, match="must be a time"):
            interval(wrong)


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


class Event:
    """As the end of a part of an epoch, of which `step` steps are done."""

    def __init__(self, step):
        self.step = step
        self.cursor = self
        self.learners = self.position = self
        self.finite = np.ones(1)


def test_parts_of_an_epoch_take_a_few_seconds(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    monkeypatch.setattr(pace, "StepsEnd", Event)
    one, step, taken = Pace(Interval(seconds=300), lambda: False), 0, []
    for _ in range(6):
        count = one.steps()
        clock.now += 0.01 * count + (20 if step == 0 else 0)  # the first one compiles
        step += count
        taken.append(count)
        one.after(Event(step))
    assert taken[:2] == [1, 1]
    assert {*taken[2:]} <= {199, 200}


def test_time_and_epochs_since_the_last_checkpoint(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    monkeypatch.setattr(pace, "StepsEnd", Event)
    one, saved = Pace(Interval(seconds=300), lambda: False), []
    for step in range(1, 13):
        one.steps()
        clock.now += 100
        saved.append(one.after(Event(step)).save)
    assert [i for i, save in enumerate(saved, 1) if save] == [3, 6, 9, 12]
    assert Pace(Interval(), lambda: True).after(Event(1)) == (True, True)


def test_all_processes_do_what_the_first_one_measures_and_any_one_asks(monkeypatch):
    rows = np.array([[0, 0, 7], [1, 1, 3]], np.float32)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(pace.multihost_utils, "process_allgather", lambda mine: rows)
    assert pace.agreed(True, False, 3.0).tolist() == [0, 1, 7]
