"""Folders of runs, finished and not, without training; and what the command says."""

import json

import pytest

from jaxcl.cli import main as cli
from jaxcl.report.results import as_results
from tests.report.studies import method, study


def results(seeds=3, **methods):
    methods = methods or {
        "finetune": method([0.5, 0.6, 0.7][:seeds]),
        "hat": method([0.9] * seeds, capacity=[[0.2, 0.4, 0.5]] * seeds),
    }
    settings = {"benchmark": "digits", "tasks": 3, "seeds": seeds, "methods": [*methods]}
    settings |= {"options": {}, "epochs": 2, "scenario": "task"}
    return as_results(study(seeds=seeds, **methods) | {"settings": settings, "chance": 0.1})


def settings_of(folder, found, **more):
    folder.mkdir(parents=True)
    content = {
        "command": f"jaxcl compare --name {folder.name}",
        "settings": {**found.settings, **more},
        "versions": {"jaxcl": "0.1.0", "jax": "0.10.2", "python": "3.11.2"},
        "devices": ["cpu", "cpu"],
    }
    (folder / "settings.json").write_text(json.dumps(content))


def finished(folder, found=None, **more):
    found = found or results()
    settings_of(folder, found, **more)
    found._replace(settings={**found.settings, **more}).save(folder)
    return folder


def unfinished(folder, found=None, done=2):
    found = found or results()
    settings_of(folder, found)
    for task in range(1, done + 1):
        (folder / "checkpoints" / "finetune" / f"task_{task}").mkdir(parents=True)
    return folder


def refused(capsys, *words, code=2):
    """The one line that the command says when it ends with this code."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert (end.value.code, out, err.count("\n")) == (code, "", 1)
    return err


def snapshot(folder):
    """The files of a folder, and what they hold."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
