"""A-GEM: no step against the gradient of the earlier tasks."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from jaxcl.core import masks
from jaxcl.core.checks import check_count
from jaxcl.core.method import Method, Online
from jaxcl.core.trees import PyTree
from jaxcl.methods import replay
from jaxcl.methods.finetune import finetune
from jaxcl.methods.spec import Built, Problem, Spec, option


@dataclass(frozen=True)
class AGEMOptions:
    """What is kept, and how much of it is looked at.

    Attributes:
        memory: examples in the memory, of all tasks together.
        replay_batch: of which so many give the reference gradient; None takes as many as are new.
        policy: the latest examples of each task, a uniform sample of all, or a uniform sample of
            each class.
    """

    memory: int = option(200, least=1)
    replay_batch: int | None = option(None, least=1)
    policy: Literal["ring", "reservoir", "balanced"] = "ring"


def agem(
    base: Method,
    memory: int = AGEMOptions.memory,
    *,
    replay_batch: int | None = None,
    policy: Literal["ring", "reservoir", "balanced"] = "ring",
    tasks: int | None = None,
) -> Method:
    """A-GEM: a step that would raise the loss of the earlier tasks is turned until it does not.

    With g the gradient of the batch, and g_ref that of examples of the earlier tasks:

        g <- g - (g . g_ref) / (g_ref . g_ref) * g_ref     if g . g_ref < 0

    over all parameters that may move, the heads of all tasks so far among them, as one vector. Each
    example of the memory goes through its own task's head. The first task's gradient stays as it
    is.

    Args:
        base: as for `er`.
        memory: examples in the memory, 1 to 2^24 - 1. They are drawn with replacement.
        replay_batch: examples that give g_ref; None for as many as the batch has.
        policy: `"ring"` keeps the latest of each task, `memory // tasks` of them; the others are as
            for `er`.
        tasks: number of tasks, for `"ring"`; by default that of the base method.

    Returns:
        A method that needs the engine, `Setup.sample` and `Setup.classes`.

    Raises:
        ValueError: as `er` does.

    >>> import jaxcl
    >>> method = agem(jaxcl.multihead(jaxcl.finetune(), tasks=5), memory=500, replay_batch=128)
    >>> method.tasks, method.isolates
    (5, False)

    Source: Chaudhry et al., Efficient lifelong learning with A-GEM (2019), Sec. 4.
    Differs: what protects the earlier tasks is the gradient, and not the step: momentum and
        adaptive optimizers, which the paper does not use, turn it again. The authors draw larger
        reference batches, 128 to 1,300 examples for 10 new ones, and train for one epoch.
    """
    kept = replay.store("agem", base, memory, policy, tasks)
    if replay_batch is not None:
        check_count("agem: replay_batch", replay_batch)
    movable = base.trainable_seen or base.trainable

    def gradient(context, batch, gradient, theta, state, buffer):
        keys = [jax.random.fold_in(context.key, use) for use in (replay.DRAW, replay.PASS)]
        size = replay_batch or batch.y.shape[0]
        rows, _ = replay.draw(buffer, keys[0], size, among=buffer.task < context.task)

        def loss(theta):
            logits = replay.logits_of(context, theta, state, rows, keys[1])
            return replay.mean(context.loss(logits, rows), rows.weight)

        mask = masks.resolve(movable(theta, state, context.task), theta)
        return projected(gradient, jax.grad(loss)(theta), mask)

    online = Online(
        init=lambda sample, theta: replay.empty(kept, sample),
        gradient=gradient,
        update=partial(replay.offer, kept),
        grow=partial(replay.regrown, kept),
    )
    return replay.replaying("agem", base, online)


def projected(gradient: PyTree, reference: PyTree, mask: PyTree) -> PyTree:
    """The gradient without what points against the reference.

    Args:
        gradient: pytree of arrays.
        reference: likewise.
        mask: for each leaf an array that broadcasts against it; what is zero or False takes no
            part.

    Returns:
        The gradient, changed only where the mask is not zero, and only if the two have a negative
        product; so not by a reference of zero.
    """
    own, reference = (
        jax.tree.map(lambda m, leaf: jnp.where(m != 0, leaf, jnp.zeros_like(leaf)), mask, tree)
        for tree in (gradient, reference)
    )
    product, length = _dot(own, reference), _dot(reference, reference)
    share = jnp.where(product < 0, product / jnp.where(length > 0, length, 1), 0)
    return jax.tree.map(lambda g, r: (g - share * r).astype(g.dtype), gradient, reference)


def _dot(a: PyTree, b: PyTree) -> jax.Array:
    return jax.tree.reduce(jnp.add, jax.tree.map(jnp.vdot, a, b))


def _build(problem: Problem, options: AGEMOptions) -> Built:
    method = agem(
        problem.with_heads(finetune()), options.memory, replay_batch=options.replay_batch,
        policy=options.policy, tasks=problem.tasks,
    )  # fmt: skip
    return Built(method, problem.network())


SPEC = Spec(
    name="agem",
    label="A-GEM",
    build=_build,
    options=AGEMOptions,
    color="#7aa32a",
    scenarios=("task", "domain", "class"),
    reference="Chaudhry et al., Efficient lifelong learning with A-GEM (2019)",
    presets={"permuted_digits": {"learning_rate": 0.02}, "split_digits": {"learning_rate": 0.02}},
)
