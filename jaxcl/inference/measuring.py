"""How well the task is told, and what that costs in accuracy."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcl.inference.predictor import SIZE, Predictor

REPEATS = 10


class Measured(NamedTuple):
    """What a network does with and without being told the task; shares in [0, 1].

    Attributes:
        told: float [tasks], the accuracy on each task's examples when it is told.
        inferred: likewise when it infers the task: the task and the class are right.
        classes: likewise, whichever task it takes an example for: for tasks of the same classes.
        confusion: float [tasks, tasks], of the examples of one task, in rows, those that are taken
            for another.
    """

    told: np.ndarray
    inferred: np.ndarray
    classes: np.ndarray
    confusion: np.ndarray

    @property
    def tasks(self) -> np.ndarray:
        """The share of each task's examples whose task is told rightly, float [tasks]."""
        return np.diagonal(self.confusion)


def measure(predictor: Predictor, examples: Sequence[Any], batch: int | None = None) -> Measured:
    """Runs a network told the task and inferring it, by the predictor's rule and calibration.

    Args:
        predictor: the network.
        examples: for each finished task (x [N, ...], y [N]), as a `Task` has them in its `test`.
        batch: so many examples, one after the other, are known to be of one task.

    Raises:
        ValueError: for another number of tasks than are finished, or examples of other shapes.
    """
    number = predictor.tasks
    if len(examples) != number:
        raise ValueError(f"measure: {number} tasks are finished, got examples of {len(examples)}.")
    rows = []
    for task, (x, y) in enumerate(examples):
        found = predictor.infer(x, batch)
        answers = found.logits.argmax(-1)
        right, chosen = answers == np.asarray(y), found.task
        of_chosen = right[chosen, np.arange(len(chosen))]
        taken = np.bincount(chosen, minlength=number) / len(chosen)
        told, both = right[task].mean(), (of_chosen & (chosen == task)).mean()
        rows.append((told, both, of_chosen.mean(), taken))
    told, inferred, classes, confusion = zip(*rows)
    return Measured(np.array(told), np.array(inferred), np.array(classes), np.stack(confusion))


def cost(predictor: Predictor, x: Any, rule: str | None = None) -> float:
    """Seconds an example, in a batch of `SIZE`, the median of some calls.

    Args:
        predictor: the network.
        x: stored examples [N, ...].
        rule: by which the task is inferred; None for the network that is told it.
    """
    program = predictor.programs["logits" if rule is None else f"scores {rule}"]
    rest = np.int32(0) if rule is None else np.float32(1)
    batch, times = np.resize(x, (SIZE, *np.shape(x)[1:])), []
    for _ in range(REPEATS + 1):
        begin = time.perf_counter()
        jax.block_until_ready(program(predictor.learner, batch, rest))
        times.append(time.perf_counter() - begin)
    return float(np.median(times[1:])) / SIZE
