"""One method of a comparison as far as it is: all that is known of it, and so what is saved."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcl import train
from jaxcl.core.trees import PyTree
from jaxcl.data.benchmark import Benchmark
from jaxcl.study import points, recipes
from jaxcl.study.events import Cursor, EpochEnd, Event, StepsEnd, TaskEnd
from jaxcl.study.lengths import longest
from jaxcl.study.points import Evaluated, Every
from jaxcl.study.programs import Study
from jaxcl.study.recipes import Choice
from jaxcl.train.stopping import watches


class Record(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        learners: the state of all replicas, with a leading [padded] axis.
        cursor: where they stand, integer scalars.
        accuracy: [replicas, tasks, tasks], nan where it is not measured yet.
        measures: the method's own numbers, by name: [replicas, tasks], or what they are now.
        curves: after each epoch of each task, by name: the training's loss and accuracy, and what
            the epoch was judged by on the validation examples; [replicas, tasks, epochs], nan where
            a replica has not trained, or no longer.
        diverged: the task and the epoch, counted from 1, after which a replica was not finite;
            0 while it is; int [replicas, 2].
        seconds: time spent so far, a scalar.
        compilations: of the training step, an integer scalar.
        during: "accuracy" at each point within each task's training, [replicas, tasks, points,
            tasks], nan where it is not measured; empty unless that is asked for.
    """

    learners: PyTree
    cursor: Cursor
    accuracy: PyTree
    measures: dict[str, PyTree]
    curves: dict[str, PyTree]
    diverged: PyTree
    seconds: PyTree
    compilations: PyTree
    during: Mapping[str, PyTree] = {}


class MethodRun(NamedTuple):
    """One method of a comparison.

    Attributes:
        choice: the method with its options.
        studies: what it trains, see `events.run`.
        learner: the shapes of one learner that has room for all tasks.
        parameters: number of the network's parameters once all tasks are learned.
        extra_bytes: memory beyond that of plain fine-tuning.
        record: what is known so far.
        folder: of its checkpoints; None to keep none.
        about: what decides on its results, by name, as each checkpoint says it.
        found: the checkpoint from which it goes on.
        passed_over: the newest one, where it cannot be read and an older one is taken.
        evaluate_every: at which points within a task all tasks so far are evaluated; None for none.
    """

    choice: Choice
    studies: list[Study]
    learner: PyTree
    parameters: int
    extra_bytes: int
    record: Record
    folder: Path | None = None
    about: Mapping[str, str] = {}
    found: Path | None = None
    passed_over: Path | None = None
    evaluate_every: Every | None = None

    @property
    def tasks(self) -> int:
        """Number of tasks."""
        return self.record.accuracy.shape[1]

    @property
    def done(self) -> int:
        """Number of tasks that are done."""
        return int(self.record.cursor.task)


def begin(
    choice: Choice,
    benchmark: Benchmark,
    seeds: Sequence[int],
    *,
    folder: Path | None = None,
    about: Mapping[str, str] | None = None,
    evaluate_every: Every | None = None,
    **options_of_build: Any,
) -> MethodRun:
    """One method before its first task; nothing runs yet, and nothing is written.

    Args:
        choice: the method with its options.
        benchmark: the sequence of tasks.
        seeds: one for each replica.
        folder: for its checkpoints; None to keep none.
        about: what decides on its results, by name; a checkpoint of another run says otherwise.
        evaluate_every: at which points within a task all tasks so far are evaluated; None for none.
        **options_of_build: what else `study.build` takes: settings, devices, chunk.

    Raises:
        ValueError: whatever `study.build` refuses.
    """
    studies = recipes.studies(choice, benchmark, seeds=seeds, **options_of_build)
    learner = shapes(studies[-1].setup, benchmark)
    record = _nothing(studies[-1], learner, evaluate_every)
    costs = recipes.cost(choice, benchmark, learner)
    return MethodRun(
        choice, studies, learner, *costs, record, folder, about or {},
        evaluate_every=evaluate_every,
    )  # fmt: skip


def shapes(setup: train.Setup, benchmark: Benchmark) -> PyTree:
    """The shapes of one learner."""
    x, tasks = benchmark.tasks[0].train.x, len(benchmark.tasks)
    setup = setup._replace(sample=jax.ShapeDtypeStruct(x.shape[1:], x.dtype))
    return jax.eval_shape(lambda key: train.start(setup, key, tasks), jax.random.key(0))


def _nothing(study: Study, learner: PyTree, every: Every | None) -> Record:
    """What is known before the first task."""
    count, tasks, setup = len(study.seeds), len(study.benchmark.tasks), study.setup

    def unknown(*shape):
        return np.full((count, *shape), np.nan, np.float32)

    own = (learner.theta, learner.state)
    measured = {m.name: jax.eval_shape(m.of, *own).shape for m in setup.method.measures}
    within = unknown(tasks, 1 + points.most(study, every), tasks) if every else None
    names = ["loss", "accuracy", *([judged(setup)] if watches(setup) else [])]
    return Record(
        learners=None,
        cursor=_scalars(Cursor()),
        accuracy=unknown(tasks, tasks),
        measures={
            name: unknown(tasks, *shape[1:]) if len(shape) < 2 else unknown(*shape)
            for name, shape in measured.items()
        },
        curves={name: unknown(tasks, longest(study)) for name in names},
        diverged=np.zeros((count, 2), np.int32),
        seconds=np.zeros((), np.float32),
        compilations=np.zeros((), np.int32),
        during={} if within is None else {"accuracy": within},
    )


def judged(setup: train.Setup) -> str:
    """The name of the curve by which epochs are judged."""
    return "validation_accuracy" if setup.select == "accuracy" else "validation_loss"


def _scalars(cursor: Cursor) -> Cursor:
    return jax.tree.map(lambda number: np.asarray(number, np.int32), cursor)


def followed(record: Record, event: Event, setup: train.Setup) -> Record:
    """What is known after an event; arrays are changed in place."""
    if isinstance(event, Evaluated):
        record.during["accuracy"][:, event.task, event.point] = event.accuracy
        return record
    if isinstance(event, EpochEnd):
        values = {**event.metrics._asdict(), judged(setup): event.validation}
        for name, curve in record.curves.items():
            curve[:, event.task, event.epoch - 1] = np.where(event.running, values[name], np.nan)
    if isinstance(event, TaskEnd):
        record.accuracy[:, event.task] = event.accuracy
        for name, values in event.measures.items():
            _put(record.measures[name], values, event.task)
    if not isinstance(event, StepsEnd):
        new = ~event.finite & (record.diverged[:, 0] == 0)
        record.diverged[new] = event.task + 1, event.epoch
    return record._replace(learners=event.learners, cursor=_scalars(event.cursor))


def _put(into: np.ndarray, values: np.ndarray, task: int) -> None:
    """A number after each task, or a table as it is now, where there is room for it."""
    if values.ndim == 1:
        into[:, task] = values
    else:
        into[tuple(map(slice, values.shape))] = values
