"""A study: one method on a sequence of tasks, for many seeds and settings, in a few programs."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxcl import train
from jaxcl.core import masks
from jaxcl.core.checks import check_number
from jaxcl.data.benchmark import Benchmark, Split
from jaxcl.data.benchmark import check as check_benchmark
from jaxcl.study import replicas
from jaxcl.study.replicas import Device
from jaxcl.train.loop import Data, Learner, Metrics, Setup

PyTree = Any
Recipe = Callable[[Mapping[str, Any]], Setup]

FEATURE_BYTES = 2 << 30  # budget for the stored activations of PNN's frozen columns, all replicas


class Study(NamedTuple):
    """What a study runs, and the programs that it is compiled to.

    Attributes:
        recipe: makes the setup from one replica's settings, which may be traced numbers.
        benchmark: the sequence of tasks.
        seeds: array [replicas].
        settings: numeric settings, arrays [replicas].
        epochs: epochs of training on each task, before `end_task`.
        retrain_epochs: epochs after `end_task`, which PackNet needs; 0 for none.
        layout: where the replicas run.
        programs: the compiled functions, by name.
        traces: how often each of them was traced.
    """

    recipe: Recipe
    benchmark: Benchmark
    seeds: np.ndarray
    settings: dict[str, np.ndarray]
    epochs: tuple[int, ...]
    retrain_epochs: int
    layout: replicas.Layout
    programs: dict[str, Callable]
    traces: Counter


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


def build(
    recipe: Recipe | Setup,
    benchmark: Benchmark,
    seeds: Sequence[int],
    *,
    epochs: int | Sequence[int],
    retrain_epochs: int = 0,
    settings: Mapping[str, ArrayLike] | None = None,
    devices: Sequence[Device] | None = None,
    chunk: int | None = None,
    split: int = 1,
) -> Study:
    """Prepares a study; nothing runs yet.

    Args:
        recipe: a `train.Setup`; or a function from one replica's `settings` to it, which is called
            while programs are traced.
        benchmark: the sequence of tasks.
        seeds: one for each replica.
        epochs: epochs on each task, at least 1; or one number for each task, where 0 leaves it as
            it begins: a pretrained network that PackNet prunes at once.
        retrain_epochs: further epochs after each task's `end_task`.
        settings: numeric settings, one value for each replica.
        devices: see `replicas.layout`.
        chunk: likewise.
        split: likewise; it must divide the batch.

    Returns:
        A study for `run`.

    Raises:
        ValueError: for settings of unequal length, a `split` that does not divide the batch,
            numbers out of range, tasks that differ in shape or type, whatever `train.start`
            refuses, or fewer logits than classes.
    """
    given = recipe
    recipe = given if callable(given) else lambda settings: given
    benchmark = check_benchmark(benchmark)
    numbers = np.asarray(seeds, np.uint32)
    values = {name: np.asarray(value, np.float32) for name, value in (settings or {}).items()}
    for name, value in values.items():
        if value.shape != numbers.shape:
            raise ValueError(
                f"setting '{name}' needs one value for each of {numbers.size} replicas, "
                f"got shape {value.shape}."
            )
    tasks = len(benchmark.tasks)
    alike = isinstance(epochs, (int, np.integer))
    each = (int(epochs),) * tasks if alike else tuple(epochs)
    if len(each) != tasks or min(each) < (1 if alike else 0):
        raise ValueError(
            f"epochs must be at least 1, or one number from 0 on for each of {tasks} tasks, "
            f"got {epochs}."
        )
    check_number("retrain_epochs", retrain_epochs, least=0)
    shapes = jax.eval_shape(
        partial(_probe, recipe, benchmark), {name: value[0] for name, value in values.items()}
    )
    where = replicas.layout(
        numbers.size, masks.size_bytes(shapes), devices=devices, chunk=chunk, split=split
    )
    for row in dict.fromkeys(zip(*values.values())) or [()]:  # as numbers, which can be checked
        _check_batch(recipe(dict(zip(values, row))).batch, split)
    traces = Counter()

    def program(function, in_place=False):
        name = function.__name__

        def with_setup(carried, fixed, *shared):
            settings, *rest = fixed
            setup = recipe(settings)._replace(axis=replicas.BATCH_AXIS if split > 1 else None)
            return function(setup, carried, *rest, *shared)

        def count():
            traces[name] += 1

        return replicas.spread(with_setup, where, count=count, in_place=in_place)

    def start(setup, seed):
        return train.start(setup, jax.random.key(seed), tasks)

    def begin_task(setup, learner, task):
        return train.begin_task(setup, learner, task), ()

    def epoch(setup, learner, state, features, data, task, index, validation):
        """The method's state, which no epoch changes, is read where it is and not moved about."""
        learner = learner._replace(state=state)
        learner, metrics = train.epoch(setup, learner, data, task, index, validation, features)
        return learner._replace(state=()), metrics

    def evaluate(setup, learner, data):
        method, own = setup.method, (learner.theta, learner.state)
        overlap = method.overlap and method.overlap(*own)
        return train.evaluate_all(setup, learner, data).accuracy, method.capacity(*own), overlap

    def end(setup, learner, task, validation):
        learner = train.end_task(setup, train.end_phase(setup, learner), task)
        if retrain_epochs:
            learner = train.begin_phase(setup, learner, task, validation)
        return learner, ()

    def end_phase(setup, learner, task, validation):
        return train.end_phase(setup, learner), ()

    def grow(setup, learner):
        return train.grow(setup, learner, tasks)

    changing = (begin_task, epoch, end, end_phase)
    programs = {function.__name__: program(function, in_place=True) for function in changing}
    for function in (start, grow, train.frozen_features, evaluate):
        programs[function.__name__] = program(function)
    return Study(recipe, benchmark, numbers, values, each, retrain_epochs, where, programs, traces)


def _probe(recipe: Recipe, benchmark: Benchmark, settings: Mapping[str, Any]) -> PyTree:
    """The network's parameters; and a look at whether a learner can start, and see the examples."""
    setup, tasks = recipe(settings), benchmark.tasks
    learner = train.start(setup, jax.random.key(0), len(tasks))
    params, row = train.network(setup, learner, 0)
    logits, _ = setup.model.apply(params, row, setup.prepare(jnp.asarray(tasks[0].train.x[:1])))
    for number, task in enumerate(tasks):
        if logits.ndim != 2 or logits.shape[1] < task.classes:
            raise ValueError(
                f"{benchmark.name}, task {number}: {task.classes} classes, but the network's "
                f"logits have shape {logits.shape} for one example."
            )
    return setup.model.init(jax.random.key(0))[0]


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
    examples = _examples(setup, benchmark)
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


def _examples(setup: Setup, benchmark: Benchmark) -> Callable[[int], tuple[Data, Data | None]]:
    """By task: the examples to train on, and those that choose an epoch, if any are to."""
    tasks = benchmark.tasks
    validated = setup.select is not None or setup.patience is not None
    if setup.mixed:
        mixture, validation = mixed([task.train for task in tasks]), stack([t.val for t in tasks])
        return lambda task: (mixture(task), validation if validated else None)
    length = max(task.train.y.size for task in tasks)
    validation_length = max(task.val.y.size for task in tasks)

    def own(task):
        data = train.examples(*tasks[task].train, length=length)
        if not validated:
            return data, None
        return data, train.examples(*tasks[task].val, length=validation_length)

    return own


def _next(events: Iterator, stage: Study) -> EpochEnd | TaskEnd | None:
    try:
        return next(events, None)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryError(_advice(stage)) from error


def _advice(stage: Study) -> str:
    """What to do once a device is out of memory, from the sizes of programs with smaller chunks."""
    where = stage.layout
    devices = where.mesh.local_devices  # others may not be asked
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    if limit is None:  # a CPU, whose devices share the machine's memory
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)
    says = f"the device is out of memory: {where.chunk} replicas at a time, {where.share} in all"
    chunk = where.chunk
    while chunk > 1:
        chunk //= 2
        smaller = build(
            stage.recipe, stage.benchmark, list(stage.seeds), settings=stage.settings,
            epochs=stage.epochs, retrain_epochs=stage.retrain_epochs,
            devices=list(where.mesh.devices.flat), chunk=chunk,
            split=where.mesh.shape[replicas.BATCH_AXIS],
        )  # fmt: skip
        if (needed := program_bytes(smaller)) < 0.9 * limit:
            return f"{says}; --chunk {chunk} needs {needed / 1e9:.2g} of its {limit / 1e9:.2g} GB."
    return f"{says}; no chunk fits its {limit / 1e9:.2g} GB: choose fewer seeds or settings."


def program_bytes(stage: Study) -> int:
    """Bytes that the training of an epoch needs on each device: arguments, results, temporaries."""
    where, programs = stage.layout, stage.programs

    def padded(leaf):
        return jax.ShapeDtypeStruct((where.padded, *leaf.shape[1:]), leaf.dtype)

    settings = jax.tree.map(padded, stage.settings)
    learners = jax.eval_shape(programs["start"], padded(stage.seeds), (settings,))
    setup = stage.recipe({name: value[0] for name, value in stage.settings.items()})
    data, validation = _examples(setup, stage.benchmark)(0)
    number, features = jnp.int32(0), None
    if features_fit(stage, setup, learners, data):
        features = jax.eval_shape(programs["frozen_features"], learners, (settings,), data, number)
    used = programs["epoch"].lower(
        learners._replace(state=()), (settings, learners.state, features),
        data, number, number, validation,
    ).compile().memory_analysis()  # fmt: skip
    return (
        used.argument_size_in_bytes + used.output_size_in_bytes
        + used.temp_size_in_bytes - used.alias_size_in_bytes
    )  # fmt: skip


def compilations(stages: Sequence[Study]) -> int:
    """How often the training of an epoch was traced, so compiled."""
    return sum(stage.traces["epoch"] for stage in stages)


def _all_stopped(learners: Learner, where: replicas.Layout) -> bool:
    return bool(replicas.fetch(learners.plan.stopped, where).all())


def stack(splits: Sequence[Split]) -> Data:
    """The examples of all tasks, with a leading [tasks] axis."""
    length = max(split.y.size for split in splits)
    padded = [train.examples(*split, length=length) for split in splits]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *padded)


def mixed(splits: Sequence[Split]) -> Callable[[int], Data]:
    """The examples of all tasks in a row, of which the result counts those up to a given task."""
    x = np.concatenate([split.x for split in splits])
    y = np.concatenate([split.y for split in splits])
    task_of = np.concatenate([np.full(s.y.size, t, np.int32) for t, s in enumerate(splits)])
    counts = np.cumsum([split.y.size for split in splits])
    return lambda task: Data(x, y, np.int32(counts[task]), task_of)


def features_fit(study: Study, setup: Setup, learners: Learner, data: Data) -> bool:
    """Whether the activations of all frozen columns on a task's data are within the budget."""
    if setup.model.frozen is None:
        return False
    shapes = jax.eval_shape(
        jax.vmap(partial(train.frozen_features, setup), in_axes=(0, None, None)),
        learners, data, jnp.int32(0),
    )  # fmt: skip
    return masks.size_bytes(shapes) <= FEATURE_BYTES


def _check_batch(batch: int, split: int) -> None:
    if batch % split:
        raise ValueError(
            f"a batch of {batch} cannot be split evenly over {split} devices; choose a batch that "
            f"{split} divides."
        )
