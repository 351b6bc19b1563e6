"""The command is stopped, killed and continued; or continued where it must not be."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import jaxcl
from jaxcl import checkpoint
from jaxcl.cli import main as cli
from jaxcl.study import pace

pytestmark = pytest.mark.usefixtures("command")

TINY = ["--benchmark", "split_digits", "--tasks", "2", "--seeds", "2", "--hidden", "4"]
TINY += ["--epochs", "4", "--devices", "1", "--save-every", "1epochs"]
COMPARE = ["compare", "--methods", "packnet", *TINY]
SWEEP = ["sweep", "packnet", "--learning-rate", "0.05,0.1", *TINY]
KEPT = ("accuracy", "measures", "curves", "diverged", "combinations", "best", "test")


def ends(capsys, words, code):
    """What the command says last when it ends with this code."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main([str(word) for word in words])
    err = capsys.readouterr().err
    assert end.value.code == code, err
    assert "Traceback" not in err
    return err.splitlines()[-1]


def found(out):
    """What a finished run found."""
    (file,) = Path(out).glob("*/results.json")
    content = json.loads(file.read_text())
    parts = content["methods"].values() if "methods" in content else [content]
    return [{key: part[key] for key in KEPT if key in part} for part in parts]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    results = []
    for words in (COMPARE, SWEEP):
        path = out / words[0]
        cli.main([*words, "--out", str(path)])
        results.append(found(path))
    return dict(zip(("compare", "sweep"), results))


def signal_at(number, events, monkeypatch):
    """This process gets a signal while it trains, after so many events."""
    after, left = pace.Pace.after, iter(range(events))

    def then(self, event):
        if next(left, None) == events - 1:
            os.kill(os.getpid(), number)
        return after(self, event)

    monkeypatch.setattr(pace.Pace, "after", then)


@pytest.mark.parametrize(
    ("words", "number", "code", "events"),
    [
        (COMPARE, signal.SIGTERM, 143, 2),
        (COMPARE, signal.SIGINT, 130, 7),
        (SWEEP, signal.SIGTERM, 143, 5),
    ],
)
def test_a_signal_saves_and_stops(
    words, number, code, events, undisturbed, tmp_path, monkeypatch, capfd
):
    """With the usual exit code and a line that says how to go on; and it goes on to the bit."""
    words = [*words, "--out", tmp_path]
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        signal_at(number, events, patch)
        last = ends(capfd, words, code)
    assert last == "jaxcl: stopped, and all is saved; the same command with --resume goes on."
    assert signal.getsignal(number) == before
    (folder,) = tmp_path.glob("*/checkpoints/packnet")
    assert checkpoint.latest(folder) and not list(folder.parent.parent.glob("results.json"))
    assert "add --resume" in ends(capfd, words, 2)
    cli.main([str(word) for word in [*words, "--resume"]])
    assert found(tmp_path) == undisturbed[words[0]]


TWICE = """
import os, signal
from jaxcl.cli import main as cli
from jaxcl.study import archive, pace

def twice(self, event):
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    raise AssertionError("still alive")

pace.Pace.after = twice
cli.main()
"""
IMPORTS = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "jax.numpy":
            os.kill(os.getpid(), signal.{name})

sys.meta_path.insert(0, Finder())
from jaxcl.cli.main import main
main()
"""


def ends_by_itself(program, *words):
    """Code and last line of a process of its own."""
    process = subprocess.run(
        [sys.executable, "-c", program, *map(str, words)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in process.stderr
    return process.returncode, process.stderr.splitlines()[-1]


def test_a_second_signal_leaves_at_once(tmp_path):
    code, last = ends_by_itself(TWICE, *COMPARE, "--out", tmp_path)
    assert (code, last) == (130, "jaxcl: stopped at once; what was saved before is kept.")


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_while_jax_is_imported(name, code, tmp_path):
    found = ends_by_itself(IMPORTS.format(name=name), *COMPARE, "--out", tmp_path)
    assert found == (code, "jaxcl: stopped before anything was trained.")
    assert not any(tmp_path.iterdir())


RUN = "import sys; from jaxcl.cli.main import main; main(sys.argv[1:])"


@pytest.mark.parametrize("words", [COMPARE, SWEEP], ids=["compare", "sweep"])
def test_killed_and_resumed(words, undisturbed, tmp_path):
    """A handful of the kills of experiments/kills.py: real processes, random moments."""
    words = [*map(str, words), "--out", str(tmp_path), "--resume"]
    chance, killed = random.Random(0), 0
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    while True:
        process = subprocess.Popen([sys.executable, "-c", RUN, *words], env=environment)
        before = {*tmp_path.glob("*/checkpoints/packnet/*")}
        while process.poll() is None and killed < 2:
            if {*tmp_path.glob("*/checkpoints/packnet/*")} != before and chance.random() < 0.3:
                process.kill()
        if process.wait() == 0:
            break
        assert process.returncode == -signal.SIGKILL
        killed += 1
    assert killed
    assert found(tmp_path) == undisturbed[words[0]]


# What it does not go on with


def unfinished(tmp_path, monkeypatch, capfd):
    """A run that was stopped in its first task."""
    words = [*COMPARE, "--out", tmp_path]
    with monkeypatch.context() as patch:
        signal_at(signal.SIGTERM, 4, patch)
        ends(capfd, words, 143)
    return tmp_path / "split_digits" / "settings.json", [*words, "--resume"]


def test_other_versions_data_and_devices(undisturbed, tmp_path, monkeypatch, capfd):
    """Named and refused, or overridden where it is safe; then the results say so."""
    file, words = unfinished(tmp_path, monkeypatch, capfd)
    content = json.loads(file.read_text())

    def said(**changes):
        file.write_text(json.dumps({**content, **changes}))
        return ends(capfd, words, 2)

    assert "holds a run on other data" in said(data="0" * 64)
    last = said(versions={**content["versions"], "jax": "0.1"}, devices=["TPU v9"])
    assert f"(jax was 0.1, is {jax.__version__} and the device was TPU v9, is cpu)" in last
    assert "add --override" in last
    settings = {**content["settings"], "learning_rate": 0.5}
    assert "(learning_rate is 0.5 there" in said(settings=settings)
    file.write_text(json.dumps({**content, "settings": settings}))
    edited = [*words, "--learning-rate", "0.5"]
    last = ends(capfd, edited, 2)
    assert "task_1_epoch_" in last and "was written with other settings" in last

    file.write_text(json.dumps({**content, "versions": {**content["versions"], "jaxcl": "0.0"}}))
    cli.main([str(word) for word in [*words, "--override"]])
    said = [f"jaxcl was 0.0, is {jaxcl.__version__}"]
    assert json.loads(file.read_text())["overridden"] == said
    results = json.loads((file.parent / "results.json").read_text())
    assert results["settings"]["overridden"] == said
    assert found(tmp_path) == undisturbed["compare"]


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch, capfd):
    file, words = unfinished(tmp_path, monkeypatch, capfd)
    before = {path: path.read_bytes() for path in file.parent.rglob("*") if path.is_file()}

    def read_only(*args, **kwargs):
        raise OSError(30, "Read-only file system", str(args[0]))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", read_only)
        assert "Read-only file system" in ends(capfd, words, 2)
    assert {p: p.read_bytes() for p in file.parent.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("every", ["5", "0m", "ten epochs"])
def test_how_often_it_saves(every, tmp_path, capfd):
    last = ends(capfd, [*COMPARE, "--out", tmp_path, "--save-every", every], 2)
    assert "--save-every must be a time, such as 30s, 5m or 1h, or a number of epochs" in last
    assert not any(tmp_path.iterdir())
