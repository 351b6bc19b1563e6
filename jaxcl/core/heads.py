"""A head for each task."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcl.core import masks, sharding
from jaxcl.core.checks import check_count, check_pattern, shorten
from jaxcl.core.guard import guarded
from jaxcl.core.method import Method, rows_of, with_rows
from jaxcl.core.trees import PyTree, draw, row

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

    >>> params = {"hidden": jnp.ones((2, 4)), "head": jnp.ones((4, 2))}
    >>> method = multihead(Method(lambda key, params: (params, ())), tasks=3)
    >>> theta, state = jax.eval_shape(lambda key: method.init(key, params), jax.random.key(0))
    >>> theta["hidden"].shape, theta["head"].shape
    ((2, 4), (3, 4, 2))

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

    own = _Own(method.params_prefix, heads, tasks)

    def begin_task(key, theta, state, task):
        theta = own.carry(theta, task, carried)
        selected, state = method.begin_task(key, own.select(theta, task), state, task)
        return own.restore(selected, theta), state

    def end_task(theta, state, task):
        selected, state = method.end_task(own.select(theta, task), state, task)
        return own.restore(selected, theta), state

    def in_task(function):
        return lambda theta, state, task, progress=None: function(
            own.select(theta, task), state, task, progress
        )

    def rows(path):
        return own.has(path) or rows_of(method)(path)

    def on_first(function):
        return lambda theta, state: function(own.select(theta, 0), state)

    multiheaded = method._replace(
        init=partial(_init, method, own),
        begin_task=begin_task,
        view=in_task(method.view),
        trainable=own.mask_of(method.trainable, lambda task: jnp.arange(tasks) == task),
        trainable_seen=own.mask_of(method.trainable, lambda task: jnp.arange(tasks) <= task),
        penalty=in_task(method.penalty),
        end_task=end_task,
        measures=tuple(m._replace(of=on_first(m.of)) for m in method.measures),
        tasks=tasks,
        **_of_the_trained(method, own),
    )
    return with_rows(guarded("multihead", multiheaded), rows)


class _Own(NamedTuple):
    """The leaves of which every task has a row of its own.

    Attributes:
        prefix: what stands before the network's paths in theirs.
        pattern: regular expression of the network's leaves that are meant.
        tasks: number of rows.
    """

    prefix: str
    pattern: str
    tasks: int

    def has(self, path: str) -> bool:
        named = path.removeprefix(self.prefix)
        return path.startswith(self.prefix) and re.search(self.pattern, named) is not None

    def leaves(self, theta: PyTree) -> dict[str, jax.Array]:
        """Those leaves by path."""
        leaves = masks.leaves_by_path(theta)
        own = {path: leaf for path, leaf in leaves.items() if self.has(path)}
        if not own:
            raise ValueError(
                f"multihead: the pattern {self.pattern!r} matches no leaf; the leaves are "
                f"{shorten(sorted(leaves))}."
            )
        return own

    def select(self, theta: PyTree, task: Any) -> PyTree:
        """One task's rows in the place of all."""
        return masks.map_with_path(lambda p, leaf: row(leaf, task) if self.has(p) else leaf, theta)

    def restore(self, selected: PyTree, theta: PyTree) -> PyTree:
        """All tasks' rows back in the place of one's."""
        return masks.map_with_path(lambda p, new, old: old if self.has(p) else new, selected, theta)

    def carry(self, theta: PyTree, task: Any, carried: str | None) -> PyTree:
        """The task's rows of what goes on from its predecessor."""
        goes_on = _carried(self.leaves(theta), self.prefix, carried)

        def start(path, leaf):
            if path not in goes_on:
                return leaf
            return leaf.at[task].set(leaf[jnp.maximum(task - 1, 0)])

        return masks.map_with_path(start, theta)

    def mask_of(self, inner: Callable, rows: Callable) -> Callable:
        """The mask `inner` for all leaves but these, of which `rows(task)` may change."""

        def trainable(theta, state, task):
            selected = self.select(theta, task)
            mask = masks.expand(inner(selected, state, task), selected)

            def with_rows(path, leaf, head):
                if not self.has(path):
                    return leaf
                return rows(task).reshape([self.tasks] + [1] * head.ndim)

            return masks.map_with_path(with_rows, mask, selected, is_leaf=masks.is_mask)

        return trainable


def _init(method: Method, own: _Own, key: jax.Array, params: PyTree) -> tuple[PyTree, PyTree]:
    """The method's start, with a row for each task of what is their own."""
    inner_key, head_key = jax.random.split(key)
    theta, state = method.init(inner_key, params)
    leaves = own.leaves(theta)
    if taken := sorted(leaves.keys() & set(method.divided(state))):
        raise ValueError(
            f"multihead: the pattern {own.pattern!r} makes '{taken[0]}' each task's own, but the "
            f"method shares its entries out among the tasks; tell the method to leave it "
            f"alone, by its own heads={own.pattern!r}."
        )
    rows = _rows(head_key, leaves, own.tasks)
    return masks.map_with_path(lambda path, leaf: rows.get(path, leaf), theta), state


def _of_the_trained(method: Method, own: _Own) -> dict[str, Callable | None]:
    """What the method can do once it is trained, for one task's head or with it."""
    used, compact, forget = method.used, method.compact, method.forget_task

    def used_of(theta, state, task):
        assert used is not None
        return used(own.select(theta, task), state, task)

    def compact_of(theta, state, task, statistics):
        assert compact is not None
        return compact(own.select(theta, task), state, task, statistics)

    def forget_of(theta, state, memory, task, kept, fresh):
        assert forget is not None
        rest = own.select(theta, task), state, memory, task, kept, own.select(fresh, task)
        selected, state, memory = forget(*rest)
        theta = masks.map_with_path(
            lambda path, leaf, new: leaf.at[task].set(new[task]) if own.has(path) else leaf,
            theta, fresh,
        )  # fmt: skip
        return own.restore(selected, theta), state, memory

    return {
        "used": used and used_of,
        "compact": compact and compact_of,
        "forget_task": forget and forget_of,
    }


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
