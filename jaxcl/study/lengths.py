"""How long a task's training is, in epochs and in steps."""

import math

from jaxcl.study.feed import count_of
from jaxcl.study.programs import Study
from jaxcl.train.types import Setup


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
