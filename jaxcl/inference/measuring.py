"""How well the task is told, and what that costs in accuracy."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.core.checks import check_choice
from jaxcl.inference.predictor import SIZE, Predictor
from jaxcl.inference.tasks import (
    RULES,
    TEMPERATURES,
    Rule,
    calibrated_by,
    score_of_logits,
)

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


def unknown(like: Measured) -> Measured:
    """What is said of a network whose training diverged: nan everywhere."""
    return Measured(*(np.full_like(shares, np.nan) for shares in like))


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
        rows.append(_of_task(found.logits, found.task, y, task))
    return _measured(rows)


def after_each(
    predictor: Predictor, held_out: Sequence[Any], examples: Sequence[Any]
) -> list[Measured]:
    """What `measure` gives after each task, calibrated on examples of the tasks so far.

    The networks are those of the end, so that it holds for a method whose finished tasks' networks
    no later task changes. Each network runs over all examples once.

    Args:
        predictor: the network, with the rule to choose a task by.
        held_out: for each finished task, examples [N, ...] that were not trained on.
        examples: as for `measure`.

    Returns:
        For each t, what is measured on the first t + 1 tasks, chosen among them.

    Raises:
        ValueError: for the rule "gradient", which does not choose by the answers alone; or as
            `measure`.
    """
    number, rule = predictor.tasks, predictor.rule
    check_choice("after_each: rule", rule, RULES[:-1])
    if not len(held_out) == len(examples) == number:
        raise ValueError(
            f"after_each: {number} tasks are finished, got examples of {len(held_out)} and of "
            f"{len(examples)}."
        )
    fitting = [predictor.every_logits(x) for x in held_out]
    answers = [predictor.every_logits(x) for x, _ in examples]
    task = np.repeat(np.arange(number), [logits.shape[1] for logits in fitting])
    scores, together = _scores(np.concatenate(fitting, 1), TEMPERATURES, rule), np.hstack(answers)
    ends = np.cumsum([logits.shape[1] for logits in answers])[:-1]
    found = []
    for count in range(1, number + 1):
        rows = task < count
        fitted = calibrated_by(scores[:, rows, :count], task[rows], TEMPERATURES)
        sure = _scores(together, [fitted.temperature], rule)[0, :, :count]
        chosen = np.split((sure + fitted.offset.astype(sure.dtype)).argmax(-1), ends)
        found.append(
            _measured(
                [_of_task(answers[k][:count], chosen[k], examples[k][1], k) for k in range(count)]
            )
        )
    return found


def _scores(logits: np.ndarray, temperatures: Sequence[float], rule: Rule) -> np.ndarray:
    """Scores of all examples, float [temperatures, N, tasks]."""
    return np.asarray(_at_each(logits, jnp.asarray(temperatures, jnp.float32), rule))


@partial(jax.jit, static_argnames="rule")
def _at_each(logits: Any, temperatures: Any, rule: Rule) -> jax.Array:
    return jax.lax.map(lambda t: score_of_logits(logits, rule, t), temperatures)


def _of_task(logits: np.ndarray, chosen: np.ndarray, y: Any, task: int) -> tuple:
    """What is right of the answers [tasks, N, C] for one task's examples, as `Measured` has it."""
    right = logits.argmax(-1) == np.asarray(y)
    of_chosen = right[chosen, np.arange(len(chosen))]
    taken = np.bincount(chosen, minlength=len(logits)) / len(chosen)
    return right[task].mean(), (of_chosen & (chosen == task)).mean(), of_chosen.mean(), taken


def _measured(rows: Sequence[tuple]) -> Measured:
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
