"""Pytrees: their leaves by path, their size, and random ones from one draw."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


def keys_of(path: tuple) -> tuple[str, ...]:
    """The keys of a JAX key path as strings; the `value` that ends every nnx path is dropped."""
    keys = tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
    return keys[:-1] if path and _ends_nnx_path(path[-1]) else keys


def path_str(path: tuple) -> str:
    """A JAX key path as one string.

    >>> leaves = jax.tree_util.tree_leaves_with_path({"layers": [{"kernel": 0.0}]})
    >>> path_str(leaves[0][0])
    'layers/0/kernel'
    """
    return "/".join(keys_of(path))


def map_with_path(function: Callable, tree: PyTree, *rest: PyTree, is_leaf=None) -> PyTree:
    """`jax.tree.map` whose function also gets each leaf's path as a string, first."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(path_str(path), *leaves), tree, *rest, is_leaf=is_leaf
    )


def leaves_by_path(tree: PyTree, is_leaf=None) -> dict[str, Any]:
    """The leaves of a tree by their path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return {path_str(path): leaf for path, leaf in leaves}


def size_bytes(tree: PyTree) -> int:
    """Bytes that the arrays of a tree occupy."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _ends_nnx_path(key: Any) -> bool:
    return isinstance(key, jax.tree_util.GetAttrKey) and key.name == "value"


def draw(sampler: Callable, key: jax.Array, shapes: Sequence[tuple[int, ...]]) -> list[jax.Array]:
    """Random arrays of several shapes from one draw, as each draw takes long to compile."""
    sizes = [math.prod(shape) for shape in shapes]
    if not shapes:
        return []
    parts = jnp.split(sampler(key, (sum(sizes),)), list(itertools.accumulate(sizes))[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes)]
