"""The folder of a run: whose it is, and the settings from which the run can be repeated."""

import json
import platform
from collections.abc import Sequence
from pathlib import Path

import jax

import jaxcl
from jaxcl.cli.options import command_line
from jaxcl.report.text import write_whole
from jaxcl.study.replicas import Device


def claim(folder: Path, settings: dict, resume: bool) -> None:
    """Raises ValueError if the folder is not this run's to write in."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        there = json.loads((folder / "settings.json").read_text())["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"{folder} exists and holds no run of jaxcl; choose another --name or --out."
        ) from None
    other = "choose another --name, or delete that folder"
    for name, value in json.loads(json.dumps(settings)).items():
        if there.get(name) != value:
            raise ValueError(
                f"{folder} holds a run with other settings ({name} is {there.get(name)!r} there, "
                f"{value!r} here); {other}."
            )
    if not resume and (folder / "results.json").exists():
        raise ValueError(f"{folder} holds the results of this very run; {other}.")
    if not resume:
        raise ValueError(f"{folder} holds an unfinished run; add --resume to go on, or {other}.")


def write_settings(folder: Path, settings: dict, command, devices: Sequence[Device]) -> None:
    """Writes `settings.json`, from which the run can be repeated."""
    versions = {"jaxcl": jaxcl.__version__, "jax": jax.__version__}
    content = {
        "command": command_line(command),
        "settings": settings,
        "versions": {**versions, "python": platform.python_version()},
        "devices": [str(device.device_kind) for device in devices],
    }
    write_whole(folder / "settings.json", json.dumps(content, indent=1) + "\n")
