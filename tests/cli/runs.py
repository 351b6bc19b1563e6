"""Folders of runs, finished and not, without training."""

import json

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
