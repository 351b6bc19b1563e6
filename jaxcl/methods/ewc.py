"""EWC: a quadratic penalty, weighted by the Fisher information."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxcl.core.checks import check_count
from jaxcl.core.heads import HEAD
from jaxcl.core.method import Batch, Context, Method, nested
from jaxcl.core.trees import PyTree
from jaxcl.methods.finetune import finetune
from jaxcl.methods.importance import (
    Anchored,
    Leaves,
    anchored,
    check_heads,
    covered,
    mean_over_examples,
    quadratic,
    replaced,
)
from jaxcl.methods.spec import Built, Problem, Spec, check_options, option


@dataclass(frozen=True)
class EWCOptions:
    """How EWC protects.

    Attributes:
        strength: lambda, the weight of the penalty, which has a factor 1/2.
        fisher: the labels of the Fisher information: exact averages over all, sampled draws one
            from the network's prediction, empirical takes the true one.
        examples: examples of each task from which it is estimated; None takes all.
        online: hold the parameters to the latest task's, instead of to every task's own.
        gamma: with online, the share of the importance that is left after a further task.
    """

    strength: float = option(100.0, least=0, sweep=True, tune=(1, 10, 100, 1000))
    fisher: Literal["exact", "sampled", "empirical"] = "exact"
    examples: int | None = option(1000, least=1)
    online: bool = False
    gamma: float = option(1.0, least=0, most=1, sweep=True)


def ewc(
    base: Method,
    *,
    strength: ArrayLike = EWCOptions.strength,
    fisher: Literal["exact", "sampled", "empirical"] = "exact",
    examples: int | None = None,
    online: bool = False,
    gamma: ArrayLike = EWCOptions.gamma,
    heads: str | None = HEAD,
) -> Method:
    """EWC: what matters to the finished tasks is held where they left it.

    The penalty is `strength / 2 * sum_k sum_i F_i^k (theta_i - theta_i^k)^2` over the finished
    tasks k. Quadratics add up to a quadratic: it has the importance `sum_k F^k`, and its anchor is
    the mean of the `theta^k` weighted by it. That alone is kept, however many tasks there are; only
    a constant is missing, which no gradient sees. With `online`, the importance is that of one
    quadratic around the latest task's parameters: `F <- gamma F + F^k`.

    The Fisher information, `E_x E_y [(d log p(y | x) / d theta_i)^2]`, is that of single examples,
    by the network as it is evaluated.

    Args:
        base: the method that governs everything else: `multihead(finetune(), tasks)`, or
            `finetune()` where all tasks share a head.
        strength: lambda, at least 0; may be traced.
        fisher: y runs over all labels that the task sees, weighted by their probability
            ("exact"); is drawn once from the network's prediction ("sampled"); or is the true one
            ("empirical"), whose loss need not be the cross-entropy.
        examples: number of each task's examples, drawn without replacement; None for all.
        online: one anchor, the latest task's parameters.
        gamma: with `online`, share of the importance that is left after a further task, in [0, 1];
            may be traced.
        heads: regular expression of the leaves that are each task's own, which are left out, as
            for `multihead`; None covers everything, a head that all tasks share as well.

    Returns:
        A method that needs the engine: `train.end_task(..., examples=data)`.

    Raises:
        ValueError: for settings out of range, a base method that consolidates itself; and at
            `init` if `heads` leaves nothing to protect.

    Source: Kirkpatrick et al., EWC (2017), Eq. 3; `online` from Schwarz et al., Progress & Compress
        (2018).
    Differs: heads are left out. The factor 1/2 is the paper's and GMvandeVen's; implementations
        without it, such as Avalanche, mammoth and agem, need half of this strength. Where gamma
        also stands in the loss, as in GMvandeVen's online form, strength is lambda * gamma.

    >>> from jaxcl.core.heads import multihead
    >>> params = {"head": jnp.ones((4, 2)), "layer": jnp.ones((3, 4))}
    >>> method = ewc(multihead(finetune(), tasks=5), strength=1e5)
    >>> theta, state = method.init(jax.random.key(0), params)
    >>> sorted(state.importance)
    ['layer']
    """
    given = {"strength": strength, "fisher": fisher, "gamma": gamma}
    check_options(EWCOptions, given, "ewc: {}".format)
    check_heads("ewc", heads)
    if examples is not None:
        check_count("ewc: examples", examples)
    inner = nested(base, "ewc")

    def init(key, params):
        theta, state = base.init(key, params)
        return theta, anchored(state, covered(theta, heads, "ewc"))

    def penalty(theta, state, task, progress=None):
        own = strength / 2 * quadratic(theta, state)
        return own + inner.penalty(theta, state, task, progress)

    def consolidate(context, theta, state, memory):
        leaves = covered(theta, heads)
        of_example = partial(squared_scores, context, theta, state, fisher)
        new = mean_over_examples(of_example, context, leaves, examples)
        merge = partial(latest, gamma) if online else weighted
        return merge(state, new, leaves), memory

    return inner._replace(init=init, penalty=penalty, consolidate=consolidate)


def squared_scores(
    context: Context, theta: PyTree, state: PyTree, fisher: str,
    leaves: Leaves, row: Batch, key: jax.Array,
) -> Leaves:  # fmt: skip
    """One example's Fisher information: the expected square of d log p(y | x) / d theta."""

    def logits_of(leaves):
        return context.logits(replaced(theta, leaves), state, row)

    def log_likelihoods(leaves):
        logits = logits_of(leaves)
        logits = jnp.where(context.visible(logits.shape, row), logits, -1e30)
        return jax.nn.log_softmax(logits)[0]

    def square(gradient):
        return jax.tree.map(jnp.square, gradient)

    if fisher == "empirical":
        return square(jax.grad(lambda leaves: context.loss(logits_of(leaves), row)[0])(leaves))
    log_p, score = jax.vjp(log_likelihoods, leaves)
    labels = jnp.eye(log_p.size, dtype=log_p.dtype)
    if fisher == "sampled":
        return square(score(labels[jax.random.categorical(key, log_p)])[0])

    def add(total, label):
        (gradient,) = score(label)
        weight = jnp.exp(jnp.sum(label * log_p))
        return jax.tree.map(lambda t, g: t + weight * g**2, total, gradient), None

    return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, leaves), labels)[0]


def weighted(state: Anchored, new: Leaves, leaves: Leaves) -> Anchored:
    """The sum of two quadratics: the importances add up, the anchor is their weighted mean."""

    def move(total, importance, anchor, leaf):
        share = jnp.where(total > 0, importance / jnp.where(total > 0, total, 1), 0)
        return anchor + share * (leaf - anchor)

    total = jax.tree.map(jnp.add, state.importance, new)
    anchor = jax.tree.map(move, total, new, state.anchor, leaves)
    return state._replace(importance=total, anchor=anchor)


def latest(gamma: ArrayLike, state: Anchored, new: Leaves, leaves: Leaves) -> Anchored:
    """One quadratic around the latest task's parameters; the older importance fades."""
    total = jax.tree.map(lambda old, new: gamma * old + new, state.importance, new)
    return state._replace(importance=total, anchor=leaves)


def _build(problem: Problem, options: EWCOptions) -> Built:
    method = ewc(
        problem.with_heads(finetune()), strength=options.strength, fisher=options.fisher,
        examples=options.examples, online=options.online, gamma=options.gamma, heads=problem.own,
    )  # fmt: skip
    return Built(method, problem.network())


SPEC = Spec(
    name="ewc",
    label="EWC",
    build=_build,
    options=EWCOptions,
    color="#7b5ea7",
    scenarios=("task", "domain", "class"),
    example="--ewc.strength 10,100,1000",
    reference="Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks (2017)",
    presets={
        "permuted_digits": {"learning_rate": 0.02},
        "split_digits": {"learning_rate": 0.02, "strength": 1000.0},
    },
)
