"""The arrays that a study trains and evaluates on."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl import train
from jaxcl.core import masks
from jaxcl.data.benchmark import Benchmark, Split, is_streamed
from jaxcl.study import replicas
from jaxcl.study.programs import Study
from jaxcl.train.loop import epoch_key, random_order
from jaxcl.train.types import Data, Learner, Setup

WINDOW_BYTES = 64 << 20  # of examples that are put on the device at once
SAMPLE = 2000  # examples of a window's task that are seen at its boundaries
FEATURE_BYTES = 2 << 30  # budget for the stored activations of frozen columns, all replicas


def examples_by_task(
    setup: Setup, benchmark: Benchmark
) -> Callable[[int], tuple[Data, Data | None]]:
    """By task: the examples to train on, and those to choose an epoch or judge a phase by."""
    if setup.order == "one":
        return windowed_examples(setup, benchmark)
    tasks = benchmark.tasks
    validated = _validated(setup)
    if setup.mixed:
        mixture, validation = mixed([task.train for task in tasks]), stack([t.val for t in tasks])
        return lambda task: (mixture(task), validation if validated else None)
    length = max(len(task.train.y) for task in tasks)
    validation_length = max(len(task.val.y) for task in tasks)

    def own(task):
        data = train.examples(*tasks[task].train, length=length)
        if not validated:
            return data, None
        return data, train.examples(*tasks[task].val, length=validation_length)

    return own


def _validated(setup: Setup) -> bool:
    judged = any(phase.begin is not None for phase in setup.method.phases)
    return judged or setup.select is not None or setup.patience is not None


def count_of(setup: Setup, benchmark: Benchmark, task: int) -> int:
    """How many examples a task is trained on."""
    first = 0 if setup.mixed else task
    return sum(len(one.train.y) for one in benchmark.tasks[first : task + 1])


# One order for all learners, in windows


def windowed_examples(
    setup: Setup, benchmark: Benchmark
) -> Callable[[int], tuple[Data, Data | None]]:
    """By task: a sample of the examples to train on, and those to choose an epoch by.

    The sample, of SAMPLE at most, is what a method sees at a task's boundaries.
    """
    if setup.mixed:
        raise ValueError(
            "Setup: order='one' gives the examples of one task at a time, so that mixed training "
            "needs order='each'."
        )
    longest = max(len(task.val.y) for task in benchmark.tasks)
    length = min(SAMPLE, max(len(task.train.y) for task in benchmark.tasks))

    def own(task):
        (x, y), val = benchmark.tasks[task].train, benchmark.tasks[task].val
        rows = np.random.default_rng(task).permutation(len(y))[:SAMPLE]
        data = train.examples(np.asarray(x[rows]), y[rows], length=length)
        return data, train.examples(*val, length=longest) if _validated(setup) else None

    return own


def windows(
    study: Study, setup: Setup, task: int, epoch: int, first: int, last: int
) -> Iterator[tuple[Data, int]]:
    """The batches of an epoch's steps, in an order that the first seed draws for all.

    What is streamed is read once: several processes take turns at the batches, and exchange them.

    Args:
        study: whose benchmark holds the examples, or streams them.
        setup: its setup.
        task: the task.
        epoch: the epoch's number.
        first: the step to begin with; with task and epoch it is the whole state of a stream.
        last: the step before which to stop.

    Yields:
        A window, all of them of one shape, and the step at which it ends.
    """
    x: Any = study.benchmark.tasks[task].train.x
    y = study.benchmark.tasks[task].train.y
    size, steps = setup.batch, math.ceil(len(y) / setup.batch)
    key = epoch_key(jax.random.key(study.seeds[0]), task, epoch)
    order = np.asarray(random_order(key, len(y), len(y)))
    order = order[np.arange(steps * size) % len(y)]  # the last batch is filled up
    batch_bytes = size * math.prod(x.shape[1:]) * x.dtype.itemsize
    length = max(1, min(steps, WINDOW_BYTES // max(1, batch_bytes)))
    seed = int(np.random.default_rng([int(study.seeds[0]), task, epoch]).integers(2**31))
    read = _streamed(x, order, size, seed, first) if is_streamed(x) else _held(x, order, size)
    while first < last:
        end = min(last, first + length)
        rows = read(first, end)
        labels = y[order[first * size : end * size]]
        fill = length * size - len(rows)
        rows, labels = (np.pad(a, [(0, fill)] + [(0, 0)] * (a.ndim - 1)) for a in (rows, labels))
        yield Data(rows, labels, np.int32(len(y)), None, np.int32(first)), end
        first = end


def _held(x: np.ndarray, order: np.ndarray, size: int) -> Callable[[int, int], np.ndarray]:
    """The rows of the batches from one number to another, of an array."""
    return lambda first, end: x[order[first * size : end * size]]


def _streamed(
    x: Any, order: np.ndarray, size: int, seed: int, begin: int
) -> Callable[[int, int], np.ndarray]:
    """The same of images in files, for windows that follow one another from the batch `begin` on.

    All learners go through one order, so that every process needs every row. Each reads its share.
    """
    several, index = jax.process_count(), jax.process_index()
    mine = x.batches(order, size, seed=seed, first=begin + index, step=several)

    def read(first, end):
        owner = (np.arange(first, end) - begin) % several
        rows = [next(mine) for _ in range(np.sum(owner == index))]
        if several == 1:
            return np.concatenate(rows)
        most = -(-(end - first) // several)
        rows += [np.zeros((size, *x.shape[1:]), x.dtype)] * (most - len(rows))
        every = replicas.gather(np.stack(rows))  # [processes, most, size, ...]
        return np.concatenate(every[owner, np.arange(end - first) // several])

    return read


def stack(splits: Sequence[Split]) -> Data:
    """The examples of all tasks, with a leading [tasks] axis.

    >>> from jaxcl import data
    >>> stack([task.train for task in data.split_digits().tasks]).x.shape
    (5, 219, 64)
    """
    length = max(len(split.y) for split in splits)
    padded = [train.examples(*split, length=length) for split in splits]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *padded)


def mixed(splits: Sequence[Split]) -> Callable[[int], Data]:
    """The examples of all tasks in a row, of which the result counts those up to a given task.

    >>> from jaxcl import data
    >>> examples = mixed([task.train for task in data.split_digits().tasks])
    >>> int(examples(0).count) < int(examples(4).count)
    True
    """
    x = np.concatenate([split.x for split in splits])
    y = np.concatenate([split.y for split in splits])
    task_of = np.concatenate([np.full(len(s.y), t, np.int32) for t, s in enumerate(splits)])
    counts = np.cumsum([len(split.y) for split in splits])
    return lambda task: Data(x, y, np.int32(counts[task]), task_of)


def features_fit(study: Study, setup: Setup, learners: Learner, data: Data) -> bool:
    """Whether the activations of all frozen columns on a task's data are within the budget."""
    if setup.model.frozen is None or setup.order == "one" or setup.augment is not None:
        return False
    shapes = jax.eval_shape(
        jax.vmap(partial(train.frozen_features, setup), in_axes=(0, None, None)),
        learners, data, jnp.int32(0),
    )  # fmt: skip
    return masks.size_bytes(shapes) <= FEATURE_BYTES
