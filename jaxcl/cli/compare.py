"""`jaxcl compare`: trains method after method, keeps a checkpoint, and writes what came out."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from jaxcl import report
from jaxcl.cli import growing, inferring, processes, scenarios
from jaxcl.cli.folder import check_free, hold, origin_of
from jaxcl.cli.growing import Growth
from jaxcl.cli.options import TUNED, Compare
from jaxcl.cli.running import Place, about, begin, follow, full, take
from jaxcl.cli.session import folder_of, load, notes, settings_of
from jaxcl.cli.streams import standard_output
from jaxcl.cli.terminal import bars, conclude, consoles, introduce, show
from jaxcl.data.benchmark import Benchmark
from jaxcl.report import metrics, presets
from jaxcl.report.comparing import chance, method_results
from jaxcl.report.loggers import logged, packages
from jaxcl.report.results import Results
from jaxcl.report.runs import seeds_of
from jaxcl.report.text import percent
from jaxcl.study import comparison, recipes
from jaxcl.study.comparison import MethodRun
from jaxcl.study.points import Every, every
from jaxcl.study.recipes import Choice
from jaxcl.study.replicas import Device

SEARCH = ("search", "search.json", "search.md")  # what a search leaves in a run's folder


class Plan(NamedTuple):
    """A comparison in one scenario.

    Attributes:
        command: what is asked for.
        place: where it goes.
        overridden: what is otherwise than when it began, and allowed to be.
        runs: its methods, by name; where it grows, those of which seeds are missing.
        growth: what a finished run lacks; None for a run that begins or goes on.
    """

    command: Compare
    place: Place
    overridden: list[str]
    runs: dict[str, MethodRun]
    growth: Growth | None = None


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
        packages(command.log)
        parts = scenarios.divide(command, folder)
        for path in parts:
            check_free(path)
            if (path / growing.FOLDER).exists() and processes.is_main():
                with hold(path):
                    growing.recover(path)
        benchmark = load(command.run, command.training)
        inferring.check(command, benchmark)
        plans = [plan(one, benchmark, devices, path) for path, one in parts.items()]
    plans = [_taken(plan, held) for plan in plans]
    said = [cache, *notes(benchmark, command.training)]
    said += [plan.growth.words for plan in plans if plan.growth]
    said += [line for plan in plans for one in plan.runs.values() for line in about(one)]
    return partial(work, command, plans, benchmark, devices, folder, said)


def plan(
    command: Compare, benchmark: Benchmark, devices: Sequence[Device], folder: Path, **more: Any
) -> Plan:
    """A comparison before it begins; `more` are further settings that decide on its results."""
    run, options, tuned = command.run, command.training, command.preset == TUNED
    own = {
        choice.spec.name: {**_differing(choice, options), **vars(choice.own)}
        for choice in command.choices
    }
    settings = settings_of(
        run, benchmark, options, methods=list(command.methods), options=own, **more
    )
    settings[presets.KEY] = {
        choice.spec.name: "tuned" if tuned else presets.origin(choice, run.plain)
        for choice in command.choices
    }
    points = _points(command)
    settings |= {"evaluate_every": str(points)} if points else {}
    place = Place(folder, settings, origin_of(benchmark, devices), run, SEARCH if tuned else ())
    growth = growing.needed(place, [choice.spec.name for choice in command.choices])
    if growth:
        growth.apart.claim()
        runs = {
            choice.spec.name: begin(
                growth.apart,
                choice,
                benchmark,
                growth.seeds[choice.spec.name],
                devices,
                evaluate_every=points,
            )
            for choice in command.choices
            if choice.spec.name in growth.seeds
        }
        return Plan(command, growth.apart, growth.overridden, runs, growth)
    overridden = place.claim()
    return Plan(command, place, overridden, _begun(command, place, benchmark, devices))


def _points(command: Compare) -> Every | None:
    """Where within its tasks a method is evaluated."""
    return None if command.evaluate_every is None else every(command.evaluate_every)


def _begun(command: Compare, place: Place, benchmark: Benchmark, devices) -> dict[str, MethodRun]:
    """All methods before their first tasks."""
    return {
        choice.spec.name: begin(
            place,
            choice,
            benchmark,
            command.run.numbers,
            devices,
            evaluate_every=_points(command),
        )
        for choice in command.choices
    }


def _taken(plan: Plan, held: ExitStack) -> Plan:
    """A comparison in its folder, as far as it is."""
    if plan.growth and processes.is_main():
        held.enter_context(hold(plan.growth.place.folder))
    return plan._replace(runs=take(plan.place, plan.command, plan.runs, plan.overridden, held))


def _grown(plan: Plan, benchmark: Benchmark, devices) -> Plan:
    """The whole run, once all that it lacked is trained."""
    assert plan.growth is not None
    growing.finish(plan.growth, plan.command)
    place = plan.growth.place
    runs = _begun(plan.command, place, benchmark, devices)
    runs = {name: comparison.restore(run) for name, run in runs.items()}
    return plan._replace(place=place, runs=runs, growth=None)


def _differing(choice: Choice, shared: recipes.Options) -> dict[str, Any]:
    """The shared options that this method has otherwise."""
    usual = vars(shared)
    return {name: v for name, v in vars(choice.shared).items() if v != usual[name]}


def work(
    command: Compare,
    plans: list[Plan],
    benchmark: Benchmark,
    devices: Sequence[Device],
    folder: Path,
    said: Sequence[str],
    stop: Callable[[], bool],
) -> None:
    """Trains what is not trained yet, shows the table and writes the results."""
    out, err = consoles()
    first = next(plan for plan in plans if plan.runs)
    introduce(err, first.place.settings, next(iter(first.runs.values())).studies[0].layout)
    for line in filter(None, said):
        err.print(line, soft_wrap=True)
    for i, plan in enumerate(plans):
        if plan.growth:
            _trained(plan, benchmark, err, stop, len(plans) > 1)
            plans[i] = _grown(plan, benchmark, devices)
    found = {
        plan.place.settings["scenario"]: _trained(plan, benchmark, err, stop, len(plans) > 1)
        for plan in plans
    }
    tell = partial(err.print, soft_wrap=True, highlight=False)
    found = inferring.join(command, found, folder, benchmark, stop, tell)
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
            within = report.within_table(results)
            if within is not None:
                out.print(within)
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
            log = command.log if processes.is_main() else ()
            with logged(log, run, plan.place.folder, settings) as watch:
                for event, known in follow(run, command.run, stop, moved, tell, watch=watch):
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
        settings["benchmark"], len(benchmark.tasks), seeds_of(settings), settings,
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
