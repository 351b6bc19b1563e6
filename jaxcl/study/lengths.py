"""How long a task's training is, in epochs and in steps."""

import math

import jax

from jaxcl.study import sources
from jaxcl.study.feed import count_of
from jaxcl.study.programs import Study
from jaxcl.train.types import Learner, Setup


def steps_of(study: Study, setup: Setup, task: int) -> int:
    """Steps of an epoch."""
    return math.ceil(count_of(setup, study.benchmark, task) / setup.batch)


def length(study: Study, task: int, index: int, per_epoch: int) -> tuple[int, int]:
    """A phase's epochs, the last of which may be cut short, and its steps."""
    if study.steps is None:
        return study.epochs[task][index], study.epochs[task][index] * per_epoch
    return math.ceil(study.steps[index] / per_epoch), study.steps[index]


def lengths(study: Study, task: int, per_epoch: int) -> list[int]:
    """The epochs of each phase."""
    return [length(study, task, i, per_epoch)[0] for i in range(len(study.phases))]


def longest(study: Study) -> int:
    """The most epochs that are planned for a task."""
    setup = study.setup
    steps = (steps_of(study, setup, task) for task in range(len(study.benchmark.tasks)))
    return max(sum(lengths(study, task, count)) for task, count in enumerate(steps))


def program_of(study: Study, learners: Learner) -> list[str]:
    """For each task, what follows the name of the programs of its epochs; see `sources`."""
    setup, tasks = study.setup, range(len(study.benchmark.tasks))
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), learners)
    room, numbers = sources.entries(setup.method, one)
    operations = []
    for task in tasks:
        per_epoch = steps_of(study, setup, task)
        steps = sum(length(study, task, i, per_epoch)[1] for i in range(len(study.phases)))
        operations.append(6.0 * numbers * setup.batch * steps)  # a product and its two gradients
    on_cpu = study.layout.mesh.devices.flat[0].platform == "cpu"
    worth = sources.CPU_OPERATIONS if on_cpu else sources.ACCELERATOR_OPERATIONS
    chosen = sources.of_tasks(room, operations, worth)
    return ["" if number is None else f"_of_{number}" for number in chosen]
