"""`jaxcl sweep`: one method with every combination of settings and seeds, in one program."""

import itertools
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from jaxcl import study
from jaxcl.cli import processes
from jaxcl.cli.folder import check_free, origin_of
from jaxcl.cli.options import Run, Sweep
from jaxcl.cli.running import Place, about, begin, follow, take
from jaxcl.cli.session import folder_of, load, notes, settings_of, sizes_that_exist
from jaxcl.cli.streams import standard_output
from jaxcl.cli.terminal import bars, conclude, consoles, introduce, show
from jaxcl.report import figures, metrics
from jaxcl.report.results import plain
from jaxcl.report.text import counted, escaped, listed, markdown, plus_minus, write_whole
from jaxcl.study import comparison, recipes, replicas
from jaxcl.study.comparison import MethodRun, Record
from jaxcl.study.programs import Study
from jaxcl.study.recipes import Choice
from jaxcl.study.replicas import Device


class Outcome(NamedTuple):
    """What a sweep found.

    Attributes:
        swept: the values of each setting that has several.
        combinations: the values of those settings, row by row.
        validation: accuracy at the end on the validation sets, [combinations, seeds]; nan for a
            seed that diverged.
        forgetting: likewise.
        capacity: share of the network that is used at the end, [combinations, seeds], or None.
        best: the row with the highest mean of `validation` among those with no diverged seed; None
            if there is none.
        test: the best row's accuracy on the test sets, [seeds].
    """

    swept: dict[str, tuple[float, ...]]
    combinations: list[tuple[float, ...]]
    validation: np.ndarray
    forgetting: np.ndarray
    capacity: np.ndarray | None
    best: int | None
    test: np.ndarray


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
    run, choice, swept = command.run, command.choice, command.swept
    name = choice.spec.name
    folder = folder_of(run, usual=f"sweep_{name}_{run.benchmark}")
    combinations = list(itertools.product(*swept.values()))
    columns = np.repeat(np.array(combinations), run.seeds, axis=0).T
    seeds = list(range(run.seeds)) * len(combinations)
    with processes.agreement():
        check_free(folder)
        benchmark = load(run, choice.shared)
        settings = settings_of(run, benchmark, choice.shared, method=name)
        settings |= {**vars(choice.own), **command.values}
        place = Place(folder, settings, origin_of(benchmark, devices), run)
        overridden = place.claim()
        with sizes_that_exist():
            _check_combinations(choice, benchmark, swept)
        one = begin(place, choice, benchmark, seeds, devices, dict(zip(swept, columns)))
    one = take(place, command, {name: one}, overridden, held, finished=True)[name]
    if overridden:
        settings["overridden"] = overridden
    said = [cache, *notes(benchmark, choice.shared), *about(one)]
    return partial(_work, one, swept, combinations, settings, run, folder, said)


def _check_combinations(choice: Choice, benchmark, swept) -> None:
    """Starts a learner with each value by itself, as a number, which can be checked."""
    make = recipes.recipe(choice, benchmark)
    for name, values in swept.items():
        for value in values:
            comparison.shapes(make({name: value}), benchmark)


def _work(
    one: MethodRun,
    swept: dict,
    combinations: list,
    settings: dict,
    options: Run,
    folder: Path,
    said: Sequence[str],
    stop: Callable[[], bool],
) -> None:
    """Trains all replicas, shows the table and writes the results."""
    out, err = consoles()
    introduce(err, settings, one.studies[0].layout)
    for line in filter(None, said):
        err.print(line, soft_wrap=True)
    record = one.record
    tell = partial(err.print, soft_wrap=True, highlight=False)
    with bars(err) as progress:
        row = progress.add_task(f"{len(combinations)} x {settings['method']}", total=1, status="")
        for _, known in follow(one, options, stop, partial(show, progress, row), tell, "val"):
            record = known
    outcome = _outcome(one.studies[-1], record, swept, combinations)
    if not processes.is_main():
        return
    count, seconds = int(record.compilations), float(record.seconds)
    title = f"{one.choice.spec.label} on {settings['benchmark']}"
    paths = _write(outcome, settings, title, seconds, count, folder)
    times = "once" if count == 1 else f"{count} times"
    with standard_output():
        out.print(_table(outcome, title, settings["seeds"]))
        out.print(_sentence(outcome))
        out.print(
            f"{counted(outcome.validation.size, 'run')} in {seconds:.1f} s; the training was "
            f"compiled {times}."
        )
        conclude(out, folder, [folder / "settings.json", *paths])
    if not np.isfinite(outcome.validation).any():
        raise FloatingPointError("no setting has a finite result; choose smaller step sizes.")


def _outcome(last: Study, record: Record, swept: dict, combinations: list) -> Outcome:
    """Chooses by validation accuracy, and only then looks at the test sets."""
    tasks, layout = last.benchmark.tasks, last.layout
    accuracy = np.where(record.diverged[:, :1, None] > 0, np.nan, record.accuracy)

    def rows(values):
        return np.asarray(values, float).reshape(len(combinations), -1)

    validation = rows(metrics.average_accuracy(accuracy))
    means = validation.mean(axis=1)
    best = int(np.nanargmax(means)) if np.isfinite(means).any() else None
    tests = replicas.replicate(study.stack([task.test for task in tasks]), layout)
    fixed = (replicas.place(last.settings, layout),)
    test, *_ = last.programs["evaluate"](record.learners, fixed, tests)
    capacity = record.measures.get("capacity")
    return Outcome(
        swept=swept,
        combinations=combinations,
        validation=validation,
        forgetting=rows(metrics.forgetting(accuracy)),
        capacity=None if capacity is None else rows(capacity[:, -1]),
        best=best,
        test=rows(replicas.fetch(test.accuracy, layout).mean(axis=1))[best or 0],
    )


def _write(
    outcome: Outcome, settings: dict, title: str, seconds, compilations, folder: Path
) -> list[Path]:
    """Writes the numbers, the table and the heat map."""
    measured = [(name, getattr(outcome, name)) for name in ("validation", "forgetting", "capacity")]
    measured = [(name, values) for name, values in measured if values is not None]
    results = {
        "settings": settings,
        "swept": outcome.swept,
        "combinations": [
            {**dict(zip(outcome.swept, values)), **{name: n[i] for name, n in measured}}
            for i, values in enumerate(outcome.combinations)
        ],
        "best": outcome.best,
        "test": None if outcome.best is None else outcome.test,
        "seconds": round(seconds, 2),
        "compilations": compilations,
    }
    header, *lines = _cells(outcome)
    parts = [f"# {escaped(title)}", escaped(_sentence(outcome)), markdown(header, lines, left=0)]
    plots = figures.save(_heat_map(outcome), folder, "heatmap")
    paths = [write_whole(folder / "table.md", "\n\n".join(parts) + "\n")]
    # Last: it says that all is there.
    paths += [write_whole(folder / "results.json", json.dumps(plain(results), indent=1) + "\n")]
    return [*reversed(paths), *plots]


def _table(outcome: Outcome, title: str, seeds: int) -> Table:
    header, *lines = _cells(outcome)
    note = f"Validation sets, after the last task: mean and 95% interval, {counted(seeds, 'seed')}."
    note += "" if outcome.best is None else " * is the best."
    table = Table(title=Text(title), caption=Text(note), box=SIMPLE_HEAD)
    for name in header:
        table.add_column(name.replace("_", " "), justify="right")
    for i, line in enumerate(lines):
        table.add_row(*line, style="bold" if i == outcome.best else None)
    return table


def _cells(outcome: Outcome) -> list[list[str]]:
    """The table: its header, and a line for each combination."""
    lines = [[*outcome.swept, "accuracy (%)", "forgetting (points)"]]
    numbers = [outcome.validation, outcome.forgetting]
    if outcome.capacity is not None:
        lines[0].append("capacity (%)")
        numbers.append(outcome.capacity)
    for i, values in enumerate(outcome.combinations):
        first = _number(values[0]) if i != outcome.best else f"* {_number(values[0])}"
        lines.append([first, *map(_number, values[1:]), *(_percent(n[i]) for n in numbers)])
    return lines


def _sentence(outcome: Outcome) -> str:
    if outcome.best is None:
        return f"Training diverged with some seed in each of {len(outcome.combinations)} settings."
    values = zip(outcome.swept, outcome.combinations[outcome.best])
    best = ", ".join(f"{name} = {_number(value)}" for name, value in values)
    said = (
        f"The best of {len(outcome.combinations)} settings is {best}: "
        f"{_percent(outcome.validation[outcome.best])}% on the validation sets, by which it was "
        f"chosen, and {_percent(outcome.test)}% on the test sets."
    )
    failed = [
        ", ".join(f"{name} = {_number(v)}" for name, v in zip(outcome.swept, values))
        for values, rows in zip(outcome.combinations, outcome.validation)
        if np.isnan(rows).any()
    ]
    return said + (f" Training diverged with {listed(failed)}." if failed else "")


def _heat_map(outcome: Outcome) -> Figure:
    """Validation accuracy: the last setting across, the combinations of the others down."""
    *others, last = outcome.swept
    width = len(outcome.swept[last])
    values = outcome.validation.mean(axis=1).reshape(-1, width)
    rows = [", ".join(map(_number, row[:-1])) for row in outcome.combinations[::width]]
    columns = [_number(value) for value in outcome.swept[last]]
    return figures.heat_map(values, rows, columns, (", ".join(others), last))


def _percent(values: np.ndarray) -> str:
    """Mean and interval over the seeds."""
    return plus_minus(metrics.confidence_interval(values))


def _number(value: float) -> str:
    return f"{value:g}"
