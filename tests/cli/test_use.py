"""What was trained, by the command: runs are listed, shown, exported, and forget a task."""

import csv
import io
import json
import shutil

import jax
import numpy as np
import pytest

import jaxcl
from jaxcl import data
from jaxcl.cli import main as cli
from jaxcl.inference.exporting import export
from jaxcl.inference.runs import Trained
from tests.cli import runs as made
from tests.cli.runs import refused

pytestmark = pytest.mark.usefixtures("command")

WORDS = ["compare", "--methods", "packnet,er,ewc", "--benchmark", "split_digits", "--no-cache"]
WORDS += ["--tasks", "5", "--steps", "6", "--seeds", "2", "--hidden", "8", "--name", "mine"]
WORDS += ["--devices", "2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run, which no test may change."""
    out = tmp_path_factory.mktemp("runs")
    cli.main([*WORDS, "--out", str(out)])
    return out / "mine"


@pytest.fixture
def copy(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "mine")
    return tmp_path / "mine"


def said(capsys, *words):
    """What a command prints."""
    capsys.readouterr()
    cli.main(list(map(str, words)))
    return capsys.readouterr().out


def test_runs_are_listed(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    made.finished(tmp_path / "one")
    made.unfinished(tmp_path / "two")
    (tmp_path / "three").mkdir()
    (tmp_path / "three" / "settings.json").write_text("{")
    made.finished(tmp_path / "four" / "class")
    lines = said(capsys, "runs", tmp_path).splitlines()
    (one,) = (line for line in lines if " one " in line)
    assert "digits" in one and "finetune, hat" in one and "finished" in one
    assert "70.0 to 90.0" in one
    (two,) = (line for line in lines if " two " in line)
    assert "0 of 3 tasks" in two
    assert any(" three " in line and "cannot be read" in line for line in lines)
    assert any(" four/class " in line and "finished" in line for line in lines)


def test_folders_without_runs(tmp_path, capsys):
    assert "there is no folder" in refused(capsys, "runs", tmp_path / "nothing")
    assert "holds no runs of jaxcl" in refused(capsys, "runs", tmp_path)
    assert "there is no folder" in refused(capsys, "show", tmp_path / "nothing")
    made.unfinished(tmp_path / "two")
    assert "is not finished" in refused(capsys, "show", tmp_path / "two")


def test_a_run_is_shown_in_every_form(tmp_path, capsys):
    folder = made.finished(tmp_path / "one")
    assert "Fine-tuning" in said(capsys, "show", folder)
    rows = list(csv.DictReader(io.StringIO(said(capsys, "show", folder, "--format", "csv"))))
    assert [row["method"] for row in rows] == ["finetune", "hat"]
    whole = json.loads(said(capsys, "show", folder, "--format", "json"))
    assert whole["methods"].keys() == {"finetune", "hat"}
    assert said(capsys, "show", folder, "--format", "md").startswith("| method |")
    assert "tabular" in said(capsys, "show", folder, "--format", "latex")


def test_seeds_that_diverged_are_left_out(copy, capsys, monkeypatch):
    monkeypatch.setattr(Trained, "diverged", property(lambda self: {0: (2, 1)}))
    with pytest.warns(UserWarning, match="packnet with seed 0 diverged in task 2, epoch 1"):
        network = jaxcl.load(copy)["packnet"].seed(0)
    text = said(capsys, "infer", copy, "--rule", "entropy", "--no-calibrate", "--most", "40")
    found = json.loads((copy / "inferred.json").read_text())["methods"]["packnet"]["entropy"]
    assert found["told"][0] == [None] * 5 and all(found["told"][1]) and "nan" not in text
    monkeypatch.setattr(Trained, "diverged", property(lambda self: {0: (2, 1), 1: (1, 1)}))
    assert "every seed's training diverged" in refused(capsys, "infer", copy)
    theta = jax.tree.map(lambda leaf: leaf * np.nan, network.learner.theta)
    broken = network._replace(learner=network.learner._replace(theta=theta))
    with pytest.raises(ValueError, match="logits are not finite; its training diverged"):
        export(broken, copy / "exports", 1)


def test_a_network_is_exported(copy, capsys):
    text = said(capsys, "export", copy, "--method", "packnet", "--task", "1", "--seed", "1")
    folder = copy / "exports" / "packnet_task_1_seed_1"
    assert "of which" in text and "are zero" in text and str(folder) in text.replace("\n", "")
    x = data.split_digits().tasks[1].test.x[:20]
    program = jax.export.deserialize(bytearray((folder / "network.stablehlo").read_bytes()))
    expected = jaxcl.load(copy)["packnet"].seed(1).logits(x, 1)
    np.testing.assert_allclose(program.call(x), expected, 1e-4, 1e-5)
    words = ["export", copy, "--method", "packnet", "--task", "1"]
    assert "exists already" in refused(capsys, *words, "--out", copy)
    assert "0 to 4, the finished tasks, got 5" in refused(capsys, *words[:-1], "5")
    assert "has no method 'hat'" in refused(capsys, *words[:3], "hat")
    assert "is told the task" in refused(capsys, *words[:4])


def test_the_task_is_inferred(copy, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    text = said(capsys, "infer", copy, "--rule", "entropy", "--no-calibrate", "--most", "40")
    (line,) = (line for line in text.splitlines() if "PackNet" in line)
    found = json.loads((copy / "inferred.json").read_text())["methods"]
    assert found.keys() == {"packnet"}  # the others do not isolate
    tasks = data.split_digits().tasks
    run = jaxcl.load(copy)
    for seed in (0, 1):
        network = run["packnet"].seed(seed)
        for k, task in enumerate(tasks):
            x, y = task.test.x[:40], task.test.y[:40]
            chosen = network.infer(x).task
            of_task = found["packnet"]["entropy"]["confusion"][seed][k]
            np.testing.assert_allclose(of_task, np.bincount(chosen, minlength=5) / len(y))
            right = (network.predict(x, "infer") == y) & (chosen == k)
            inferred = found["packnet"]["entropy"]["inferred"][seed][k]
            np.testing.assert_allclose(inferred, right.mean())
    told = np.mean(found["packnet"]["entropy"]["told"], 1).mean()
    assert f"{100 * told:.1f}" in line
    assert (copy / "confusion.svg").exists()
    assert "--batch must be a whole number" in refused(capsys, "infer", copy, "--batch", "0")
    shutil.copytree(copy, copy.parent / "other")
    changed = copy.parent / "other" / "settings.json"
    changed.write_text(changed.read_text().replace('"scale": 16.0', '"scale": 8.0'))
    assert "is not what" in refused(capsys, "infer", copy.parent / "other")


def test_a_task_is_forgotten(copy, capsys):
    """To the bit for the others; and what is left can be opened and trained on."""
    tasks = data.split_digits().tasks
    names = ("packnet", "er")

    def logits():
        run = jaxcl.load(copy)
        return {
            (name, k, seed): run[name].seed(seed).logits(tasks[k].test.x[:30], k)
            for name in names
            for k in (0, 1, 3, 4)
            for seed in (0, 1)
        }

    before, sizes = logits(), {path.name for path in copy.iterdir()}
    (copy / "inferred.json").write_text("{}")  # as if measured with the task
    text = said(capsys, "forget", copy, "--task", "2")
    assert "packnet: " in text and "er: " in text
    assert "no weight became free: other tasks read them all" in text
    assert "what shared weights hold of the task stays" in text
    for key, values in logits().items():
        np.testing.assert_array_equal(values, before[key])
    assert {path.name for path in copy.iterdir()} == {*sizes, "forgotten.json"}
    assert [p.name for p in (copy / "checkpoints" / "er").iterdir()] == ["task_5"]
    found = jaxcl.load(copy)["er"].seed(1)
    with pytest.raises(ValueError, match="task 2 was forgotten"):
        found.predict(tasks[2].test.x, 2)
    assert 2 not in np.asarray(found.learner.memory.task)[: int(found.learner.memory.count[0])]
    assert set(found.infer(tasks[2].test.x).task) <= {0, 1, 3, 4}
    assert "has no task 2; it has 0, 1, 3, 4" in refused(capsys, "forget", copy, "--task", "2")
    text = said(capsys, "forget", copy, "--task", "4", "--method", "packnet")
    assert "19.9% of the network became free" in text
    cli.main([*WORDS, "--out", str(copy.parent), "--resume"])  # its checkpoints are still its own


def test_who_cannot_forget_says_so(copy, capsys):
    message = refused(capsys, "forget", copy, "--task", "1", "--method", "ewc")
    assert "ewc cannot forget: what a task left in their weights cannot be told apart" in message
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert "packnet has no task 7" in refused(capsys, "forget", copy, "--task", "7")
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
