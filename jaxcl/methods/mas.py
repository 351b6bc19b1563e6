"""MAS: how sensitive the network's output is to each parameter."""

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
class MASOptions:
    """How MAS protects.

    Attributes:
        strength: lambda, the weight of the penalty, which has no factor 1/2.
        accumulate: the importance of several tasks is their sum, or the average of the latest and
            what was before it.
        examples: examples of each task from which it is estimated; None takes all.
    """

    strength: float = option(0.1, least=0, sweep=True, tune=(0.01, 0.1, 1, 10))
    accumulate: Literal["sum", "average"] = "sum"
    examples: int | None = option(1000, least=1)


def mas(
    base: Method,
    *,
    strength: ArrayLike = MASOptions.strength,
    accumulate: Literal["sum", "average"] = "sum",
    examples: int | None = None,
    heads: str | None = HEAD,
) -> Method:
    """MAS: a parameter matters by how much it changes the network's output; no label is read.

    At a task's end `Omega_i = mean_n |d ||F(x_n)||_2^2 / d theta_i|`, one gradient an example, of
    the logits F that the task sees, by the network as it is evaluated. The penalty is
    `strength * sum_i Omega_i (theta_i - anchor_i)^2`; the anchor is the latest task's parameters.

    Args:
        base: as for `ewc`.
        strength: lambda, at least 0; may be traced.
        accumulate: the importances of all tasks add up ("sum"); or each further task's is averaged
            with what was before it, half and half ("average").
        examples: number of each task's examples, drawn without replacement; None for all.
        heads: as for `ewc`.

    Returns:
        A method that needs the engine: `train.end_task(..., examples=data)`.

    Raises:
        ValueError: for settings out of range, a base method that consolidates itself; and at
            `init` if `heads` leaves nothing to protect.

    >>> import jaxcl
    >>> params = {"head": jnp.ones((4, 2)), "layer": jnp.ones((3, 4))}
    >>> method = mas(jaxcl.multihead(jaxcl.finetune(), tasks=5), strength=0.5)
    >>> theta, state = jax.eval_shape(method.init, jax.random.key(0), params)
    >>> sorted(state.importance)
    ['layer']

    Source: Aljundi et al., MAS (2018); the sum over tasks as in the authors' code.
        `accumulate="average"` is Avalanche's and FACIL's, with their alpha of 0.5.
    Differs: one gradient an example, where the authors' code does so for batches of one alone. No
        factor 1/2, as in the original; FACIL has one, and takes the norm without the square.
    """
    given = {"strength": strength, "accumulate": accumulate}
    check_options(MASOptions, given, "mas: {}".format)
    check_heads("mas", heads)
    if examples is not None:
        check_count("mas: examples", examples)
    inner = nested(base, "mas")

    def init(key, params):
        theta, state = base.init(key, params)
        return theta, anchored(state, covered(theta, heads, "mas"))

    def penalty(theta, state, task, progress=None):
        return strength * quadratic(theta, state) + inner.penalty(theta, state, task, progress)

    def consolidate(context, theta, state, memory):
        leaves = covered(theta, heads)
        of_example = partial(sensitivity, context, theta, state)
        new = mean_over_examples(of_example, context, leaves, examples)

        def merge(old, new):
            if accumulate == "sum":
                return old + new
            return jnp.where(context.task == 0, new, (old + new) / 2)

        return Anchored(state.base, jax.tree.map(merge, state.importance, new), leaves), memory

    return inner._replace(init=init, penalty=penalty, consolidate=consolidate)


def sensitivity(
    context: Context, theta: PyTree, state: PyTree, leaves: Leaves, row: Batch, key: jax.Array
) -> Leaves:
    """The absolute gradient of one example's squared output."""

    def squared_output(leaves):
        logits = context.logits(replaced(theta, leaves), state, row)
        return jnp.sum(jnp.where(context.visible(logits.shape, row), logits, 0) ** 2)

    return jax.tree.map(jnp.abs, jax.grad(squared_output)(leaves))


def _build(problem: Problem, options: MASOptions) -> Built:
    method = mas(
        problem.with_heads(finetune()), strength=options.strength, accumulate=options.accumulate,
        examples=options.examples, heads=problem.own,
    )  # fmt: skip
    return Built(method, problem.network())


SPEC = Spec(
    name="mas",
    label="MAS",
    build=_build,
    options=MASOptions,
    color="#17a2b8",
    scenarios=("task", "domain", "class"),
    example="--mas.strength 0.03,0.1,0.3",
    reference="Aljundi et al., Memory aware synapses (2018)",
    presets={
        "permuted_digits": {"learning_rate": 0.02, "strength": 0.01},
        "split_digits": {"strength": 0.01},
    },
)
