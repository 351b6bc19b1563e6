"""Training with the earlier tasks' entries that exist: columns that are still to come cost nothing.

Arrays have room for all tasks. A program of an epoch may cut what is trained to the first entries,
and put it back as `train.rows` does; each number of entries is a program of its own, which has to
be worth compiling.
"""

import math
from collections.abc import Sequence

import jax

from jaxcl.core.method import Method
from jaxcl.core.trees import leaves_by_path, map_with_path
from jaxcl.train.rows import beside
from jaxcl.train.types import Learner

# Operations of one replica that take about as long as to compile a program, at the least.
CPU_OPERATIONS = 8e10
ACCELERATOR_OPERATIONS = 1e15


def cut(method: Method, learner: Learner, number: int | None) -> Learner:
    """A learner whose arrays hold the first `number` entries of `Method.sources`; None for all."""
    axis_of = method.sources
    if number is None or axis_of is None:
        return learner

    def part(path, leaf):
        axis = axis_of(path)
        return leaf if axis is None else jax.lax.slice_in_dim(leaf, 0, number, axis=axis)

    theta, opt_state = map_with_path(part, learner.theta), map_with_path(part, learner.opt_state)
    return learner._replace(theta=theta, opt_state=opt_state)


def entries(method: Method, learner: Learner) -> tuple[int, int]:
    """For how many earlier tasks there are entries, and how many numbers of theta each of them has.

    (0, 0) if the method has none, or an optimizer that holds them in another shape.
    """
    axis_of = method.sources
    if axis_of is None:
        return 0, 0
    theta = leaves_by_path(learner.theta)
    found = {path: leaf.shape for path, leaf in theta.items() if axis_of(path) is not None}
    for path, leaf in leaves_by_path(learner.opt_state).items():
        if leaf.shape != found.get(beside(path, theta), leaf.shape):
            return 0, 0
    numbers = {shape[axis_of(path)] for path, shape in found.items()}
    if len(numbers) != 1:
        return 0, 0
    (number,) = numbers
    return number, sum(map(math.prod, found.values())) // max(number, 1)


def sizes(room: int) -> list[int]:
    """The numbers of entries below `room` that there may be a program for."""
    return [size for size in (0, *(1 << i for i in range(room.bit_length()))) if size < room]


def of_tasks(room: int, operations: Sequence[float], worth: float) -> list[int | None]:
    """With how many entries each task is trained; None for all that there is room for.

    Args:
        room: for how many earlier tasks there are entries.
        operations: those that one entry takes in all of a task's training, by task.
        worth: how many operations a further program must save.

    Task t computes with t of them.

    >>> of_tasks(4, [1e12] * 5, worth=1e12)
    [0, 1, 2, None, None]
    >>> of_tasks(4, [1e9] * 5, worth=1e12)
    [None, None, None, None, None]
    """
    chosen, larger = [], room
    for size in reversed(sizes(room)):
        if (larger - size) * sum(operations[: size + 1]) >= worth:
            chosen, larger = [size, *chosen], size
    return [next((size for size in chosen if size >= t), None) for t in range(len(operations))]
