"""Pytrees: their leaves by path, their size, and random ones from one draw."""

import itertools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


def keys_of(path: tuple) -> tuple[str, ...]:
    """The keys of a JAX key path as strings.

    >>> (path, _), *_ = jax.tree_util.tree_leaves_with_path({"layers": [{"kernel": 0.0}]})
    >>> keys_of(path)
    ('layers', '0', 'kernel')
    """
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def leaves_with_keys(tree: PyTree, is_leaf=None) -> list[tuple[tuple[str, ...], Any]]:
    """The leaves of a tree, in its order, each with the keys of its path.

    The `value` in which flax boxes an array is no key: an `nnx.State` has the keys of the dict of
    its arrays. A key or field of that name anywhere else is a key like any other.
    """
    nodes = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda node: _is_box(node) or (is_leaf is not None and is_leaf(node))
    )
    found = []
    for path, node in nodes:
        for inner, leaf in jax.tree_util.tree_leaves_with_path(node, is_leaf=is_leaf):
            boxed = _is_box(node) and keys_of(inner[:1]) == ("value",)
            found.append((keys_of(path + inner[boxed:]), leaf))
    return found


def map_with_path(function: Callable, tree: PyTree, *rest: PyTree, is_leaf=None) -> PyTree:
    """`jax.tree.map` whose function also gets each leaf's path as a string, first.

    >>> map_with_path(lambda path, leaf: f"{path} is {leaf}", {"head": {"kernel": 0.5}})
    {'head': {'kernel': 'head/kernel is 0.5'}}
    """
    paths = iter(["/".join(keys) for keys, _ in leaves_with_keys(tree, is_leaf)])
    return jax.tree.map(
        lambda *leaves: function(next(paths), *leaves), tree, *rest, is_leaf=is_leaf
    )


def leaves_by_path(tree: PyTree, is_leaf=None) -> dict[str, Any]:
    """The leaves of a tree by their path.

    >>> list(leaves_by_path({"layers": [{"kernel": 0.0}]}))
    ['layers/0/kernel']
    """
    return {"/".join(keys): leaf for keys, leaf in leaves_with_keys(tree, is_leaf)}


def path_str(path: tuple) -> str:
    """A JAX key path as one string.

    >>> (path, _), *_ = jax.tree_util.tree_leaves_with_path({"layers": [{"kernel": 0.0}]})
    >>> path_str(path)
    'layers/0/kernel'
    """
    return "/".join(keys_of(path))


def size_bytes(tree: PyTree) -> int:
    """Bytes that the arrays of a tree occupy.

    >>> import numpy as np
    >>> size_bytes({"kernel": np.ones((2, 3), np.float32)})
    24
    """
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def row(leaf: jax.Array, task: Any) -> jax.Array:
    """A task's row of a leaf that has one for each, or the only one of a leaf that was cut to it.

    >>> print(row(jnp.array([[1, 2], [3, 4]]), 1), row(jnp.array([[3, 4]]), 1))
    [3 4] [3 4]
    """
    return leaf[0] if leaf.shape[0] == 1 else leaf[task]


def draw(sampler: Callable, key: jax.Array, shapes: Sequence[tuple[int, ...]]) -> list[jax.Array]:
    """Random arrays of several shapes from one draw, as each draw takes long to compile."""
    sizes = [math.prod(shape) for shape in shapes]
    if not shapes:
        return []
    parts = jnp.split(sampler(key, (sum(sizes),)), list(itertools.accumulate(sizes))[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes)]


def _is_box(node: Any) -> bool:
    """True for flax's wrapper of one array; where flax is not loaded, there is none."""
    nnx, meta = sys.modules.get("flax.nnx"), sys.modules.get("flax.core.meta")
    boxes = (*((nnx.Variable,) if nnx else ()), *((meta.AxisMetadata,) if meta else ()))
    return isinstance(node, boxes)
