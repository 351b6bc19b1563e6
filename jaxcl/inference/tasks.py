"""Which task an example belongs to, as the networks of all tasks answer it."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from jaxcl.core.checks import check_choice, check_count, check_number
from jaxcl.core.trees import PyTree, map_with_path

Rule = Literal["entropy", "softmax", "energy", "gradient"]
RULES: tuple[Rule, ...] = ("entropy", "softmax", "energy", "gradient")
ABSENT = -1e30  # the logit of a class that a task does not have
TEMPERATURES = tuple(2.0 ** (step / 2) for step in range(-6, 9))  # 1/8 to 16
ROWS = 8  # examples whose gradients are held at once
FIT_STEPS, FIT_RATE = 300, 0.05

Apply = Callable[[PyTree, Any], jax.Array]
View = Callable[[Any], PyTree]


class Calibration(NamedTuple):
    """What makes the tasks' scores comparable.

    Attributes:
        temperature: what logits are divided by, above 0.
        offset: float [tasks], added to the scores.
    """

    temperature: Any
    offset: Any


class Inferred(NamedTuple):
    """What `infer` finds.

    Attributes:
        task: int [B], the chosen tasks.
        scores: float [B, tasks], of which the largest is chosen.
        logits: float [tasks, B, C], of every task's network; -1e30 for a class that it lacks.
    """

    task: Any
    scores: Any
    logits: Any


def infer(
    apply: Apply,
    view: View,
    x: Any,
    tasks: int,
    rule: Rule = "entropy",
    *,
    classes: Sequence[int] | np.ndarray | jax.Array | None = None,
    calibration: Calibration | None = None,
    batch: int | None = None,
) -> Inferred:
    """Chooses the task of each example: that whose network is the surest of its answer.

    All tasks' networks run in one mapped pass; what they share is computed once. It may be jitted.

    Args:
        apply: `(view, x) -> logits [B, C]`, the network.
        view: `task -> what apply takes`, of a traced task: `method.view` of a theta and a state, or
            a row of stacked parameters, as in `lambda t: jax.tree.map(lambda p: p[t], stacked)`.
        x: examples [B, ...].
        tasks: the number of tasks to choose among, the first ones.
        rule: with p = softmax(z / T) of a task's logits z, and H(p) = -sum p log p,
            `"entropy"` chooses the lowest H(p); `"softmax"` the highest max p, scored by its
            logarithm; `"energy"` the highest T logsumexp(z / T), the negative energy; `"gradient"`
            mixes the views with the coefficients a = 1 / tasks, and chooses the task whose
            coefficient lowers the entropy of the mixture the most, the highest -dH/da.
        classes: int [tasks], the number of each task's classes; the logits beyond it are left out.
        calibration: from `calibrate`; by default T is 1 and no score is offset.
        batch: so many examples, one after the other, are known to be of one task: their scores are
            averaged. The last ones may be fewer.

    Returns:
        Tasks, scores and logits.

    Raises:
        ValueError: for settings out of range; or under `"gradient"` for views of integers, which
            cannot be mixed.

    Source: Hendrycks and Gimpel (2017) for the maximum softmax, Liu et al. (2020) for the energy,
        Wortsman et al., Supermasks in superposition (2020), for the gradient, there
        called One-Shot: their W * sum a_i M_i is the mixture of the views W * M_i.
    Differs: heads and norms of each task's own are mixed like the rest.

    >>> nets = jnp.array([[[9.0, 0.0]], [[1.0, 1.0]]])  # the second is unsure of everything
    >>> print(infer(lambda w, x: x @ w, lambda t: nets[t], jnp.ones((3, 1)), 2).task)
    [0 0 0]
    """
    check_count("infer: tasks", tasks)
    check_choice("infer: rule", rule, RULES)
    if batch is not None:
        check_count("infer: batch", batch)
    counts = _counts(classes, tasks)
    temperature = 1.0 if calibration is None else calibration.temperature
    check_number("infer: temperature", temperature, above=0)
    logits = every_logits(apply, view, x, tasks, counts)
    scores = score(apply, view, x, logits, rule, temperature, counts)
    offset = None if calibration is None else calibration.offset
    return Inferred(decide(scores, offset, batch), scores, logits)


def every_logits(apply: Apply, view: View, x: Any, tasks: int, classes: Any = None) -> jax.Array:
    """The logits of every task's network, float [tasks, B, C]; -1e30 for a class that it lacks."""
    logits = jax.vmap(lambda task: apply(view(task), x))(jnp.arange(tasks))
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if classes is None:
        return logits
    present = jnp.arange(logits.shape[-1])[None, :] < jnp.asarray(classes)[:tasks, None]
    return jnp.where(present[:, None, :], logits, ABSENT)


def score(
    apply: Apply,
    view: View,
    x: Any,
    logits: jax.Array,
    rule: Rule = "entropy",
    temperature: ArrayLike = 1.0,
    classes: Any = None,
) -> jax.Array:
    """How sure each task's network is, float [B, tasks]; the arguments are those of `infer`.

    Args:
        apply: the network.
        view: its parameters for a task.
        x: examples [B, ...].
        logits: from `every_logits`.
        rule: as in `infer`.
        temperature: what logits are divided by.
        classes: int [tasks], or None.
    """
    if rule == "gradient":
        return _entropy_slopes(apply, view, x, logits.shape[0], temperature, classes)
    return score_of_logits(logits, rule, temperature)


def score_of_logits(
    logits: jax.Array, rule: Rule = "entropy", temperature: ArrayLike = 1.0
) -> jax.Array:
    """`score` by a rule that reads the logits alone, which is each but "gradient"."""
    scaled = logits / temperature
    if rule == "entropy":
        return -entropy(scaled).T
    if rule == "softmax":
        return jnp.max(jax.nn.log_softmax(scaled), -1).T  # of a sure network p itself rounds to 1
    return jnp.asarray(temperature * jnp.asarray(jax.nn.logsumexp(scaled, -1)).T)


def decide(
    scores: jax.Array, offset: ArrayLike | None = None, batch: int | None = None
) -> jax.Array:
    """The task of the largest score, int [B]; that of the mean over each `batch` examples."""
    if offset is not None:
        scores = scores + jnp.asarray(offset, scores.dtype)[None, :]
    if batch is not None:
        group = jnp.arange(scores.shape[0]) // batch
        scores = jax.ops.segment_sum(scores, group, scores.shape[0])[group]
    return jnp.argmax(scores, -1)


def entropy(logits: jax.Array) -> jax.Array:
    """The entropy of softmax(logits [..., C]) in nats, [...]."""
    logs = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(logs) * logs, -1)


def calibrate(
    apply: Apply,
    view: View,
    x: Any,
    task: Any,
    tasks: int,
    rule: Rule = "entropy",
    *,
    classes: Sequence[int] | np.ndarray | jax.Array | None = None,
    temperatures: Sequence[float] = TEMPERATURES,
    size: int = 256,
) -> Calibration:
    """Fits the temperature, and an offset for each task, on examples whose tasks are known.

    For each temperature, a logistic regression of the task on its scores, with one slope for all,
    gives offsets; the temperature that tells most examples' tasks is taken, of several the one of
    the lowest loss. Every task counts alike.

    Args:
        apply: as in `infer`.
        view: likewise.
        x: examples [N, ...] that were not trained on.
        task: int [N], each example's.
        tasks: the number of tasks; each needs an example.
        rule: as in `infer`.
        classes: likewise.
        temperatures: those to choose from, above 0.
        size: examples at a time.

    Returns:
        The calibration of this rule: other rules need their own.

    Raises:
        ValueError: for settings out of range, or a task without examples.
    """
    check_count("calibrate: tasks", tasks)
    check_choice("calibrate: rule", rule, RULES)
    check_number("calibrate: temperatures", temperatures, above=0)
    task = np.asarray(task)
    number = np.bincount(task, minlength=tasks)
    if len(number) != tasks or not number.all():
        raise ValueError(f"calibrate: each of {tasks} tasks needs examples, got {number.tolist()}.")
    counts, steps = _counts(classes, tasks), jnp.asarray(temperatures, jnp.float32)

    @jax.jit
    def scores_of(part):
        logits = every_logits(apply, view, part, tasks, counts)
        return jax.lax.map(lambda t: score(apply, view, part, logits, rule, t, counts), steps)

    size = min(size, len(task))
    rows = np.minimum(np.arange(-(-len(task) // size) * size), len(task) - 1).reshape(-1, size)
    scores = np.concatenate([np.asarray(scores_of(x[part])) for part in rows], 1)[:, : len(task)]
    return calibrated_by(scores, task, temperatures)


def calibrated_by(
    scores: np.ndarray, task: np.ndarray, temperatures: Sequence[float]
) -> Calibration:
    """What `calibrate` finds from the scores at each temperature.

    Args:
        scores: float [temperatures, N, tasks].
        task: int [N], each example's; every task has one.
        temperatures: those to choose from.
    """
    tasks = scores.shape[-1]
    weight = (1 / (tasks * np.bincount(task, minlength=tasks)))[task]
    losses, offsets = _fit_each(
        jnp.asarray(scores), jnp.asarray(task), jnp.asarray(weight, jnp.float32)
    )
    offsets = np.asarray(offsets)
    told = ((scores + offsets[:, None]).argmax(-1) == task) @ weight
    best = int(np.lexsort((np.asarray(losses), -told.round(9)))[0])
    return Calibration(float(temperatures[best]), offsets[best])


def fit_offsets(
    scores: jax.Array, task: jax.Array, weight: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """A logistic regression of the task on the scores: its loss, and its offsets [tasks].

    Args:
        scores: float [N, tasks].
        task: int [N].
        weight: float [N], of which the sum is 1.
    """
    spread = jnp.maximum(jnp.std(scores), 1e-12)
    standard = (scores - jnp.mean(scores)) / spread

    def loss(fitted):
        logits = jnp.exp(fitted["slope"]) * standard + fitted["offset"][None, :]
        return jnp.sum(weight * optax.softmax_cross_entropy_with_integer_labels(logits, task))

    optimizer = optax.adam(FIT_RATE)
    start: Any = {"slope": jnp.float32(0), "offset": jnp.zeros(scores.shape[-1])}

    def step(carry, _):
        fitted, moments = carry
        updates, moments = optimizer.update(jax.grad(loss)(fitted), moments)
        return (optax.apply_updates(fitted, updates), moments), None

    last: Any = jax.lax.scan(step, (start, optimizer.init(start)), length=FIT_STEPS)[0]
    fitted = last[0]
    offset = fitted["offset"] - jnp.mean(fitted["offset"])
    return loss(fitted), offset * spread / jnp.exp(fitted["slope"])


_fit_each = jax.jit(jax.vmap(fit_offsets, (0, None, None)))


def _entropy_slopes(apply, view, x, tasks, temperature, classes) -> jax.Array:
    """-dH/da of every example, float [B, tasks], at a = 1 / tasks."""
    views = jax.vmap(view)(jnp.arange(tasks))

    def mixable(path, leaf):
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            raise ValueError(
                f"infer: rule='gradient' mixes the tasks' views, and '{path}' is {leaf.dtype}; "
                f"choose another rule for this method."
            )
        return leaf.astype(jnp.promote_types(leaf.dtype, jnp.bfloat16))

    views = map_with_path(mixable, views)
    most = None if classes is None else jnp.max(jnp.asarray(classes)[:tasks])

    def mixed_entropy(mixture, one):
        params = jax.tree.map(
            lambda leaf: jnp.tensordot(mixture.astype(leaf.dtype), leaf, 1), views
        )
        logits = apply(params, one[None])[0].astype(jnp.float32)
        if most is not None:
            logits = jnp.where(jnp.arange(logits.shape[-1]) < most, logits, ABSENT)
        return entropy(logits / temperature)

    even = jnp.full(tasks, 1 / tasks)
    slopes = jax.lax.map(
        lambda one: jax.grad(mixed_entropy)(even, one), jnp.asarray(x), batch_size=ROWS
    )
    return -slopes


def _counts(classes, tasks) -> Any:
    if classes is None:
        return None
    if len(classes) < tasks:
        raise ValueError(f"classes has {len(classes)} entries for {tasks} tasks.")
    check_number("classes", classes, least=1)
    return classes
