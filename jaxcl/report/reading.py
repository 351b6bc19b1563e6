"""Results from what `results.json` holds: each entry is checked, whoever wrote the file."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxcl.core.checks import nearest
from jaxcl.report.results import MethodResults, Results, Shown, shown_of

ROLES = ("method", "lower", "upper")


def read(path: str | Path) -> Results:
    """The results of a run, from its folder or its `results.json`.

    Raises:
        ValueError: if there is no such file, or it holds something else.
        OSError: if it cannot be read.

    >>> import tempfile
    >>> mine = {"accuracy": [[[0.9]]], "parameters": 10, "extra_bytes": 0}
    >>> mine |= {"seconds": 1.5, "compilations": 1}
    >>> study = {"benchmark": "digits", "tasks": 1, "seeds": [0], "methods": {"mine": mine}}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "results.json").write_text(json.dumps(study))
    ...     print(read(folder).methods["mine"].accuracy)
    [[[0.9]]]
    """
    path = Path(path)
    file = path / "results.json" if path.is_dir() else path
    if not file.is_file():  # a pipe would be waited for
        raise ValueError(f"{file} does not exist, so there are no results to read.")
    try:
        return from_json(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read as results: {error}") from None


def from_json(content: Any) -> Results:
    """Results from the objects and lists of `results.json`.

    Raises:
        ValueError: naming the entry, for one that is missing, of another kind or size, or outside
            of its range.
    """
    content = _object(content, "the whole")
    if "combinations" in content and "methods" not in content:
        raise ValueError("it holds a sweep, not a comparison.")
    tasks = _whole(content, "tasks", least=1)
    seeds = [_number_of(seed, f"seeds[{i}]", whole=True) for i, seed in _list(content, "seeds")]
    if not seeds:
        raise ValueError("seeds must hold at least one seed.")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must differ from one another, got {seeds}.")
    methods = _object(_entry(content, "methods"), "methods")
    if not methods:
        raise ValueError("results must hold at least one method.")
    chance = content.get("chance")
    return Results(
        _text(content, "benchmark"),
        tasks,
        seeds,
        dict(_object(content.get("settings", {}), "settings")),
        {str(name): _method(str(name), m, len(seeds), tasks) for name, m in methods.items()},
        None if chance is None else _number_of(chance, "chance", most=1),
    )


def _method(name: str, content: Any, seeds: int, tasks: int) -> MethodResults:
    _check_name(name, "methods")
    of = f"methods/{name}"
    content = _object(content, of)
    each, square = (seeds, tasks), (seeds, tasks, tasks)

    def array(key: str, values: Any, *shapes: tuple, most: float = np.inf) -> np.ndarray:
        wanted = f"{shapes[0]} for {seeds} seeds and {tasks} tasks"
        return numbers(f"{of}/{key}", values, shapes, wanted, most)

    given = dict(_object(content.get("measures") or {}, f"{of}/measures"))
    if content.get("capacity") is not None:
        given["capacity"] = content["capacity"]
    for key in given:
        _check_name(key, f"{of}/measures")
    return MethodResults(
        array("accuracy", _entry(content, "accuracy", of), square, most=1),
        {str(key): array(key, values, each, square) for key, values in given.items()},
        _whole(content, "parameters", of),
        _whole(content, "extra_bytes", of),
        _number_of(_entry(content, "seconds", of), f"{of}/seconds"),
        _whole(content, "compilations", of),
        _diverged(content.get("diverged"), f"{of}/diverged", seeds),
        _shown(content["shown"], f"{of}/shown") if "shown" in content else shown_of(name),
        _curves(content.get("curves") or {}, f"{of}/curves", seeds, tasks),
        _during(content.get("during"), f"{of}/during", seeds, tasks),
        _text(content, "inferred", of) if content.get("inferred") is not None else None,
    )


def _during(content: Any, name: str, seeds: int, tasks: int) -> np.ndarray | None:
    if content is None:
        return None
    first = content
    for _ in range(2):
        first = first[0] if isinstance(first, (list, np.ndarray)) and len(first) else []
    shape = (seeds, tasks, len(first) if isinstance(first, (list, np.ndarray)) else 0, tasks)
    return numbers(name, content, (shape,), f"{shape}: seeds, tasks, points and tasks", most=1)


def _check_name(name: Any, of: str) -> None:
    if not isinstance(name, str) or not name.isprintable() or len(name) > 200:
        raise ValueError(f"{of} must have names of a line of text, got {_brief(name)}.")


def _curves(content: Any, name: str, seeds: int, tasks: int) -> dict[str, np.ndarray]:
    found = {}
    for key, values in _object(content, name).items():
        _check_name(key, name)
        of, first = f"{name}/{key}", values
        for _ in range(2):
            first = first[0] if isinstance(first, (list, np.ndarray)) and len(first) else []
        shape = (seeds, tasks, len(first) if isinstance(first, (list, np.ndarray)) else 0)
        found[str(key)] = numbers(of, values, (shape,), f"{shape}: seeds, tasks and epochs")
    return found


def numbers(
    name: str, values: Any, shapes: tuple[tuple, ...], wanted: str, most: float = np.inf
) -> np.ndarray:
    """Nested lists as an array of float64, null as nan.

    Raises:
        ValueError: for another shape, what is no number, or a number outside of its range.
    """
    if not isinstance(values, np.ndarray):
        _check_leaves(values, name)
    try:
        found = np.asarray(values, np.float64)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"{name} must have shape {wanted}, but its lists differ.") from None
    if found.shape not in shapes:
        raise ValueError(f"{name} must have shape {wanted}, but has {found.shape}.")
    outside = np.isinf(found) | ((found < 0) | (found > most) if most < np.inf else False)
    if outside.any():
        limits = f" from 0 to {most:g}" if most < np.inf else ""
        raise ValueError(f"{name} must hold finite numbers{limits}, got {found[outside][0]:g}.")
    return found


def _check_leaves(values: Any, name: str) -> None:
    """Nothing but numbers, null and lists of them: numpy would read text as numbers too."""
    stack = [values]
    while stack:
        one = stack.pop()
        if isinstance(one, (list, tuple)):
            stack.extend(one)
        elif one is not None and (
            isinstance(one, bool) or not isinstance(one, (int, float, np.ndarray, np.number))
        ):
            raise ValueError(f"{name} must hold numbers, got {_brief(one)}.")


def _diverged(content: Any, name: str, seeds: int) -> list[tuple[int, int] | None]:
    if content is None:
        return [None] * seeds
    if not isinstance(content, (list, tuple)) or len(content) != seeds:
        raise ValueError(f"{name} must be a list of {seeds}, one for each seed.")
    found = []
    for i, at in enumerate(content):
        if not at:
            found.append(None)
            continue
        if not isinstance(at, (list, tuple)) or len(at) != 2:
            raise ValueError(f"{name}[{i}] must be a task and an epoch, got {_brief(at)}.")
        found.append(tuple(_number_of(n, f"{name}[{i}]", whole=True, least=1) for n in at))
    return found


def _shown(content: Any, name: str) -> Shown:
    content = _object(content, name)
    for key in content:
        if key not in Shown._fields:
            raise ValueError(f"{name} has no entry {key!r}{nearest(str(key), Shown._fields)}.")
    color, role = content.get("color"), content.get("role", "method")
    if color is not None and not re.fullmatch(r"#[0-9a-fA-F]{6}", str(color)):
        raise ValueError(f"{name}/color must be of the form #rrggbb, got {_brief(color)}.")
    if role not in ROLES:
        raise ValueError(f"{name}/role must be one of {', '.join(ROLES)}, got {_brief(role)}.")
    divides = content.get("divides", False)
    if not isinstance(divides, bool):
        raise ValueError(f"{name}/divides must be true or false, got {_brief(divides)}.")
    return Shown(_text(content, "label", name), _text(content, "words", name), color, role, divides)


def _entry(content: Mapping, key: str, of: str = "") -> Any:
    if key not in content:
        raise ValueError(f"{_path(of, key)} is missing{nearest(key, map(str, content))}.")
    return content[key]


def _object(content: Any, name: str) -> Mapping:
    if not isinstance(content, Mapping):
        raise ValueError(f"{name} must be an object of names and values, got {_brief(content)}.")
    return content


def _list(content: Mapping, key: str, of: str = "") -> Any:
    values = _entry(content, key, of)
    if not isinstance(values, (list, tuple)):
        raise ValueError(f"{_path(of, key)} must be a list, got {_brief(values)}.")
    return enumerate(values)


def _text(content: Mapping, key: str, of: str = "") -> str:
    value = _entry(content, key, of)
    if not isinstance(value, str) or not value.isprintable():  # so that it can be written, too
        raise ValueError(f"{_path(of, key)} must be a line of text, got {_brief(value)}.")
    return value


def _whole(content: Mapping, key: str, of: str = "", least: int = 0) -> int:
    return _number_of(_entry(content, key, of), _path(of, key), whole=True, least=least)


def _number_of(
    value: Any, name: str, *, whole: bool = False, least: float = 0, most: float = 1e18
) -> Any:
    kinds = (int, np.integer) if whole else (int, float, np.number)
    good = isinstance(value, kinds) and not isinstance(value, bool)
    if not good or not least <= value <= most:
        kind = "a whole number" if whole else "a number"
        raise ValueError(f"{name} must be {kind} from {least:g} to {most:g}, got {_brief(value)}.")
    as_kind: Callable = int if whole else float
    return as_kind(value)


def _path(of: str, key: str) -> str:
    return f"{of}/{key}" if of else key


def _brief(value: Any) -> str:
    """A value for an error message, on one line and not too long."""
    said = repr(value) if isinstance(value, (str, int, float, bool)) else type(value).__name__
    said = said.encode("ascii", "backslashreplace").decode()
    return said if len(said) <= 60 else f"{said[:57]}..."
