"""`jaxcl plot` and `jaxcl merge`: runs are drawn again and joined without training."""

import json

import pytest

from jaxcl.cli import main as cli
from jaxcl.report.results import Results
from tests.cli import runs
from tests.cli.runs import refused, snapshot
from tests.report.studies import method


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Runs of all kinds side by side, which no test may change."""
    root = tmp_path_factory.mktemp("folders")
    for name in ("one", "copy", "one_merged"):
        runs.finished(root / name)
    runs.finished(root / "other", epochs=3)
    runs.unfinished(root / "begun")
    (root / "empty").mkdir()
    for name, file, text in (
        ("broken", "settings.json", "{"),
        ("sweep", "settings.json", '{"settings": {"method": "hat"}}'),
        ("damaged", "results.json", "{}"),
    ):
        runs.finished(root / name)
        (root / name / file).write_text(text)
    return root


def test_plot_draws_the_same_again(tmp_path, capsys):
    folder = runs.finished(tmp_path / "one")
    before = snapshot(folder)
    for name in ("accuracy.svg", "table.md", "matrix.png"):
        (folder / name).unlink()
    cli.main(["plot", str(folder)])
    assert snapshot(folder) == before
    out = capsys.readouterr().out
    assert "Written to" in out
    assert "accuracy.svg" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plot"], "there is nothing to plot"),
        (["plot", "onn"], "there is no folder onn; the nearest are 'one'"),
        (["plot", "begun"], "the run begun is not finished; its command with --resume goes on: "),
        (["plot", "empty"], "empty holds no run of jaxcl"),
        (["plot", "one", "broken"], "settings.json cannot be read"),
        (["plot", "sweep"], "sweep holds a sweep"),
        (["plot", "damaged"], "damaged/results.json cannot be read as results: tasks is missing"),
        (["merge", "one"], "give two runs or more"),
        (["merge", "one", "begun"], "begun is not finished"),
        (["merge", "one", "other"], "one and other do not fit together: epochs is 2 in the one"),
        (["merge", "one", "one", "--name", "x"], "give two runs or more"),
        (["merge", "one", "copy", "--out", "."], "one_merged exists; choose another --name"),
        (["merge", "one", "copy", "--name", "a\x1bb"], "holds what cannot be printed"),
        (["merge", "one", "copy", "--name", "../x"], "--name must be the name of a folder"),
    ],
)
def test_refused(words, message, folders, monkeypatch, capsys):
    monkeypatch.chdir(folders)
    before = snapshot(folders)
    assert message in refused(capsys, *words)
    assert snapshot(folders) == before


def test_merge_adds_methods(tmp_path, capsys):
    a = runs.finished(tmp_path / "a", runs.results(finetune=method([0.5] * 3)))
    b = runs.finished(tmp_path / "b", runs.results(pnn=method([0.9] * 3)))
    cli.main(["merge", str(a), str(b), "--out", str(tmp_path), "--name", "both"])
    merged = Results.load(tmp_path / "both")
    assert list(merged.methods) == ["finetune", "pnn"]
    settings = json.loads((tmp_path / "both" / "settings.json").read_text())
    assert [part["name"] for part in settings["merged"]] == ["a", "b"]
    assert settings["settings"]["methods"] == ["finetune", "pnn"]
    out = capsys.readouterr().out
    assert "PNN" in out
    assert "Written to" in out
    cli.main(["plot", str(tmp_path / "both")])  # it is a run like any other


def test_merge_tells_of_other_versions(tmp_path, capsys):
    a = runs.finished(tmp_path / "a", runs.results(finetune=method([0.5] * 3)))
    b = runs.finished(tmp_path / "b", runs.results(pnn=method([0.9] * 3)))
    settings = json.loads((b / "settings.json").read_text())
    settings["versions"]["jax"] = "0.99"
    (b / "settings.json").write_text(json.dumps(settings))
    cli.main(["merge", str(a), str(b), "--out", str(tmp_path)])
    assert "were made by different versions" in " ".join(capsys.readouterr().err.split())
