"""Training with the running task's rows: those of other tasks neither move nor are they moved."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxcl.core import masks
from jaxcl.core.method import Phase, rows_of
from jaxcl.core.trees import PyTree, leaves_by_path, map_with_path
from jaxcl.train.types import Learner, Setup


def cut(
    setup: Setup, phase: Phase, learner: Learner, mask: PyTree, task: Any
) -> tuple[Learner, PyTree]:
    """A learner and its mask with one row of each leaf of `Method.rows`, the running task's.

    Both as they are where a step may read other rows, or the optimizer holds them in another shape.
    """
    theta, moments = leaves_by_path(learner.theta), leaves_by_path(learner.opt_state)
    paths = _paths(setup, phase, theta)
    held = {path: name for path in moments if (name := beside(path, theta)) in paths}
    if not paths or any(moments[path].shape != theta[name].shape for path, name in held.items()):
        return learner, mask

    def own(leaf):
        return jax.lax.dynamic_slice_in_dim(leaf, task, 1)

    def own_mask(path, mask, leaf):
        def part(array):
            return own(array) if jnp.ndim(array) == leaf.ndim and array.shape[0] > 1 else array

        return jax.tree.map(part, mask) if path in paths else mask

    mask = masks.expand(mask, learner.theta)
    mask = map_with_path(own_mask, mask, learner.theta, is_leaf=masks.is_mask)
    new = map_with_path(lambda p, leaf: own(leaf) if p in paths else leaf, learner.theta)
    opt_state = map_with_path(lambda p, leaf: own(leaf) if p in held else leaf, learner.opt_state)
    return learner._replace(theta=new, opt_state=opt_state), mask


def put_back(whole: Learner, learner: Learner, first: Any) -> Learner:
    """A learner that was cut, in the one that it was cut from, whose row `first` it begins at."""

    def put(old, new):
        if old.shape == new.shape:
            return new
        return jax.lax.dynamic_update_slice_in_dim(old, new, first, 0)

    both = (whole.theta, whole.opt_state), (learner.theta, learner.opt_state)
    theta, opt_state = jax.tree.map(put, *both)
    return learner._replace(theta=theta, opt_state=opt_state)


def _paths(setup: Setup, phase: Phase, theta: dict[str, Any]) -> set[str]:
    """The leaves of which a step reads and moves the running task's row alone."""
    method = setup.method
    others = (method.online, method.auxiliary, phase.trainable, phase.penalty, phase.project)
    if setup.mixed or any(other is not None for other in others):
        return set()
    return set(filter(rows_of(method), theta))


def beside(path: str, theta: dict[str, Any]) -> str:
    """The leaf of theta that one of an optimizer's state belongs to: the longest end of its path.

    >>> beside("0/mu/layers/head/kernel", {"head/kernel": 0, "layers/head/kernel": 0})
    'layers/head/kernel'
    """
    return max((name for name in theta if f"/{path}".endswith(f"/{name}")), key=len, default="")
