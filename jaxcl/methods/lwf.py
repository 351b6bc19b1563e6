"""LwF: the network before a task teaches its old outputs to the network that learns the task."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxcl.core.checks import check_choice
from jaxcl.core.method import Batch, Context, Method, Phase, nested
from jaxcl.core.trees import PyTree
from jaxcl.methods.finetune import finetune
from jaxcl.methods.spec import Built, Problem, Spec, check_options, option

SCENARIOS = ("task", "domain", "class")


@dataclass(frozen=True)
class LwFOptions:
    """How LwF distils.

    Attributes:
        strength: alpha, the weight of the distillation.
        temperature: by which the logits of teacher and network are divided.
        weighting: of several old tasks: each has the weight alpha, sum, or all together, mean.
    """

    strength: float = option(1.0, least=0, sweep=True, tune=(0.3, 1, 3))
    temperature: float = option(2.0, above=0, sweep=True)
    weighting: Literal["sum", "mean"] = "sum"


class LwFState(NamedTuple):
    """State of `lwf`.

    Attributes:
        base: the state of the method that it is built around.
        teacher: theta as it was when the running task began.
        statistics: the model's running statistics at that moment; None until the engine starts.
    """

    base: PyTree
    teacher: PyTree
    statistics: PyTree


def lwf(
    base: Method,
    *,
    strength: ArrayLike = LwFOptions.strength,
    temperature: ArrayLike = LwFOptions.temperature,
    weighting: Literal["sum", "mean"] = "sum",
    scenario: Literal["task", "domain", "class"] = "task",
) -> Method:
    """LwF: on the new task's examples, the old outputs shall stay what they were.

    The distillation adds `strength * KD` to the loss, with
    `KD = - sum_c softmax(z_old / T)_c log softmax(z / T)_c`, averaged over the batch; z_old is what
    the network gave as the task began, as it is evaluated. There is no factor T^2. In the scenario
    "task" there is one KD for each old task, of its own head, and old heads are trained as well; in
    "domain" old tasks share the head, so that their KDs are one; in "class" there is one KD over
    all classes that the old network had. The first task has no teacher.

    Args:
        base: the method that governs everything else: `multihead(finetune(), tasks)`, or
            `finetune()` where all tasks share a head.
        strength: alpha, at least 0; may be traced.
        temperature: T, above 0; may be traced.
        weighting: of k - 1 old tasks: their KDs are added up ("sum"), or averaged ("mean"). The
            scenario "class" has one KD, and no difference.
        scenario: as in `train.Setup`.

    Returns:
        A method that needs the engine, and `Setup.classes`.

    Raises:
        ValueError: for settings out of range, or a base method with terms of its own.

    >>> import jaxcl
    >>> method = lwf(jaxcl.multihead(jaxcl.finetune(), tasks=5), strength=1.0, temperature=2.0)
    >>> method.tasks, method.isolates
    (5, False)

    Source: Li and Hoiem, LwF (2016), with T = 2. "sum" is GMvandeVen's (k - 1) times the mean.
    Differs: the new head is not trained alone first. In the scenario "class", GMvandeVen lets new
        classes take part in the network's softmax (not in the teacher's).
    """
    given = {"strength": strength, "temperature": temperature, "weighting": weighting}
    check_options(LwFOptions, given, "lwf: {}".format)
    check_choice("lwf: scenario", scenario, SCENARIOS)
    inner = nested(base, "lwf")

    def init(key, params):
        theta, state = base.init(key, params)
        return theta, LwFState(state, theta, None)

    def become_teacher(context, theta, state):
        return theta, LwFState(state.base, theta, context.statistics)

    def auxiliary(context, theta, state, memory, batch, logits):
        if scenario == "task":
            each = _of_old_heads(context, theta, state, batch, temperature)
            shares = jnp.arange(each.shape[0]) < context.task
        else:
            old = context.logits(state.teacher, state, batch, statistics=state.statistics)
            known = _known(context, scenario, logits.shape, batch)
            each = distillation(logits, old, known, temperature)[None]
            shares = jnp.reshape(context.task if scenario == "domain" else context.task > 0, 1)
        weight = jnp.ones(each.shape[1]) if batch.weight is None else batch.weight
        if weighting == "mean":
            shares = shares / jnp.maximum(jnp.sum(shares), 1)
        return strength * jnp.sum(shares * (each @ weight)) / jnp.sum(weight)

    return inner._replace(
        init=init,
        trainable=inner.trainable_seen or inner.trainable,
        auxiliary=auxiliary,
        phases=(Phase(begin=become_teacher),),
    )


def _of_old_heads(
    context: Context, theta: PyTree, state: LwFState, batch: Batch, temperature: ArrayLike
) -> jax.Array:
    """What each task's head departs from the teacher's, [tasks, B]; the trunk runs once."""
    if context.classes is None:
        raise ValueError("lwf: Setup.classes is needed, the number of each task's classes.")

    def of_head(task):
        rows = batch._replace(task=jnp.full(batch.y.shape[:1], task))
        new = context.logits(theta, state, rows, train=True)
        old = context.logits(state.teacher, state, rows, statistics=state.statistics)
        return distillation(new, old, context.visible(new.shape, rows), temperature)

    return jax.vmap(of_head)(jnp.arange(len(context.classes)))


def _known(context: Context, scenario: str, shape: tuple, batch: Batch) -> jax.Array:
    """The logits that the old network had learned, bool [B, C]."""
    if scenario == "domain":
        return context.visible(shape, batch)
    classes = jnp.asarray(context.classes)
    before = (jnp.cumsum(classes) - classes)[context.task]
    return jnp.broadcast_to(jnp.arange(shape[-1])[None] < before, shape)


def distillation(
    new: jax.Array, old: jax.Array, visible: jax.Array, temperature: ArrayLike
) -> jax.Array:
    """The cross-entropy of the softened outputs, over the last axis.

    Args:
        new: float [..., C], the network's logits.
        old: the teacher's.
        visible: bool [..., C], the logits that take part.
        temperature: T, by which both are divided.

    Returns:
        Float [...]; it is lowest, the entropy of the softened teacher, where both are alike.

    >>> old, visible = jnp.array([2.0, 0.0]), jnp.array([True, True])
    >>> for new in ([2.0, 0.0], [0.0, 0.0]):
    ...     print(f"{distillation(jnp.array(new), old, visible, 2.0):.3f}")
    0.582
    0.693
    """
    precise = jnp.promote_types(new.dtype, jnp.float32)
    new, old = (jnp.where(visible, z.astype(precise) / temperature, -1e30) for z in (new, old))
    each = jax.nn.softmax(old) * jnp.where(visible, jax.nn.log_softmax(new), 0)
    return -jnp.sum(each, -1)


def _build(problem: Problem, options: LwFOptions) -> Built:
    method = lwf(
        problem.with_heads(finetune()), strength=options.strength,
        temperature=options.temperature, weighting=options.weighting, scenario=problem.scenario,
    )  # fmt: skip
    return Built(method, problem.network())


SPEC = Spec(
    name="lwf",
    label="LwF",
    build=_build,
    options=LwFOptions,
    color="#c99700",
    scenarios=SCENARIOS,
    example="--lwf.strength 0.3,1,3",
    reference="Li and Hoiem, Learning without forgetting (2016)",
    presets={
        "permuted_digits": {"learning_rate": 0.02, "strength": 3.0},
        "split_digits": {"learning_rate": 0.1},
    },
)
