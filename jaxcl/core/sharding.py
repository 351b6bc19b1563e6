"""Parameters over a mesh of devices: where each leaf lies, and what is made of it lies with it."""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcl.core.checks import check_number, check_pattern
from jaxcl.core.trees import PyTree, leaves_with_keys, map_with_path

__all__ = ["by_path", "bytes_per_device", "like", "placed", "units_of", "zeros_like"]


def by_path(
    tree: PyTree,
    mesh: Mesh,
    rules: Sequence[tuple[str, PartitionSpec]],
    *,
    limit: int | None = None,
) -> PyTree:
    """Where each leaf lies on a mesh, from ordered patterns on its path; the first match wins.

    A rule speaks of a leaf's last axes: whatever comes before them, such as the layers of a stack
    or the tasks of a head, is whole on every device. So the same rules serve the parameters, the
    owners and masks of a method's state, and an optimizer's moments, whose paths end with those of
    the parameters. A leaf of fewer axes than the rule takes the rule's last ones. An axis of length
    1, along which a mask broadcasts, is whole, and so is a leaf that no rule matches.

    Args:
        tree: pytree of arrays, or of `jax.ShapeDtypeStruct`.
        mesh: the devices.
        rules: pairs of a regular expression, searched in the path, and a `PartitionSpec`.
        limit: bytes that a device has; by default what the devices say, if they say it.

    Returns:
        A tree of the structure of `tree` with a `NamedSharding` for each leaf, for
        `jax.device_put`, `jax.jit(..., out_shardings=...)` and `jaxcl.load`.

    Raises:
        ValueError: naming the rule whose axis the mesh does not have, the leaf that the mesh does
            not divide, or the largest leaf that does not fit a device.

    >>> mesh = jax.make_mesh((1, 1), ("data", "model"))
    >>> tree = {"blocks": {"up": jnp.ones((2, 4, 8))}, "norm": jnp.ones(4)}
    >>> found = by_path(tree, mesh, [("up", PartitionSpec("data", "model"))])
    >>> print(found["blocks"]["up"].spec, found["norm"].spec)
    P(None, 'data', 'model') P()
    """
    for pattern, spec in rules:
        check_pattern("sharding: a rule", pattern)
        for name in _names(spec):
            if name not in mesh.shape:
                raise ValueError(
                    f"sharding: the rule {pattern!r} names the axis {name!r}; the mesh has "
                    f"{', '.join(map(repr, mesh.axis_names))}."
                )

    def place(path, leaf):
        for pattern, spec in rules:
            if re.search(pattern, path):
                return NamedSharding(mesh, _divided(path, leaf.shape, mesh, spec))
        return NamedSharding(mesh, PartitionSpec())

    found = map_with_path(place, tree)
    _check_size(tree, found, mesh, limit)
    return found


def bytes_per_device(tree: PyTree, shardings: PyTree) -> int:
    """Bytes that the arrays of a tree take on each device.

    Args:
        tree: pytree of arrays, or of their shapes.
        shardings: a sharding for each, as from `by_path`.

    >>> tree = {"up": jax.ShapeDtypeStruct((4, 8), jnp.float32)}
    >>> mesh = jax.make_mesh((1,), ("model",))
    >>> bytes_per_device(tree, by_path(tree, mesh, [("up", PartitionSpec("model"))]))
    128
    """
    return sum(map(_bytes, jax.tree.leaves(tree), jax.tree.leaves(shardings)))


def zeros_like(leaf: jax.Array, dtype: Any) -> jax.Array:
    """Zeros of a leaf's shape that lie where it lies, in or out of jit.

    Under jit a constant lies anywhere, but what is computed from a leaf lies with it: no float is
    greater than itself, NaN included, which the compiler does not simplify as it does for integers.

    >>> print(zeros_like(jnp.ones((2, 3)), jnp.int32))
    [[0 0 0]
     [0 0 0]]
    """
    leaf = jnp.real(leaf)
    leaf = leaf if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.astype(jnp.float32)
    return jax.lax.gt(leaf, leaf).astype(dtype)


def like(value: jax.Array, leaf: jax.Array) -> jax.Array:
    """A value that lies where a leaf lies, in or out of jit; any axes before the leaf's are whole.

    Args:
        value: array whose last axes are those of the leaf.
        leaf: the leaf.

    >>> like(jnp.ones((5, 2, 3)), jnp.ones((2, 3))).shape
    (5, 2, 3)
    """
    mark = zeros_like(leaf, bool).reshape((1,) * (value.ndim - jnp.ndim(leaf)) + jnp.shape(leaf))
    return jnp.where(mark, jnp.ones((), value.dtype), value)  # a choice of two zeros is simplified


def units_of(leaf: jax.Array) -> jax.Array:
    """False for each unit along a leaf's last axis, and lies where that axis lies.

    >>> units_of(jnp.ones((2, 3)))
    Array([False, False, False], dtype=bool)
    """
    return jnp.any(zeros_like(leaf, bool), axis=tuple(range(jnp.ndim(leaf) - 1)))


def placed(state: PyTree, params: PyTree) -> PyTree:
    """An optimizer's state whose leaves lie where their parameters lie.

    They are those that have the shape of a parameter and a path that ends with its path.

    >>> import optax
    >>> params = {"kernel": jnp.ones((2, 3))}
    >>> state = placed(optax.sgd(0.1, momentum=0.9).init(params), params)
    >>> state[0].trace["kernel"].sharding == params["kernel"].sharding
    True
    """
    known = dict(leaves_with_keys(params))

    def place(keys, leaf):
        for start in range(len(keys) + 1):
            param = known.get(keys[start:])
            if param is not None and jnp.shape(param) == jnp.shape(leaf):
                return like(leaf, param)
        return leaf

    found = [place(keys, leaf) for keys, leaf in leaves_with_keys(state)]
    return jax.tree.unflatten(jax.tree.structure(state), found)


def _names(spec: PartitionSpec) -> list[str]:
    """The mesh's axes that a specification names."""
    parts = [part if isinstance(part, tuple) else (part,) for part in spec]
    return [name for part in parts for name in part if name is not None]


def _divided(path: str, shape: tuple[int, ...], mesh: Mesh, spec: PartitionSpec) -> PartitionSpec:
    """The specification for all axes of a leaf."""
    last = tuple(spec)[max(len(spec) - len(shape), 0) :]
    whole = (None,) * (len(shape) - len(last)) + last
    whole = tuple(None if size == 1 else part for size, part in zip(shape, whole))
    for axis, part in enumerate(whole):
        names = _names(PartitionSpec(part))
        parts = math.prod(mesh.shape[name] for name in names)
        if shape[axis] % parts:
            raise ValueError(
                f"sharding: axis {axis} of '{path}', of shape {tuple(shape)}, lies over "
                f"{' and '.join(map(repr, names))} of {parts} devices, which do not divide "
                f"{shape[axis]}."
            )
    return PartitionSpec(*whole) if any(whole) else PartitionSpec()


def _bytes(leaf: Any, sharding: Any) -> int:
    return math.prod(sharding.shard_shape(tuple(leaf.shape))) * leaf.dtype.itemsize


def _check_size(tree: PyTree, shardings: PyTree, mesh: Mesh, limit: int | None) -> None:
    """Raises ValueError where one leaf alone is more than a device has."""
    if limit is None:
        try:
            limit = (mesh.devices.flat[0].memory_stats() or {}).get("bytes_limit")
        except Exception:  # a device that is described and not there, or that counts nothing
            limit = None
    if limit is None:
        return
    check_number("sharding: limit", limit, least=1)
    sizes = [_bytes(*pair) for pair in zip(jax.tree.leaves(tree), jax.tree.leaves(shardings))]
    most = max(sizes, default=0)
    if most > limit:
        keys, leaf = leaves_with_keys(tree)[sizes.index(most)]
        whole = math.prod(leaf.shape) * leaf.dtype.itemsize
        raise ValueError(
            f"sharding: '{'/'.join(keys)}', of shape {tuple(leaf.shape)}, takes {most:,} bytes on "
            f"each device, which has {limit:,}; it would fit cut into {-(-whole // limit)} parts "
            f"or more."
        )
