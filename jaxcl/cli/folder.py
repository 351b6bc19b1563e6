"""The folder of a run: whose it is, and the settings from which the run can be repeated."""

import contextlib
import json
import os
import platform
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxcl.cli import processes
from jaxcl.cli.options import command_line
from jaxcl.data.benchmark import Benchmark, fingerprint
from jaxcl.report import presets
from jaxcl.report.text import listed, write_whole
from jaxcl.study import checkpoint
from jaxcl.study.replicas import Device

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps two processes apart
    fcntl = None

LOCK = ".lock"
OTHER = "choose another --name, or delete that folder"


class Origin(NamedTuple):
    """What decides on the numbers of a run, beside its settings.

    Attributes:
        data: checksum of the benchmark.
        versions: of jaxcl, JAX and Python.
        devices: their kinds.
    """

    data: str
    versions: Mapping[str, str]
    devices: Sequence[str]


def origin_of(benchmark: Benchmark, devices: Sequence[Device]) -> Origin:
    """That of a run that begins here and now."""
    versions = {**checkpoint.versions(), "python": platform.python_version()}
    return Origin(fingerprint(benchmark), versions, [str(device.device_kind) for device in devices])


def claim(
    folder: Path,
    settings: dict,
    origin: Origin,
    *,
    resume: bool,
    override: bool = False,
    beside: Sequence[str] = (),
) -> list[str]:
    """Checks that the folder is this run's to write in; `beside` may be there before it.

    Returns:
        What is otherwise than when the run began and may round otherwise, if `override` allows it.

    Raises:
        ValueError: if it is not.
    """
    if folder.is_dir() and not {path.name for path in folder.iterdir()} - {LOCK, *beside}:
        return []
    if not os.path.lexists(folder):
        return []
    content, other = recorded(folder), OTHER
    there, here = content["settings"], plainly(settings)
    if "options" in here.keys() - there.keys() or "data" not in content:
        raise ValueError(
            f"{folder} holds a run of an earlier version of jaxcl, which this one cannot go on "
            f"with; {other}."
        )
    # What the inputs are follows from the data, which are named first.
    for name in sorted({**here, **there}, key=lambda name: name == "inputs"):
        if name == presets.KEY:  # which says where options come from that are compared themselves
            continue
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
    finished = (folder / "results.json").exists()
    return check_origin(folder, content, settings, origin, override or finished)


def check_origin(
    folder: Path, content: Mapping[str, Any], settings: Mapping, origin: Origin, override: bool
) -> list[str]:
    """Checks that what is done here gives the numbers of the run in a folder.

    Returns:
        What is otherwise than when the run began and may round otherwise, if `override` allows it.

    Raises:
        ValueError: if it does not.
    """
    if content["data"] != origin.data:
        raise ValueError(
            f"{folder} holds a run on other data: the arrays of {settings['benchmark']} have "
            f"another checksum than when it began; restore the data, or {OTHER}."
        )
    changed = _changed(content, origin)
    if changed and not override:
        raise ValueError(
            f"{folder} holds a run that began otherwise ({listed(changed)}), which may round "
            f"otherwise; go on in the same way, or add --override, which the results will say."
        )
    said = content.get("overridden")
    return [*(said if isinstance(said, list) else []), *changed]


def plainly(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a file has them."""
    return json.loads(json.dumps(settings))


def _changed(content: Mapping[str, Any], origin: Origin) -> list[str]:
    """What is otherwise than when a run began, in words."""
    before = content.get("versions")
    before = before if isinstance(before, dict) else {}
    changed = [
        f"{name} was {before.get(name)}, is {origin.versions[name]}"
        for name in checkpoint.versions()
        if before.get(name) != origin.versions[name]
    ]
    kinds = [sorted({*map(str, found or ())}) for found in (content.get("devices"), origin.devices)]
    if kinds[0] != kinds[1]:
        was, now = (", ".join(kind) or "unknown" for kind in kinds)
        changed.append(f"the device was {was}, is {now}")
    return changed


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


def recorded(folder: Path) -> dict[str, Any]:
    """What `settings.json` says of the run in a folder."""
    file = folder / "settings.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        if file.is_file():  # a pipe would be waited for
            found = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(found["settings"], dict):
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


def write_settings(
    folder: Path, settings: dict, origin: Origin, command: Any, overridden: Sequence[str]
) -> None:
    """Writes `settings.json`, from which the run can be repeated."""
    more = {"overridden": list(overridden)} if overridden else {}
    record_settings(folder, settings, origin, command_line(command), **more)


def record_settings(
    folder: Path, settings: dict, origin: Origin, command: str, **more: Any
) -> None:
    """Writes `settings.json` with a command in words."""
    content = {"command": command, "settings": settings, **origin._asdict(), **more}
    write_whole(folder / "settings.json", json.dumps(content, indent=1) + "\n")
