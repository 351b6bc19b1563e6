"""`jaxcl extend`: further tasks for a finished run, whose results so far are kept.

The extended run is one like any other, in a folder of its own. It begins with checkpoints that hold
the old one's end with room for the further tasks, and `compare` does the rest.
"""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from jaxcl import data
from jaxcl.cli import compare, processes
from jaxcl.cli.folder import check_free
from jaxcl.cli.options import Compare, Extend, names_of
from jaxcl.cli.running import about, take
from jaxcl.cli.session import MODULE, folder_of, layout_options, load, notes
from jaxcl.data.benchmark import Benchmark, fingerprint
from jaxcl.inference import runs
from jaxcl.report.runs import digest, record, seeds_as, seeds_of
from jaxcl.report.text import listed, write_whole
from jaxcl.study import comparison
from jaxcl.study.comparison import MethodRun
from jaxcl.study.recipes import Choice, Options
from jaxcl.study.replicas import Device


def prepare(
    command: Extend, devices: Sequence[Device], cache: str, held: ExitStack
) -> Callable[[Callable[[], bool]], None]:
    """Checks everything that can go wrong; writes settings, and the checkpoints to begin with.

    Args:
        command: what is asked for.
        devices: the devices to run on.
        cache: what to say of the cache of compiled programs.
        held: keeps the folder of the extended run until it is closed.

    Returns:
        A function that does the work, until it is told to stop.

    Raises:
        ValueError: for a run that cannot be extended, or not by these tasks.
    """
    folder = folder_of(command.run, usual="")
    with processes.agreement():
        check_free(folder)
        old = _finished(command)
        chosen = _choices(old, command)
        benchmark, name = _benchmark(old, command)
        done = old.settings["tasks"]
        more = len(benchmark.tasks) - done
        plan = compare.plan(
            _comparison(command, old, {n: _longer(c, more) for n, c in chosen.items()}, name),
            benchmark, devices, folder, extended=[*old.settings.get("extended", []), done],
        )  # fmt: skip
        first = benchmark._replace(tasks=benchmark.tasks[:done])
        before = {n: _before(old, c, first, command, devices) for n, c in chosen.items()}
    taken = take(plan.place, command, plan.runs, plan.overridden, held)
    taken = {n: one if one.found else comparison.extend(one, before[n]) for n, one in taken.items()}
    if processes.is_main():
        _keep_forgotten(old.folder, folder)
    said = [cache, *notes(benchmark, plan.command.training), *_said(old, chosen)]
    said += [line for one in taken.values() for line in about(one)]
    plans = [plan._replace(runs=taken)]
    return partial(compare.work, plan.command, plans, benchmark, devices, folder, said)


def _finished(command: Extend) -> runs.Run:
    """The run that is to be extended.

    Raises:
        ValueError: for what is none, or is not finished, or has one head for all classes.
    """
    old = runs.load(command.folder, methods=list(command.own.values()))
    if not isinstance(old, runs.Run):
        raise ValueError(f"{command.folder} holds a learner, not a run; see train.grow.")
    if not old.methods:
        raise ValueError(f"{command.folder} holds a sweep, which keeps no networks to go on with.")
    if old.results is None:
        raise ValueError(
            f"{command.folder} is not finished; go on with it first, by its command with --resume."
        )
    if old.settings.get("scenario") == "class":
        raise ValueError(
            f"{command.folder} cannot be extended: in the scenario 'class' one head has an output "
            f"for each class, and none for further ones."
        )
    return old


def _choices(old: runs.Run, command: Extend) -> dict[str, Choice]:
    """The methods that are to go on, with their options."""
    names = [command.own[word].name if word in command.own else word for word in command.methods]
    chosen = {name: old[name].choice() for name in names or old.methods}
    settings, options = old.settings, old.settings.get("options", {})
    return {
        name: choice._replace(
            shared=dataclasses.replace(
                choice.shared, init=options.get(name, {}).get("init", settings.get("init"))
            )
        )
        for name, choice in chosen.items()
    }


def _longer(choice: Choice, more: int) -> Choice:
    """The method as it is for so many more tasks."""
    extended = choice.spec.extended
    return choice if extended is None else choice._replace(own=extended(choice.own, more))


def _training(settings: Any) -> Options:
    """The shared options that settings hold."""
    given = {name: settings[name] for name in names_of(Options) if name in settings}
    values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in given.items()}
    return Options(**values)


def _benchmark(old: runs.Run, command: Extend) -> tuple[Benchmark, str]:
    """The run's tasks and those that follow them, and a name that makes them again.

    Raises:
        ValueError: if the first tasks are not the run's, or the networks do not fit the others.
    """
    settings, training = old.settings, _training(old.settings)
    name, tasks, done = settings["benchmark"], command.tasks, settings["tasks"]
    run = dataclasses.replace(command.run, benchmark=name, tasks=tasks)
    if command.benchmark is not None:
        name = f"{_alone(name, done)};{command.benchmark}"
        run = dataclasses.replace(command.run, benchmark=name, tasks=None)
    elif tasks is None or tasks <= done:
        raise ValueError(
            f"--tasks must be more than the {done} of {command.folder}, or --benchmark name tasks "
            f"that follow them; got --tasks {tasks}."
        )
    benchmark = load(run, training)
    first = benchmark._replace(tasks=benchmark.tasks[:done])
    if fingerprint(first) != record(old.folder)["data"]:
        raise ValueError(
            f"the first {done} tasks of {name}{'' if tasks is None else f' with {tasks} tasks'} "
            f"are not those that {command.folder} was trained on; --benchmark names tasks that "
            f"follow them, as in --benchmark split_digits,classes=6-7/8-9."
        )
    most = max(old.inputs.classes)
    for number, task in enumerate(benchmark.tasks[done:], done + 1):
        if task.classes > most:
            raise ValueError(
                f"task {number} has {task.classes} classes, but the heads of {command.folder} have "
                f"{most} outputs."
            )
    return benchmark, name


def _alone(name: str, tasks: int) -> str:
    """A benchmark's name that says how many tasks it has."""
    if ";" in name or MODULE.fullmatch(name) or {"tasks", "classes"} & {*data.parse(name).options}:
        return name
    return f"{name},tasks={tasks}"


def _comparison(
    command: Extend, old: runs.Run, chosen: dict[str, Choice], benchmark: str
) -> Compare:
    """The comparison of all tasks."""
    settings = old.settings
    run = dataclasses.replace(
        command.run, benchmark=benchmark, tasks=command.tasks, seeds=_seeds(settings)
    )
    words = {spec.name: word for word, spec in command.own.items()}
    return Compare(
        methods=tuple(words.get(name, name) for name in chosen),
        warn_free=command.warn_free,
        run=run,
        training=_training(settings),
        choices=tuple(chosen.values()),
        scenarios=(str(settings.get("scenario", "task")),),
    )


def _seeds(settings: Any) -> tuple[int, ...]:
    """The seeds as `Run` has them."""
    seeds = seeds_as(seeds_of(settings))
    return (seeds,) if isinstance(seeds, int) else tuple(seeds)


def _before(
    old: runs.Run, choice: Choice, benchmark: Benchmark, command: Extend, devices: Sequence[Device]
) -> MethodRun:
    """A method at the end of the old run.

    Raises:
        ValueError: if its checkpoint is not there, or cannot be read.
    """
    folder = old[choice.spec.name].checkpoints
    whose = {"settings": digest(old.settings), "data": fingerprint(benchmark)}
    one = comparison.begin(
        choice, benchmark, seeds_of(old.settings), folder=folder, about=whose,
        **layout_options(command.run, devices),
    )  # fmt: skip
    found = comparison.restore(one, finished=True)
    if found.found is None or found.done < found.tasks:
        raise ValueError(f"{folder} has no checkpoint of the end of the run, to go on from.")
    return found


def _keep_forgotten(old: Path, new: Path) -> None:
    """What was forgotten stays so."""
    path = old / runs.FORGOTTEN
    if path.is_file() and not (new / runs.FORGOTTEN).exists():
        write_whole(new / runs.FORGOTTEN, path.read_bytes())


def _said(old: runs.Run, chosen: dict[str, Choice]) -> list[str]:
    """What may not be expected of the extended run."""
    return [
        f"{name}: {'tasks' if len(gone) > 1 else 'task'} {listed(list(map(str, gone)))}, counted "
        f"from 0, was forgotten; tables count what its network gives now"
        for name, gone in old.forgotten.items()
        if name in chosen and gone
    ]
