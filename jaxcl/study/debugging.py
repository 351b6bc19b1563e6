"""Finds the operation that gives a study its first NaN, by doing a part of an epoch once more."""

import traceback
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import checkify

from jaxcl import train
from jaxcl.core.trees import PyTree
from jaxcl.study.programs import Study
from jaxcl.train.types import Data

OTHERS = ("/jax/", "/jaxlib/", "/flax/", "/optax/", "/contextlib.py", "/functools.py")


class Part(NamedTuple):
    """Some steps of an epoch, as they were done.

    Attributes:
        learners: before them, with a leading [padded] axis.
        data: what they were trained on.
        task: the task.
        phase: its phase's index.
        epoch: the epoch's number within the task.
        first: the first of the steps.
        last: the step before which they stop.
        done: see `train.steps`.
    """

    learners: PyTree
    data: Data
    task: int
    phase: int
    epoch: int
    first: int
    last: int
    done: Any


def first_nan(study: Study, part: Part, replica: int) -> tuple[int, str]:
    """Where a replica that is no longer finite after a part of an epoch had its first NaN.

    Every operation is checked, so that a step takes many times as long.

    Args:
        study: which trained it; of one process.
        part: what was done.
        replica: which one.

    Returns:
        The step of the epoch, counted from 1, and the operation with the line of the source that
        asks for it. Where it has a value that is not finite, but no NaN, the last step.
    """
    setup = study.recipe({name: value[replica] for name, value in study.settings.items()})
    x = study.benchmark.tasks[0].train.x
    sample = setup.sample or jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
    method = setup.method._replace(phases=study.phases)
    setup = setup._replace(method=method, sample=sample)
    numbers = jnp.int32(part.task), jnp.int32(part.epoch)

    def step(learner, data, i):
        return train.steps(
            setup, learner, data, *numbers, i, i + 1, phase=part.phase, done=part.done
        )

    checked = jax.jit(checkify.checkify(step, errors=checkify.nan_checks))
    learner = jax.tree.map(lambda leaf: leaf[replica], part.learners)
    for i in range(part.first, part.last):
        error, (learner, _) = checked(learner, part.data, jnp.int32(i))
        if error.get():
            return i + 1, _words(error.get_exception())
    return part.last, "a sum or a product that is too large for its type, and no NaN"


def _words(error: Any) -> str:
    """The operation, and where it is asked for outside of libraries."""
    found = getattr(error, "traceback_info", None)
    frames = traceback.extract_tb(found.as_python_traceback()) if found else []
    own = [f for f in frames if not any(part in f.filename for part in OTHERS)] or frames
    where = f" in {own[-1].filename}, line {own[-1].lineno} ({own[-1].name})" if own else ""
    return f"the operation {getattr(error, 'prim', '?')}{where}"
