"""`jaxcl compare`: trains method after method, keeps a checkpoint, and writes what came out."""

import itertools
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console

from jaxcl import report, study, train
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
from jaxcl.core.trees import PyTree
from jaxcl.data.benchmark import Benchmark
from jaxcl.report import metrics
from jaxcl.report.results import MethodResults, Results, shown_of
from jaxcl.report.text import percent
from jaxcl.study import checkpoint, recipes, replicas
from jaxcl.study.programs import Study
from jaxcl.study.recipes import Choice
from jaxcl.study.replicas import Device


class Record(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        learners: the state of all replicas, with a leading [padded] axis.
        accuracy: [replicas, tasks, tasks], nan where it is not measured yet.
        measures: the method's own numbers, by name: [replicas, tasks], or what they are now.
        diverged: the task and the epoch, counted from 1, after which a replica was not finite;
            0 while it is; int [replicas, 2].
        seconds: time spent so far, a scalar.
        compilations: of the training step, an integer scalar.
    """

    learners: PyTree
    accuracy: PyTree
    measures: dict[str, PyTree]
    diverged: PyTree
    seconds: PyTree
    compilations: PyTree


class MethodRun(NamedTuple):
    """One method of a comparison: its studies, how far it is, what its network costs."""

    choice: Choice
    studies: list[Study]
    done: int
    record: Record
    folder: Path
    parameters: int
    extra_bytes: int
    about: list[str]  # what the terminal says of it beforehand


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
            choice.spec.name: _method_run(choice, benchmark, command, devices, folder)
            for choice in command.choices
        }
    processes.check_same(folder, {**settings, **layout_options(run, None)})
    with processes.agreement():
        if processes.is_main():
            held.enter_context(hold(folder))
            claim(folder, settings, command.resume)  # by now another process may have been here
    with processes.agreement():
        runs = {name: _restore(one) for name, one in runs.items()}
    with processes.agreement():
        if processes.is_main():
            write_settings(folder, settings, command, devices)
            for one in runs.values():
                _put_aside(one)
    said = notes(benchmark, options)
    return partial(_work, runs, benchmark, settings, command.warn_free, folder, [cache, *said])


def _differing(choice: Choice, shared: recipes.Options) -> dict[str, Any]:
    """The shared options that this method has otherwise."""
    usual = vars(shared)
    return {name: v for name, v in vars(choice.shared).items() if v != usual[name]}


def _method_run(
    choice: Choice, benchmark: Benchmark, command: Compare, devices, folder: Path
) -> MethodRun:
    """Builds one method's studies."""
    run, tasks = command.run, len(benchmark.tasks)
    with sizes_that_exist():
        studies = recipes.studies(
            choice, benchmark, seeds=range(run.seeds), **layout_options(run, devices)
        )
        learner = _shapes(studies[-1])
    check_size(studies, learner, choice)
    parameters, extra_bytes = recipes.cost(choice, benchmark, learner)

    def unknown(*shape):
        return np.full((run.seeds, *shape), np.nan, np.float32)

    nothing = Record(
        learners=None,
        accuracy=unknown(tasks, tasks),
        measures={
            name: unknown(tasks, *shape[1:]) if len(shape) < 2 else unknown(*shape)
            for name, shape in _measures(studies[-1], learner).items()
        },
        diverged=np.zeros((run.seeds, 2), np.int32),
        seconds=np.zeros((), np.float32),
        compilations=np.zeros((), np.int32),
    )
    about = choice.spec.about
    name = choice.spec.name
    said = [f"{name}: {about(learner)}"] if about else []
    path = folder / "checkpoints" / name
    return MethodRun(choice, studies, 0, nothing, path, parameters, extra_bytes, said)


def _setup(one: Study) -> train.Setup:
    return one.recipe({name: value[0] for name, value in one.settings.items()})


def _shapes(one: Study) -> PyTree:
    """The shapes of one learner."""
    x = one.benchmark.tasks[0].train.x
    setup = _setup(one)._replace(sample=jax.ShapeDtypeStruct(x.shape[1:], x.dtype))
    tasks = len(one.benchmark.tasks)
    return jax.eval_shape(lambda key: train.start(setup, key, tasks), jax.random.key(0))


def _measures(one: Study, learner: PyTree) -> dict[str, tuple[int, ...]]:
    """The shapes of a method's measures of one learner."""
    own = (learner.theta, learner.state)
    return {m.name: jax.eval_shape(m.of, *own).shape for m in _setup(one).method.measures}


def _restore(run: MethodRun) -> MethodRun:
    """A method as far as its latest checkpoint, spread over the devices that there are now."""
    tasks = run.record.accuracy.shape[1]
    newest = checkpoint.latest(run.folder)
    found = newest and checkpoint.latest(run.folder, readable=True)
    if not newest:
        return run
    if not found:
        checkpoint.verify(newest[1])  # says what is wrong
        raise ValueError(f"the checkpoint in {newest[1]} cannot be read.")
    done, path = found
    if done > tasks:
        raise ValueError(f"{path} is of a task that this run does not have.")
    if newest != found:
        run.about.append(
            f"{run.choice.spec.name}: {newest[1].name} cannot be read and is passed over; it goes "
            f"on after {path.name}"
        )
    one = next(one for one in run.studies if len(one.benchmark.tasks) >= done)
    layout = one.layout
    own = NamedSharding(layout.mesh, PartitionSpec(replicas.AXIS))
    whole = NamedSharding(layout.mesh, PartitionSpec())
    stored = checkpoint.shapes(path)
    if "learners/key" not in stored:
        raise ValueError(f"the checkpoint in {path} holds no learners of this version of jaxcl.")
    rows = stored["learners/key"].shape[0]
    sharding = own if rows == layout.padded else whole
    learners = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape), leaf.dtype, sharding=sharding),
        _shapes(one),
    )
    record = checkpoint.restore(path, run.record._replace(learners=learners))
    learners = record.learners
    if done == tasks:
        learners = None
    elif rows != layout.padded:
        index = np.minimum(np.arange(layout.padded), layout.replicas - 1)
        take = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf[index], tree), out_shardings=own)
        learners = take(learners)
    numbers = jax.tree.map(np.array, record._replace(learners=None))
    return run._replace(done=done, record=numbers._replace(learners=learners))


def _put_aside(run: MethodRun) -> None:
    """Gives another name to what stands, unreadable, where a checkpoint is going to be."""
    run.folder.mkdir(parents=True, exist_ok=True)
    for task in range(run.done, run.record.accuracy.shape[1]):
        path = run.folder / f"task_{task + 1}"
        names = (path.with_name(f"{path.name}.unreadable_{i}") for i in itertools.count(1))
        if os.path.lexists(path):
            path.rename(next(name for name in names if not os.path.lexists(name)))


def _work(
    runs: dict[str, MethodRun], benchmark: Benchmark, settings: dict, least_free, folder, said
) -> None:
    """Trains what is not trained yet, shows the table and writes the results."""
    out, err = consoles()
    introduce(err, settings, next(iter(runs.values())).studies[0].layout)
    for line in filter(None, [*said, *(line for run in runs.values() for line in run.about)]):
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
    """Trains one method to its end, with a checkpoint after each task."""
    start, record = time.perf_counter(), run.record
    seconds, compilations, tasks = record.seconds, record.compilations, record.accuracy.shape[1]
    progress(tasks=tasks, task=run.done, epoch=0, epochs=1)
    if run.done == tasks:
        return record
    epoch = 0
    for event in study.run(run.studies, record.learners, run.done):
        if isinstance(event, study.EpochEnd):
            progress(tasks=tasks, task=event.task, epoch=event.epoch, epochs=event.epochs)
            epoch = event.epoch
        if isinstance(event, (study.EpochEnd, study.TaskEnd)):
            new = ~event.finite & (record.diverged[:, 0] == 0)
            record.diverged[new] = event.task + 1, epoch
        if not isinstance(event, study.TaskEnd):
            continue
        record.accuracy[:, event.task] = event.accuracy
        for name, values in event.measures.items():
            _put(record.measures[name], values, event.task)
        record = record._replace(
            learners=event.learners,
            seconds=np.asarray(seconds + time.perf_counter() - start, np.float32),
            compilations=np.asarray(max(compilations, study.compilations(run.studies)), np.int32),
        )
        path = run.folder / f"task_{event.task + 1}"
        _save(path, record)
        if processes.is_main():
            checkpoint.remove_old(run.folder)
        if event.task + 1 < tasks and "capacity" in event.measures:
            warn(event.task + 1, 1 - event.measures["capacity"])
    return record._replace(learners=None)


def _save(path: Path, record: Record) -> None:
    """Writes a checkpoint.

    Raises:
        OSError: if it cannot be written; nothing is left of it then.
    """
    try:
        checkpoint.save(path, record)
    except (OSError, ValueError) as error:  # the latter is how orbax says that a disk is full
        for part in path.parent.glob(f"{path.name}.orbax-checkpoint-tmp*"):
            shutil.rmtree(part, ignore_errors=True)
        said = re.search(r"os_error_code='(\d+)'", str(error))
        code = int(said[1]) if said else getattr(error, "errno", None)
        reason = os.strerror(code) if code else str(error)
        raise OSError(code, reason, str(path)) from error


def _put(into: np.ndarray, values: np.ndarray, task: int) -> None:
    """A number after each task, or a table as it is now, where there is room for it."""
    if values.ndim == 1:
        into[:, task] = values
    else:
        into[tuple(map(slice, values.shape))] = values


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
