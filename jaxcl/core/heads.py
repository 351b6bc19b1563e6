"""A head for each task."""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcl.core import masks, sharding
from jaxcl.core.checks import check_count, check_pattern, shorten
from jaxcl.core.guard import guarded
from jaxcl.core.method import Method
from jaxcl.core.trees import PyTree, draw

HEAD = r"(^|/)head(/|$)"


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

    Source: the task-incremental setting: the loss and the prediction of a task use that task's head
        alone. The authors' code of Mallya and Lazebnik (2018) trains biases on and keeps a copy for
        each task, if it is asked to, and so do Hung et al. (2019).
    """

    check_count("multihead: tasks", tasks)
    check_pattern("multihead: heads", heads)
    if carried is not None:
        check_pattern("multihead: carried", carried)
    if method.tasks not in (None, tasks):
        raise ValueError(f"multihead: {tasks} tasks, but the method has {method.tasks}.")

    def is_head(path):
        named = path.removeprefix(method.params_prefix)
        return path.startswith(method.params_prefix) and re.search(heads, named) is not None

    def select(theta, task):
        return masks.map_with_path(lambda p, leaf: leaf[task] if is_head(p) else leaf, theta)

    def restore(selected, theta):
        """Puts all tasks' heads back in the place of the selected one."""
        return masks.map_with_path(lambda p, new, old: old if is_head(p) else new, selected, theta)

    def init(key, params):
        inner_key, head_key = jax.random.split(key)
        theta, state = method.init(inner_key, params)
        own = _own_leaves(theta, is_head, heads)
        if taken := sorted(own.keys() & set(method.divided(state))):
            raise ValueError(
                f"multihead: the pattern {heads!r} makes '{taken[0]}' each task's own, but the "
                f"method shares its entries out among the tasks; tell the method to leave it "
                f"alone, by its own heads={heads!r}."
            )
        rows = _rows(head_key, own, tasks)
        return masks.map_with_path(lambda path, leaf: rows.get(path, leaf), theta), state

    def begin_task(key, theta, state, task):
        own = _own_leaves(theta, is_head, heads)
        goes_on = _carried(own, method.params_prefix, carried)

        def start(path, leaf):
            if path not in goes_on:
                return leaf
            return leaf.at[task].set(leaf[jnp.maximum(task - 1, 0)])

        theta = masks.map_with_path(start, theta)
        selected, state = method.begin_task(key, select(theta, task), state, task)
        return restore(selected, theta), state

    def end_task(theta, state, task):
        selected, state = method.end_task(select(theta, task), state, task)
        return restore(selected, theta), state

    def mask_of(inner, rows):
        """The mask `inner` for all leaves but the heads, of which `rows(task)` may change."""

        def trainable(theta, state, task):
            selected = select(theta, task)
            mask = masks.expand(inner(selected, state, task), selected)

            def with_rows(path, leaf, head):
                if not is_head(path):
                    return leaf
                return rows(task).reshape([tasks] + [1] * head.ndim)

            return masks.map_with_path(with_rows, mask, selected, is_leaf=masks.is_mask)

        return trainable

    def in_task(function):
        return lambda theta, state, task, progress=None: function(
            select(theta, task), state, task, progress
        )

    def on_first(function):
        return lambda theta, state: function(select(theta, 0), state)

    multiheaded = method._replace(
        init=init,
        begin_task=begin_task,
        view=in_task(method.view),
        trainable=mask_of(method.trainable, lambda task: jnp.arange(tasks) == task),
        trainable_seen=mask_of(method.trainable, lambda task: jnp.arange(tasks) <= task),
        penalty=in_task(method.penalty),
        end_task=end_task,
        measures=tuple(m._replace(of=on_first(m.of)) for m in method.measures),
        tasks=tasks,
        **_of_the_trained(method, select, restore, is_head),
    )
    return guarded("multihead", multiheaded)


def _of_the_trained(
    method: Method, select: Callable, restore: Callable, is_head: Callable
) -> dict[str, Callable | None]:
    """What the method can do once it is trained, for one task's head or with it."""
    used, compact, forget = method.used, method.compact, method.forget_task

    def used_of(theta, state, task):
        assert used is not None
        return used(select(theta, task), state, task)

    def compact_of(theta, state, task, statistics):
        assert compact is not None
        return compact(select(theta, task), state, task, statistics)

    def forget_of(theta, state, memory, task, kept, fresh):
        assert forget is not None
        rest = select(theta, task), state, memory, task, kept, select(fresh, task)
        selected, state, memory = forget(*rest)
        theta = masks.map_with_path(
            lambda path, leaf, new: leaf.at[task].set(new[task]) if is_head(path) else leaf,
            theta, fresh,
        )  # fmt: skip
        return restore(selected, theta), state, memory

    return {
        "used": used and used_of,
        "compact": compact and compact_of,
        "forget_task": forget and forget_of,
    }


def _own_leaves(theta: PyTree, is_head: Callable, heads: str) -> dict[str, jax.Array]:
    """The leaves that are each task's own, by path."""
    leaves = masks.leaves_by_path(theta)
    own = {path: leaf for path, leaf in leaves.items() if is_head(path)}
    if not own:
        raise ValueError(
            f"multihead: the pattern {heads!r} matches no leaf; the leaves are "
            f"{shorten(sorted(leaves))}."
        )
    return own


def _rows(key: jax.Array, own: dict[str, jax.Array], tasks: int) -> dict[str, jax.Array]:
    """A row for each task: the first is the leaf, the others are drawn from its entries."""
    drawn = [path for path, leaf in own.items() if leaf.ndim > 1]
    draws = draw(jax.random.uniform, key, [(tasks, *own[path].shape) for path in drawn])
    rows = {path: jnp.stack([jnp.asarray(leaf)] * tasks) for path, leaf in own.items()}
    for path, values in zip(drawn, draws):
        leaf = jnp.asarray(own[path])
        drawn = leaf.ravel()[(values * leaf.size).astype(int)]
        rows[path] = sharding.like(drawn, leaf).at[0].set(leaf)
    return rows


def _carried(own: dict[str, jax.Array], prefix: str, carried: str | None) -> set[str]:
    """The paths of those leaves of the tasks' own that go on from the previous task's row."""
    names = {path: path.removeprefix(prefix) for path in own}
    if carried is not None:
        return {path for path, name in names.items() if re.search(carried, name)}
    layers = {path.rpartition("/")[0] for path, leaf in own.items() if leaf.ndim > 2}
    return {
        path
        for path, name in names.items()
        if path.rpartition("/")[0] not in layers and not re.search(HEAD, name)
    }
