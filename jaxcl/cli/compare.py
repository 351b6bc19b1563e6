"""`jaxcl compare`: trains method after method, keeps a checkpoint, and writes what came out."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from jaxcl import report, study
from jaxcl.cli import processes, scenarios
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


class Plan(NamedTuple):
    """A comparison in one scenario.

    Attributes:
        command: what is asked for.
        folder: where it goes.
        settings: what decides on its results.
        runs: its methods, by name.
    """

    command: Compare
    folder: Path
    settings: dict[str, Any]
    runs: dict[str, MethodRun]


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
    folder = folder_of(command.run, usual=command.run.benchmark)
    with processes.agreement():
        parts = scenarios.divide(command, folder)
        for path in parts:
            check_free(path)
        benchmark = load(command.run, command.training)
        plans = [_plan(one, benchmark, devices, path) for path, one in parts.items()]
    for plan in plans:
        processes.check_same(plan.folder, {**plan.settings, **layout_options(command.run, None)})
    with processes.agreement():
        if processes.is_main():
            for plan in plans:  # by now another process may have been there
                held.enter_context(hold(plan.folder))
                claim(plan.folder, plan.settings, command.resume)
    with processes.agreement():
        plans = [plan._replace(runs=_restored(plan.runs)) for plan in plans]
    with processes.agreement():
        if processes.is_main():
            for plan in plans:
                write_settings(plan.folder, plan.settings, plan.command, devices)
                for one in plan.runs.values():
                    comparison.put_aside(one)
    said = [cache, *notes(benchmark, command.training)]
    return partial(_work, plans, benchmark, folder, said)


def _plan(command: Compare, benchmark: Benchmark, devices, folder: Path) -> Plan:
    """A comparison before it begins."""
    run, options = command.run, command.training
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
    return Plan(command, folder, settings, runs)


def _restored(runs: dict[str, MethodRun]) -> dict[str, MethodRun]:
    return {name: comparison.restore(one) for name, one in runs.items()}


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


def _work(plans: list[Plan], benchmark: Benchmark, folder: Path, said: list[str]) -> None:
    """Trains what is not trained yet, shows the table and writes the results."""
    out, err = consoles()
    every = [run for plan in plans for run in plan.runs.values()]
    introduce(err, plans[0].settings, every[0].studies[0].layout)
    for line in filter(None, [*said, *(line for run in every for line in _about(run))]):
        err.print(line, soft_wrap=True)
    found = {
        plan.settings["scenario"]: _trained(plan, benchmark, err, several=len(plans) > 1)
        for plan in plans
    }
    if not processes.is_main():
        return
    paths = [
        path
        for plan, results in zip(plans, found.values())
        for path in [plan.folder / "settings.json", *report.write(results, plan.folder)]
    ]
    with standard_output():
        if len(found) > 1:
            paths = report.write_scenarios(found, folder)
            out.print(report.scenarios_table(found))
        for name, results in found.items():
            out.print(f"{name}: {results.sentence()}" if len(found) > 1 else results.table())
        if len(found) == 1:
            out.print(next(iter(found.values())).sentence())
        conclude(out, folder, paths)
    if all(not _has_result(results) for results in found.values()):
        raise FloatingPointError("no method has a finite result; choose a smaller step size.")


def _trained(plan: Plan, benchmark: Benchmark, err: Console, several: bool) -> Results:
    """The results in one scenario, which is named if there are several."""
    settings, methods, least_free = plan.settings, {}, plan.command.warn_free
    scenario = settings["scenario"]
    where = f" ({scenario})" if several else ""
    with bars(err) as progress:
        rows = {
            name: progress.add_task(name + where, start=False, total=1, status="")
            for name in plan.runs
        }
        for name, run in plan.runs.items():
            warn = partial(_warn, err, name, least_free if run.choice.spec.divides else 0)
            record = _train(run, partial(show, progress, rows[name]), warn)
            result = f"accuracy {percent(metrics.average_accuracy(record.accuracy).mean())}%"
            progress.update(rows[name], status=result)
            if not err.is_terminal:
                err.print(f"{name}{where}: {result}, {float(record.seconds):.1f} s")
            methods[name] = _results(run, record)
    seeds = list(range(settings["seeds"]))
    chance = scenarios.chance(benchmark, scenario)
    return Results(
        settings["benchmark"], len(benchmark.tasks), seeds, settings, methods, chance
    )  # fmt: skip


def _has_result(results: Results) -> bool:
    return any(row.diverged < len(results.seeds) for row in report.summary(results))


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
