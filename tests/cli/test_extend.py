"""A finished run gets further tasks, keeps the old ones, and is a run like any other."""

import json
import shutil

import jax
import numpy as np
import pytest

import jaxcl
from jaxcl.cli import main as cli
from jaxcl.methods import replay
from jaxcl.study import comparison
from tests.cli import runs

pytestmark = pytest.mark.usefixtures("command")

WORDS = ["--methods", "finetune,packnet", "--steps", "4", "--seeds", "2", "--hidden", "8"]
WORDS += ["--devices", "2"]
MACHINE = ["--devices", "2"]


def compare(out, name, *words):
    cli.main(["compare", *WORDS, "--out", str(out), "--name", name, *words])
    return out / name


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Two tasks with room for one, and three tasks; no test may change them."""
    folder = tmp_path_factory.mktemp("runs")
    compare(folder, "two", "--tasks", "2", "--room", "1")
    compare(folder, "three", "--tasks", "3")
    return folder


@pytest.fixture
def two(out, tmp_path):
    shutil.copytree(out / "two", tmp_path / "two")
    return tmp_path / "two"


def refused(capsys, *words):
    return runs.refused(capsys, "extend", *words, *MACHINE)


def assert_same(one, other):
    """All that a study of all tasks measures too, and every leaf of the learners, to the bit."""
    for name in ("finetune", "packnet"):
        ours, theirs = one.results.methods[name], other.results.methods[name]
        known = np.isfinite(ours.accuracy)
        assert known[:, np.tri(3, dtype=bool)].all()
        np.testing.assert_array_equal(ours.accuracy[known], theirs.accuracy[known])
        for curve in ours.curves:
            np.testing.assert_array_equal(ours.curves[curve], theirs.curves[curve])
        a, b = (run[name].content["learners"] for run in (one, other))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key):
                x, y = jax.random.key_data(x), jax.random.key_data(y)
            np.testing.assert_array_equal(x, y)


def test_two_tasks_and_one_are_three_tasks_and_the_old_run_stays(out, two):
    before = {path: path.read_bytes() for path in two.rglob("*") if path.is_file()}
    cli.main(["extend", str(two), "--tasks", "3", *MACHINE])
    assert {path: path.read_bytes() for path in two.rglob("*") if path.is_file()} == before
    folder = two.parent / "two_extended"
    run, whole = jaxcl.load(folder), jaxcl.load(out / "three")
    assert_same(run, whole)
    assert run.settings["extended"] == [2] and run.settings["tasks"] == 3
    assert run.settings["options"] == whole.settings["options"]  # no room is left
    content = json.loads((folder / "settings.json").read_text())
    assert content["command"].startswith(f"jaxcl extend {two} ")
    old = jaxcl.load(two)["packnet"].seed(1)
    x = np.random.default_rng(0).integers(0, 17, (5, 64)).astype(np.uint8)
    for task in (0, 1):  # what was learned is as it was, and can be used
        new = run["packnet"].seed(1)
        for a, b in zip(jax.tree.leaves(old.params(task)), jax.tree.leaves(new.params(task))):
            np.testing.assert_array_equal(a, b)
        assert new.predict(x, task).shape == (5,)


def test_an_extension_that_is_stopped_goes_on(out, two, monkeypatch):
    """After the first method's end, and before anything was trained."""
    words = ["extend", str(two), "--tasks", "3", *MACHINE]

    class Killed(BaseException):
        pass

    def dies(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(comparison, "advance", dies)
        with pytest.raises(Killed):
            cli.main(words)
    folder = two.parent / "two_extended"
    assert (folder / "checkpoints" / "packnet" / "task_2").is_dir()
    assert jaxcl.load(folder)["packnet"].tasks == 2  # the earlier tasks are usable
    shutil.rmtree(folder / "checkpoints" / "packnet" / "task_2")  # as if killed before that
    cli.main([*words, "--resume"])
    assert_same(jaxcl.load(folder), jaxcl.load(out / "three"))


def test_tasks_of_another_benchmark_follow(out, tmp_path):
    first = compare(
        tmp_path, "some", "--benchmark", "split_digits,classes=0-1/2-3", "--methods", "finetune"
    )
    more = ["--benchmark", "split_digits,classes=4-5/6+8"]
    cli.main(["extend", str(first), *more, "--name", "more", *MACHINE])
    run = jaxcl.load(tmp_path / "more")
    assert run.results.methods["finetune"].accuracy.shape == (2, 4, 4)
    assert run.inputs.names[3] == ("6", "8")
    name = "split_digits,classes=0-1/2-3;split_digits,classes=4-5/6+8"
    assert run.settings["benchmark"] == name
    whole = compare(tmp_path, "whole", "--benchmark", name, "--methods", "finetune")
    own = [one["finetune"].content["learners"].theta for one in (run, jaxcl.load(whole))]
    for a, b in zip(*map(jax.tree.leaves, own)):
        np.testing.assert_array_equal(a, b)


def test_what_cannot_be_extended_says_why(two, capsys):
    assert "--tasks must be more than the 2 of" in refused(capsys, two, "--tasks", "2")
    assert "give --tasks or --benchmark, not both" in refused(
        capsys, two, "--tasks", "3", "--benchmark", "split_digits"
    )
    message = refused(capsys, two, "--benchmark", "split_digits")
    assert "permuted tasks and others make no sequence together" in message
    assert "has no method 'hat'" in refused(capsys, two, "--tasks", "3", "--methods", "hat")
    (two / "checkpoints" / "packnet" / "task_2").rename(two / "elsewhere")
    (two / "checkpoints" / "packnet" / "task_1").rename(two / "elsewhere_too")
    assert "has no checkpoint of the end" in refused(capsys, two, "--tasks", "3")
    file = two / "settings.json"
    text = file.read_text()
    file.write_text(text.replace('"scenario": "task"', '"scenario": "class"'))
    assert "has an output for each class" in refused(capsys, two, "--tasks", "3")
    file.write_text(text)
    (two / "results.json").unlink()
    assert "is not finished" in refused(capsys, two, "--tasks", "3")
    assert not (two.parent / "two_extended").exists()


def test_other_inputs_and_wider_tasks_are_refused(out, tmp_path, capsys):
    some = compare(
        tmp_path, "some", "--benchmark", "split_digits,classes=0-1", "--methods", "finetune"
    )
    words = [some, "--benchmark"]
    assert "task 2 has 3 classes, but the heads" in refused(
        capsys, *words, "split_digits,classes=2-4"
    )
    assert "its inputs have shape (784,)" in refused(capsys, *words, "split_mnist5k")
    file = some / "settings.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "data": "0" * 64}))
    assert "are not those that" in refused(capsys, *words, "split_digits,classes=2-3")


def test_a_memory_in_cells_is_divided_anew():
    """The latest examples of each ring stay, in rings that are smaller; of others a sample."""

    def buffer(cells, size):
        zeros = jax.numpy.zeros(cells * size, int)
        return replay.Buffer(zeros[:, None], zeros, zeros, (), jax.numpy.zeros(cells, "uint32"))

    numbers = jax.numpy.array([6, 7, 2, 3, 4, 5, 0, 1, 2, 0, 0, 0])
    offered = jax.numpy.array([8, 3], "uint32")  # to each cell
    old, key = buffer(2, 6)._replace(y=numbers, count=offered), jax.random.key(0)
    ring = replay.Store("mine", 12, "ring", 3, False)
    found = {}
    for policy in ("ring", "balanced"):
        new = replay.regrown(ring._replace(policy=policy), key, old, buffer(3, 4))
        np.testing.assert_array_equal(new.count, [8, 3, 0])
        found[policy] = np.asarray(new.y).reshape(3, 4)
        assert sorted(found[policy][1][:3]) == [0, 1, 2]
    assert sorted(found["ring"][0]) == [4, 5, 6, 7]
    assert len({*found["balanced"][0]} & {2, 3, 4, 5, 6, 7}) == 4
