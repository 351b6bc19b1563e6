"""What a continual-learning method is, and the two that need no mask: fine-tuning and heads."""

import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcl import masks
from jaxcl._checks import check_count, check_pattern, check_task, shorten
from jaxcl._isolate import apart

PyTree = Any

HEAD = r"(^|/)head(/|$)"


class Method(NamedTuple):
    """A continual-learning method: pure functions over pytrees, all of which may be traced.

    `theta` is what the optimizer moves, `state` is what it does not. `task` is an integer scalar,
    counted from 0: one out of range is a ValueError where its number is known; of a traced one
    nothing is promised. `progress` is the position within the running epoch, in [0, 1], while
    `task` is in training; None asks for the network as it is evaluated.

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


def finetune() -> Method:
    """Plain fine-tuning: every task may change everything. The lower reference.

    Trained on the data of all tasks so far, it is joint training, the upper reference.
    """
    method = Method(
        init=lambda key, params: (params, ()),
        begin_task=lambda key, theta, state, task: (theta, state),
        view=lambda theta, state, task, progress=None: theta,
        trainable=lambda theta, state, task: True,
        penalty=lambda theta, state, task, progress=None: jnp.float32(0),
        project=lambda theta: theta,
        end_task=lambda theta, state, task: (theta, state),
        capacity=lambda theta, state: jnp.float32(1),
    )
    return guarded("finetune", method)


def multihead(
    method: Method, tasks: int, heads: str = HEAD, *, carried: str | None = None
) -> Method:
    """Gives every task its own copy of the leaves that match a pattern: its output head.

    Each matching leaf gets a leading axis of one row for each task. A task sees and changes its own
    row alone; `method` governs the rest. Norms and biases can be kept per task in the same way:
    `heads="head|bias|norm"`. A task's head starts fresh, its norms and biases where those of the
    task before it ended, as the shared ones would.

    Args:
        method: the method that governs the shared leaves.
        tasks: number of tasks.
        heads: regular expression, searched in the path of each of the network's parameters.
        carried: which of those leaves go on from the previous task's; likewise, `"(?!)"` for none.
            By default the vectors of layers that share their kernels (biases) or have none (norms).

    Returns:
        A method. The first row starts as the given leaf, and so do the others of a vector. The
        entries of other rows are drawn from the first one's, which is a fresh start under any
        initializer with independent entries.

    Raises:
        ValueError: if there is no task, `method` is made for another number of them, or the pattern
            cannot be read; at `init`, if no leaf matches, or one whose entries `method`
            shares out among the tasks.

    Source: task-incremental setting of PNN, HAT and PackNet: the loss and the prediction of a task
        use that task's head alone. The original PackNet trains its biases on and keeps a copy for
        each task, if it is asked to, and so does CPG (Hung et al., 2019).
    """

    check_count("multihead: tasks", tasks)
    check_pattern("multihead: heads", heads)
    if carried is not None:
        check_pattern("multihead: carried", carried)
    if method.tasks not in (None, tasks):
        raise ValueError(f"multihead: {tasks} tasks, but the method has {method.tasks}.")

    def is_head(path):
        named = path.removeprefix(method.root)
        return path.startswith(method.root) and re.search(heads, named) is not None

    def select(theta, task):
        return masks.map_with_path(lambda p, leaf: leaf[task] if is_head(p) else leaf, theta)

    def restore(selected, theta):
        """Puts all tasks' heads back in the place of the selected one."""
        return masks.map_with_path(lambda p, new, old: old if is_head(p) else new, selected, theta)

    def init(key, params):
        inner_key, head_key = jax.random.split(key)
        theta, state = method.init(inner_key, params)
        found = {path: h for path, h in masks.leaves_by_path(theta).items() if is_head(path)}
        if not found:
            raise ValueError(
                f"multihead: the pattern {heads!r} matches no leaf; the leaves are "
                f"{shorten(sorted(masks.leaves_by_path(theta)))}."
            )
        if taken := sorted(found.keys() & set(method.owned(state))):
            raise ValueError(
                f"multihead: the pattern {heads!r} makes '{taken[0]}' each task's own, but the "
                f"method shares its entries out among the tasks; tell the method to leave it "
                f"alone, as in packnet(tasks, heads={heads!r})."
            )
        drawn = {path: h for path, h in found.items() if h.ndim > 1}
        draws = draw(jax.random.uniform, head_key, [(tasks, *h.shape) for h in drawn.values()])
        draws = dict(zip(drawn, draws))

        def stack(path, leaf):
            if path not in found:
                return leaf
            leaf = jnp.asarray(leaf)
            if path not in drawn:
                return jnp.stack([leaf] * tasks)
            picked = (draws[path] * leaf.size).astype(int)
            return leaf.ravel()[picked].at[0].set(leaf)

        return masks.map_with_path(stack, theta), state

    def is_carried(theta):
        """By path, whether a leaf of the tasks' own goes on from the previous task's."""
        own = {path: leaf for path, leaf in masks.leaves_by_path(theta).items() if is_head(path)}
        names = {path: path.removeprefix(method.root) for path in own}
        if carried is not None:
            return {path: re.search(carried, names[path]) is not None for path in own}
        layers = [path.rpartition("/")[0] for path, leaf in own.items() if leaf.ndim > 2]
        return {
            path: path.rpartition("/")[0] not in layers and not re.search(HEAD, names[path])
            for path in own
        }

    def begin_task(key, theta, state, task):
        goes_on = is_carried(theta)
        theta = masks.map_with_path(
            lambda path, leaf: (
                leaf.at[task].set(leaf[jnp.maximum(task - 1, 0)]) if goes_on.get(path) else leaf
            ),
            theta,
        )
        selected, state = method.begin_task(key, select(theta, task), state, task)
        return restore(selected, theta), state

    def end_task(theta, state, task):
        selected, state = method.end_task(select(theta, task), state, task)
        return restore(selected, theta), state

    def trainable(theta, state, task):
        selected = select(theta, task)
        mask = masks.expand(method.trainable(selected, state, task), selected)

        def own_row(path, leaf, head):
            if not is_head(path):
                return leaf
            return (jnp.arange(tasks) == task).reshape([tasks] + [1] * head.ndim)

        return masks.map_with_path(own_row, mask, selected, is_leaf=masks.is_mask)

    shared = method.overlap
    multiheaded = Method(
        init=init,
        begin_task=begin_task,
        view=lambda theta, state, task, progress=None: method.view(
            select(theta, task), state, task, progress
        ),
        trainable=trainable,
        penalty=lambda theta, state, task, progress=None: method.penalty(
            select(theta, task), state, task, progress
        ),
        project=method.project,
        end_task=end_task,
        capacity=lambda theta, state: method.capacity(select(theta, 0), state),
        overlap=shared and (lambda theta, state: shared(select(theta, 0), state)),
        tasks=tasks,
        root=method.root,
        owned=method.owned,
    )
    return guarded("multihead", multiheaded)


def guarded(name: str, method: Method) -> Method:
    """The method, safe to call outside of jit.

    It refuses a task that it is not made for, where the task's number is known; and what it hands
    out shares no array with what it keeps, so that a training loop may donate all that it holds.
    """

    def known(task):
        if method.tasks is not None:
            check_task(f"{name}: task", task, method.tasks)
        return task

    def view(theta, state, task, progress=None):
        return apart(method.view(theta, state, known(task), progress), theta, state)

    def trainable(theta, state, task):
        return apart(method.trainable(theta, state, known(task)), theta, state)

    def penalty(theta, state, task, progress=None):
        return method.penalty(theta, state, known(task), progress)

    return method._replace(
        init=lambda key, params: apart(method.init(key, params), params),
        begin_task=lambda key, theta, state, task: apart(
            method.begin_task(key, theta, state, known(task))
        ),
        view=view,
        trainable=trainable,
        penalty=penalty,
        end_task=lambda theta, state, task: apart(method.end_task(theta, state, known(task))),
    )


def draw(sampler: Callable, key: jax.Array, shapes: Sequence[tuple[int, ...]]) -> list[jax.Array]:
    """Random arrays of several shapes from one draw, as each draw takes long to compile."""
    sizes = [math.prod(shape) for shape in shapes]
    if not shapes:
        return []
    parts = jnp.split(sampler(key, (sum(sizes),)), list(itertools.accumulate(sizes))[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes)]
