"""Pytrees of masks: by path, by magnitude, by attention; their counts and bytes.

A mask is a *prefix tree* of the parameters: one leaf may stand for a whole subtree. It is matched
to the parameters by path, so dicts, `nnx.State`, tuples and NamedTuples may be mixed. In a mask
named `trainable`, True means "may change".
"""

import itertools
import math
import re
from collections.abc import Container, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcl.core.checks import check_choice, check_number, shorten
from jaxcl.core.trees import (
    PyTree,
    keys_of,
    leaves_by_path,
    leaves_with_keys,
    map_with_path,
    path_str,
    size_bytes,
)

__all__ = [
    "SCOPES",
    "TIES",
    "Attended",
    "by_path",
    "capacity",
    "check_prefix",
    "count",
    "dense",
    "expand",
    "is_mask",
    "keys_of",
    "leaves_by_path",
    "map_with_path",
    "path_str",
    "resolve",
    "size_bytes",
    "smallest_fraction",
    "summary",
]

TIES = ("exact", "original")
SCOPES = ("leaf", "global")


class Attended(NamedTuple):
    """The soft mask of one leaf, `1 - min(source, target)`, kept as its two factors.

    The mask itself is as large as the leaf; its factors are vectors, and the product is formed
    inside the update.

    Attributes:
        source: attention of the units that feed the leaf, in [0, 1]; broadcasts against the leaf.
        target: attention of the units that the leaf feeds; likewise.

    >>> mask = Attended(jnp.array([[0.0], [0.5]]), jnp.array([[1.0, 0.25]]))
    >>> print(dense(mask))  # of a leaf [2, 2]: what is used at both ends may change least
    [[1.   1.  ]
     [0.5  0.75]]
    """

    source: jax.Array
    target: jax.Array


def is_mask(node: Any) -> bool:
    """True for a node that is one mask leaf although it is a pytree.

    >>> is_mask(Attended(jnp.ones(2), jnp.ones(2))), is_mask({"head": True})
    (True, False)
    """
    return isinstance(node, Attended)


def dense(mask: Any) -> jax.Array:
    """The array of one mask leaf: bool, or float in [0, 1].

    >>> print(dense(Attended(jnp.array([[0.0], [0.5]]), jnp.array([[1.0, 0.25]]))))
    [[1.   1.  ]
     [0.5  0.75]]
    """
    if isinstance(mask, Attended):
        return 1 - jnp.minimum(*jnp.broadcast_arrays(*mask))
    return jnp.asarray(mask)


def resolve(mask: PyTree, params: PyTree) -> PyTree:
    """Expands a prefix tree of masks to one array for each leaf of the parameters.

    Args:
        mask: prefix tree of `params`; its leaves broadcast against the leaves below them.
        params: pytree of arrays.

    Returns:
        A tree of the structure of `params`. Its arrays broadcast against those of `params`.

    Raises:
        ValueError: naming the leaf that the mask does not cover, the mask's leaf that covers
            nothing, or the pair whose shapes do not fit.

    >>> params = {"layer": {"bias": jnp.ones(3), "kernel": jnp.ones((2, 3))}}
    >>> resolve({"layer": False}, params)["layer"]["kernel"]
    Array([[False]], dtype=bool)
    """
    return map_with_path(_fitted, expand(mask, params), params, is_leaf=is_mask)


def expand(mask: PyTree, params: PyTree) -> PyTree:
    """Like `resolve`, but leaves each mask as it is: one mask leaf for each parameter leaf.

    >>> expand({"head": True, "layer": False}, {"head": 0.0, "layer": {"bias": 0.0, "kernel": 0.0}})
    {'head': True, 'layer': {'bias': False, 'kernel': False}}
    """
    prefixes = dict(leaves_with_keys(mask, is_leaf=is_mask))
    unused = set(prefixes)

    def find(keys):
        for length in range(len(keys), -1, -1):
            if keys[:length] in prefixes:
                unused.discard(keys[:length])
                return prefixes[keys[:length]]
        raise ValueError(
            f"The mask has no leaf for parameter '{'/'.join(keys)}'; expected a prefix tree of "
            f"the parameters, with True (trainable), False or a float for every leaf."
        )

    found = [find(keys) for keys, _ in leaves_with_keys(params)]
    expanded = jax.tree.unflatten(jax.tree.structure(params), found)
    if unused and not _has_masked_nodes(params):
        raise ValueError(
            f"The mask's leaf '{'/'.join(min(unused))}' matches no parameter; the parameters are "
            f"{shorten(sorted(leaves_by_path(params)))}."
        )
    return expanded


def check_prefix(mask: PyTree, params: PyTree) -> None:
    """Raises ValueError, naming the leaf, where a mask does not fit the parameters.

    >>> params = {"hidden": {"kernel": jnp.ones(2)}, "head": jnp.ones(1)}
    >>> check_prefix({"hidden": True}, params)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: The mask has no leaf for parameter 'head'; expected a prefix tree of the ...
    """
    if jax.tree.leaves(params):  # optax calls `init` with an empty placeholder to label its state
        jax.eval_shape(resolve, mask, params)


def by_path(params: PyTree, rules: Sequence[tuple[str, Any]]) -> PyTree:
    """One value for each leaf, from ordered patterns on its path; the first match wins.

    Args:
        params: pytree of parameters.
        rules: pairs of a regular expression, searched in the path (`"head/"`, `"kernel$"`, `""` for
            all), and the value of the leaves that match.

    Returns:
        A tree of the structure of `params` with the rules' values as leaves.

    Raises:
        ValueError: naming the leaf that no pattern covers, or the pattern that no leaf has.

    >>> params = {"head": {"kernel": 0.0}, "layer": {"bias": 0.0, "kernel": 0.0}}
    >>> by_path(params, [("head/", True), ("kernel$", False), ("", True)])
    {'head': {'kernel': True}, 'layer': {'bias': True, 'kernel': False}}
    """
    paths = leaves_by_path(params)
    for pattern, _ in rules:
        if not any(re.search(pattern, path) for path in paths):
            raise ValueError(
                f"The pattern {pattern!r} matches no parameter; the parameters are "
                f"{shorten(sorted(paths))}."
            )

    def value_of(path, _):
        for pattern, value in rules:
            if re.search(pattern, path):
                return value
        raise ValueError(
            f"No pattern covers parameter '{path}'; add a rule for it, or end the rules with "
            f"('', value) for all the rest."
        )

    return map_with_path(value_of, params)


def smallest_fraction(
    values: PyTree,
    fraction: jax.typing.ArrayLike,
    among: PyTree | None = None,
    *,
    ties: Literal["exact", "original"] = "exact",
    scope: Literal["leaf", "global"] = "leaf",
) -> PyTree:
    """Marks the share of the entries with the smallest magnitude.

    Of the `n` entries in `among`, the `round(fraction * n)` smallest in magnitude are marked, with
    the product and the rounding (halves to even) of Python's floats, whether or not JAX computes
    in float64. Nothing is marked for 0, everything in `among` for 1.

    Nothing is sorted. The cut-off is found by counting how many entries lie below a guess, and the
    counts are int64 sums: a leaf may have 2^31 entries and more, and a sharded one is not gathered.

    Args:
        values: pytree of arrays. Infinity ranks above every number and NaN above infinity; all NaN
            are equal, and so are -0.0 and 0.0. Subnormal numbers rank by their value, also where
            the device computes with zeros in their place.
        fraction: share in [0, 1]; may be traced. Its own precision counts: 0.3 of 95 entries are
            28, but what float32 makes of 0.3 is a little more, and that share of them is 29.
        among: tree of bool arrays with the shapes of `values`: the entries that are ranked. All by
            default.
        ties: `"exact"` marks exactly the stated number, the earlier of equal entries first;
            `"original"` marks every entry up to the cut-off value, so all that are equal to it.
        scope: rank each leaf on its own, or all leaves together, one after the other.

    Returns:
        A tree of bool arrays with the shapes of `values`.

    Raises:
        ValueError: if `fraction` is a number outside [0, 1], or an option is unknown.

    Source: Mallya and Lazebnik (2018), authors' code: the k-th smallest value is the cut-off.
    Differs: the original fails where the number rounds to 0; here nothing is marked.

    >>> print(smallest_fraction(jnp.array([3.0, -1.0, 2.0, -4.0]), 0.5))
    [False  True  True False]
    """
    check_number("fraction", fraction, least=0, most=1)
    check_choice("ties", ties, TIES)
    check_choice("scope", scope, SCOPES)
    if among is None:
        among = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), values)
    leaves, structure = jax.tree.flatten(values)
    pairs = list(zip(leaves, structure.flatten_up_to(among), strict=True))
    groups = [[pair] for pair in pairs] if scope == "leaf" else [pairs]
    marked = [leaf for group in groups for leaf in _smallest(group, fraction, ties)]
    return jax.tree.unflatten(structure, marked)


def _smallest(pairs: list[tuple], fraction: Any, ties: str) -> list[jax.Array]:
    """`smallest_fraction` of pairs of a leaf and its candidates that are ranked together."""
    dtype = jnp.result_type(float, *(value for value, _ in pairs))
    ranks = [_ranks(jnp.asarray(value, dtype), candidates) for value, candidates in pairs]
    with jax.enable_x64(True):
        return _marked(ranks, jnp.asarray(fraction, jnp.float64), ties)


@partial(jax.jit, static_argnames="ties")
def _marked(ranks: list[jax.Array], fraction: jax.Array, ties: str) -> list[jax.Array]:
    """`_smallest` of the ranks; compiled once for leaves of one shape, also outside of a `jit`."""
    unsigned = jnp.iinfo(ranks[0].dtype)
    last = jnp.asarray(unsigned.max, unsigned.dtype)
    *_, total = _below(ranks, (0 * last, last - 1, last))
    number = jnp.round(fraction * total).astype(jnp.int64)
    cut = _nth(ranks, number, unsigned.bits)
    less, most, _ = _below(ranks, (cut, cut + 1, last))
    upto = [(rank <= cut) & (rank < last) & (number > 0) for rank in ranks]
    if ties == "original":
        return upto

    def first():  # of the entries at the cut-off those up to a place, found in the same way
        places = _places([rank == cut for rank in ranks])
        bits = sum(rank.size for rank in ranks).bit_length()
        end = _nth(places, number - less, bits)
        return [u & ((r < cut) | (p <= end)) for u, r, p in zip(upto, ranks, places)]

    return jax.lax.cond(most > number, first, lambda: upto)


@jax.jit
def _ranks(value: jax.Array, candidates: jax.Array) -> jax.Array:
    """Unsigned integers in the order of the magnitudes; the largest for what is no candidate."""
    unsigned = jnp.dtype(f"uint{8 * value.dtype.itemsize}")
    last = jnp.iinfo(unsigned).max
    bits = jax.lax.bitcast_convert_type(jnp.abs(value), unsigned)
    bits = jnp.where(jnp.isnan(value), jnp.asarray(last - 1, unsigned), bits)
    return jnp.where(candidates, bits, jnp.asarray(last, unsigned))


def _places(chosen: list[jax.Array]) -> list[jax.Array]:
    """Where the chosen entries stand in the leaves' flattened order; the largest for all others."""
    ends = list(itertools.accumulate(leaf.size for leaf in chosen))
    unsigned = jnp.dtype("uint32" if ends[-1] < 1 << 32 else "uint64")

    def of_leaf(leaf, place):
        place = jnp.asarray(place, unsigned)
        for axis in range(leaf.ndim):
            stride = jnp.asarray(math.prod(leaf.shape[axis + 1 :]), unsigned)
            place += stride * jax.lax.broadcasted_iota(unsigned, leaf.shape, axis)
        return jnp.where(leaf, place, jnp.asarray(jnp.iinfo(unsigned).max, unsigned))

    return [of_leaf(leaf, end - leaf.size) for leaf, end in zip(chosen, ends)]


def _nth(ranks: list[jax.Array], number: jax.Array, bits: int) -> jax.Array:
    """The number-th smallest, counted from 1: two bits at a time, from the highest of `bits`."""
    passes = -(-bits // 2)

    def look(i, low):
        step = jnp.asarray(1, low.dtype) << (2 * (passes - 1 - i)).astype(low.dtype)
        below = _below(ranks, (low + step, low + 2 * step, low + 3 * step))
        return low + step * sum((count < number).astype(low.dtype) for count in below)

    return jax.lax.fori_loop(0, passes, look, jnp.asarray(0, ranks[0].dtype))


def _below(ranks: list[jax.Array], cuts: tuple) -> list[Any]:
    """How many entries of all leaves lie below each of three cuts, int64.

    On a CPU, XLA counts three at once in a tenth of the time that it takes for one. The barrier
    keeps it from dropping a count that nobody reads.
    """

    def of_leaf(rank):
        below = tuple((rank < cut).astype(jnp.int64) for cut in cuts)
        zeros = (np.int64(0),) * len(cuts)
        axes = tuple(range(rank.ndim))
        return jax.lax.reduce(below, zeros, lambda a, b: tuple(map(jnp.add, a, b)), axes)

    counts = jax.lax.optimization_barrier([of_leaf(rank) for rank in ranks])
    return [sum(of_cut) for of_cut in zip(*counts)]


def count(mask: PyTree, params: PyTree | None = None) -> jax.Array:
    """Number of entries that are True (or not zero), over all leaves.

    Args:
        mask: tree of masks; a prefix tree if `params` is given.
        params: the parameters, to which the mask is expanded.

    Returns:
        An integer scalar.

    >>> params = {"hidden": jnp.ones((2, 3)), "head": jnp.ones(3)}
    >>> int(count({"hidden": True, "head": jnp.array([True, False, False])}, params))
    7
    """
    if params is not None:
        mask = jax.tree.map(
            lambda m, leaf: jnp.broadcast_to(m, leaf.shape), resolve(mask, params), params
        )
    leaves = jax.tree.leaves(mask, is_leaf=is_mask)
    return sum((jnp.sum(dense(leaf) != 0) for leaf in leaves), jnp.int32(0))


def capacity(used: PyTree) -> jax.Array:
    """Share of entries that are True, over all leaves, in [0, 1].

    >>> used = {"hidden": jnp.array([True, False]), "head": jnp.array([True, True])}
    >>> float(capacity(used))
    0.75
    """
    return count(used) / max(sum(leaf.size for leaf in jax.tree.leaves(used)), 1)


def summary(params: PyTree, chosen: Container[str], name: str = "prunable") -> str:
    """A table of all leaves, which says of each whether it is among the chosen ones.

    Args:
        params: pytree of arrays, or of their shapes.
        chosen: paths of leaves, such as those that are pruned.
        name: what the chosen leaves are.

    Returns:
        A line for each leaf with its path, shape and number of entries, and one with the totals.

    >>> layer = {"bias": jnp.zeros(3), "w": jnp.zeros((4, 3))}
    >>> params = {"head": jnp.zeros((3, 2)), "layer": layer}
    >>> print(summary(params, {"layer/w"}))
    leaf        shape   entries  prunable
    head        (3, 2)        6  no
    layer/bias  (3,)          3  no
    layer/w     (4, 3)       12  yes
    1 of 3 leaves is prunable: 12 of 21 entries
    """
    leaves = leaves_by_path(params)
    rows = [("leaf", "shape", "entries", name)]
    rows += [
        (path, str(tuple(leaf.shape)), f"{leaf.size:,}", "yes" if path in chosen else "no")
        for path, leaf in leaves.items()
    ]
    width = [max(map(len, column)) for column in zip(*rows)]
    lines = [f"{p:{width[0]}}  {s:{width[1]}}  {n:>{width[2]}}  {c}" for p, s, n, c in rows]
    taken = [leaf.size for path, leaf in leaves.items() if path in chosen]
    lines.append(
        f"{len(taken)} of {len(leaves)} leaves {'is' if len(taken) == 1 else 'are'} {name}: "
        f"{sum(taken):,} of {sum(leaf.size for leaf in leaves.values()):,} entries"
    )
    return "\n".join(lines)


def _fitted(path: str, mask: Any, leaf: Any) -> jax.Array:
    array, shape = dense(mask), jnp.shape(leaf)
    if array.dtype != bool and not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"The mask of '{path}' must be bool or float, got {array.dtype}.")
    try:
        fits = jnp.broadcast_shapes(array.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"The mask of '{path}' has shape {array.shape}, which does not broadcast to the "
            f"parameter's shape {shape}."
        )
    return array.reshape((1,) * (len(shape) - array.ndim) + array.shape)


def _has_masked_nodes(params: PyTree) -> bool:
    """True inside `optax.masked` and `optax.partition`, which cut the others' leaves out."""
    nodes = jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, optax.MaskedNode))
    return any(isinstance(node, optax.MaskedNode) for node in nodes)
