"""The folder of a run: whose it is, and the settings from which the run can be repeated."""

import contextlib
import json
import os
import platform
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

import jaxcl
from jaxcl.cli import processes
from jaxcl.cli.options import command_line
from jaxcl.report.text import write_whole
from jaxcl.study.replicas import Device

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps two processes apart
    fcntl = None

LOCK = ".lock"


def claim(folder: Path, settings: dict, resume: bool) -> None:
    """Raises ValueError if the folder is not this run's to write in."""
    if folder.is_dir() and not {path.name for path in folder.iterdir()} - {LOCK}:
        return
    if not os.path.lexists(folder):
        return
    there, other = _recorded(folder), "choose another --name, or delete that folder"
    here = json.loads(json.dumps(settings))
    if "options" in here.keys() - there.keys():
        raise ValueError(
            f"{folder} holds a run of an earlier version of jaxcl, which this one cannot go on "
            f"with; {other}."
        )
    for name in {**here, **there}:
        if name == "data" and here.get(name) != there.get(name):
            raise ValueError(f"{folder} holds a run on other data: {_other(there, here)}; {other}.")
        if here.get(name) != there.get(name):
            raise ValueError(
                f"{folder} holds a run with other settings ({name} is {there.get(name)!r} there, "
                f"{here.get(name)!r} here); {other}."
            )
    if not resume and (folder / "results.json").exists():
        raise ValueError(f"{folder} holds the results of this very run; {other}.")
    if not resume:
        raise ValueError(f"{folder} holds an unfinished run; add --resume to go on, or {other}.")


def _other(there: dict, here: dict) -> str:
    """What has changed in the data since a run was started."""
    if "data" not in there:
        return "it does not say on which"
    before, now = there["data"], here["data"]
    for old, new in zip(before["sets"], now["sets"]):
        for key in old:
            if old[key] != new.get(key):
                return f"{key} of the set {new['set']} is {old[key]!r} there, {new.get(key)!r} here"
    return f"{before['identifier']} there, {now['identifier']} here"


def _recorded(folder: Path) -> dict[str, Any]:
    """The settings of the run in a folder."""
    file = folder / "settings.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        if file.is_file():  # a pipe would be waited for
            found = json.loads(file.read_text(encoding="utf-8"))["settings"]
            if isinstance(found, dict):
                return found
    raise ValueError(f"{folder} exists and holds no run of jaxcl; choose another --name or --out.")


def check_free(folder: Path) -> None:
    """Raises ValueError while another process is at work in the folder."""
    if (folder / LOCK).exists() and processes.is_main():
        with hold(folder):
            pass


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Makes the folder, and keeps other processes out of it until this one leaves it or ends.

    Raises:
        ValueError: if another one holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    file = _lock(path) if fcntl else None
    try:
        yield
    finally:
        if file is not None:
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(file)


def _lock(path: Path) -> int:
    """The lock, as an open file; the system opens the lock of a process that ends."""
    assert fcntl
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = os.read(file, 200).decode(errors="replace").strip()
            os.close(file)
            raise ValueError(
                f"{path.parent} is in use: {who or 'another process'} is at work in it; wait for "
                f"its end, or choose another --name."
            ) from None
        except OSError:  # a file system without locks
            return file
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(file)):
                os.ftruncate(file, 0)
                os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                return file
        os.close(file)  # of a process that has just removed it: once more


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
