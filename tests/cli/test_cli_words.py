"""The command's words: what it understands, and how it refuses before anything runs."""

import subprocess
import sys
import warnings

import numpy as np
import pytest

import jaxcl
from jaxcl import data
from jaxcl.cli import main as cli
from jaxcl.cli.parsing import parse
from jaxcl.study.recipes import Options
from tests.cli import runs
from tests.cli.runs import snapshot

pytestmark = pytest.mark.usefixtures("command")


def refused(capsys, *words, code=2):
    return runs.refused(capsys, *words, "--no-cache", code=code)


# Bad input


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "compare --methods hat,packnett",
            "unknown method 'packnett'; the nearest are 'packnet'",
        ),
        ("compare --methods hat,hat", "names a method twice"),
        ("compare --methods None", "--methods needs at least one of finetune, joint"),
        (
            "compare --benchmark split_digit",
            "unknown benchmark 'split_digit'; the nearest names are",
        ),
        ("compare --benchmark split_digits --tasks 3", "tasks must share its 10 classes equally"),
        ("compare --tasks 255", "tasks must be a whole number from 1 to 254, got 255"),
        ("compare --benchmark permuted_digits --tasks 0", "--tasks must be at least 1, got 0"),
        ("compare --seeds 0", "--seeds must be at least 1, got 0"),
        ("compare --epochs 0", "--epochs must be at least 1, got 0"),
        ("compare --epochs 100000000", "--epochs must be at most 1,000,000, got 100000000"),
        ("compare --steps 3000000000", "--steps must be at most 2,147,483,647, got 3000000000"),
        ("compare --patience 0", "--patience must be at least 1, got 0"),
        ("compare --prune 1.5", "--prune must be at most 1, got 1.5"),
        ("compare --prune -0.5", "--prune must be at least 0, got -0.5"),
        ("compare --methods packnet --prune 0", "gives up no weight, so none is free for task 2"),
        ("compare --warn-free 2", "--warn-free must be at most 1, got 2.0"),
        ("compare --learning-rate 0", "--learning-rate must be above 0, got 0.0"),
        ("compare --column-width 0", "--column-width must be above 0, got 0.0"),
        ("compare --c nan", "--c must be finite, got nan"),
        ("compare --hidden None", "--hidden needs at least one width"),
        ("compare --hidden 8,0", "--hidden must be at least 1, got 0"),
        ("compare --name ../other", "--name must be the name of a folder"),
        ("compare --devices 99", "--devices is 99, but there are 4 (cpu)"),
        ("compare --split 3", "devices_per_replica must divide the 4 devices, got 3"),
        ("compare --network alexnet", "8"),
        ("compare --benchmark split_mnist --data-dir nowhere", "mnist is not prepared in"),
        ("sweep hatt --c 1,2", "unknown method 'hatt'; the nearest are"),
        ("sweep hat", "nothing to sweep; give several values: --s-max 100,200,400"),
        ("sweep hat --s-max None --c 1,2", "--s-max needs at least one value"),
        ("sweep hat --prune 0.1,0.2", "--prune has no effect on hat; sweep --learning-rate"),
        ("sweep packnet --prune 0.1,1.2", "--prune must be at most 1, got 1.2"),
        ("sweep packnet --prune 0.5,0", "gives up no weight, so none is free for task 2"),
        ("sweep packnet --prune 0.5,1e-3", "packnet: no weight is free for task 3 of 6"),
        ("compare --warn-free -1", "--warn-free must be at least 0, got -1.0"),
        ("cmpare", "no command 'cmpare'; the nearest are 'compare'"),
        ("compare --benchmark=", "unknown benchmark ''"),
        ("compare --seeds 100000000", "--seeds must be at most"),
        ("compare --seeds 99999999999999999999999", "--seeds must be at most"),
        ("compare --hidden 100000000", "--hidden must be at most 1000000"),
        (
            "compare --methods finetune --hidden 1000000,1000000",
            "finetune: a device has",
        ),
        ("compare --methods pnn --column-width 1e9", "the network is too large for any machine"),
        ("compare --methods pnn --column-width 1e5", "pnn: a device has"),
        ("compare --methods finetune --batch 99999999999", "batches of 25.6 TB"),
        ("sweep finetune --learning-rate 0.1,0.2 --hidden 900000,900000", "finetune: a device has"),
        ("sweep finetune --learning-rate 0.1,0.1", "--learning-rate repeats a value"),
        (
            "compare --network vgg16",
            "--network vgg16 does not fit inputs of (8, 8, 1): layer 9 leaves nothing of an input "
            "(8, 8, 1); mlp and resnet18 fit.",
        ),
        ("compare --name a\x1bb", "holds what cannot be printed"),
        ("compare --out \udcff", r"'\udcff' holds what cannot be printed"),
        ("compare --scenario task,klass", "--scenario must be one of 'task', 'domain', 'class'"),
        ("compare --scenario task,task", "--scenario names task twice: task,task"),
        (
            "compare --methods finetune,ewc --ewc.scenario class",
            "--ewc.scenario differs from the others'; all methods have the same",
        ),
        (
            "compare --methods finetune --benchmark split_digits,classes=0-2/3-4 "
            "--scenario task,domain --devices 1",
            "'domain' needs tasks of the same classes, but they have 2, 3",
        ),
        ("compare --benchmark split_digits,classes=0-1/1-2", "class 1 is listed twice"),
        ("compare --benchmark mixture_digits,mnist5k", "differ in size (digits 8 x 8, mnist5k 28"),
        ("compare --benchmark split_digits,tasks=2 --tasks 5", "says tasks=2, but 5 is asked for"),
        ("compare --benchmark split_npz:nowhere.npz", "nowhere.npz cannot be read: No such file"),
        ("compare --benchmark split_folder:nowhere", "nowhere is no folder"),
        ("compare --benchmark split_tfds:nothing --data-dir .", "nothing is not prepared in"),
        (f"compare --name {'a' * 300}", "--name must be at most 255 bytes long, got 300"),
    ],
)
def test_bad_input(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *words.split())
    assert not any(tmp_path.iterdir())


def test_bad_data_writes_nothing(tmp_path, monkeypatch, capsys):
    def broken(*args, **options):
        x = np.full((20, 3), np.nan, np.float32)
        return data.from_arrays("broken", [(x, np.arange(20) % 2)])

    monkeypatch.setattr(data, "load", broken)
    message = refused(capsys, "compare", "--out", str(tmp_path))
    assert "broken, task 0, data: x holds NaN" in message
    assert not any(tmp_path.iterdir())


def test_stopped_before_the_training(tmp_path, monkeypatch, capsys):
    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "load", stop)
    assert "stopped before" in refused(capsys, "compare", "--out", str(tmp_path), code=130)
    assert not any(tmp_path.iterdir())


def test_a_folder_of_something_else(tmp_path, capsys):
    (tmp_path / "permuted_digits").mkdir()
    (tmp_path / "permuted_digits" / "thesis.tex").write_text("precious")
    before = snapshot(tmp_path)
    for words in ([], ["--resume"]):
        message = refused(capsys, "compare", "--out", str(tmp_path), *words)
        assert "permuted_digits exists and holds no run of jaxcl" in message
    (tmp_path / "file").write_text("precious")
    assert "Not a directory" in refused(capsys, "compare", "--out", str(tmp_path / "file"))
    assert snapshot(tmp_path) == {**before, tmp_path / "file": b"precious"}


@pytest.mark.parametrize("module", ["tyro", "rich", "matplotlib"])
def test_missing_extra(module, monkeypatch, capsys):
    find = cli.importlib.util.find_spec
    monkeypatch.setattr(
        cli.importlib.util, "find_spec", lambda name: None if name == module else find(name)
    )
    message = refused(capsys, "compare")
    assert f"needs {module}, which comes with the extra 'experiments'" in message
    assert 'pip install "jaxcl[experiments]"' in message


def test_a_name_of_two_lines(capsys):
    assert "'a\\nb' holds what cannot be printed" in refused(capsys, "compare", "--name", "a\nb")


# Words


@pytest.mark.parametrize("words", [["HAT"], ["hat, packnet"], ["PackNet,HAT"], [" hat "]])
def test_methods_in_any_spelling(words):
    names = parse(["compare", "--methods", *words]).methods
    assert names == tuple(name.strip().lower() for name in words[0].split(","))


def test_defaults_follow_the_benchmark():
    command = parse(["compare"])
    assert command.training == Options(epochs=20)
    assert command.run.benchmark == "permuted_digits"
    for words in (["--benchmark", "split_mnist"], ["--benchmark=split_mnist"]):
        training = parse(["compare", *words, "--epochs", "3"]).training
        assert (training.hidden, training.batch, training.epochs) == ((400, 400), 64, 3)


def test_parses_what_settings_spell_out():
    from jaxcl.cli.options import command_line

    words = "compare --methods hat,pnn --hidden 7,8 --no-hard --alpha 0.5 --no-cache --name a"
    words += " --select loss --patience 5 --warn-free 0.1 --hat.learning-rate 0.02"
    command = parse(words.split())
    assert (command.training.select, command.training.patience) == ("loss", 5)
    assert command.methods == ("hat", "pnn")
    assert command.training.hidden == (7, 8)
    (hat, pnn) = command.choices
    assert (hat.own.hard, hat.shared.learning_rate, pnn.shared.learning_rate) == (False, 0.02, 0.05)
    assert not command.run.cache
    assert parse(command_line(command).split()[1:]) == command
    command = parse(["sweep", "packnet", "--prune", "0.1,0.2"])
    assert command.values["prune"] == (0.1, 0.2)
    assert parse(command_line(command).split()[1:]) == command


@pytest.mark.parametrize("words", ["--help", "compare --help", "sweep --help"])
def test_help(words, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(words.split())
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert "usage: jaxcl" in out
    if words != "--help":
        assert "--benchmark" in out
        assert "fashion_mnist" in out
        assert "--learning-rate" in out


def test_as_a_module():
    """In a process of its own: exit codes, and no traceback."""

    def run(*words):
        command = [sys.executable, "-m", "jaxcl", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    version = run("--version")
    assert (version.returncode, version.stdout) == (0, f"jaxcl {jaxcl.__version__}\n")
    unknown = run("compare", "--methods", "nothing")
    assert unknown.returncode == 2
    assert unknown.stdout == ""
    assert unknown.stderr.startswith("jaxcl: unknown method 'nothing'; the ")
    assert unknown.stderr.count("\n") == 1


def test_a_warning_is_one_line_without_the_source(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    with pytest.raises(SystemExit):
        cli.main(["show", "nowhere"])
    said = warnings.formatwarning(UserWarning("an older one\nis taken"), UserWarning, "x.py", 3)
    assert said == "warning: an older one is taken\n"
