"""`jaxcl compare --tune`: a search for every method, then a comparison of what they chose."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from jaxcl.cli import compare, processes
from jaxcl.cli.folder import check_free, origin_of
from jaxcl.cli.options import TUNED, Compare, Tune
from jaxcl.cli.running import Place, Refused, about, begin, follow, take
from jaxcl.cli.session import folder_of, load, notes, settings_of, sizes_that_exist
from jaxcl.cli.sweep import check_values
from jaxcl.cli.terminal import bars, consoles, introduce, show
from jaxcl.cli.tuning import seeds_of
from jaxcl.data.benchmark import Benchmark
from jaxcl.report import searches
from jaxcl.report.results import plain
from jaxcl.report.searches import Search
from jaxcl.report.text import counted, escaped, listed, write_whole
from jaxcl.study import grids, recipes
from jaxcl.study.comparison import MethodRun
from jaxcl.study.grids import Range
from jaxcl.study.recipes import Choice
from jaxcl.study.replicas import Device

FOLDER = "search"


class Searching(NamedTuple):
    """One method's search.

    Attributes:
        choice: the method with the options that are not searched.
        place: where it goes.
        settings: what is tried.
        run: all replicas, as far as they are.
        overridden: what is otherwise than when it began, and allowed to be.
    """

    choice: Choice
    place: Place
    settings: list[dict[str, float]]
    run: MethodRun
    overridden: list[str]


def prepare(
    command: Compare, devices: Sequence[Device], cache: str, held: ExitStack
) -> Callable[[Callable[[], bool]], None]:
    """Checks everything that can go wrong; writes no more than the settings of the searches.

    Args:
        command: what is asked for.
        devices: the devices to run on.
        cache: what to say of the cache of compiled programs.
        held: keeps the folders until it is closed.

    Returns:
        A function that does the work, until it is told to stop.

    Raises:
        ValueError: for bad input, or a folder that holds another run.
    """
    run, tune = command.run, command.tune
    assert tune is not None
    folder = folder_of(run, usual=run.benchmark)
    with processes.agreement():
        _check_seeds(command, tune)
        check_free(folder)
        benchmark = load(run, command.training)
        _check_folder(folder, tune)
        todo = {}
        for choice in command.choices:
            begin(Place(folder, {}, origin_of(benchmark, devices), run), choice, benchmark,
                  run.numbers, devices)  # fmt: skip
            if tune.grids[choice.spec.name]:
                todo[choice.spec.name] = _searching(command, choice, benchmark, devices, folder)
    for name, one in todo.items():
        taken = take(one.place, command, {name: one.run}, one.overridden, held)
        todo[name] = one._replace(run=taken[name])
    said = [cache, *notes(benchmark, command.training)]
    said += [line for one in todo.values() for line in about(one.run)]
    return partial(_work, command, todo, folder, devices, held, said)


def _check_seeds(command: Compare, tune: Tune) -> None:
    shared = {*seeds_of(tune)} & {*command.run.numbers}
    if shared:
        raise ValueError(
            f"--seeds holds {min(shared)}, with which --tune searches; a comparison needs others."
        )


def _check_folder(folder: Path, tune: Tune) -> None:
    """Raises ValueError if there is a run that no search, or an unfinished one, precedes."""
    names = [name for name, grid in tune.grids.items() if grid]
    done = [(folder / FOLDER / name / "results.json").exists() for name in names]
    if (folder / "settings.json").exists() and not any(done):
        raise ValueError(
            f"{folder} holds a run whose settings were not searched; choose another --name, or "
            f"delete that folder."
        )
    known = {FOLDER, ".lock"}
    if folder.is_dir() and not any(done) and {path.name for path in folder.iterdir()} - known:
        raise ValueError(
            f"{folder} exists and holds no run of jaxcl; choose another --name or --out."
        )


def _searching(
    command: Compare, choice: Choice, benchmark: Benchmark, devices, folder: Path
) -> Searching:
    """One method's search before it begins."""
    tune, name = command.tune, choice.spec.name
    assert tune is not None
    grid = tune.grids[name]
    tried = grids.settings(grid, tune.samples)
    numbers, columns = searches.replicas_of(tried, seeds_of(tune))
    settings = settings_of(command.run, benchmark, choice.shared, method=name)
    settings |= {**vars(choice.own), "seeds": seeds_of(tune), "samples": tune.samples}
    settings |= {"search": {k: str(v) if isinstance(v, Range) else v for k, v in grid.items()}}
    place = Place(folder / FOLDER / name, settings, origin_of(benchmark, devices), command.run)
    overridden = place.claim()
    with sizes_that_exist():
        check_values(choice, benchmark, grid)
    one = begin(place, choice, benchmark, numbers, devices, columns)
    return Searching(choice, place, tried, one, overridden)


def _work(
    command: Compare,
    todo: Mapping[str, Searching],
    folder: Path,
    devices: Sequence[Device],
    held: ExitStack,
    said: Sequence[str],
    stop: Callable[[], bool],
) -> None:
    """Searches what is not searched yet, and compares what was chosen."""
    _, err = consoles()
    tune = command.tune
    assert tune is not None
    if todo:
        first = next(iter(todo.values()))
        introduce(err, first.place.settings, first.run.studies[0].layout)
    for line in filter(None, said):
        err.print(line, soft_wrap=True)
    found = {
        name: _searched(todo[name], tune.grids[name], command, err, stop) if name in todo else None
        for name in (choice.spec.name for choice in command.choices)
    }
    if processes.is_main():
        _write(found, tune, command, folder)
    hopeless = [name for name, one in found.items() if one and one.best is None]
    if hopeless:
        raise FloatingPointError(
            f"no setting of {listed(hopeless)} has a finite result; search smaller step sizes."
        )
    try:
        work = compare.prepare(_chosen(command, found), devices, "", held)
    except ValueError as error:
        raise Refused(str(error)) from error
    work(stop)


def _searched(
    one: Searching, grid: Mapping[str, Any], command: Compare, err: Console, stop
) -> Search:
    """One method's search, trained to its end."""
    record, name = one.run.record, one.choice.spec.name
    with bars(err) as progress:
        what = f"{name}, {counted(len(one.settings), 'setting')}"
        row = progress.add_task(what, start=False, total=1, status="")
        moved, tell = partial(show, progress, row), partial(err.print, soft_wrap=True)
        for _, known in follow(one.run, command.run, stop, moved, tell, "val"):
            record = known
    found = searches.found(record, grid, one.settings)
    err.print(f"{name}: {searches.sentence(found)}", soft_wrap=True)
    if processes.is_main():
        content = {"settings": one.place.settings, **searches.to_json(found)}
        content |= {"overridden": one.overridden} if one.overridden else {}
        content |= {"seconds": round(float(record.seconds), 2)}
        path = one.place.folder / "results.json"
        write_whole(path, json.dumps(plain(content), indent=1) + "\n")
    return found


def _write(found: Mapping[str, Search | None], tune: Tune, command: Compare, folder: Path) -> None:
    """Writes what was tried and chosen, of all methods."""
    content = {
        "benchmark": command.run.benchmark,
        "seeds": seeds_of(tune),
        "samples": tune.samples,
        "methods": {name: one and searches.to_json(one) for name, one in found.items()},
    }
    seeds = seeds_of(tune)
    page = [
        f"# {escaped(command.run.benchmark)}: the search",
        f"Each method's settings by mean accuracy at the end on the validation sets, over the "
        f"{counted(len(seeds), 'seed')} {seeds[0]} to {seeds[-1]}. The test sets took no part; "
        f"the comparison has other seeds.",
        searches.summary(plain(content)),
    ]
    for name, one in found.items():
        if one is not None:
            header, *lines = searches.cells(one)
            page += [f"## {escaped(name)}", searches.markdown(header, lines, left=0)]
    write_whole(folder / "search.json", json.dumps(plain(content), indent=1) + "\n")
    write_whole(folder / "search.md", "\n\n".join(page) + "\n")


def _chosen(command: Compare, found: Mapping[str, Search | None]) -> Compare:
    """The comparison of the methods with the settings that were chosen."""
    choices = []
    for choice in command.choices:
        one = found[choice.spec.name]
        choices.append(recipes.with_settings(choice, one.winner) if one else choice)
    return dataclasses.replace(command, choices=tuple(choices), tune=None, preset=TUNED)
