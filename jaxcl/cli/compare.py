"""`jaxcl compare`: trains method after method, keeps a checkpoint, and writes what came out."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from jaxcl import report
from jaxcl.cli import processes
from jaxcl.cli.folder import check_free, origin_of
from jaxcl.cli.options import Compare
from jaxcl.cli.running import Place, about, begin, follow, take
from jaxcl.cli.session import folder_of, load, notes, settings_of
from jaxcl.cli.streams import standard_output
from jaxcl.cli.terminal import bars, conclude, consoles, introduce, show
from jaxcl.data.benchmark import Benchmark
from jaxcl.report import metrics
from jaxcl.report.results import MethodResults, Results, shown_of
from jaxcl.report.text import percent
from jaxcl.study import recipes
from jaxcl.study.comparison import MethodRun, Record
from jaxcl.study.recipes import Choice
from jaxcl.study.replicas import Device


def prepare(
    command: Compare, devices: Sequence[Device], cache: str, held: ExitStack
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
        place = Place(folder, settings, origin_of(benchmark, devices), run)
        overridden = place.claim()
        runs = {
            choice.spec.name: begin(place, choice, benchmark, range(run.seeds), devices)
            for choice in command.choices
        }
    runs = take(place, command, runs, overridden, held)
    if overridden:
        settings["overridden"] = overridden
    said = [cache, *notes(benchmark, options)]
    said += [line for one in runs.values() for line in about(one)]
    return partial(_work, runs, benchmark, settings, command, folder, said)


def _differing(choice: Choice, shared: recipes.Options) -> dict[str, Any]:
    """The shared options that this method has otherwise."""
    usual = vars(shared)
    return {name: v for name, v in vars(choice.shared).items() if v != usual[name]}


def _work(
    runs: dict[str, MethodRun],
    benchmark: Benchmark,
    settings: dict,
    command: Compare,
    folder: Path,
    said: Sequence[str],
    stop: Callable[[], bool],
) -> None:
    """Trains what is not trained yet, shows the table and writes the results."""
    out, err = consoles()
    introduce(err, settings, next(iter(runs.values())).studies[0].layout)
    for line in filter(None, said):
        err.print(line, soft_wrap=True)
    methods = {}
    with bars(err) as progress:
        rows = {name: progress.add_task(name, start=False, total=1, status="") for name in runs}
        for name, run in runs.items():
            least_free = command.warn_free if run.choice.spec.divides else 0
            record = run.record
            moved = partial(show, progress, rows[name])
            for event, known in follow(run, command.run, stop, moved):
                record = known
                if event.task + 1 < run.tasks and "capacity" in event.measures:
                    free = 1 - event.measures["capacity"]
                    _warn(err, name, least_free, event.task + 1, free)
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
        record.curves,
    )


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
