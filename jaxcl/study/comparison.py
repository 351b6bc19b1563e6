"""One method of a comparison: its studies, how far they are, and their training with checkpoints.

A method's checkpoints are `task_1`, `task_2`, ... in a folder of its own, one after each task.
"""

import itertools
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxcl import train
from jaxcl.core.trees import PyTree
from jaxcl.data.benchmark import Benchmark
from jaxcl.study import checkpoint, events, recipes, replicas
from jaxcl.study.events import EpochEnd, Event, TaskEnd
from jaxcl.study.programs import Study
from jaxcl.study.recipes import Choice


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
    """One method of a comparison.

    Attributes:
        choice: the method with its options.
        studies: what it trains, see `events.run`.
        learner: the shapes of one learner that has room for all tasks.
        parameters: number of the network's parameters once all tasks are learned.
        extra_bytes: memory beyond that of plain fine-tuning.
        done: number of tasks that are done.
        record: what is known of them.
        folder: of its checkpoints; None to keep none.
        passed_over: the newest checkpoint, where it cannot be read and an older one is taken.
    """

    choice: Choice
    studies: list[Study]
    learner: PyTree
    parameters: int
    extra_bytes: int
    done: int
    record: Record
    folder: Path | None = None
    passed_over: Path | None = None


def begin(
    choice: Choice,
    benchmark: Benchmark,
    seeds: Sequence[int],
    *,
    folder: Path | None = None,
    **options_of_build: Any,
) -> MethodRun:
    """One method before its first task; nothing runs yet, and nothing is written.

    Args:
        choice: the method with its options.
        benchmark: the sequence of tasks.
        seeds: one for each replica.
        folder: for its checkpoints; None to keep none.
        **options_of_build: what else `study.build` takes: settings, devices, chunk.

    Raises:
        ValueError: whatever `study.build` refuses.
    """
    studies = recipes.studies(choice, benchmark, seeds=seeds, **options_of_build)
    learner = shapes(setup_of(studies[-1]), benchmark)
    count, tasks = len(seeds), len(benchmark.tasks)

    def unknown(*shape):
        return np.full((count, *shape), np.nan, np.float32)

    nothing = Record(
        learners=None,
        accuracy=unknown(tasks, tasks),
        measures={
            name: unknown(tasks, *shape[1:]) if len(shape) < 2 else unknown(*shape)
            for name, shape in _measures(studies[-1], learner).items()
        },
        diverged=np.zeros((count, 2), np.int32),
        seconds=np.zeros((), np.float32),
        compilations=np.zeros((), np.int32),
    )
    return MethodRun(
        choice, studies, learner, *recipes.cost(choice, benchmark, learner), 0, nothing, folder
    )


def setup_of(one: Study) -> train.Setup:
    """The setup of a study's first replica."""
    return one.recipe({name: value[0] for name, value in one.settings.items()})


def shapes(setup: train.Setup, benchmark: Benchmark) -> PyTree:
    """The shapes of one learner."""
    x, tasks = benchmark.tasks[0].train.x, len(benchmark.tasks)
    setup = setup._replace(sample=jax.ShapeDtypeStruct(x.shape[1:], x.dtype))
    return jax.eval_shape(lambda key: train.start(setup, key, tasks), jax.random.key(0))


def _measures(one: Study, learner: PyTree) -> dict[str, tuple[int, ...]]:
    """The shapes of a method's measures of one learner."""
    own = (learner.theta, learner.state)
    return {m.name: jax.eval_shape(m.of, *own).shape for m in setup_of(one).method.measures}


# Going on


def restore(run: MethodRun) -> MethodRun:
    """A method as far as its latest checkpoint, spread over the devices that there are now.

    Raises:
        ValueError: if there are checkpoints and none can be read, or they are of another run.
    """
    if run.folder is None:
        return run
    newest = checkpoint.latest(run.folder)
    found = newest and checkpoint.latest(run.folder, readable=True)
    if not newest:
        return run
    if not found:
        checkpoint.verify(newest[1])  # says what is wrong
        raise ValueError(f"the checkpoint in {newest[1]} cannot be read.")
    tasks = run.record.accuracy.shape[1]
    done, path = found
    if done > tasks:
        raise ValueError(f"{path} is of a task that this run does not have.")
    one = next(one for one in run.studies if len(one.benchmark.tasks) >= done)
    record = _read(path, run.record, one)
    learners = None if done == tasks else _spread(record.learners, one.layout)
    numbers = jax.tree.map(np.array, record._replace(learners=None))
    passed_over = newest[1] if newest != found else None
    return run._replace(
        done=done, record=numbers._replace(learners=learners), passed_over=passed_over
    )


def _read(path: Path, like: Record, one: Study) -> Record:
    """A checkpoint; the learners' rows are those that were saved."""
    stored = checkpoint.shapes(path)
    if "learners/key" not in stored:
        raise ValueError(f"the checkpoint in {path} holds no learners of this version of jaxcl.")
    rows, layout = stored["learners/key"].shape[0], one.layout
    spec = PartitionSpec(replicas.AXIS) if rows == layout.padded else PartitionSpec()
    sharding = NamedSharding(layout.mesh, spec)
    learners = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape), leaf.dtype, sharding=sharding),
        shapes(setup_of(one), one.benchmark),
    )
    return checkpoint.restore(path, like._replace(learners=learners))


def _spread(learners: PyTree, layout: replicas.Layout) -> PyTree:
    """Learners of any number of rows over the devices that there are now."""
    if learners.key.shape[0] == layout.padded:
        return learners
    index = np.minimum(np.arange(layout.padded), layout.replicas - 1)
    take = jax.jit(
        lambda tree: jax.tree.map(lambda leaf: leaf[index], tree),
        out_shardings=NamedSharding(layout.mesh, PartitionSpec(replicas.AXIS)),
    )
    return take(learners)


def put_aside(run: MethodRun) -> None:
    """Gives another name to what stands, unreadable, where a checkpoint is going to be."""
    if run.folder is None:
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    for task in range(run.done, run.record.accuracy.shape[1]):
        path = run.folder / f"task_{task + 1}"
        names = (path.with_name(f"{path.name}.unreadable_{i}") for i in itertools.count(1))
        if os.path.lexists(path):
            path.rename(next(name for name in names if not os.path.lexists(name)))


# Training


def advance(run: MethodRun) -> Iterator[tuple[Event, Record]]:
    """Trains one method to its end, with a checkpoint after each task.

    Yields:
        Each event with the record so far, in which learners are valid until the next one. Nothing,
        if the method is at its end.

    Raises:
        OSError: if a checkpoint cannot be written; nothing is left of it then.
    """
    start, record = time.perf_counter(), run.record
    seconds, compilations, tasks = record.seconds, record.compilations, record.accuracy.shape[1]
    if run.done == tasks:
        return
    epoch = 0
    for event in events.run(run.studies, record.learners, run.done):
        if isinstance(event, EpochEnd):
            epoch = event.epoch
        if isinstance(event, (EpochEnd, TaskEnd)):
            new = ~event.finite & (record.diverged[:, 0] == 0)
            record.diverged[new] = event.task + 1, epoch
        if isinstance(event, TaskEnd):
            record.accuracy[:, event.task] = event.accuracy
            for name, values in event.measures.items():
                _put(record.measures[name], values, event.task)
        record = record._replace(
            learners=event.learners,
            seconds=np.asarray(seconds + time.perf_counter() - start, np.float32),
            compilations=np.asarray(max(compilations, events.compilations(run.studies)), np.int32),
        )
        if isinstance(event, TaskEnd) and run.folder is not None:
            _save(run.folder / f"task_{event.task + 1}", record)
            if jax.process_index() == 0:
                checkpoint.remove_old(run.folder)
        yield event, record


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
