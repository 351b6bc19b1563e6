"""A study: one method on a sequence of tasks, for many seeds and settings, in a few programs."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.study import replicas
from jaxcl.study.feed import examples_by_task, features_fit, stack
from jaxcl.study.memory import advice
from jaxcl.study.programs import Study
from jaxcl.train.types import Learner, Metrics


class EpochEnd(NamedTuple):
    """After an epoch: the task, the epochs done of those planned, training means [replicas]."""

    task: int
    epoch: int
    epochs: int
    metrics: Metrics


class TaskEnd(NamedTuple):
    """After a task.

    Attributes:
        task: the task, counted from 0.
        accuracy: accuracy on every task's held-out examples, [replicas, tasks].
        capacity: share of the network that is used, [replicas].
        overlap: share of the network that both of two tasks use, [replicas, tasks, tasks], of which
            the tasks so far mean something; None unless the method chooses, as HAT does.
        learners: the study's whole state, with a leading [padded] axis; give it back to `run` to
            go on. It is valid until the next event.
    """

    task: int
    accuracy: np.ndarray
    capacity: np.ndarray
    overlap: np.ndarray | None
    learners: Learner


def run(
    study: Study | Sequence[Study],
    learners: Any = None,
    first: int = 0,
    *,
    split: Literal["val", "test"] = "test",
) -> Iterator[EpochEnd | TaskEnd]:
    """Trains every replica on every task in turn.

    Args:
        study: from `build`. For a network whose arrays are sized by the number of tasks, such as
            PNN's, several: the same replicas, each on the first tasks of one benchmark, and on
            more of them than the one before. One program with room for all tasks would compute
            with all of it from the first task on, and one a task would be compiled every time.
        learners: the state after task `first - 1`, to go on from; None to start afresh.
        first: the task to begin with.
        split: the examples on which every task is evaluated.

    Yields:
        `EpochEnd` after every epoch and `TaskEnd` after every task; the accuracy on tasks that a
        study has no room for is nan.

    Raises:
        MemoryError: if a device runs out of memory; it says which chunk would fit.
    """
    stages = [study] if isinstance(study, Study) else study
    tasks = [len(stage.benchmark.tasks) for stage in stages]
    for i, stage in enumerate(stages):
        if first >= tasks[i]:
            continue
        if learners is not None and i and first == tasks[i - 1]:
            fixed = (replicas.place(stage.settings, stage.layout),)
            learners = stage.programs["grow"](learners, fixed)
        events = _run(stage, learners, first, split)
        while event := _next(events, stage):
            if isinstance(event, TaskEnd):
                learners, missing = event.learners, tasks[-1] - tasks[i]
                accuracy = np.pad(event.accuracy, [(0, 0), (0, missing)], constant_values=np.nan)
                event = event._replace(accuracy=accuracy)
            yield event
        first = tasks[i]


def _run(study: Study, learners: Any, first: int, split: str) -> Iterator[EpochEnd | TaskEnd]:
    """`run` of one study."""
    benchmark, where, programs = study.benchmark, study.layout, study.programs
    settings = replicas.place(study.settings, where)
    fixed = (settings,)
    setup = study.recipe({name: value[0] for name, value in study.settings.items()})
    held_out = replicas.share(stack([getattr(task, split) for task in benchmark.tasks]), where)
    examples = examples_by_task(setup, benchmark)
    if learners is None:
        learners = programs["start"](replicas.place(study.seeds, where), fixed)

    for task in range(first, len(benchmark.tasks)):
        number = jnp.int32(task)
        data, validation = replicas.share(examples(task), where)
        learners, _ = programs["begin_task"](learners, fixed, number)
        features = None
        if features_fit(study, setup, learners, data):
            features = programs["frozen_features"](learners, fixed, data, number)
        epoch, planned = 0, study.epochs[task] + study.retrain_epochs
        for close, phase_end in (("end", study.epochs[task]), ("end_phase", planned)):
            while epoch < phase_end:
                state = learners.state
                learners, metrics = programs["epoch"](
                    learners._replace(state=()), (settings, state, features),
                    data, number, jnp.int32(epoch), validation,
                )  # fmt: skip
                learners = learners._replace(state=state)
                epoch += 1
                yield EpochEnd(task, epoch, planned, replicas.fetch(metrics, where))
                if setup.patience is not None and _all_stopped(learners, where):
                    epoch = phase_end
            if close == "end" or study.retrain_epochs:
                learners, _ = programs[close](learners, fixed, number, validation)
        results = programs["evaluate"](learners, fixed, held_out)
        accuracy, capacity, overlap = replicas.fetch(results, where)
        yield TaskEnd(task, accuracy, capacity, overlap, learners)


def _next(events: Iterator, stage: Study) -> EpochEnd | TaskEnd | None:
    try:
        return next(events, None)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryError(advice(stage)) from error


def compilations(stages: Sequence[Study]) -> int:
    """How often the training of an epoch was traced, so compiled."""
    return sum(stage.traces["epoch"] for stage in stages)


def _all_stopped(learners: Learner, where: replicas.Layout) -> bool:
    return bool(replicas.fetch(learners.plan.stopped, where).all())
