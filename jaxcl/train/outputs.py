"""What a row's logits count for: which of them take part, its label among them, its loss."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxcl.core.method import Batch
from jaxcl.train.types import Setup

ABSENT = -1e30  # the logit of a class that takes no part


def scores(
    setup: Setup, logits: jax.Array, batch: Batch, task: Any, seen: Any = None
) -> tuple[jax.Array, jax.Array]:
    """Loss and metric of each row, [B] both.

    Args:
        setup: the loss, the metric, the scenario and the number of each task's classes.
        logits: float [B, C].
        batch: the rows.
        task: the task of rows that do not say theirs.
        seen: the last task whose classes are known, for the scenario "class"; `task` by default.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if setup.classes is not None:
        absent = _absent(setup, logits.shape, batch, task, seen)
        logits = logits if absent is None else jnp.where(absent, ABSENT, logits)
    y = labels(setup, batch, task)
    return setup.loss(logits, y), setup.metric(logits, y)


def labels(setup: Setup, batch: Batch, task: Any) -> jax.Array:
    """Each row's label among its logits: within its task, or over all classes."""
    if setup.scenario != "class":
        return batch.y
    classes = jnp.asarray(setup.classes)
    return batch.y + (jnp.cumsum(classes) - classes)[_task_of(batch, task)]


def visible(
    setup: Setup, shape: tuple[int, int], batch: Batch, task: Any, seen: Any = None
) -> jax.Array:
    """Which logits take part in each row's loss, bool [B, C]."""
    absent = None if setup.classes is None else _absent(setup, shape, batch, task, seen)
    return jnp.ones(shape, bool) if absent is None else ~absent


def _absent(setup, shape, batch, task, seen):
    numbers, classes = jnp.arange(shape[-1])[None], jnp.asarray(setup.classes)
    if setup.scenario == "class":
        if setup.unseen == "kept":
            return None
        present = jnp.cumsum(classes)[task if seen is None else seen]
    else:
        present = classes[_task_of(batch, task)]
    return jnp.broadcast_to(numbers >= jnp.reshape(present, (-1, 1)), shape)


def _task_of(batch, task):
    return task if batch.task is None else batch.task
