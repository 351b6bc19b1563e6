"""`jaxcl sweep`: one method with many settings and seeds, in one program."""

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from jaxcl import study
from jaxcl.cli import gridwords, processes, winner
from jaxcl.cli.folder import check_free, origin_of
from jaxcl.cli.options import Sweep
from jaxcl.cli.running import Place, about, begin, follow, take
from jaxcl.cli.session import folder_of, load, notes, settings_of, sizes_that_exist
from jaxcl.cli.streams import standard_output
from jaxcl.cli.terminal import bars, conclude, consoles, introduce, show
from jaxcl.report import figures, searches
from jaxcl.report.results import plain
from jaxcl.report.runs import seeds_of
from jaxcl.report.search_figures import figure
from jaxcl.report.searches import Search
from jaxcl.report.text import counted, escaped, markdown, write_whole
from jaxcl.study import comparison, grids, recipes, replicas
from jaxcl.study.comparison import MethodRun, Record
from jaxcl.study.grids import Range
from jaxcl.study.recipes import Choice
from jaxcl.study.replicas import Device


class Plan(NamedTuple):
    """A sweep that is ready to begin.

    Attributes:
        command: what is asked for.
        place: where it goes.
        run: the method with all its replicas.
        settings: what is tried.
    """

    command: Sweep
    place: Place
    run: MethodRun
    settings: list[dict[str, float]]


def prepare(
    command: Sweep, devices: Sequence[Device], cache: str, held: ExitStack
) -> Callable[[Callable[[], bool]], None]:
    """Checks everything that can go wrong; writes no more than the settings.

    Args:
        command: what is asked for.
        devices: the devices to run on.
        cache: what to say of the cache of compiled programs.
        held: keeps the folder until it is closed.

    Returns:
        A function that does the work, until it is told to stop.

    Raises:
        ValueError: for bad input, or a folder that holds another run.
    """
    run, choice, name = command.run, command.choice, command.choice.spec.name
    folder = folder_of(run, usual=f"sweep_{name}_{run.benchmark}")
    tried = grids.settings(command.swept, command.samples)
    seeds, columns = searches.replicas_of(tried, run.numbers)
    with processes.agreement():
        check_free(folder)
        benchmark = load(run, choice.shared)
        settings = settings_of(run, benchmark, choice.shared, method=name)
        settings |= {**vars(choice.own), **_listed(command)}
        place = Place(folder, settings, origin_of(benchmark, devices), run)
        overridden = place.claim()
        with sizes_that_exist():
            check_values(choice, benchmark, command.swept)
        one = begin(place, choice, benchmark, seeds, devices, columns)
    one = take(place, command, {name: one}, overridden, held, finished=True)[name]
    if overridden:
        place.settings["overridden"] = overridden
    said = [cache, *notes(benchmark, choice.shared), *about(one)]
    return partial(_work, Plan(command, place, one, tried), said)


def _listed(command: Sweep) -> dict[str, Any]:
    """The values of each option, as the settings say them."""
    values = {k: str(v) if isinstance(v, Range) else v for k, v in command.values.items()}
    return values if command.samples is None else {**values, "samples": command.samples}


def check_values(choice: Choice, benchmark, swept) -> None:
    """Starts a learner with each value by itself, as a number, which can be checked."""
    make = recipes.recipe(choice, benchmark)
    for name, values in swept.items():
        for value in gridwords.ends(values):
            setting: dict[str, Any] = {name: value}
            comparison.shapes(make(setting), benchmark)


def _work(plan: Plan, said: Sequence[str], stop: Callable[[], bool]) -> None:
    """Trains all replicas, shows the table and writes the results."""
    out, err = consoles()
    command, settings, one = plan.command, plan.place.settings, plan.run
    introduce(err, settings, one.studies[0].layout)
    for line in filter(None, said):
        err.print(line, soft_wrap=True)
    record = one.record
    tell = partial(err.print, soft_wrap=True, highlight=False)
    with bars(err) as progress:
        what = f"{len(plan.settings)} x {settings['method']}"
        row = progress.add_task(what, total=1, status="")
        moved = partial(show, progress, row)
        for _, known in follow(one, command.run, stop, moved, tell, "val"):
            record = known
    found = searches.found(record, command.swept, plan.settings)
    tests = _tests(one, record)  # only now does anything look at the test sets
    rows = winner.rows(found, len(seeds_of(settings)))
    if found.best is not None:
        found = found._replace(test=tests[rows].mean(axis=1))
        winner.save(plan.place, command, found, record, tests[rows])
    if not processes.is_main():
        return
    again = winner.command(command, found)
    title = f"{one.choice.spec.label} on {settings['benchmark']}"
    paths = _write(found, plan, title, record, again)
    count, seconds = int(record.compilations), float(record.seconds)
    times = "once" if count == 1 else f"{count} times"
    with standard_output():
        out.print(_table(found, title, len(seeds_of(settings))))
        out.print(searches.sentence(found))
        out.print(
            f"{counted(found.validation.size, 'run')} in {seconds:.1f} s; the training was "
            f"compiled {times}."
        )
        if again:
            out.print(f"With seeds that it has not seen: {again}", soft_wrap=True)
        conclude(out, plan.place.folder, [plan.place.folder / "settings.json", *paths])
    if not np.isfinite(found.validation).any():
        raise FloatingPointError("no setting has a finite result; choose smaller step sizes.")


def _tests(one: MethodRun, record: Record) -> np.ndarray:
    """Accuracy on the test set of each task at the end, [replicas, tasks]."""
    last = one.studies[-1]
    held_out = study.stack([task.test for task in last.benchmark.tasks])
    held_out = replicas.replicate(held_out, last.layout)
    fixed = (replicas.place(last.settings, last.layout),)
    tasks = jnp.int32(len(last.benchmark.tasks))
    metrics, *_ = last.programs["evaluate"](record.learners, fixed, held_out, tasks)
    return np.asarray(replicas.fetch(metrics.accuracy, last.layout), float)


def _write(found: Search, plan: Plan, title: str, record: Record, again: str) -> list[Path]:
    """Writes the numbers, the table and the picture."""
    folder = plan.place.folder
    results = {
        "settings": plan.place.settings,
        **searches.to_json(found),
        "command": again,
        "seconds": round(float(record.seconds), 2),
        "compilations": int(record.compilations),
    }
    header, *lines = searches.cells(found)
    parts = [f"# {escaped(title)}", escaped(searches.sentence(found))]
    parts += [markdown(header, lines, left=0)]
    if again:
        parts += [f"With seeds that it has not seen:\n\n```sh\n{again}\n```"]
    plots = figures.save(figure(found), folder, "heatmap")
    paths = [write_whole(folder / "table.md", "\n\n".join(parts) + "\n")]
    # Last: it says that all is there.
    paths += [write_whole(folder / "results.json", json.dumps(plain(results), indent=1) + "\n")]
    return [*reversed(paths), *plots]


def _table(found: Search, title: str, seeds: int) -> Table:
    header, *lines = searches.cells(found)
    note = f"Validation sets, after the last task: mean and 95% interval, {counted(seeds, 'seed')}."
    note += "" if found.best is None else " * is the best."
    table = Table(title=Text(title), caption=Text(note), box=SIMPLE_HEAD)
    for name in header:
        table.add_column(name.replace("_", " "), justify="right")
    for i, line in enumerate(lines):
        table.add_row(*line, style="bold" if i == found.best else None)
    return table
