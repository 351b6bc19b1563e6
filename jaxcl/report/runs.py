"""The folder of a run, read back: what it was, how far it is, what came out."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxcl.core.checks import check_count, nearest
from jaxcl.report import presets
from jaxcl.report.inferred import Inferred, read_inferred
from jaxcl.report.reading import read
from jaxcl.report.results import Results
from jaxcl.study import checkpoint

SCENARIOS = ("task", "domain", "class")


class Run(NamedTuple):
    """A run of `compare`, finished or not.

    Attributes:
        name: of its folder.
        command: the words that began it.
        settings: all that decides on its results.
        versions: of jaxcl, jax and Python.
        devices: what it ran on.
        results: None while it is not finished.
        done: for each method, the number of tasks that have a checkpoint.
        inferred: what `jaxcl infer` has measured of the networks that are there.
        outdated: it has measured those of fewer seeds or tasks, which `inferred` leaves out.
        folder: where it is.
    """

    name: str
    command: str
    settings: dict[str, Any]
    versions: dict[str, Any]
    devices: list[str]
    results: Results | None
    done: dict[str, int]
    inferred: list[Inferred]
    outdated: bool
    folder: Path


def open_run(folder: str | Path) -> Run:
    """A run from its folder, whether it is finished or not.

    Raises:
        ValueError: if the folder holds no run of `compare`, or a file in it is damaged.
    """
    folder = Path(folder)
    about = record(folder)
    settings = about["settings"]
    if "methods" not in settings:
        raise ValueError(f"{folder} holds a sweep; only comparisons can be read.")
    results = read(folder) if (folder / "results.json").exists() else None
    done = {name: _done(folder / "checkpoints" / name) for name in _names(settings)}
    measured = read_inferred(folder)
    current = [one for one in measured if one.of == _extent(settings, results, done, one.method)]
    return Run(
        folder.resolve().name,
        str(about.get("command", "")),
        settings,
        about["versions"] if isinstance(about.get("versions"), dict) else {},
        [str(device) for device in about.get("devices") or []],
        results,
        done,
        current,
        len(current) < len(measured),
        folder,
    )


def _extent(
    settings: Mapping[str, Any], results: Results | None, done: Mapping[str, int], method: str
) -> tuple[int, int]:
    """The numbers of seeds and of tasks that a method has networks of."""
    if results:
        return len(results.seeds), results.tasks
    return len(seeds_of(settings)), done.get(method, 0)


def _names(settings: Mapping[str, Any]) -> list[str]:
    """The methods as their checkpoints are called; one may have been asked for as MODULE:SPEC."""
    options = settings.get("options")
    return list(map(str, options if isinstance(options, dict) and options else settings["methods"]))


def open_parts(folder: str | Path) -> dict[str, Run]:
    """The runs by scenario of a comparison in several scenarios, which has a folder for each.

    Returns:
        Nothing, if the folder is that of a run itself, or of none.

    Raises:
        ValueError: if a part cannot be read.
    """
    folder = Path(folder)
    if (folder / "settings.json").exists():
        return {}
    return {name: open_run(folder / name) for name in _parts(folder)}


def _parts(folder: Path) -> list[str]:
    return [name for name in SCENARIOS if (folder / name / "settings.json").is_file()]


def record(folder: Path) -> dict[str, Any]:
    """What `settings.json` of a run holds.

    Raises:
        ValueError: if there is none, or it is not one of jaxcl's.
    """
    file = folder / "settings.json"
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}{_near(folder)}.")
    if not file.is_file():
        if parts := [str(folder / name) for name in _parts(folder)]:
            raise ValueError(
                f"{folder} holds a comparison in scenarios, each a run: give {' or '.join(parts)}."
            )
        raise ValueError(f"{folder} holds no run of jaxcl: there is no settings.json.")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
    settings = found.get("settings") if isinstance(found, dict) else None
    if not isinstance(settings, dict) or not isinstance(settings.get("methods", []), list):
        raise ValueError(f"{file} holds no settings of a run of jaxcl.")
    return found


def seeds_of(settings: Mapping[str, Any]) -> list[int]:
    """The seeds of a run, of whose settings `seeds` is their number, or a list of them.

    >>> seeds_of({"seeds": 3}), seeds_of({"seeds": [5, 7]})
    ([0, 1, 2], [5, 7])

    Raises:
        ValueError: for what is neither.
    """
    said = settings.get("seeds")
    if isinstance(said, list):
        whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in said)
        if not said or not whole or len(set(said)) < len(said):
            raise ValueError(f"seeds must be different whole numbers, got {said!r}.")
        return said
    check_count("seeds", said, 1 << 20)
    return list(range(int(said or 0)))


def seeds_as(numbers: Sequence[int]) -> int | list[int]:
    """What the settings of a run say of its seeds: their number, where they begin with 0.

    >>> seeds_as([0, 1, 2]), seeds_as([5, 7])
    (3, [5, 7])
    """
    numbers = [int(number) for number in numbers]
    return len(numbers) if numbers == list(range(len(numbers))) else numbers


def digest(settings: Mapping[str, Any]) -> str:
    """A digest of settings, which every checkpoint of the command holds."""
    settings = {name: value for name, value in settings.items() if name != presets.KEY}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _done(folder: Path) -> int:
    """Tasks that are done; a checkpoint of a longer name is on the way to the end of one."""
    found = filter(None, (checkpoint.order(path.name) for path in folder.glob("task_*")))
    return max((number - (more[0] != math.inf) for number, *more in found), default=0)


def _near(folder: Path) -> str:
    """The folders beside one that does not exist whose names resemble it."""
    parent = folder.parent
    names = [path.name for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []
    return nearest(folder.name, names)
