"""`jaxcl sweep`: one method with every combination of settings and seeds, in one program."""

import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table

from jaxcl import study, train
from jaxcl.cli import processes
from jaxcl.cli.compare import UNSHARED, load
from jaxcl.cli.folder import claim, write_settings
from jaxcl.cli.terminal import bars, conclude, consoles, introduce, show
from jaxcl.report import figures, metrics
from jaxcl.report.text import markdown, plus_minus, write_whole
from jaxcl.study import recipes, replicas
from jaxcl.study.programs import Study
from jaxcl.study.recipes import SWEPT, Options
from jaxcl.study.replicas import Device

if TYPE_CHECKING:
    from jaxcl.cli.main import Sweep


class Outcome(NamedTuple):
    """What a sweep found.

    Attributes:
        swept: the values of each setting that has several.
        combinations: the values of those settings, row by row.
        validation: accuracy at the end on the validation sets, [combinations, seeds].
        forgetting: likewise.
        capacity: share of the network that is used at the end, [combinations, seeds], or None.
        best: the row with the highest mean of `validation`.
        test: the best row's accuracy on the test sets, [seeds].
    """

    swept: dict[str, tuple[float, ...]]
    combinations: list[tuple[float, ...]]
    validation: np.ndarray
    forgetting: np.ndarray
    capacity: np.ndarray | None
    best: int
    test: np.ndarray


def prepare(command: "Sweep", devices: Sequence[Device], cache: Path | None) -> Callable:
    """Checks everything that can go wrong; writes no more than the settings.

    Returns:
        A function that does the work.

    Raises:
        ValueError: for bad input, or a folder that holds another run.
    """
    run, method, values = command.run, command.method, vars(command.training)
    swept = {name: values[name] for name in SWEPT if len(values[name]) > 1}
    fixed = {name: next(iter(values[name]), None) for name in SWEPT}
    options = Options(**{**values, **fixed})
    folder = run.out.expanduser() / (run.name or f"sweep_{method}_{run.benchmark}")
    combinations = list(itertools.product(*swept.values()))
    columns = np.repeat(np.array(combinations), run.seeds, axis=0).T
    with processes.agreement():
        benchmark = load(run, options)
        settings = {
            "method": method,
            "benchmark": run.benchmark,
            "tasks": len(benchmark.tasks),
            "seeds": run.seeds,
            **dataclasses.asdict(command.training),
        }
        claim(folder, settings, resume=not (folder / "results.json").exists())
        stages = recipes.stages(
            method, benchmark, options, list(range(run.seeds)) * len(combinations),
            settings=dict(zip(swept, columns)), devices=devices, chunk=run.chunk, split=run.split,
        )  # fmt: skip
        make = recipes.recipe(method, benchmark, options)
        for share in swept.get("prune", ()):  # as a number: what it leaves free can be checked
            start = partial(train.start, make({"prune": share}), tasks=len(benchmark.tasks))
            jax.eval_shape(start, jax.random.key(0))
    processes.check_same(folder, {**settings, "split": run.split, "chunk": run.chunk})
    if processes.leads():
        folder.mkdir(parents=True, exist_ok=True)
        write_settings(folder, settings, command, devices)
    return partial(_work, stages, swept, combinations, settings, folder, cache)


def _work(stages: list[Study], swept, combinations, settings: dict, folder: Path, cache) -> None:
    """Trains all replicas, shows the table and writes the results."""
    out, err = consoles()
    introduce(err, settings, stages[0].layout, cache)
    start = time.perf_counter()
    with bars(err) as progress:
        row = progress.add_task(f"{len(combinations)} x {settings['method']}", total=1, status="")
        outcome = _train(stages, swept, combinations, partial(show, progress, row))
    if settings["method"] in UNSHARED:
        outcome = outcome._replace(capacity=None)
    seconds = time.perf_counter() - start
    if not processes.leads():
        return
    count = study.compilations(stages)
    paths = _write(outcome, settings, seconds, count, folder)
    out.print(_table(outcome, settings))
    out.print(_sentence(outcome))
    times = "once" if count == 1 else f"{count} times"
    out.print(
        f"{outcome.validation.size} runs in {seconds:.1f} s; the training was compiled {times}."
    )
    conclude(out, folder, [folder / "settings.json", *paths])


def _train(stages: list[Study], swept, combinations, progress: Callable) -> Outcome:
    """Trains all replicas, chooses by validation accuracy, and only then looks at the test sets."""
    last = stages[-1]
    tasks, where = last.benchmark.tasks, last.layout
    accuracy = np.full((len(last.seeds), len(tasks), len(tasks)), np.nan)
    progress(tasks=len(tasks), task=0, epoch=0, epochs=1)
    event = None
    for event in study.run(stages, split="val"):
        if isinstance(event, study.EpochEnd):
            progress(tasks=len(tasks), task=event.task, epoch=event.epoch, epochs=event.epochs)
        else:
            accuracy[:, event.task] = event.accuracy
    assert isinstance(event, study.TaskEnd)

    def rows(values):
        return np.asarray(values, float).reshape(len(combinations), -1)

    validation = rows(metrics.average_accuracy(accuracy))
    best = int(np.argmax(validation.mean(axis=1)))
    tests = replicas.share(study.stack([task.test for task in tasks]), where)
    fixed = (replicas.place(last.settings, where),)
    test, *_ = last.programs["evaluate"](event.learners, fixed, tests)
    return Outcome(
        swept=swept,
        combinations=combinations,
        validation=validation,
        forgetting=rows(metrics.forgetting(accuracy)),
        capacity=rows(event.capacity),
        best=best,
        test=rows(replicas.fetch(test, where).mean(axis=1))[best],
    )


def _write(outcome: Outcome, settings: dict, seconds, compilations, folder: Path) -> list[Path]:
    """Writes the numbers, the table and the heat map."""
    measured = [(name, getattr(outcome, name)) for name in ("validation", "forgetting", "capacity")]
    measured = [(name, values) for name, values in measured if values is not None]
    results = {
        "settings": settings,
        "swept": outcome.swept,
        "combinations": [
            {**dict(zip(outcome.swept, values)), **{name: n[i].tolist() for name, n in measured}}
            for i, values in enumerate(outcome.combinations)
        ],
        "best": outcome.best,
        "test": outcome.test.tolist(),
        "seconds": round(seconds, 2),
        "compilations": compilations,
    }
    header, *lines = _cells(outcome)
    title = f"# {settings['method']} on {settings['benchmark']}"
    table = f"{title}\n\n{_sentence(outcome)}\n\n{markdown(header, lines, left=0)}\n"
    plots = figures.save(_heat_map(outcome), folder, "heatmap")
    paths = [write_whole(folder / "table.md", table)]
    # Last: it says that all is there.
    paths += [write_whole(folder / "results.json", json.dumps(results, indent=1) + "\n")]
    return [*reversed(paths), *plots]


def _table(outcome: Outcome, settings: dict) -> Table:
    header, *lines = _cells(outcome)
    seeds = settings["seeds"]
    note = f"At the end, on the validation sets: mean and 95% interval over {seeds} seeds. * best"
    title = f"{settings['method']} on {settings['benchmark']}"
    table = Table(title=title, caption=note, box=SIMPLE_HEAD)
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
    values = zip(outcome.swept, outcome.combinations[outcome.best])
    best = ", ".join(f"{name} = {_number(value)}" for name, value in values)
    return (
        f"The best of {len(outcome.combinations)} settings is {best}: "
        f"{_percent(outcome.validation[outcome.best])}% on the validation sets, by which it was "
        f"chosen, and {_percent(outcome.test)}% on the test sets."
    )


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
