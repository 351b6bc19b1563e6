"""What the trace knows of an array: labels of units, or which leaf shows in it."""

import math
from typing import NamedTuple

import numpy as np

# Values. An activation is an array of labels, one for each element: a unit's number, or one of the
# three below. What is made of parameters alone is a `Param`.

ZERO = -3  # is always zero: it carries nothing, whatever it is multiplied by
CONST, RAW = -2, -1  # depends on neither data nor parameters; or on data, but on no gated unit


class Leaf(NamedTuple):
    """A leaf as it shows in an array: which of the leaf's axes lies along each of the array's."""

    path: str
    shape: tuple[int, ...]
    axes: tuple[int | None, ...] | None  # None: entries may be mixed


class Param(NamedTuple):
    """An array made of parameters and constants; entry by entry, where its leaves have axes."""

    shape: tuple[int, ...]
    leaves: tuple[Leaf, ...]
    linear: bool  # it has one leaf, and scales with it


class Op(NamedTuple):
    """One primitive operation, with the numbers of the values that it reads and makes."""

    name: str
    params: dict
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]


def filled(shape, label):
    """An activation with one label everywhere."""
    return np.broadcast_to(np.array(label), shape)


def leaf_itself(path, shape):
    """A parameter leaf itself."""
    axes = tuple(i if size > 1 else None for i, size in enumerate(shape))
    return Param(shape, (Leaf(path, shape, axes),), True)


def lies_along(param, axes, wanted):
    """Whether these axes of a kernel show the wanted axis of its leaf, whole and nothing else."""
    (leaf,) = param.leaves
    if leaf.axes is None or len(leaf.shape) < 2:
        return False
    shown = {leaf.axes[i] for i in axes} - {None}
    expected = {len(leaf.shape) + wanted} if leaf.shape[wanted] > 1 else set()
    return shown == expected and math.prod(param.shape[i] for i in axes) == leaf.shape[wanted]


def is_zero(value):
    """Whether an activation is zero throughout."""
    return isinstance(value, np.ndarray) and value.max(initial=ZERO) == ZERO
