"""The course of a study, as an iterator of events: after every epoch, or part of one, and task."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.study import replicas
from jaxcl.study.debugging import Part, first_nan
from jaxcl.study.feed import examples_by_task, features_fit, stack, windows
from jaxcl.study.lengths import length, lengths, program_of, steps_of
from jaxcl.study.memory import advice
from jaxcl.study.points import Evaluated, Every, next_stop, point_at
from jaxcl.study.programs import Study
from jaxcl.train.stopping import watches
from jaxcl.train.types import Data, Learner, Metrics, Setup


class Cursor(NamedTuple):
    """Where a study stands, and so where `run` goes on; all integers.

    Attributes:
        task: the task that runs, or is the next, counted from 0.
        phase: the index of its running phase.
        epoch: epochs of the phase that are done; all that are planned once it is over.
        step: steps of the running epoch that are done.
    """

    task: int = 0
    phase: int = 0
    epoch: int = 0
    step: int = 0


class StepsEnd(NamedTuple):
    """After a part of an epoch.

    Attributes:
        task: the task, counted from 0.
        phase: the phase's name.
        epoch: epochs of the task that are done.
        step: steps of the running epoch that are done.
        steps: steps of an epoch.
        learners: the study's whole state, with a leading [padded] axis; give it back to `run`,
            with the cursor, to go on. It is valid until the next event.
        cursor: where to go on.
    """

    task: int
    phase: str
    epoch: int
    step: int
    steps: int
    learners: Learner
    cursor: Cursor


class EpochEnd(NamedTuple):
    """After an epoch.

    Attributes:
        task: the task, counted from 0.
        epoch: epochs of the task that are done; those count too that early stopping left out.
        epochs: those that are planned.
        metrics: the means of the training, [replicas].
        finite: bool [replicas], False once a replica's training has diverged.
        phase: the phase's name.
        learners: as in StepsEnd.
        cursor: likewise.
        running: bool [replicas], False for a replica that had stopped before this epoch, whose
            metrics are of one that is thrown away.
        steps: steps of the epoch.
        validation: the loss, or the accuracy, by which the epoch is judged on the validation
            examples, [replicas]; None if it is not.
    """

    task: int
    epoch: int
    epochs: int
    metrics: Metrics
    finite: np.ndarray
    phase: str
    learners: Learner
    cursor: Cursor
    running: np.ndarray
    steps: int
    validation: np.ndarray | None


class TaskEnd(NamedTuple):
    """After a task.

    Attributes:
        task: the task, counted from 0.
        epoch: epochs of the task.
        accuracy: accuracy on every task's held-out examples, [replicas, tasks]; nan where the
            network is not finite, or has none for the task yet.
        loss: likewise.
        measures: the method's own, by name, [replicas, ...].
        finite: bool [replicas], False once a replica's training has diverged.
        learners: as in StepsEnd.
        cursor: likewise.
    """

    task: int
    epoch: int
    accuracy: np.ndarray
    loss: np.ndarray
    measures: Mapping[str, np.ndarray]
    finite: np.ndarray
    learners: Learner
    cursor: Cursor

    @property
    def capacity(self) -> np.ndarray | None:
        """The measure of that name, [replicas]; None if the method has none."""
        return self.measures.get("capacity")


Station = StepsEnd | EpochEnd | TaskEnd  # from which a study can go on
Event = Station | Evaluated


def run(
    study: Study | Sequence[Study],
    learners: Any = None,
    first: int | Cursor = 0,
    *,
    evaluate_on: Literal["val", "test"] = "test",
    steps_at_once: int | Callable[[], int | None] | None = None,
    evaluate_every: Every | None = None,
    debug_nans: bool = False,
) -> Iterator[Any]:
    """Trains every replica on every task in turn.

    Args:
        study: from `build`. For a network whose arrays are sized by the number of tasks, as columns
            are, several: the same replicas, each on the first tasks of one benchmark, and on more
            of them than the one before. One program with room for all tasks would compute with all
            of it from the first task on, and one a task would be compiled every time.
        learners: the state of an event, to go on from; None to start afresh.
        first: the task to begin with, or that event's cursor.
        evaluate_on: the examples on which every task is evaluated.
        steps_at_once: the most steps between two events, or a function that is asked for it before
            each part; None for whole epochs. It changes neither the programs nor the results.
        evaluate_every: evaluate also within a task, before its first step and each so many epochs
            or steps; None for after each task alone. It changes nothing else.
        debug_nans: stop where a replica has its first NaN, and look for the operation. It holds all
            learners twice.

    Yields:
        `EpochEnd` after every epoch, `StepsEnd` after every further part of one, and `TaskEnd`
        after every task; the accuracy on tasks that a study has no room for is nan. `Evaluated`
        comes before the event of the same place. Once no replica is finite, no further epoch is
        trained.

    Raises:
        FloatingPointError: with `debug_nans`; it names the replica, the step and the operation.
        MemoryError: if a device runs out of memory; it says which chunk would fit.
    """
    studies = [study] if isinstance(study, Study) else study
    tasks = [len(one.benchmark.tasks) for one in studies]
    start = first if isinstance(first, Cursor) else Cursor(first)
    at_once = steps_at_once if callable(steps_at_once) else lambda: steps_at_once
    for i, one in enumerate(studies):
        if start.task >= tasks[i]:
            continue
        if learners is not None and i and start == Cursor(tasks[i - 1]):
            fixed = (replicas.place(one.settings, one.layout),)
            learners = one.programs["grow"](learners, fixed)
        events = _run(one, learners, start, evaluate_on, at_once, evaluate_every, debug_nans)
        while event := _next(events, one):
            if isinstance(event, TaskEnd):
                learners = event.learners
                loss = _widened(event.loss, tasks[-1] - tasks[i])
                event = event._replace(loss=loss)
            if isinstance(event, TaskEnd | Evaluated):
                event = event._replace(accuracy=_widened(event.accuracy, tasks[-1] - tasks[i]))
            yield event
        start = Cursor(tasks[i])


def _widened(values: np.ndarray, missing: int) -> np.ndarray:
    """nan for the tasks that a study has no room for."""
    return np.pad(values, [(0, 0), (0, missing)], constant_values=np.nan)


class _Run(NamedTuple):
    """What one study's run works with."""

    study: Study
    setup: Setup
    settings: Any
    held_out: Data
    steps_at_once: Callable[[], int | None]
    every: Every | None
    debug_nans: bool
    suffixes: list[str]

    def evaluate(self, learners, task: int) -> tuple[Metrics, dict, np.ndarray]:
        """Loss and accuracy on every task after training on `task`, measures, what is finite."""
        study = self.study
        number = task + 1 if self.setup.method.isolates else len(study.benchmark.tasks)
        results = study.programs["evaluate"](
            learners, (self.settings,), self.held_out, np.int32(number)
        )
        return replicas.fetch(results, study.layout)

    def at_point(self, learners, task: int, point: int | None, running: Any) -> Iterator[Evaluated]:
        """The evaluation at a point of a task's training, if there is one."""
        if self.every is not None and point is not None:
            metrics, *_ = self.evaluate(learners, task)
            counts = running[:, None] & (np.arange(metrics.accuracy.shape[1]) <= task)
            yield Evaluated(task, point, np.where(counts, metrics.accuracy, np.nan))


class _Feed(NamedTuple):
    """What a task is trained on."""

    data: Data
    features: Any
    validation: Data | None


def _run(
    study: Study,
    learners: Any,
    start: Cursor,
    evaluate_on: str,
    at_once: Callable[[], int | None],
    every: Every | None,
    debug_nans: bool,
) -> Iterator[Event]:
    """`run` of one study."""
    benchmark, layout, programs = study.benchmark, study.layout, study.programs
    settings = replicas.place(study.settings, layout)
    setup = study.setup
    held_out = stack([getattr(task, evaluate_on) for task in benchmark.tasks])
    held_out = replicas.replicate(held_out, layout)
    examples = examples_by_task(setup, benchmark)
    if learners is None:
        learners = programs["start"](replicas.place(study.seeds, layout), (settings,))
    suffixes = program_of(study, learners)
    this = _Run(study, setup, settings, held_out, at_once, every, debug_nans, suffixes)
    for task in range(start.task, len(benchmark.tasks)):
        data, validation = replicas.replicate(examples(task), layout)
        cursor = start if task == start.task else Cursor(task)
        learners = yield from _train(this, learners, cursor, data, validation)
        metrics, measures, finite = this.evaluate(learners, task)
        epochs = sum(lengths(study, task, steps_of(study, setup, task)))
        yield TaskEnd(
            task, epochs, np.asarray(metrics.accuracy), np.asarray(metrics.loss), measures, finite,
            learners, Cursor(task + 1),
        )  # fmt: skip


def _train(this: _Run, learners, start: Cursor, data: Data, validation) -> Iterator[Event]:
    """One task's phases, from a cursor on; returns the learners."""
    study, programs, fixed, task = this.study, this.study.programs, (this.settings,), start.task
    number, examples = np.int32(task), _boundary_examples(this.setup, data)
    resumed = start != Cursor(task)
    if not resumed:
        learners, _ = programs["begin_task"](learners, fixed, number)
        yield from this.at_point(learners, task, 0, np.ones(len(study.seeds), bool))
    features = None
    if features_fit(study, this.setup, learners, data):
        features = programs[f"frozen_features{this.suffixes[task]}"](learners, fixed, data, number)
    feed = _Feed(data, features, validation)
    last_open = max(i for i, phase in enumerate(study.phases) if not phase.closed)
    cursor, closed_began = start, False
    for i, phase in enumerate(study.phases[start.phase :], start.phase):
        begun = closed_began if phase.closed else i == 0 and phase.begin is None
        if i > start.phase:
            cursor = Cursor(task, i)
        elif resumed:
            begun = True
        if not begun:
            begin = programs[f"begin_phase_{i}"]
            learners, _ = begin(learners, fixed, number, examples, validation)
        closed_began = False
        learners = yield from _train_phase(this, learners, cursor, feed)
        if i == last_open:
            learners, _ = programs["end"](learners, fixed, number, examples, validation)
            closed_began = True
        else:
            learners, _ = programs["end_phase"](learners, fixed)
    return learners


def _train_phase(this: _Run, learners, cursor: Cursor, feed: _Feed) -> Iterator[Event]:
    """The epochs of a phase, from a cursor on; returns the learners."""
    study, index, task, number = this.study, cursor.phase, cursor.task, np.int32(cursor.task)
    steps = steps_of(study, this.setup, task)
    each = lengths(study, task, steps)
    before, planned = sum(each[:index]), each[index]
    now = (learners.stopping.stopped, learners.position.finite)
    (stopped, finite), validation = replicas.fetch(now, study.layout), None
    while cursor.epoch < planned and finite.any():
        epoch = before + cursor.epoch
        training = _train_epoch(this, learners, cursor, feed, epoch, ~stopped)
        learners, (metrics, finite) = yield from training
        running, epoch = ~stopped, epoch + 1
        if watches(this.setup):
            learners, judged = study.programs["end_epoch"](
                learners, (this.settings,), number, feed.validation
            )
            stopped, validation = replicas.fetch(judged, study.layout)
        metrics, finite = replicas.fetch((metrics, finite), study.layout)
        over = this.setup.patience is not None and stopped.all()
        cursor = Cursor(task, index, cursor.epoch + 1)
        point = point_at(study, this.every, cursor, steps)
        yield from this.at_point(learners, task, point, running)
        cursor = cursor._replace(epoch=planned) if over else cursor
        yield EpochEnd(
            task, epoch, sum(each), metrics, finite, study.phases[index].name,
            learners, cursor, running, steps, validation,
        )  # fmt: skip
    return learners


def _train_epoch(
    this: _Run, learners, cursor: Cursor, feed: _Feed, epoch: int, running: np.ndarray
) -> Iterator[StepsEnd | Evaluated]:
    """The steps of a task's epoch, from a cursor on; returns the learners and the metrics."""
    study, index, setup = this.study, cursor.phase, this.setup
    per_epoch = steps_of(study, setup, cursor.task)
    _, left = length(study, cursor.task, index, per_epoch)
    before = cursor.epoch * per_epoch
    last = min(per_epoch, left - before)
    done = np.array([before / left, (before + last) / left], np.float32)
    numbers, data, several = (np.int32(cursor.task), np.int32(epoch)), feed.data, None
    part = None
    if setup.order == "one":
        several = windows(study, setup, cursor.task, epoch, cursor.step, last)
    window = cursor.step
    while True:
        if several is None:
            end = min(last, cursor.step + (this.steps_at_once() or last))
        else:
            if window == cursor.step:
                data, window = next(several)
                data = replicas.replicate(data, study.layout)
            end = window
        end = int(min(end, next_stop(study, this.every, cursor, per_epoch)))
        if this.debug_nans:
            kept = jax.tree.map(jnp.copy, learners)
            part = Part(kept, data, cursor.task, index, epoch, cursor.step, end, done)
        state = learners.state
        learners, results = study.programs[f"epoch_{index}{this.suffixes[cursor.task]}"](
            learners._replace(state=()), (this.settings, state, feed.features),
            data, *numbers, np.int32(cursor.step), np.int32(end), done,
        )  # fmt: skip
        learners, cursor = learners._replace(state=state), cursor._replace(step=end)
        if part is not None:
            _debug(study, part, learners)
        if end == last:
            return learners, results
        point = point_at(study, this.every, cursor, per_epoch)
        yield from this.at_point(learners, cursor.task, point, running)
        name = study.phases[index].name
        yield StepsEnd(cursor.task, name, epoch, end, per_epoch, learners, cursor)


def _debug(study: Study, part: Part, learners: Learner) -> None:
    """Raises FloatingPointError if a replica that was finite before a part of an epoch is not."""
    was, now = replicas.fetch(
        (part.learners.position.finite, learners.position.finite), study.layout
    )  # fmt: skip
    new = np.flatnonzero(was & ~now)
    if new.size:
        step, operation = first_nan(study, part, int(new[0]))
        values = [f", {name} = {value[new[0]]:g}" for name, value in study.settings.items()]
        raise FloatingPointError(
            f"seed {study.seeds[new[0]]}{''.join(values)}, task {part.task + 1}, epoch "
            f"{part.epoch + 1}, step {step}: the first NaN comes from {operation}."
        )


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
