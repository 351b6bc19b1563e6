"""What a continual-learning method is, and the two that need no mask: fine-tuning and heads."""

from collections.abc import Callable
from typing import NamedTuple


class Method(NamedTuple):
    """A continual-learning method: pure functions over pytrees, all of which may be traced.

    `theta` is what the optimizer moves, `state` is what it does not. `task` is an integer scalar,
    counted from 0. `progress` is the position within the running epoch, in [0, 1], while `task` is
    in training; None asks for the network as it is evaluated.

    Attributes:
        init: `(key, params) -> (theta, state)`; `params` are the network's initial parameters.
        begin_task: `(key, theta, state, task) -> (theta, state)`, before the task's first step.
        view: `(theta, state, task, progress) -> params`, what the network computes with.
            Differentiable in `theta`.
        trainable: `(theta, state, task) -> mask`, what the task may change: a prefix tree of
            `theta` for `isolate`.
        penalty: `(theta, state, task, progress) -> scalar`, added to the task's loss.
        project: `theta -> theta`, applied after every step.
        end_task: `(theta, state, task) -> (theta, state)`, after the task's last step.
        capacity: `(theta, state) -> scalar`, the share of the network that the tasks so far use.
        overlap: `(theta, state) -> [tasks, tasks]`, the share of the network that both of two tasks
            use, where a task chooses what it uses of its predecessors; else None.
        tasks: the number of tasks that the method is made for; None for any.
        root: what the paths of the network's parameters begin with in `theta`.
        owned: `state -> paths` of the leaves of `theta` whose entries are shared out among the
            tasks, so that they cannot be each task's own as a whole.
    """

    init: Callable
    begin_task: Callable
    view: Callable
    trainable: Callable
    penalty: Callable
    project: Callable
    end_task: Callable
    capacity: Callable
    overlap: Callable | None = None
    tasks: int | None = None
    root: str = ""
    owned: Callable = lambda state: ()
