"""What methods share that hold important parameters near where a task left them."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcl.core import masks
from jaxcl.core.checks import check_pattern, shorten
from jaxcl.core.method import Batch, Context
from jaxcl.core.trees import PyTree, size_bytes

# Examples whose gradients are formed side by side. A CPU takes them one by one: then XLA fuses a
# dense layer's outer product into the sum over examples, which is 30 times as fast as 16 at a time.
SIDE_BY_SIDE = {"cpu": 1}
MOST_EXAMPLES = 16
MOST_BYTES = 64 << 20  # of their gradients; one example's are held in any case

Leaves = dict[str, jax.Array]  # by path


class Anchored(NamedTuple):
    """State of a method that holds parameters near an anchor.

    Attributes:
        base: the state of the method that it is built around.
        importance: for each covered leaf, by path, an array of its shape.
        anchor: likewise, the values that the leaf is held to.
    """

    base: PyTree
    importance: Leaves
    anchor: Leaves


def check_heads(name: str, heads: str | None) -> None:
    """Raises ValueError for what is no pattern of heads."""
    if heads is not None:
        check_pattern(f"{name}: heads", heads)


def covered(theta: PyTree, heads: str | None, name: str = "") -> Leaves:
    """The leaves that all tasks share: those outside the heads, by path.

    Args:
        theta: what the optimizer moves.
        heads: regular expression of the paths that are left out; None covers everything.
        name: of the method, for errors.

    Raises:
        ValueError: if no leaf is left.
    """
    leaves = masks.leaves_by_path(theta)
    shared = {p: leaf for p, leaf in leaves.items() if heads is None or not re.search(heads, p)}
    if not shared:
        raise ValueError(
            f"{name}: the pattern {heads!r} matches every leaf, so nothing would be protected; "
            f"the leaves are {shorten(sorted(leaves))}."
        )
    return shared


def replaced(theta: PyTree, leaves: Leaves) -> PyTree:
    """Theta with other values of the given leaves."""
    return masks.map_with_path(lambda path, leaf: leaves.get(path, leaf), theta)


def anchored(base: PyTree, leaves: Leaves) -> Anchored:
    """A state in which nothing is important yet."""
    return Anchored(base, jax.tree.map(jnp.zeros_like, leaves), leaves)


def quadratic(theta: PyTree, state: Anchored) -> jax.Array:
    """The sum of importance * (theta - anchor)^2 over all covered entries."""
    leaves = masks.leaves_by_path(theta)
    each = [
        jnp.sum(importance * (leaves[path] - state.anchor[path]) ** 2)
        for path, importance in state.importance.items()
    ]
    return sum(each, jnp.float32(0))


def mean_over_examples(
    of_example: Callable[[Leaves, Batch, jax.Array], Leaves],
    context: Context,
    leaves: Leaves,
    most: int | None,
) -> Leaves:
    """The mean of a function of single examples over the task's data.

    Each example has a gradient of its own; they are formed in chunks of at most `MOST_EXAMPLES`
    and `MOST_BYTES`, on a CPU one by one.

    Args:
        of_example: `(leaves, row, key) -> tree` of the structure of `leaves`; `row` is a Batch of
            one example.
        context: at the end of a task. Rows that fill up `context.examples` do not count.
        leaves: what `of_example` differentiates in.
        most: number of examples, drawn without replacement; None for all.
    """
    data = context.examples
    length = data.y.shape[0]
    number = data.count if most is None else jnp.minimum(most, data.count)
    order_key, example_key = jax.random.split(context.key)
    rank = jax.random.uniform(order_key, (length,))
    order = jnp.argsort(jnp.where(jnp.arange(length) < data.count, rank, 2.0))
    side_by_side = SIDE_BY_SIDE.get(jax.default_backend(), MOST_EXAMPLES)
    size = max(1, min(side_by_side, MOST_BYTES // size_bytes(leaves)))

    def one(row, position):
        key = jax.random.fold_in(example_key, position)
        return of_example(leaves, Batch(data.x[row][None], data.y[row][None]), key)

    def add(i, totals):
        position = i * size + jnp.arange(size)
        each = jax.vmap(one)(order[position % number], position)
        return jax.tree.map(partial(_add_real, position < number), totals, each)

    zeros = jax.tree.map(jnp.zeros_like, leaves)
    totals = jax.lax.fori_loop(0, (number + size - 1) // size, add, zeros)
    return jax.tree.map(lambda total: total / number, totals)


def _add_real(real: jax.Array, total: jax.Array, each: jax.Array) -> Any:
    """Adds the rows that are real."""
    real = real.reshape(-1, *[1] * total.ndim)
    return total + jnp.sum(jnp.where(real, each, jnp.zeros_like(each)), 0)
