"""ER: examples of earlier tasks are trained on beside the new ones."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax

from jaxcl.core.checks import check_count
from jaxcl.core.method import Method, Online
from jaxcl.methods import replay
from jaxcl.methods.finetune import finetune
from jaxcl.methods.spec import Built, Problem, Spec, option


@dataclass(frozen=True)
class EROptions:
    """What is kept and replayed.

    Attributes:
        memory: examples in the memory, of all tasks together.
        replay_batch: of which so many are replayed in a step; None takes as many as are new.
        policy: a uniform sample of all examples, the latest of each task, or a uniform sample of
            each class.
    """

    memory: int = option(200, least=1)
    replay_batch: int | None = option(None, least=1)
    policy: Literal["reservoir", "ring", "balanced"] = "reservoir"


def er(
    base: Method,
    memory: int = EROptions.memory,
    *,
    replay_batch: int | None = None,
    policy: Literal["reservoir", "ring", "balanced"] = "reservoir",
    tasks: int | None = None,
) -> Method:
    """ER: each step trains on new examples and as many from a memory, with one mean loss.

    Each replayed example goes through its own task's head, or the one that all tasks share. Every
    example that is trained on is offered to the memory, in later epochs again, as it was before it
    was augmented.

    Args:
        base: the method that governs everything else: `multihead(finetune(), tasks)`, or
            `finetune()` where all tasks share a head.
        memory: examples in the memory, 1 to 2^24 - 1. They are drawn with replacement.
        replay_batch: replayed examples in a step; None for as many as the batch has.
        policy: `"reservoir"` keeps a uniform sample of all examples so far; `"ring"` the latest of
            each task, `memory // tasks` of them; `"balanced"` a uniform sample of each class, all
            of the same size (of each task's classes, where each has its own head).
        tasks: number of tasks, for `"ring"`; by default that of the base method.

    Returns:
        A method that needs the engine, `Setup.sample` and `Setup.classes`. It has no state of its
        own; the memory is in the learner's.

    Raises:
        ValueError: for settings out of range, or a base method that isolates tasks or has a memory
            of its own; and at the start if the memory is too small for its policy.

    >>> import jaxcl
    >>> method = er(jaxcl.multihead(jaxcl.finetune(), tasks=5), memory=500)
    >>> method.tasks, method.isolates
    (5, False)

    Source: Chaudhry et al., On tiny episodic memories in continual learning (2019); the order of
        events, draw, step and storing, is mammoth's.
    Differs: the reservoir is exact, where the code of agem draws a slot from one too few; rows are
        drawn with replacement, where mammoth draws a batch without.
    """
    kept = replay.store("er", base, memory, policy, tasks)
    if replay_batch is not None:
        check_count("er: replay_batch", replay_batch)

    def extend(context, batch, buffer):
        key = jax.random.fold_in(context.key, replay.DRAW)
        rows, _ = replay.draw(buffer, key, replay_batch or batch.y.shape[0])
        return replay.joined(context, batch, rows)

    online = Online(
        init=lambda sample, theta: replay.empty(kept, sample),
        extend=extend,
        update=partial(replay.offer, kept),
        grow=partial(replay.regrown, kept),
    )
    return replay.replaying("er", base, online)


def _build(problem: Problem, options: EROptions) -> Built:
    method = er(
        problem.with_heads(finetune()), options.memory, replay_batch=options.replay_batch,
        policy=options.policy, tasks=problem.tasks,
    )  # fmt: skip
    return Built(method, problem.network())


SPEC = Spec(
    name="er",
    label="ER",
    build=_build,
    options=EROptions,
    color="#c2185b",
    scenarios=("task", "domain", "class"),
    reference="Chaudhry et al., On tiny episodic memories in continual learning (2019)",
    presets={"split_digits": {"learning_rate": 0.02}},
)
