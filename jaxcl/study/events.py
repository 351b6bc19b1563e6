"""The course of a study, as an iterator of events: after every epoch, or part of one, and task."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.study import replicas
from jaxcl.study.feed import examples_by_task, features_fit, stack
from jaxcl.study.memory import advice
from jaxcl.study.programs import Study
from jaxcl.train.stopping import watches
from jaxcl.train.types import Data, Learner, Metrics, Setup


class StepsEnd(NamedTuple):
    """After a part of an epoch.

    Attributes:
        task: the task, counted from 0.
        phase: the phase's name.
        epoch: epochs of the task that are done.
        step: steps of the running epoch that are done.
        steps: steps of an epoch.
        learners: the study's whole state, with a leading [padded] axis, valid until the next event.
    """

    task: int
    phase: str
    epoch: int
    step: int
    steps: int
    learners: Learner


class EpochEnd(NamedTuple):
    """After an epoch.

    Attributes:
        task: the task, counted from 0.
        epoch: epochs of the task that are done.
        epochs: those that are planned.
        metrics: the means of the training, [replicas].
        finite: bool [replicas], False once a replica's training has diverged.
        phase: the phase's name.
        learners: as in StepsEnd.
    """

    task: int
    epoch: int
    epochs: int
    metrics: Metrics
    finite: np.ndarray
    phase: str
    learners: Learner


class TaskEnd(NamedTuple):
    """After a task.

    Attributes:
        task: the task, counted from 0.
        accuracy: accuracy on every task's held-out examples, [replicas, tasks]; nan where the
            network is not finite, or has none for the task yet.
        loss: likewise.
        measures: the method's own, by name, [replicas, ...].
        finite: bool [replicas], False once a replica's training has diverged.
        learners: the study's whole state, with a leading [padded] axis; give it back to `run` to
            go on. It is valid until the next event.
    """

    task: int
    accuracy: np.ndarray
    loss: np.ndarray
    measures: Mapping[str, np.ndarray]
    finite: np.ndarray
    learners: Learner

    @property
    def capacity(self) -> np.ndarray | None:
        """The measure of that name, [replicas]; None if the method has none."""
        return self.measures.get("capacity")


Event = StepsEnd | EpochEnd | TaskEnd


def run(
    study: Study | Sequence[Study],
    learners: Any = None,
    first: int = 0,
    *,
    evaluate_on: Literal["val", "test"] = "test",
    steps_at_once: int | None = None,
) -> Iterator[Event]:
    """Trains every replica on every task in turn.

    Args:
        study: from `build`. For a network whose arrays are sized by the number of tasks, as columns
            are, several: the same replicas, each on the first tasks of one benchmark, and on more
            of them than the one before. One program with room for all tasks would compute with all
            of it from the first task on, and one a task would be compiled every time.
        learners: the state after task `first - 1`, to go on from; None to start afresh.
        first: the task to begin with.
        evaluate_on: the examples on which every task is evaluated.
        steps_at_once: the most steps between two events; None for whole epochs. It changes neither
            the programs nor the results.

    Yields:
        `EpochEnd` after every epoch, `StepsEnd` after every further part of one, and `TaskEnd`
        after every task; the accuracy on tasks that a study has no room for is nan.

    Raises:
        MemoryError: if a device runs out of memory; it says which chunk would fit.
    """
    studies = [study] if isinstance(study, Study) else study
    tasks = [len(one.benchmark.tasks) for one in studies]
    for i, one in enumerate(studies):
        if first >= tasks[i]:
            continue
        if learners is not None and i and first == tasks[i - 1]:
            fixed = (replicas.place(one.settings, one.layout),)
            learners = one.programs["grow"](learners, fixed)
        events = _run(one, learners, first, evaluate_on, steps_at_once)
        while event := _next(events, one):
            if isinstance(event, TaskEnd):
                learners = event.learners
                event = _widened(event, tasks[-1] - tasks[i])
            yield event
        first = tasks[i]


def _widened(event: TaskEnd, missing: int) -> TaskEnd:
    """nan for the tasks that a study has no room for."""
    pad = [(0, 0), (0, missing)]
    accuracy, loss = (
        np.pad(values, pad, constant_values=np.nan) for values in (event.accuracy, event.loss)
    )
    return event._replace(accuracy=accuracy, loss=loss)


class _Run(NamedTuple):
    """What one study's run works with."""

    study: Study
    setup: Setup
    settings: Any
    steps_at_once: int | None


def _run(
    study: Study, learners: Any, first: int, evaluate_on: str, steps_at_once: int | None
) -> Iterator[Event]:
    """`run` of one study."""
    benchmark, layout, programs = study.benchmark, study.layout, study.programs
    settings = replicas.place(study.settings, layout)
    setup = study.recipe({name: value[0] for name, value in study.settings.items()})
    held_out = stack([getattr(task, evaluate_on) for task in benchmark.tasks])
    held_out = replicas.replicate(held_out, layout)
    examples = examples_by_task(setup, benchmark)
    if learners is None:
        learners = programs["start"](replicas.place(study.seeds, layout), (settings,))
    this = _Run(study, setup, settings, steps_at_once)
    for task in range(first, len(benchmark.tasks)):
        data, validation = replicas.replicate(examples(task), layout)
        learners = yield from _train(this, learners, task, data, validation)
        results = programs["evaluate"](learners, (settings,), held_out)
        metrics, measures, finite = replicas.fetch(results, layout)
        exists = np.arange(len(benchmark.tasks)) <= (task if setup.method.isolates else np.inf)
        accuracy, loss = (np.where(exists, v, np.nan) for v in (metrics.accuracy, metrics.loss))
        yield TaskEnd(task, accuracy, loss, measures, finite, learners)


def _train(this: _Run, learners, task: int, data: Data, validation) -> Iterator[Event]:
    """One task's phases; returns the learners."""
    study, programs, fixed = this.study, this.study.programs, (this.settings,)
    number, examples = jnp.int32(task), _boundary_examples(this.setup, data)
    learners, _ = programs["begin_task"](learners, fixed, number)
    features = None
    if features_fit(study, this.setup, learners, data):
        features = programs["frozen_features"](learners, fixed, data, number)
    last_open = max(i for i, phase in enumerate(study.phases) if not phase.closed)
    epoch, closed_began = 0, False
    for i, phase in enumerate(study.phases):
        begun = closed_began if phase.closed else i == 0 and phase.begin is None
        if not begun:
            begin = programs[f"begin_phase_{i}"]
            learners, _ = begin(learners, fixed, number, examples, validation)
        closed_began = False
        args = i, epoch, data, features, validation
        learners, epoch = yield from _train_phase(this, learners, task, *args)
        if i == last_open:
            learners, _ = programs["end"](learners, fixed, number, examples, validation)
            closed_began = True
        else:
            learners, _ = programs["end_phase"](learners, fixed)
    return learners


def _train_phase(
    this: _Run, learners, task: int, index: int, epoch: int, data: Data, features, validation
) -> Iterator[Event]:
    """The epochs of a phase; returns the learners and the number of the task's epochs so far."""
    study, phase, number = this.study, this.study.phases[index], jnp.int32(task)
    per_epoch = math.ceil(int(data.count) / this.setup.batch)
    planned, left = _length(study, task, index, per_epoch)
    watched, all_planned = watches(this.setup), sum(_lengths(study, task, per_epoch))
    for number_in_phase in range(planned):
        last = min(per_epoch, left - number_in_phase * per_epoch)
        done = jnp.float32(
            [number_in_phase * per_epoch / left, (number_in_phase * per_epoch + last) / left]
        )
        for begin in range(0, last, this.steps_at_once or last):
            end = min(last, begin + (this.steps_at_once or last))
            state = learners.state
            learners, (metrics, finite) = study.programs[f"epoch_{index}"](
                learners._replace(state=()), (this.settings, state, features),
                data, number, jnp.int32(epoch), jnp.int32(begin), jnp.int32(end), done,
            )  # fmt: skip
            learners = learners._replace(state=state)
            if end < last:
                yield StepsEnd(task, phase.name, epoch, end, per_epoch, learners)
        stopped = None
        if watched:
            learners, stopped = study.programs["end_epoch"](
                learners, (this.settings,), number, validation
            )
        epoch += 1
        metrics, finite = replicas.fetch((metrics, finite), study.layout)
        yield EpochEnd(task, epoch, all_planned, metrics, finite, phase.name, learners)
        if this.setup.patience is not None and replicas.fetch(stopped, study.layout).all():
            break
    return learners, epoch


def _length(study: Study, task: int, index: int, per_epoch: int) -> tuple[int, int]:
    """A phase's epochs, the last of which may be cut short, and its steps."""
    if study.steps is None:
        return study.epochs[task][index], study.epochs[task][index] * per_epoch
    return math.ceil(study.steps[index] / per_epoch), study.steps[index]


def _lengths(study: Study, task: int, per_epoch: int) -> list[int]:
    return [_length(study, task, i, per_epoch)[0] for i in range(len(study.phases))]


def _boundary_examples(setup: Setup, data: Data) -> Data | None:
    """The task's examples, for a method that looks at them between its epochs."""
    looks = setup.method.consolidate is not None or any(
        phase.begin is not None for phase in setup.method.phases
    )
    return data if looks else None


def _next(events: Iterator, study: Study) -> Event | None:
    try:
        return next(events, None)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryError(advice(study)) from error


def compilations(studies: Sequence[Study]) -> int:
    """How often the training of an epoch was traced, so compiled."""
    return sum(
        count for study in studies for name, count in study.traces.items()
        if name.startswith("epoch")
    )  # fmt: skip
