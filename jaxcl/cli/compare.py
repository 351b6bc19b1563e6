"""`jaxcl compare`: trains method after method, keeps a checkpoint, and writes what came out."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from jaxcl import report, study
from jaxcl.cli import processes
from jaxcl.cli.folder import check_free, claim, hold, write_settings
from jaxcl.cli.options import Compare
from jaxcl.cli.session import (
    check_size,
    folder_of,
    layout_options,
    load,
    notes,
    settings_of,
    sizes_that_exist,
)
from jaxcl.cli.streams import standard_output
from jaxcl.cli.terminal import bars, conclude, consoles, introduce, show
from jaxcl.data.benchmark import Benchmark
from jaxcl.report import metrics
from jaxcl.report.results import MethodResults, Results, shown_of
from jaxcl.report.text import percent
from jaxcl.study import comparison, recipes
from jaxcl.study.comparison import MethodRun, Record
from jaxcl.study.recipes import Choice
from jaxcl.study.replicas import Device


def prepare(
    command: Compare, devices: Sequence[Device], cache: str, held: ExitStack
) -> Callable[[], None]:
    """Checks everything that can go wrong; writes no more than the settings.

    Args:
        command: what is asked for.
        devices: the devices to run on.
        cache: what to say of the cache of compiled programs.
        held: keeps the folder until it is closed.

    Returns:
        A function that does the work.

    Raises:
        ValueError: for bad input, or a folder that holds another run.
    """
    run, options = command.run, command.training
    folder = folder_of(run, usual=run.benchmark)
    with processes.agreement():
        check_free(folder)
        benchmark = load(run, options)
        own = {
            choice.spec.name: {**_differing(choice, options), **vars(choice.own)}
            for choice in command.choices
        }
        settings = settings_of(run, benchmark, options, methods=list(command.methods), options=own)
        claim(folder, settings, command.resume)
        runs = {
            choice.spec.name: _begin(choice, benchmark, command, devices, folder)
            for choice in command.choices
        }
    processes.check_same(folder, {**settings, **layout_options(run, None)})
    with processes.agreement():
        if processes.is_main():
            held.enter_context(hold(folder))
            claim(folder, settings, command.resume)  # by now another process may have been here
    with processes.agreement():
        runs = {name: comparison.restore(one) for name, one in runs.items()}
    with processes.agreement():
        if processes.is_main():
            write_settings(folder, settings, command, devices)
            for one in runs.values():
                comparison.make_room(one)
    said = notes(benchmark, options)
    return partial(_work, runs, benchmark, settings, command.warn_free, folder, [cache, *said])


def _differing(choice: Choice, shared: recipes.Options) -> dict[str, Any]:
    """The shared options that this method has otherwise."""
    usual = vars(shared)
    return {name: v for name, v in vars(choice.shared).items() if v != usual[name]}


def _begin(
    choice: Choice, benchmark: Benchmark, command: Compare, devices, folder: Path
) -> MethodRun:
    """One method before its first task."""
    run = command.run
    with sizes_that_exist():
        one = comparison.begin(
            choice, benchmark, range(run.seeds),
            folder=folder / "checkpoints" / choice.spec.name, **layout_options(run, devices),
        )  # fmt: skip
    check_size(one.studies, one.learner, choice)
    return one


def _about(run: MethodRun) -> list[str]:
    """What the terminal says of a method beforehand."""
    name, about, said = run.choice.spec.name, run.choice.spec.about, []
    if about:
        said.append(f"{name}: {about(run.learner)}")
    if run.passed_over:
        after = f"it goes on after task_{run.done}"
        said.append(f"{name}: {run.passed_over.name} cannot be read and is passed over; {after}")
    return said


def _work(
    runs: dict[str, MethodRun], benchmark: Benchmark, settings: dict, least_free, folder, said
) -> None:
    """Trains what is not trained yet, shows the table and writes the results."""
    out, err = consoles()
    introduce(err, settings, next(iter(runs.values())).studies[0].layout)
    for line in filter(None, [*said, *(line for run in runs.values() for line in _about(run))]):
        err.print(line, soft_wrap=True)
    methods = {}
    with bars(err) as progress:
        rows = {name: progress.add_task(name, start=False, total=1, status="") for name in runs}
        for name, run in runs.items():
            warn = partial(_warn, err, name, least_free if run.choice.spec.divides else 0)
            record = _train(run, partial(show, progress, rows[name]), warn)
            result = f"accuracy {percent(metrics.average_accuracy(record.accuracy).mean())}%"
            progress.update(rows[name], status=result)
            if not err.is_terminal:
                err.print(f"{name}: {result}, {float(record.seconds):.1f} s")
            methods[name] = _results(run, record)
    seeds = list(range(settings["seeds"]))
    chance = float(np.mean([1 / task.classes for task in benchmark.tasks]))
    tasks = len(benchmark.tasks)
    results = Results(settings["benchmark"], tasks, seeds, settings, methods, chance)
    if not processes.is_main():
        return
    paths = report.write(results, folder)
    with standard_output():
        out.print(report.table(results))
        out.print(report.sentence(results))
        conclude(out, folder, [folder / "settings.json", *paths])
    if all(row.diverged == len(seeds) for row in report.summary(results)):
        raise FloatingPointError("no method has a finite result; choose a smaller step size.")


def _results(run: MethodRun, record: Record) -> MethodResults:
    return MethodResults(
        record.accuracy,
        record.measures,
        run.parameters,
        run.extra_bytes,
        round(float(record.seconds), 2),
        int(record.compilations),
        [(int(at[0]), int(at[1])) if at[0] else None for at in record.diverged],
        shown_of(run.choice.spec),
    )


def _train(run: MethodRun, progress: Callable, warn: Callable) -> Record:
    """Trains one method to its end."""
    last, tasks = run.record, run.record.accuracy.shape[1]
    progress(tasks=tasks, task=run.done, epoch=0, epochs=1)
    for event, record in comparison.advance(run):
        last = record
        if isinstance(event, study.EpochEnd):
            progress(tasks=tasks, task=event.task, epoch=event.epoch, epochs=event.epochs)
        if not isinstance(event, study.TaskEnd) or event.task + 1 == tasks:
            continue
        if "capacity" in event.measures:
            warn(event.task + 1, 1 - event.measures["capacity"])
    return last._replace(learners=None)


def _warn(err: Console, method: str, least: float, task: int, free: np.ndarray) -> None:
    """Says so if a task begins with little of the network."""
    share = round(float(free.min()), 3)
    if share < least:
        seeds = f", in the fullest of {free.size} seeds" if free.size > 1 else ""
        err.print(
            f"warning: {method}, task {task + 1} begins with {percent(share)}% of the weights "
            f"free{seeds}",
            soft_wrap=True,
        )
