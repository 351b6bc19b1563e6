"""`jaxcl compare`: trains method after method, keeps a checkpoint, and writes what came out."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from jaxcl import report
from jaxcl.cli import processes, scenarios
from jaxcl.cli.folder import check_free, origin_of
from jaxcl.cli.options import Compare
from jaxcl.cli.running import Place, about, begin, follow, full, take
from jaxcl.cli.session import folder_of, load, notes, settings_of
from jaxcl.cli.streams import standard_output
from jaxcl.cli.terminal import bars, conclude, consoles, introduce, show
from jaxcl.data.benchmark import Benchmark
from jaxcl.report import metrics
from jaxcl.report.comparing import chance, method_results
from jaxcl.report.results import Results
from jaxcl.report.text import percent
from jaxcl.study import recipes
from jaxcl.study.comparison import MethodRun
from jaxcl.study.recipes import Choice
from jaxcl.study.replicas import Device


class Plan(NamedTuple):
    """A comparison in one scenario.

    Attributes:
        command: what is asked for.
        place: where it goes.
        overridden: what is otherwise than when it began, and allowed to be.
        runs: its methods, by name.
    """

    command: Compare
    place: Place
    overridden: list[str]
    runs: dict[str, MethodRun]


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
    folder = folder_of(command.run, usual=command.run.benchmark)
    with processes.agreement():
        parts = scenarios.divide(command, folder)
        for path in parts:
            check_free(path)
        benchmark = load(command.run, command.training)
        plans = [plan(one, benchmark, devices, path) for path, one in parts.items()]
    plans = [
        plan._replace(runs=take(plan.place, plan.command, plan.runs, plan.overridden, held))
        for plan in plans
    ]
    said = [cache, *notes(benchmark, command.training)]
    said += [line for plan in plans for one in plan.runs.values() for line in about(one)]
    return partial(work, plans, benchmark, folder, said)


def plan(
    command: Compare, benchmark: Benchmark, devices: Sequence[Device], folder: Path, **more: Any
) -> Plan:
    """A comparison before it begins; `more` are further settings that decide on its results."""
    run, options = command.run, command.training
    own = {
        choice.spec.name: {**_differing(choice, options), **vars(choice.own)}
        for choice in command.choices
    }
    settings = settings_of(
        run, benchmark, options, methods=list(command.methods), options=own, **more
    )
    place = Place(folder, settings, origin_of(benchmark, devices), run)
    overridden = place.claim()
    runs = {
        choice.spec.name: begin(place, choice, benchmark, range(run.seeds), devices)
        for choice in command.choices
    }
    return Plan(command, place, overridden, runs)


def _differing(choice: Choice, shared: recipes.Options) -> dict[str, Any]:
    """The shared options that this method has otherwise."""
    usual = vars(shared)
    return {name: v for name, v in vars(choice.shared).items() if v != usual[name]}


def work(
    plans: list[Plan],
    benchmark: Benchmark,
    folder: Path,
    said: Sequence[str],
    stop: Callable[[], bool],
) -> None:
    """Trains what is not trained yet, shows the table and writes the results."""
    out, err = consoles()
    first = next(iter(plans[0].runs.values()))
    introduce(err, plans[0].place.settings, first.studies[0].layout)
    for line in filter(None, said):
        err.print(line, soft_wrap=True)
    found = {
        plan.place.settings["scenario"]: _trained(plan, benchmark, err, stop, len(plans) > 1)
        for plan in plans
    }
    if not processes.is_main():
        return
    paths = [
        path
        for plan, results in zip(plans, found.values())
        for path in [
            plan.place.folder / "settings.json", *report.write(results, plan.place.folder)
        ]
    ]  # fmt: skip
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


def _trained(
    plan: Plan, benchmark: Benchmark, err: Console, stop: Callable[[], bool], several: bool
) -> Results:
    """The results in one scenario, which is named if there are several."""
    command, settings, methods = plan.command, plan.place.settings, {}
    scenario = settings["scenario"]
    where = f" ({scenario})" if several else ""
    tell = partial(err.print, soft_wrap=True, highlight=False)
    with bars(err) as progress:
        rows = {
            name: progress.add_task(name + where, start=False, total=1, status="")
            for name in plan.runs
        }
        for name, run in plan.runs.items():
            least_free = command.warn_free if run.choice.spec.divides else 0
            record = run.record
            moved = partial(show, progress, rows[name])
            for event, known in follow(run, command.run, stop, moved, tell):
                record = known
                lines = full(run, event.measures, event.task + 1)
                if not lines and event.task + 1 < run.tasks and "capacity" in event.measures:
                    free = 1 - event.measures["capacity"]
                    lines = _little(name, least_free, event.task + 1, free)
                for line in lines:
                    tell(line)
            result = f"accuracy {percent(metrics.average_accuracy(record.accuracy).mean())}%"
            progress.update(rows[name], status=result)
            if not err.is_terminal:
                err.print(f"{name}{where}: {result}, {float(record.seconds):.1f} s")
            methods[name] = method_results(run, record)
    if plan.overridden:
        settings = {**settings, "overridden": plan.overridden}
    return Results(
        settings["benchmark"], len(benchmark.tasks), list(range(settings["seeds"])), settings,
        methods, chance(benchmark, scenario),
    )  # fmt: skip


def _has_result(results: Results) -> bool:
    return any(row.diverged < len(results.seeds) for row in report.summary(results))


def _little(method: str, least: float, task: int, free: np.ndarray) -> list[str]:
    """What to say if a task begins with little of the network."""
    share = round(float(free.min()), 3)
    if share >= least:
        return []
    seeds = f", in the fullest of {free.size} seeds" if free.size > 1 else ""
    return [
        f"warning: {method}, task {task + 1} begins with {percent(share)}% of the weights "
        f"free{seeds}"
    ]
