"""The command: what it writes, how it goes on, and how it refuses."""

import json
import re
import shlex
import shutil

import jax
import numpy as np
import pytest
from matplotlib import image

import jaxcl
from jaxcl import checkpoint, data, recipes, study, train
from jaxcl.cli import main as cli
from jaxcl.cli import sweep
from jaxcl.report import figures
from jaxcl.study import events
from tests.cli.runs import refused, snapshot

pytestmark = pytest.mark.usefixtures("command")

TINY = shlex.split("--benchmark split_digits --tasks 2 --epochs 2 --seeds 3 --hidden 8 --devices 2")
PLOTS = ("accuracy", "matrix", "capacity", "curves")
FILES = {
    *("settings.json", "results.json", "table.md", "curves.csv", "checkpoints"),
    *(f"{plot}.{kind}" for plot in PLOTS for kind in ("svg", "png")),
}


def compare(out, *words, methods="finetune,packnet"):
    cli.main(["compare", "--methods", methods, "--out", str(out), *TINY, *words])
    return json.loads((out / "split_digits" / "results.json").read_text())


def test_evaluated_within_tasks_and_logged(tmp_path, capsys):
    """`--evaluate-every` and `--log`, from the words to the files."""
    words = [
        "--evaluate-every",
        "1epochs",
        "--log",
        "tensorboard",
        "--seeds",
        "1",
        "--devices",
        "1",
    ]
    stored = compare(tmp_path, *words, methods="finetune")
    one, folder = stored["methods"]["finetune"], tmp_path / "split_digits"
    assert stored["settings"]["evaluate_every"] == "1 epoch"
    during = np.array(one["during"], float)
    assert during.shape == (1, 2, 3, 2)  # before each task, and after each of its two epochs
    assert np.isfinite(during[:, 1]).all() and np.isnan(during[:, 0, :, 1]).all()
    final = np.array(one["accuracy"], float)
    np.testing.assert_allclose(during[0, :, -1][np.tri(2, dtype=bool)], final[0][np.tri(2) > 0])
    assert {path.name for path in folder.iterdir()} >= {"during.svg", "logs"}
    assert "anytime accuracy (%)" in capsys.readouterr().out
    (file,) = (folder / "logs").rglob("*tfevents*")
    assert all(tag in file.read_bytes() for tag in (b"within/task_1", b"test/task_2"))


def newest(folder):
    """The last checkpoint of each method."""
    found = sorted(folder.glob("checkpoints/*/task_*"))
    return {path.parent.name: path.name for path in found}


def numbers(results):
    """All but the seconds."""
    return {
        name: {key: value for key, value in method.items() if key != "seconds"}
        for name, method in results["methods"].items()
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run, which tests read only, and its results."""
    out = tmp_path_factory.mktemp("finished")
    return out, compare(out)


# What comes out


def test_writes_all_files(finished):
    out, results = finished
    folder = out / "split_digits"
    assert {path.name for path in folder.iterdir()} == FILES
    assert results["tasks"] == 2
    assert results["seeds"] == [0, 1, 2]
    assert list(results["methods"]) == ["finetune", "packnet"]
    for method in results["methods"].values():
        accuracy = np.array(method["accuracy"], float)
        assert accuracy.shape == (3, 2, 2)
        seen = np.tri(2, dtype=bool)
        assert np.all((accuracy[:, seen] >= 0) & (accuracy[:, seen] <= 1))
        assert method["diverged"] == [None] * 3
        assert method["compilations"] == 1
        assert method["seconds"] > 0
    assert results["methods"]["finetune"]["capacity"] is None
    packnet = results["methods"]["packnet"]
    assert np.shape(packnet["capacity"]) == (3, 2)
    np.testing.assert_allclose(packnet["free"], [[1, 0.5]] * 3)
    assert packnet["reuse"] is results["methods"]["finetune"]["free"] is None
    for method in results["methods"]:
        kept = {path.name for path in (folder / "checkpoints" / method).iterdir()}
        assert kept == {"task_1", "task_2"}
    assert "PackNet" in (folder / "table.md").read_text()


def test_settings_are_enough_to_run_it_again(finished, tmp_path, monkeypatch):
    out, results = finished
    settings = json.loads((out / "split_digits" / "settings.json").read_text())
    assert settings["settings"] == results["settings"]
    assert settings["versions"]["jaxcl"] == jaxcl.__version__
    program, *words = shlex.split(settings["command"])
    assert program == "jaxcl"
    monkeypatch.setenv("HOME", str(tmp_path))
    words[words.index("--out") + 1] = "~/my runs"
    cli.main(words)
    folder = tmp_path / "my runs" / "split_digits"
    again = json.loads((folder / "results.json").read_text())
    assert numbers(again) == numbers(results)
    assert again["settings"] == results["settings"]
    settings = json.loads((folder / "settings.json").read_text())
    assert shlex.split(settings["command"])[1:] == words


def test_shows_table_sentence_and_files(finished, tmp_path, capsys):
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    compare(tmp_path, "--resume")
    out, err = capsys.readouterr()
    assert "split_digits: 2 tasks, 3 seeds, on 2 CPU devices" in err
    assert "xla; --no-cache turns that off" in " ".join(err.split())
    total = "packnet: 1 of 4 leaves is prunable: 512 of 610 entries ('layers/0/kernel')"
    assert total in " ".join(err.split())
    for words in ("Fine-tuning", "PackNet", "forgets", "Written to", "results.json"):
        assert words in out
    for line in out.splitlines()[:8]:
        assert len(line) <= 80


def test_says_what_tasks_find_free_and_reuse(tmp_path, capsys):
    words = ["--warn-free", "1", "--c", "0.1"]
    hat = compare(tmp_path, *words, methods="hat")["methods"]["hat"]
    free, reuse, own = (np.array(hat[name]) for name in ("free", "reuse", "compression"))
    assert free.shape == own.shape == (3, 2) and np.all(own[:, 0] > 0)
    np.testing.assert_allclose(free[:, 0], 1)
    np.testing.assert_allclose(free[:, 1], 1 - np.array(hat["capacity"])[:, 0])
    np.testing.assert_allclose(free[:, 1], 1 - own[:, 0], rtol=1e-6)  # of what the first one uses
    # In both tasks: the share of the first one's, and of the second one's.
    np.testing.assert_allclose(reuse[:, 0, 1] * own[:, 0], reuse[:, 1, 0] * own[:, 1], rtol=1e-6)
    assert np.all((reuse >= 0) & (reuse <= 1))
    assert hat["compilations"] == 1
    err = " ".join(capsys.readouterr().err.split())
    share = f"{100 * free[:, 1].min():.1f}"
    assert f"warning: hat, task 2 begins with {share}% of the weights free, in the fullest" in err
    table = (tmp_path / "split_digits" / "table.md").read_text()
    assert f"| HAT | 100.0 | {100 * free[:, 1].mean():.1f} |" in table
    assert f"| task 1 | {100 * own[:, 0].mean():.1f} | {100 * reuse[:, 0, 1].mean():.1f} |" in table


def test_parameters_and_bytes():
    benchmark = data.load("split_digits")
    tasks, (a, b) = 5, (100, 100)
    trunk = 64 * a + a + a * b + b
    base = trunk + tasks * (b * 2 + 2)
    column = trunk + b * 2 + 2
    laterals = sum(k * (1 + a * a) + a + a * b + k * (1 + b * b) + b + b * 2 for k in range(1, 5))
    gates = tasks * (a + b)
    expected = {
        "finetune": (base, 0),
        "joint": (base, 0),
        "hat": (base, 4 * (gates + a + b)),
        "packnet": (base, 64 * a + a * b),  # one byte for each weight
        "independent": (tasks * column, None),
        "pnn": (tasks * column + laterals, None),
    }
    for method, (parameters, extra) in expected.items():
        choice = recipes.choose(method)
        setup = recipes.recipe(choice, benchmark)({})
        learner = jax.eval_shape(lambda key, s=setup: train.start(s, key, tasks), jax.random.key(0))
        found = recipes.cost(choice, benchmark, learner)
        assert found[0] == parameters, method
        assert found[1] == extra or extra is None, method


# Going on


def test_interrupted_run_goes_on_to_the_same_results(finished, tmp_path, monkeypatch, capsys):
    """Stopped in PackNet's second task, then continued, on other devices too."""
    save, saved = checkpoint.save_async, []

    def stop_at_the_fourth(path, *record):
        saved.append(path.name)
        if len(saved) == 4:
            raise KeyboardInterrupt
        return save(path, *record)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_async", stop_at_the_fourth)
        with pytest.raises(SystemExit) as end:
            compare(tmp_path, "--resume")  # with nothing there, it begins
    assert end.value.code == 130
    assert "--resume goes on" in capsys.readouterr().err
    folder = tmp_path / "split_digits"
    assert not (folder / "results.json").exists()
    assert newest(folder) == {"finetune": "task_2", "packnet": "task_1"}

    words = ["compare", "--methods", "finetune,packnet", "--out", str(tmp_path), *TINY]
    before = snapshot(tmp_path)
    assert "holds an unfinished run; add --resume" in refused(capsys, *words)
    assert snapshot(tmp_path) == before

    shutil.copytree(tmp_path, tmp_path / "other")
    (folder / "checkpoints" / "packnet" / ".DS_Store").write_text("a file manager's")
    resumed = compare(tmp_path, "--resume")
    assert numbers(resumed) == numbers(finished[1])
    other = compare(tmp_path / "other", "--resume", "--devices", "3")
    for name, method in other["methods"].items():
        for key in ("accuracy", "capacity"):
            expected = finished[1]["methods"][name][key]
            assert (method[key] is None) == (expected is None)
            if expected is not None:
                found, expected = (np.array(v, float) for v in (method[key], expected))
                np.testing.assert_allclose(found, expected, atol=1e-6)
    seconds = resumed["methods"]["packnet"]["seconds"]
    assert newest(folder) == {"finetune": "task_2", "packnet": "task_2"}

    def never(*args):
        raise AssertionError("nothing is left to train")

    monkeypatch.setattr(study, "run", never)
    assert compare(tmp_path, "--resume")["methods"]["packnet"]["seconds"] == seconds


# A sweep


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    out = tmp_path_factory.mktemp("swept")
    cli.main(["sweep", "hat", "--s-max", "50,400", "--c", "0.1,2", "--out", str(out), *TINY])
    folder = out / "sweep_hat_split_digits"
    return folder, json.loads((folder / "results.json").read_text())


def test_sweep_is_one_compilation(swept):
    folder, results = swept
    assert results["compilations"] == 1
    settings = [(row["s_max"], row["c"]) for row in results["combinations"]]
    assert settings == [(50, 0.1), (50, 2), (400, 0.1), (400, 2)]
    names = {
        "settings.json",
        "results.json",
        "table.md",
        "heatmap.svg",
        "heatmap.png",
        "checkpoints",
        "best",
    }
    assert {path.name for path in folder.iterdir()} == names


def test_sweep_chooses_without_the_test_sets(swept, tmp_path, monkeypatch):
    """Other test sets change the number that is reported for them, and nothing else."""
    _, results = swept
    best = np.argmax(np.mean([row["validation"] for row in results["combinations"]], axis=1))
    assert results["best"] == best
    load = data.load

    def wrong_tests(*args, **options):
        benchmark = load(*args, **options)
        tasks = [
            t._replace(test=t.test._replace(y=t.classes - 1 - t.test.y)) for t in benchmark.tasks
        ]
        return benchmark._replace(tasks=tuple(tasks))

    monkeypatch.setattr(data, "load", wrong_tests)
    cli.main(["sweep", "hat", "--s-max", "50,400", "--c", "0.1,2", "--out", str(tmp_path), *TINY])
    other = json.loads((tmp_path / "sweep_hat_split_digits" / "results.json").read_text())
    assert other["combinations"] == results["combinations"]
    assert other["best"] == results["best"]
    assert other["test"] != results["test"]


def test_sweep_does_not_overwrite(swept, capsys):
    folder, _ = swept
    before = snapshot(folder)
    words = ["sweep", "hat", "--s-max", "50,400", "--out", str(folder.parent), *TINY]
    assert "(c is [0.1, 2.0] there, [0.75] here)" in refused(capsys, *words)
    assert "results of this very run" in refused(capsys, *words, "--c", "0.1,2")
    assert snapshot(folder) == before


def test_a_sweep_that_was_stopped_at_its_very_end_goes_on(tmp_path, monkeypatch):
    """What is written last says that all is there; no plot is larger than can be drawn."""
    words = ["sweep", "finetune", "--learning-rate", "0.1,0.2", "--out", str(tmp_path), *TINY]
    folder = tmp_path / "sweep_finetune_split_digits"

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sweep, "figure", stop)
        with pytest.raises(SystemExit):
            cli.main(words)
    assert not (folder / "results.json").exists()
    monkeypatch.setattr(figures, "MOST_PIXELS", 300)
    cli.main([*words, "--resume"])
    assert json.loads((folder / "results.json").read_text())["compilations"] == 1
    assert max(image.imread(folder / "heatmap.png").shape) <= 300


# What it leaves alone


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_never_overwrites(resume, finished, capsys):
    out, _ = finished
    before = snapshot(out)
    words = ["compare", "--methods", "finetune,packnet", "--out", str(out), *TINY, *resume]
    if not resume:
        assert "holds the results of this very run" in refused(capsys, *words)
    message = refused(capsys, *words, "--weight-decay", "0.1")
    assert "a run with other settings (weight_decay is None there, 0.1 here)" in message
    message = refused(capsys, *words, "--methods", "finetune")
    assert "(methods is ['finetune', 'packnet'] there, ['finetune'] here)" in message
    assert snapshot(out) == before


def test_damaged_checkpoint_is_refused(finished, tmp_path, capsys):
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    for task in ("task_1", "task_2"):  # with one of them it would go on after that one
        path = tmp_path / "split_digits" / "checkpoints" / "packnet" / task
        shutil.rmtree(path / "state")
    words = ["compare", "--methods", "finetune,packnet", "--out", str(tmp_path), *TINY, "--resume"]
    assert f"{path}" in refused(capsys, *words)


def test_out_of_memory(tmp_path, monkeypatch, capsys):
    """The message names a chunk whose program has been measured to fit."""

    def exhausted(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        yield

    monkeypatch.setattr(events, "_run", exhausted)
    with pytest.raises(SystemExit) as end:
        compare(tmp_path, *["--seeds", "8", "--chunk", "4", "--devices", "2"], methods="finetune")
    assert end.value.code == 2
    assert re.search(r"4 replicas at a time, 4 in all; --chunk 2 needs", capsys.readouterr().err)
