"""Several results as one: runs that grew apart, and runs that are compared."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxcl.report.results import MethodResults, Results
from jaxcl.report.runs import seeds_as
from jaxcl.report.text import listed

APART = ("seeds", "methods", "options")  # settings that may differ between parts of one study


def merge(parts: Mapping[str, Results]) -> Results:
    """Parts of one study, with other seeds or other methods, as one.

    Args:
        parts: results by what they are called in errors, such as their folders.

    Returns:
        All methods with all seeds. What two parts hold alike is taken once.

    Raises:
        ValueError: if there are less than two parts, if they were made with other settings, hold
            different numbers of the same seed and method, or leave gaps.
    """
    if len(parts) < 2:
        raise ValueError("there is nothing to merge; give two runs or more.")
    _check_alike(parts, [*_settings(parts)])
    options = _options(parts)
    _, first = next(iter(parts.items()))
    seeds = sorted({seed for part in parts.values() for seed in part.seeds})
    names = list(dict.fromkeys(name for part in parts.values() for name in part.methods))
    methods = {name: _method(name, parts, seeds) for name in names}
    whole = {"seeds": seeds_as(seeds), "methods": names, "options": options}
    settings = {k: whole.get(k, v) for k, v in first.settings.items()}
    return first._replace(seeds=seeds, settings=settings, methods=methods)


def side_by_side(runs: Mapping[str, Results]) -> Results:
    """Runs side by side, over the seeds that all of them have.

    Args:
        runs: results by the runs' names.

    Returns:
        The methods of all runs. One that several runs have is called by its name and the run's.

    Raises:
        ValueError: if their benchmarks, tasks or scenarios differ, or they share no seed.
    """
    _check_alike(runs, ["scenario"])
    shared = set.intersection(*(set(run.seeds) for run in runs.values()))
    first = next(iter(runs.values()))
    if not shared:
        raise ValueError(f"the runs {_names(runs)} have no seed in common.")
    seeds = [seed for seed in first.seeds if seed in shared]
    every = [name for run in runs.values() for name in run.methods]
    methods: dict[str, MethodResults] = {}
    for called, run in runs.items():
        rows = [run.seeds.index(seed) for seed in seeds]
        for name, method in run.methods.items():
            chosen, label = _rows(method, rows), method.shown.label
            if every.count(name) > 1:
                words = {
                    "label": f"{label} ({called})",
                    "words": f"{method.shown.words} ({called})",
                }
                chosen = chosen._replace(shown=method.shown._replace(**words, color=None))
                name = f"{name} ({called})"
            methods[name] = chosen
    return first._replace(seeds=seeds, methods=methods, settings={})


def _settings(parts: Mapping[str, Results]) -> list[str]:
    every = dict.fromkeys(name for part in parts.values() for name in part.settings)
    return [name for name in every if name not in APART]


def _check_alike(parts: Mapping[str, Results], names: Sequence[str]) -> None:
    (one, first), *others = parts.items()
    for other, part in others:
        for name, here, there in [
            ("benchmark", first.benchmark, part.benchmark),
            ("tasks", first.tasks, part.tasks),
            *((name, first.settings.get(name), part.settings.get(name)) for name in names),
        ]:
            if here != there:
                raise ValueError(
                    f"{one} and {other} do not fit together: {name} is {here!r} in the one and "
                    f"{there!r} in the other."
                )


def _options(parts: Mapping[str, Results]) -> dict[str, Any]:
    """The options of every method, which must not differ."""
    found: dict[str, tuple[str, Any]] = {}
    for called, part in parts.items():
        for method, options in part.settings.get("options", {}).items():
            other, known = found.setdefault(method, (called, options))
            if known != options:
                raise ValueError(
                    f"{other} and {called} do not fit together: the options of {method} are "
                    f"{known} in the one and {options} in the other."
                )
    return {method: options for method, (_, options) in found.items()}


def _method(name: str, parts: Mapping[str, Results], seeds: Sequence[int]) -> MethodResults:
    """One method, of all parts that have it."""
    holding = {called: part for called, part in parts.items() if name in part.methods}
    place: dict[int, tuple[str, MethodResults]] = {}
    for called, part in holding.items():
        for i, seed in enumerate(part.seeds):
            row = _rows(part.methods[name], [i])
            other, known = place.setdefault(seed, (called, row))
            if not np.array_equal(known.accuracy, row.accuracy, equal_nan=True):
                raise ValueError(
                    f"{other} and {called} hold different numbers for seed {seed} of {name}, so "
                    f"they are no parts of one study."
                )
    missing = [seed for seed in seeds if seed not in place]
    if missing:
        raise ValueError(
            f"{name} has no seed {listed([str(seed) for seed in missing[:5]])}, which other "
            f"methods have; every method needs the same seeds."
        )
    rows = [place[seed][1] for seed in seeds]
    used = {place[seed][0] for seed in seeds}
    kept = [holding[called].methods[name] for called in holding if called in used]
    return rows[0]._replace(
        accuracy=np.concatenate([row.accuracy for row in rows]),
        measures=_joined([row.measures for row in rows]),
        curves=_joined([row.curves for row in rows]),
        during=_stacked([row.during for row in rows]),
        parameters=max(row.parameters for row in rows),
        extra_bytes=max(row.extra_bytes for row in rows),
        seconds=round(sum(method.seconds for method in kept), 2),
        compilations=sum(method.compilations for method in kept),
        diverged=[row.diverged[0] for row in rows],
    )


def _joined(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays that all rows have, row below row."""
    shared = set.intersection(*(set(row) for row in rows))
    return {key: np.concatenate([row[key] for row in rows]) for key in rows[0] if key in shared}


def _stacked(rows: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """All rows as one array; None if one was not measured."""
    known = [row for row in rows if row is not None]
    return np.concatenate(known) if len(known) == len(rows) else None


def _rows(method: MethodResults, rows: Sequence[int]) -> MethodResults:
    """Some of the seeds."""
    return method._replace(
        accuracy=method.accuracy[rows],
        measures={name: values[rows] for name, values in method.measures.items()},
        curves={name: values[rows] for name, values in method.curves.items()},
        during=None if method.during is None else method.during[rows],
        diverged=[method.diverged[row] for row in rows],
    )


def _names(runs: Mapping[str, Results]) -> str:
    return listed(list(runs))
