"""What a study compiles: every step of a learner's life, for all replicas at once."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxcl import train
from jaxcl.core import masks
from jaxcl.core.checks import check_number
from jaxcl.core.trees import PyTree
from jaxcl.data.benchmark import Benchmark
from jaxcl.data.benchmark import check as check_benchmark
from jaxcl.study import replicas
from jaxcl.study.replicas import Device
from jaxcl.train.types import Setup

Recipe = Callable[[Mapping[str, Any]], Setup]


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


def _check_batch(batch: int, split: int) -> None:
    if batch % split:
        raise ValueError(
            f"a batch of {batch} cannot be split evenly over {split} devices; choose a batch that "
            f"{split} divides."
        )
