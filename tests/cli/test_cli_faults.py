"""The command where the machine, the folder or the training fails: one sentence, nothing spoilt."""

import errno
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxcl import checkpoint, data, load, recipes, report, study
from jaxcl.cli import folder, processes, session
from jaxcl.cli import main as cli
from jaxcl.cli.parsing import parse
from jaxcl.report import figures, text

pytestmark = pytest.mark.usefixtures("command")

TINY = ["--benchmark", "split_digits", "--tasks", "2", "--epochs", "1", "--seeds", "2"]
TINY += ["--hidden", "4", "--devices", "1"]
COMPARE = ["compare", "--methods", "finetune", *TINY]


def ends(capsys, words, code=2):
    """What the command says last when it ends with this code."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert end.value.code == code, err
    assert "Traceback" not in err
    last = err.splitlines()[-1] if err else ""
    assert not err or last.startswith("jaxcl: ")
    return last, out, err


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    cli.main([*COMPARE, "--out", str(out)])
    return out / "split_digits"


@pytest.fixture
def unfinished(finished, tmp_path):
    """A run that has not written its results, and its checkpoints."""
    copy = tmp_path / "split_digits"
    shutil.copytree(finished, copy)
    (copy / "results.json").unlink()
    return copy, copy / "checkpoints" / "finetune"


def test_a_method_that_needs_another_order_is_named_before_any_training(tmp_path, capsys):
    words = ["--methods", "finetune,joint", "--order", "one", "--out", tmp_path / "runs"]
    last, _, _ = ends(capsys, ["compare", *TINY, *words])
    assert "joint trains on the examples of several tasks at once" in last
    assert not (tmp_path / "runs").exists()


def accuracy(run):
    return json.loads((run / "results.json").read_text())["methods"]["finetune"]["accuracy"]


# The machine


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk(finished, tmp_path, monkeypatch, capsys):
    """For settings, a checkpoint and a plot: the file is named, and no part of it stays."""
    run, words = tmp_path / "split_digits", [*COMPARE, "--out", tmp_path, "--resume"]
    with monkeypatch.context() as patch:
        patch.setattr(text.os, "replace", full)
        assert f"{run / 'settings.json'}: No space left" in ends(capsys, words)[0]
        assert list(run.iterdir()) == []

    def half(path, *_):
        (path.parent / f"{path.name}.orbax-checkpoint-tmp").mkdir(parents=True)
        raise ValueError("RESOURCE_EXHAUSTED: Error writing [os_error_code='28']")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_async", half)
        last, *_ = ends(capsys, words)
    assert f"{run / 'checkpoints' / 'finetune' / 'task_1'}: No space left" in last
    assert "--resume goes on" in last
    assert list((run / "checkpoints" / "finetune").iterdir()) == []
    with monkeypatch.context() as patch:
        patch.setattr(figures.Figure, "savefig", lambda self, file, **options: file.write(b"x"))
        patch.setattr(
            text.os, "replace", lambda a, b: full() if b.suffix == ".svg" else a.rename(b)
        )
        assert "accuracy.svg: No space left" in ends(capsys, words)[0]
    assert not list(run.glob("*.part")) and not list(run.glob("*.svg"))
    cli.main([str(word) for word in words])
    assert accuracy(run) == accuracy(finished)


class Full:
    """A stream that takes nothing, or whose reader is gone."""

    encoding = "utf-8"

    def __init__(self, number):
        self.number = number

    def write(self, words):
        raise OSError(self.number, os.strerror(self.number))

    def flush(self):
        pass

    def isatty(self):
        return False


def test_streams_that_take_nothing(unfinished, tmp_path, monkeypatch, capsys):
    run, _ = unfinished
    words = [*COMPARE, "--out", tmp_path, "--resume"]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Full(errno.ENOSPC))
        assert "standard output: No space left on device" in ends(capsys, words)[0]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Full(errno.EPIPE))
        with pytest.raises(SystemExit) as end:
            cli.main([str(word) for word in words])
        assert end.value.code == 141
        assert "jaxcl:" not in capsys.readouterr().err  # who reads has seen enough
    with monkeypatch.context() as patch:  # there is nobody to tell, and the results are there
        patch.setattr(sys, "stderr", Full(errno.ENOSPC))
        cli.main([str(word) for word in words])
    assert (run / "results.json").exists()


def test_a_process_of_its_own(tmp_path):
    """Platforms, backends and devices as a shell gives them."""
    python = [sys.executable, "-m", "jaxcl"]

    def run(words, out=subprocess.PIPE, **environment):
        return subprocess.run(
            [*python, *words], stdout=out, stderr=subprocess.PIPE, text=True, check=False,
            env={**os.environ, **environment}, cwd=tmp_path,
        )  # fmt: skip

    missing = run(COMPARE, JAX_PLATFORMS="cuda", MPLBACKEND="nonsense")
    assert missing.returncode == 2
    assert missing.stderr == (
        "jaxcl: no device of the platform 'cuda' (JAX_PLATFORMS) can be used.\n"
    ) or re.fullmatch(r"jaxcl: no device of the platform 'cuda'.*\n", missing.stderr)
    with open("/dev/full", "w") as nothing:
        version = run(["--version"], out=nothing)
    assert version.returncode == 2
    assert version.stderr == "jaxcl: standard output: No space left on device\n"
    assert list(tmp_path.iterdir()) == []


def test_the_cache_of_programs(tmp_path, monkeypatch):
    """It is private if we make it; where it cannot be, nobody claims that programs are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with monkeypatch.context() as patch:
        jax.config.update("jax_compilation_cache_dir", None)
        assert f"are kept in {tmp_path / 'jaxcl' / 'xla'};" in cli.use_cache(True)
        assert stat.S_IMODE((tmp_path / "jaxcl" / "xla").stat().st_mode) == 0o700
        (tmp_path / "file").touch()
        jax.config.update("jax_compilation_cache_dir", None)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        assert re.match("Compiled programs are not kept: .*Not a dir", cli.use_cache(True))
        assert not jax.config.values["jax_enable_compilation_cache"]
        patch.delenv("XDG_CACHE_HOME")

        def homeless(path):
            raise RuntimeError("Could not determine home directory.")

        patch.setattr(cli.Path, "expanduser", homeless)
        assert "not kept: Could not determine home" in cli.use_cache(True)


def test_no_home(monkeypatch, capsys):
    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(cli.Path, "expanduser", homeless)
    last, *_ = ends(capsys, [*COMPARE, "--out", "~/runs", "--no-cache"])
    assert "--out ~/runs cannot be found: Could not determine home" in last


def test_stopped_while_it_is_imported(monkeypatch, capsys):
    def stop(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_need", stop)
    assert "stopped before" in ends(capsys, COMPARE, code=130)[0]


# The folder


@pytest.mark.parametrize("content", ["[]", "3", '{"settings": []}', "nonsense", '{"a": 1}'])
def test_settings_that_are_none(content, tmp_path, capsys):
    run = tmp_path / "split_digits"
    run.mkdir()
    (run / "settings.json").write_text(content)
    assert "holds no run of jaxcl" in ends(capsys, [*COMPARE, "--out", tmp_path, "--resume"])[0]
    assert (run / "settings.json").read_text() == content


def test_settings_of_an_earlier_version(unfinished, tmp_path, capsys):
    run, _ = unfinished
    file = run / "settings.json"
    content = json.loads(file.read_text())
    content["settings"] |= {"prune": 0.5, "s_max": 400.0}  # flat, as they were
    options = content["settings"].pop("options")
    file.write_text(json.dumps(content))
    before = file.read_bytes()
    last, *_ = ends(capsys, [*COMPARE, "--out", tmp_path, "--resume"])
    assert "holds a run of an earlier version of jaxcl, which this one cannot go on with" in last
    assert file.read_bytes() == before
    content["settings"] |= {"options": options}
    file.write_text(json.dumps(content))
    assert (
        "(prune is 0.5 there, None here)"
        in ends(capsys, [*COMPARE, "--out", tmp_path, "--resume"])[0]
    )


def damage(path):
    shutil.rmtree(path / "state")


def foreign(path):
    shutil.rmtree(path)
    path.mkdir()
    (path / "thesis.tex").write_text("precious")


def dangling(path):
    shutil.rmtree(path)
    path.symlink_to("/nowhere")


@pytest.mark.parametrize("change", [damage, foreign, dangling])
def test_a_newest_checkpoint_that_cannot_be_read(change, finished, unfinished, tmp_path, capsys):
    """The one before is taken, and what stands in the way is kept under another name."""
    run, checkpoints = unfinished
    change(checkpoints / "task_2")
    old = {path: path.read_bytes() for path in checkpoints.glob("task_1/**/*") if path.is_file()}
    (checkpoints / "task_9").symlink_to("/nowhere")
    cli.main([*COMPARE, "--out", str(tmp_path), "--resume"])
    err = capsys.readouterr().err
    said = "finetune: task_2 cannot be read and is passed over; it goes on after task_1"
    assert (said in err) == (change is not dangling)  # that is no checkpoint at all
    assert accuracy(run) == accuracy(finished)
    aside = checkpoints / "task_2.unreadable_1"
    assert os.path.lexists(aside)
    assert change is not foreign or (aside / "thesis.tex").read_text() == "precious"
    assert all(path.read_bytes() == content for path, content in old.items())
    checkpoint.verify(checkpoints / "task_2")


def test_no_checkpoint_that_can_be_read(unfinished, tmp_path, capsys):
    _, checkpoints = unfinished
    for name in ("task_1", "task_2"):
        damage(checkpoints / name)
    last, *_ = ends(capsys, [*COMPARE, "--out", tmp_path, "--resume"])
    assert re.search(r"no checkpoint in .*task_2", last)
    shutil.rmtree(checkpoints)
    checkpoints.write_text("a file")
    assert "checkpoints" in ends(capsys, [*COMPARE, "--out", tmp_path, "--resume"])[0]


HOLDS = """
import sys
from pathlib import Path
from jaxcl.cli.folder import hold

with hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("words", [[*COMPARE, "--resume"], ["sweep", "finetune", *TINY]])
def test_two_processes_in_one_folder(words, tmp_path, capsys):
    """The second is told of the first, and the lock ends with its process, however that ends."""
    if words[0] == "sweep":
        words = [*words, "--learning-rate", "0.1,0.2"]
    run = tmp_path / "one"
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDS, run], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        last, *_ = ends(capsys, [*words, "--out", tmp_path, "--name", "one"])
        assert f"is in use: process {other.pid} on " in last
        assert [path.name for path in run.iterdir()] == [folder.LOCK]
    finally:
        other.kill()
        other.communicate()
    assert (run / folder.LOCK).exists()  # which keeps nobody out now
    with folder.hold(run), pytest.raises(ValueError, match="is in use"), folder.hold(run):
        pass
    assert list(run.iterdir()) == []


def test_a_lock_that_is_a_link_is_not_written_through(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / folder.LOCK).symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"), folder.hold(tmp_path / "run"):
        pass
    assert (tmp_path / "precious").read_text() == "precious"


def test_the_coordinator_listens_at_its_address_alone(monkeypatch):
    given = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **options: given.update(options))
    monkeypatch.setattr(processes, "_silence_stdout_of_other_languages", lambda: None)
    run = cli_run(["--coordinator", "127.0.0.1:61999", "--processes", "1", "--process", "0"])
    processes.join(run)
    assert given["coordinator_bind_address"] == "127.0.0.1:61999"
    with pytest.raises(ValueError, match=r"cannot listen at 192\.0\.2\.1:61999"):
        processes.join(cli_run(
            ["--coordinator", "192.0.2.1:61999", "--processes", "1", "--process", "0"]
        ))  # fmt: skip


def cli_run(words):
    return parse(["compare", *words]).run


# The training


def test_divergence_is_no_success(tmp_path, capsys):
    words = ["--learning-rate", "1e30", "--out", tmp_path]
    last, out, _ = ends(capsys, [*COMPARE, *words, "--methods", "finetune,packnet"], code=1)
    assert "no method has a finite result" in last
    assert "Fine-tuning and PackNet have no finite result." in out
    assert "Fine-tuning diverged: seed 0 in task 1, epoch 1 and seed 1 in task 1, epoch 1" in out
    run = tmp_path / "split_digits"
    results = json.loads((run / "results.json").read_text())
    assert results["methods"]["packnet"]["diverged"] == [[1, 1], [1, 1]]
    assert "| Fine-tuning\\* | nan |" in (run / "table.md").read_text()
    assert {"accuracy.svg", "matrix.png"} <= {path.name for path in run.iterdir()}


def test_a_sweep_with_a_hot_corner(tmp_path, capsys):
    words = ["sweep", "finetune", *TINY, "--out", tmp_path]
    cli.main([*map(str, words), "--learning-rate", "1e30,0.1"])
    out = capsys.readouterr().out
    assert "The best of 2 settings is learning_rate = 0.1" in out
    assert "Training diverged with learning_rate = 1e+30." in out
    hot = [*words, "--name", "hot", "--learning-rate", "1e29,1e30"]
    last, out, _ = ends(capsys, hot, code=1)
    assert "no setting has a finite result" in last
    assert "Training diverged with some seed in each of 2 settings." in out
    assert "best" not in out
    results = json.loads((tmp_path / "hot" / "results.json").read_text())
    assert results["best"] is results["test"] is None
    assert (tmp_path / "hot" / "heatmap.svg").exists()


def test_the_highest_of_a_heat_map_is_bold_beside_nan():
    values = np.array([[np.nan, 0.5], [0.9, 0.7]])
    figure = figures.heat_map(values, ["a", "b"], ["$c$", "d"], ("e", "f"))
    bold = [label.get_text() for label in figure.axes[0].texts if label.get_weight() == "bold"]
    assert bold == ["90.0"]


def test_small_tasks_and_large_batches_are_said(finished, tmp_path, capsys):
    cli.main([*COMPARE, "--batch", "1000", "--out", str(tmp_path)])
    out, err = capsys.readouterr()
    assert re.search(r"warning: --batch 1000 is more than the \d+ examples of a task", err)
    assert "is at chance level" in out or "ends at" in out


# Numbers that do not depend on the layout


def final(seeds, devices, *words):
    """Accuracy and learners of the first two seeds, as --reproducible lays them out."""
    choice = recipes.choose("hat", recipes.Options(hidden=(16,), epochs=3), c=0.1)
    command = parse(["compare", *words])
    benchmark = data.load("split_digits", tasks=2)
    (one,) = recipes.studies(
        choice, benchmark, seeds=range(seeds),
        **session.layout_options(command.run, jax.devices()[:devices]),
    )  # fmt: skip
    *_, end = study.run(one)
    learners = (end.learners.theta, end.learners.state, end.learners.opt_state)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:2], (end.accuracy, learners))


def test_reproducible_numbers():
    """The same bits of a seed, whatever the number of seeds and of devices, as a user compiles."""
    if os.environ.get("JAXCL_TESTS") != "optimized":
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-n", "0", f"{__file__}::test_reproducible_numbers"],
            env=inherited | {"JAXCL_TESTS": "optimized", "XLA_FLAGS": ""},
            cwd=Path(__file__).parents[2], capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return
    expected = final(2, 1, "--reproducible")
    for seeds, devices in ((3, 1), (2, 2), (4, 2)):
        found = final(seeds, devices, "--reproducible")
        same = jax.tree.map(partial(np.array_equal, equal_nan=True), found, expected)
        assert jax.tree.all(same), (seeds, devices)
    assert not np.array_equal(*jax.tree.leaves(expected[1])[0])  # seeds do differ
    side_by_side = final(2, 1, "--chunk", "2")
    assert not jax.tree.all(jax.tree.map(np.array_equal, side_by_side[1], expected[1]))


# Names


def test_names_are_taken_for_no_markup(finished, tmp_path, capsys):
    name = "[bold]x</text>$a$|:smile:"
    results = json.loads((finished / "results.json").read_text())
    results["benchmark"] = name
    for method in results["methods"].values():
        method["shown"] |= {"label": name, "words": name, "divides": True}
        method["capacity"] = method["measures"]["capacity"] = [[0.5, 1.0]] * 2
    report.write(results, tmp_path)
    page = (tmp_path / "table.md").read_text()
    for raw in ("[bold]", "</text>", "$a$", "x|"):
        assert raw not in page.replace("\\[", "").replace("\\|", "").replace("\\$", "")
    assert "\\[bold\\]x&lt;/text&gt;\\$a\\$\\|" in page
    for plot in ("accuracy", "matrix", "capacity"):
        assert "[bold]x</text>" not in (tmp_path / f"{plot}.svg").read_text()
    from jaxcl.cli.terminal import consoles

    out, _ = consoles()
    out.print(report.table(results))
    out.print(name)
    assert capsys.readouterr().out.count(name) >= 2


def test_weights_to_start_from_that_have_changed_are_no_longer_the_same_run(tmp_path, capsys):
    """The run stands, and is opened without the file."""
    weights = tmp_path / "w.npz"
    words = [*COMPARE, "--out", tmp_path, "--init", weights]
    np.savez(weights, **{"layers/0/kernel": np.zeros((64, 4), np.float32)})
    cli.main([str(word) for word in words])
    np.savez(weights, **{"layers/0/kernel": np.ones((64, 4), np.float32)})
    last, *_ = ends(capsys, [*words, "--resume"])
    assert "other settings (init_checksum is" in last
    weights.unlink()
    predictor = load(tmp_path / "split_digits")["finetune"].seed(0)
    assert predictor.predict(np.zeros((2, 64), np.uint8), task=0).shape == (2,)
