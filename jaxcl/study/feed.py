"""The arrays that a study trains and evaluates on."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl import train
from jaxcl.core import masks
from jaxcl.data.benchmark import Benchmark, Split
from jaxcl.study.programs import Study
from jaxcl.train.types import Data, Learner, Setup

FEATURE_BYTES = 2 << 30  # budget for the stored activations of frozen columns, all replicas


def examples_by_task(
    setup: Setup, benchmark: Benchmark
) -> Callable[[int], tuple[Data, Data | None]]:
    """By task: the examples to train on, and those to choose an epoch or judge a phase by."""
    tasks = benchmark.tasks
    judged = any(phase.begin is not None for phase in setup.method.phases)
    validated = judged or setup.select is not None or setup.patience is not None
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


def stack(splits: Sequence[Split]) -> Data:
    """The examples of all tasks, with a leading [tasks] axis."""
    length = max(len(split.y) for split in splits)
    padded = [train.examples(*split, length=length) for split in splits]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *padded)


def mixed(splits: Sequence[Split]) -> Callable[[int], Data]:
    """The examples of all tasks in a row, of which the result counts those up to a given task."""
    x = np.concatenate([split.x for split in splits])
    y = np.concatenate([split.y for split in splits])
    task_of = np.concatenate([np.full(len(s.y), t, np.int32) for t, s in enumerate(splits)])
    counts = np.cumsum([len(split.y) for split in splits])
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
