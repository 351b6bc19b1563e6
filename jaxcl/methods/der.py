"""DER and DER++: the logits that the network once gave are part of the memory."""

from dataclasses import dataclass
from functools import partial

import jax
from jax.typing import ArrayLike

from jaxcl.core.checks import check_count
from jaxcl.core.method import Method, Online
from jaxcl.methods import replay
from jaxcl.methods.finetune import finetune
from jaxcl.methods.spec import Built, Problem, Spec, check_options, option


@dataclass(frozen=True)
class DEROptions:
    """What is kept, and how strongly the network is held to it.

    Attributes:
        memory: examples in the memory, of all tasks together.
        replay_batch: of which so many are replayed in a step; None takes as many as are new.
        alpha: weight of the difference to the stored logits; a large one needs a small step size.
    """

    memory: int = option(200, least=1)
    replay_batch: int | None = option(None, least=1)
    alpha: float = option(0.2, least=0, sweep=True, tune=(0.1, 0.3, 1.0))


@dataclass(frozen=True)
class DERPPOptions(DEROptions):
    """What is kept, and how strongly the network is held to it.

    Attributes:
        memory: examples in the memory, of all tasks together.
        replay_batch: of which so many are replayed in a step, twice; None takes as many as are new.
        alpha: weight of the difference to the stored logits; a large one needs a small step size.
        beta: weight of the loss of the stored labels.
    """

    beta: float = option(0.5, least=0, sweep=True, tune=(0.5, 1.0))


def der(
    base: Method,
    memory: int = DEROptions.memory,
    *,
    alpha: ArrayLike = DEROptions.alpha,
    replay_batch: int | None = None,
) -> Method:
    """DER: on examples of a memory, the network shall give the logits that it once gave.

    With h the network, and (x', z') drawn from the memory:

        loss = CE(batch) + alpha * MSE(h(x'), z')

    MSE is the mean over the examples and their logits. z' are the logits of the training pass in
    which the example was stored, before that step; the example itself is stored as it was before it
    was augmented, and augmented anew whenever it is replayed. Of the logits those count that take
    part in the loss (`Context.visible`): in the scenario "task" the example's own head's, as many
    as its task has classes; in "class" those of all classes seen so far, or all with
    `Setup(unseen="kept")`.

    Args:
        base: the method that governs everything else: `multihead(finetune(), tasks)`, or
            `finetune()` where all tasks share a head.
        memory: examples in the memory, 1 to 2^24 - 1: a uniform sample of all that were trained on,
            those of later epochs again. They are drawn with replacement.
        alpha: at least 0; may be traced. Training diverges where its product with the effective
            step size, and so with what momentum adds to it, is large.
        replay_batch: replayed examples in a step; None for as many as the batch has.

    Returns:
        A method that needs the engine, `Setup.sample` and `Setup.classes`. It has no state of its
        own; the memory is in the learner's. Only the pass over the batch moves running statistics.

    Raises:
        ValueError: for settings out of range, or a base method that isolates tasks or has a memory
            or an auxiliary loss of its own.

    >>> import jaxcl
    >>> method = der(jaxcl.multihead(jaxcl.finetune(), tasks=5), memory=500, alpha=0.1)
    >>> method.tasks, method.isolates
    (5, False)

    Source: Buzzega et al., Dark experience for general continual learning (2020); the order
        of events, draw, step and storing, is mammoth's.
    Differs: the paper's squared norm is larger than the mean, mammoth's, by the number of logits.
        mammoth draws without replacement, and compares all logits of one head for all tasks: where
        a task has 2 of 10 classes, alpha here weighs a difference five times as much as there.
    """
    return _dark("der", base, memory, replay_batch, alpha, None)


def derpp(
    base: Method,
    memory: int = DERPPOptions.memory,
    *,
    alpha: ArrayLike = DERPPOptions.alpha,
    beta: ArrayLike = DERPPOptions.beta,
    replay_batch: int | None = None,
) -> Method:
    """DER++: DER, and the stored labels too.

    With (x', z') and (x'', y'') from two independent draws of the memory:

        loss = CE(batch) + alpha * MSE(h(x'), z') + beta * CE(h(x''), y'')

    Args:
        base: as for `der`.
        memory: as for `der`.
        alpha: weight of the logits, at least 0; may be traced.
        beta: weight of the labels, likewise.
        replay_batch: examples of each of the two draws; None for as many as the batch has.

    Returns:
        As `der`.

    Raises:
        ValueError: as `der` does.

    >>> import jaxcl
    >>> method = derpp(jaxcl.multihead(jaxcl.finetune(), tasks=5), memory=500, alpha=0.1, beta=0.5)
    >>> method.tasks, method.isolates
    (5, False)

    Source: as `der`; mammoth for the two draws.
    Differs: as `der`. Avalanche draws once for both terms, from a memory that is filled after each
        task.
    """
    return _dark("derpp", base, memory, replay_batch, alpha, beta)


def _dark(name, base, memory, replay_batch, alpha, beta) -> Method:
    """Both methods: without `beta` the labels are not replayed."""
    given = {"alpha": alpha} if beta is None else {"alpha": alpha, "beta": beta}
    check_options(DERPPOptions, given, f"{name}: {{}}".format)
    kept = replay.store(name, base, memory, logits=True)
    if replay_batch is not None:
        check_count(f"{name}: replay_batch", replay_batch)

    def drawn(context, theta, state, buffer, size, draw, dropout):
        """Examples of the memory, their stored logits, and the network's now."""
        keys = [jax.random.fold_in(context.key, use) for use in (draw, dropout)]
        rows, stored = replay.draw(buffer, keys[0], size)
        return rows, stored, replay.logits_of(context, theta, state, rows, keys[1])

    def auxiliary(context, theta, state, buffer, batch, logits):
        pick = partial(drawn, context, theta, state, buffer, replay_batch or batch.y.shape[0])
        rows, stored, now = pick(replay.DRAW, replay.PASS)
        counted = context.visible(now.shape, rows) & (rows.weight > 0)[:, None]
        loss = alpha * replay.mean((now - stored) ** 2, counted)
        if beta is not None:
            rows, _, now = pick(replay.SECOND_DRAW, replay.SECOND_PASS)
            loss += beta * replay.mean(context.loss(now, rows), rows.weight)
        return loss

    online = Online(
        init=lambda sample, theta: replay.empty(kept, sample), update=partial(replay.offer, kept)
    )
    return replay.replaying(name, base, online, auxiliary)


def _build(problem: Problem, options: DEROptions) -> Built:
    make = derpp if isinstance(options, DERPPOptions) else der
    return Built(make(problem.with_heads(finetune()), **vars(options)), problem.network())


SPEC = Spec(
    name="der",
    label="DER",
    build=_build,
    options=DEROptions,
    color="#c98a77",
    scenarios=("task", "domain", "class"),
    example="--alpha 0.1,0.3,1",
    reference="Buzzega et al., Dark experience for general continual learning (2020)",
    presets={
        "permuted_digits": {"learning_rate": 0.02, "alpha": 1.0},
        "split_digits": {"learning_rate": 0.02, "alpha": 1.0},
    },
)

PLUSPLUS = Spec(
    name="derpp",
    label="DER++",
    build=_build,
    options=DERPPOptions,
    color="#8c2d19",
    scenarios=("task", "domain", "class"),
    example="--alpha 0.1,0.3,1 --beta 0.3,1",
    reference="Buzzega et al., Dark experience for general continual learning (2020)",
    presets={
        "permuted_digits": {"learning_rate": 0.02, "alpha": 0.1, "beta": 1.0},
        "split_digits": {"alpha": 0.1},
    },
)
