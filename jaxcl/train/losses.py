"""Losses and metrics of single rows: what `Setup.loss` and `Setup.metric` may be."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The cross-entropy of each row.

    Args:
        logits: float [B, C]; -1e30 where a class takes no part.
        labels: int [B], in 0 to C - 1.

    Returns:
        Float [B], at least 0.

    >>> print(cross_entropy(jnp.zeros((1, 4)), jnp.array([2])))  # log 4
    [1.3862944]
    """
    chosen = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return jax.nn.logsumexp(logits, axis=-1) - jnp.sum(chosen * logits, axis=-1)


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """1 for each row whose label has the largest logit, else 0; float [B].

    >>> print(accuracy(jnp.array([[2.0, 1.0], [0.0, 3.0]]), jnp.array([0, 0])))
    [1. 0.]
    """
    classes, top = jnp.arange(logits.shape[-1]), jnp.max(logits, axis=-1, keepdims=True)
    first = jnp.min(jnp.where(logits == top, classes, classes.size), axis=-1)
    return (first == labels).astype(jnp.float32)


def squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """The squared error of each row, for regression: the mean over the outputs.

    Args:
        outputs: float [B, D].
        targets: float [B, D], or [B] where D is 1.

    Returns:
        Float [B].

    >>> print(squared_error(jnp.array([[1.0], [2.0]]), jnp.array([1.0, 4.0])))
    [0. 4.]
    """
    return jnp.mean((outputs - targets.reshape(outputs.shape)) ** 2, axis=-1)


def explained(variance: jax.typing.ArrayLike) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The metric whose mean over rows is the share of the targets' variance that is explained.

    Args:
        variance: of each target, float [D] above 0, around what a prediction is to be better than.

    Returns:
        `(outputs [B, D], targets [B, D]) -> float [B]`, at most 1; its mean is 0 for outputs that
        are the targets' mean throughout.

    >>> print(explained(4.0)(jnp.array([[1.0], [2.0]]), jnp.array([[1.0], [4.0]])))
    [1. 0.]
    """

    def metric(outputs: jax.Array, targets: jax.Array) -> jax.Array:
        error = (outputs - targets.reshape(outputs.shape)) ** 2
        return jnp.mean(1 - error / jnp.broadcast_to(jnp.asarray(variance), error.shape), axis=-1)

    return metric
