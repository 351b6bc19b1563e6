"""SI: what each parameter did for the loss, along its path."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxcl.core.heads import HEAD
from jaxcl.core.method import Method, Online, nested
from jaxcl.methods.finetune import finetune
from jaxcl.methods.importance import Anchored, anchored, check_heads, covered, quadratic
from jaxcl.methods.spec import Built, Problem, Spec, check_options, option


@dataclass(frozen=True)
class SIOptions:
    """How SI protects.

    Attributes:
        strength: c, the weight of the penalty, which has no factor 1/2.
        xi: what is added to the square of a parameter's way, by which its part is divided.
        rectify: cut negative importance off the sum over the tasks, total, or off each task's.
    """

    strength: float = option(1.0, least=0, sweep=True, tune=(0.1, 1, 10, 100))
    xi: float = option(0.1, above=0, sweep=True)
    rectify: Literal["total", "task"] = "total"


def si(
    base: Method,
    *,
    strength: ArrayLike = SIOptions.strength,
    xi: ArrayLike = SIOptions.xi,
    rectify: Literal["total", "task"] = "total",
    heads: str | None = HEAD,
) -> Method:
    """SI: a parameter matters by its part in the decrease of the loss.

    Each step adds `w_i -= g_i * (theta_i_after - theta_i_before)`, with the gradient g of the
    task's loss alone and the optimizer's step as it was. At the task's end
    `Omega_i <- relu(Omega_i + w_i / ((theta_i - anchor_i)^2 + xi))`, the anchor moves to theta, and
    w starts again at 0. The penalty is `strength * sum_i Omega_i (theta_i - anchor_i)^2`.

    Args:
        base: as for `ewc`.
        strength: c, at least 0; may be traced.
        xi: above 0; may be traced.
        rectify: where the relu stands: around the sum over all tasks ("total"), or around each
            task's part ("task").
        heads: as for `ewc`.

    Returns:
        A method that needs the engine: its path integral is a memory, and `Setup.sample` and
        `train.end_task(..., examples=data)` are to be given.

    Raises:
        ValueError: for settings out of range, a base method that consolidates itself; and at
            `init` if `heads` leaves nothing to protect.

    >>> import jaxcl
    >>> params = {"head": jnp.ones((4, 2)), "layer": jnp.ones((3, 4))}
    >>> method = si(jaxcl.multihead(jaxcl.finetune(), tasks=5), strength=0.5)
    >>> theta, state = jax.eval_shape(method.init, jax.random.key(0), params)
    >>> sorted(state.importance)
    ['layer']

    Source: Zenke et al., SI (2017); the relu and the unregularized gradient as in the
        authors' pathint. `rectify="task"` is agem's.
    Differs: heads are left out. No factor 1/2, as in pathint; Avalanche's has one, so needs twice
        this strength.
    """
    given = {"strength": strength, "xi": xi, "rectify": rectify}
    check_options(SIOptions, given, "si: {}".format)
    check_heads("si", heads)
    inner = nested(base, "si")

    def init(key, params):
        theta, state = base.init(key, params)
        return theta, anchored(state, covered(theta, heads, "si"))

    def penalty(theta, state, task, progress=None):
        return strength * quadratic(theta, state) + inner.penalty(theta, state, task, progress)

    def no_path(sample, theta):
        return jax.tree.map(jnp.zeros_like, covered(theta, heads))

    def walk(context, path, step):
        gradient, before, after = (
            covered(tree, heads) for tree in (step.gradient, step.before, step.after)
        )
        return jax.tree.map(lambda w, g, b, a: w - g * (a - b), path, gradient, before, after)

    def consolidate(context, theta, state, path):
        leaves = covered(theta, heads)

        def update(importance, w, leaf, anchor):
            part = w / ((leaf - anchor) ** 2 + xi)
            if rectify == "task":
                return importance + jax.nn.relu(part)
            return jax.nn.relu(importance + part)

        importance = jax.tree.map(update, state.importance, path, leaves, state.anchor)
        return Anchored(state.base, importance, leaves), jax.tree.map(jnp.zeros_like, path)

    return inner._replace(
        init=init, penalty=penalty, consolidate=consolidate, online=Online(no_path, update=walk)
    )


def _build(problem: Problem, options: SIOptions) -> Built:
    method = si(
        problem.with_heads(finetune()), strength=options.strength, xi=options.xi,
        rectify=options.rectify, heads=problem.own,
    )  # fmt: skip
    return Built(method, problem.network())


SPEC = Spec(
    name="si",
    label="SI",
    build=_build,
    options=SIOptions,
    color="#e377b5",
    scenarios=("task", "domain", "class"),
    example="--si.strength 0.1,1,10",
    reference="Zenke et al., Continual learning through synaptic intelligence (2017)",
    presets={
        "permuted_digits": {"learning_rate": 0.02, "strength": 10.0},
        "split_digits": {"learning_rate": 0.02, "strength": 100.0},
    },
)
