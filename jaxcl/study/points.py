"""At which points of a task's training all tasks so far are evaluated.

Point 0 is before the first step of a task; point p after p times so many, counted from there over
all phases. Epochs that early stopping leaves out have no points.
"""

import re
from typing import Any, NamedTuple

import numpy as np

from jaxcl.study.lengths import length, lengths, steps_of
from jaxcl.study.programs import Study


class Every(NamedTuple):
    """The distance between two points; one of the two is None.

    Attributes:
        epochs: so many epochs, at least 1.
        steps: so many steps, at least 1.

    >>> print(Every(epochs=1), Every(steps=100), sep=", ")
    1 epoch, 100 steps
    """

    epochs: int | None = None
    steps: int | None = None

    def __str__(self) -> str:
        number, unit = (self.steps, "step") if self.steps else (self.epochs, "epoch")
        return f"{number} {unit}{'' if number == 1 else 's'}"


class Evaluated(NamedTuple):
    """At a point within a task's training. From here a study cannot go on; the next event can.

    Attributes:
        task: the task, counted from 0.
        point: 0 before the first step, then counted from 1.
        accuracy: on every task's held-out examples, [replicas, tasks]; nan for tasks that are not
            trained yet, and in replicas that have stopped before, or are not finite.
    """

    task: int
    point: int
    accuracy: np.ndarray


def every(text: str) -> Every:
    """The distance in words.

    Raises:
        ValueError: for other words, or none at all.

    >>> print(every("2"), every("1epochs"), every("100steps"), every("100 steps"), sep=", ")
    2 epochs, 1 epoch, 100 steps, 100 steps
    """
    found = re.fullmatch(r"([1-9]\d{0,8})( ?(?:epochs?|steps?))?", text)
    if not found:
        raise ValueError(
            f"must be a number of epochs or of steps, such as 1epochs or 100steps, got {text!r}."
        )
    unit = "steps" if "step" in (found[2] or "") else "epochs"
    return Every(**{unit: int(found[1])})


def position(study: Study, every: Every, cursor: Any, per_epoch: int) -> int:
    """How many epochs or steps of a task are done at a cursor; epochs at the end of one."""
    each = [length(study, cursor.task, i, per_epoch) for i in range(len(study.phases))]
    before = each[: cursor.phase]
    if every.epochs:
        return sum(epochs for epochs, _ in before) + cursor.epoch
    done = cursor.epoch * per_epoch + cursor.step
    return sum(steps for _, steps in before) + min(done, each[cursor.phase][1])


def next_stop(study: Study, every: Every | None, cursor: Any, per_epoch: int) -> float:
    """The step of the running epoch at which the next point is; infinite for points by epochs."""
    if every is None or not every.steps:
        return np.inf
    done = position(study, every, cursor, per_epoch)
    return cursor.step + every.steps - done % every.steps


def point_at(study: Study, every: Every | None, cursor: Any, per_epoch: int) -> int | None:
    """The point that is at a cursor; None if there is none."""
    if every is None or (every.epochs and cursor.step):
        return None
    point, rest = divmod(
        position(study, every, cursor, per_epoch), (every.epochs or every.steps or 1)
    )
    return None if rest else point


def most(study: Study, every: Every) -> int:
    """The most points, beside point 0, that a task has.

    Raises:
        ValueError: if a task has none.
    """
    setup, each = study.setup, []
    for task in range(len(study.benchmark.tasks)):
        per_epoch = steps_of(study, setup, task)
        phases = [length(study, task, i, per_epoch) for i in range(len(study.phases))]
        epochs, steps = sum(lengths(study, task, per_epoch)), sum(s for _, s in phases)
        unit, have = ("epochs", epochs) if every.epochs else ("steps", steps)
        wanted = every.epochs or every.steps or 1
        if have < wanted:
            raise ValueError(
                f"every task is to be evaluated each {wanted} {unit}, but task {task + 1} is "
                f"trained for {have} {unit} only."
            )
        each.append(have // wanted)
    return max(each)
