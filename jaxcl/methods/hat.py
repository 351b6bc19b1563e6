"""HAT: hard attention to the task."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.core import masks, sharding
from jaxcl.core.checks import check_choice, check_count
from jaxcl.core.guard import guarded
from jaxcl.core.method import Measure, Method, used_in, with_rows
from jaxcl.core.model import Wiring
from jaxcl.core.trees import PyTree, draw, row
from jaxcl.methods.compaction import compacted
from jaxcl.methods.gated import (
    attended_weights,
    cut_unattended,
    fold,
    input_factor,
    overlap,
    protection,
)
from jaxcl.methods.spec import Built, Limit, Problem, Spec, all_used, check_options, option
from jaxcl.wiring.table import check_wiring

MOST_EXPONENT = 50.0  # the original's thres_cosh
MOST_EMBEDDING = 6.0  # the original's thres_emb
GRADIENTS = ("original", "published", "clipped", "ideal")


@dataclass(frozen=True)
class HATOptions:
    """How HAT gates and protects.

    Attributes:
        s_max: scale of the gates at the end of each epoch.
        c: weight of the regularizer.
        hard: threshold the gates once a task ends, so that nothing is forgotten.
        gradient: which derivative the gates have.
    """

    s_max: float = option(400.0, above=1, sweep=True, tune=(50, 100, 200, 400))
    c: float = option(0.75, least=0, sweep=True, tune=(0.25, 0.75, 1.5))
    hard: bool = True
    gradient: Literal["original", "published", "clipped", "ideal"] = "original"


class HATState(NamedTuple):
    """State of `hat`.

    Attributes:
        attention: for each gate a [units] array in [0, 1], the largest attention that any finished
            task pays to the unit: a_l^{<=t}.
    """

    attention: dict[str, jax.Array]


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def gate(embedding, s, s_max, gradient="original"):
    """The attention `sigmoid(s * embedding)` with HAT's compensated gradient.

    Args:
        embedding: float array of any shape.
        s: scale, scalar, above 0.
        s_max: scale at the end of the annealing, scalar.
        gradient: which derivative to use with respect to `embedding`:
            `"original"`: the annealed gate's, times the published compensation, as float32
            evaluates it whatever the type of `embedding`: exactly 0 for active units once s * e
            exceeds about 17;
            `"published"`: the same expression in the precision of `embedding`, so that in float64
            active units are held less: 78.6 and not 0 for e = 1, s = 20, s_max = 400;
            `"clipped"`: the closed form, damped where the exponent's clip at 50 takes effect;
            `"ideal"`: the closed form s_max * sigmoid'(e), a straight-through estimator.

    Returns:
        Array in [0, 1] of the shape of `embedding`. No gradient reaches `s` and `s_max`.

    Raises:
        ValueError: for an unknown `gradient`.

    >>> print(gate(jnp.array([-1.0, 0.0, 1.0]), s=10.0, s_max=400.0).round(3))
    [0.  0.5 1. ]

    Source: HAT (2018), Sec. 2.5; compensation and clip at 50 as in the authors' `hat.py`.
    """
    check_choice("gate: gradient", gradient, GRADIENTS)
    return jax.nn.sigmoid(s * embedding)


def _gate_fwd(embedding, s, s_max, gradient):
    check_choice("gate: gradient", gradient, GRADIENTS)
    attention = jax.nn.sigmoid(s * embedding)
    return attention, (embedding, s, s_max, attention)


def _gate_bwd(gradient, residuals, cotangent):
    e, s, s_max, a = residuals
    zeros = jnp.zeros_like(s), jnp.zeros_like(s_max)
    if gradient == "original" and e.dtype != jnp.float32:
        e, s, s_max = (number.astype(jnp.float32) for number in (e, s, s_max))
        a = jax.nn.sigmoid(s * e)
    if gradient in ("original", "published"):
        exponent = jnp.clip(s * e, -MOST_EXPONENT, MOST_EXPONENT)
        compensation = s_max / s * (jnp.cosh(exponent) + 1) / (jnp.cosh(e) + 1)
        slope = s * a * (1 - a) * compensation
    else:
        slope = s_max / (2 * (jnp.cosh(e) + 1))
        if gradient == "clipped":
            window = (jnp.cosh(jnp.asarray(MOST_EXPONENT, e.dtype)) + 1) / (jnp.cosh(s * e) + 1)
            slope = slope * jnp.minimum(1, window)
    return cotangent * slope.astype(cotangent.dtype), *zeros


gate.defvjp(_gate_fwd, _gate_bwd)


def annealed(progress: Any, s_max: Any) -> Any:
    """The gates' scale `s`, which rises within every epoch from 1 / s_max to s_max.

    Args:
        progress: position in the epoch, in [0, 1].
        s_max: scale at the epoch's end, above 0.

    Returns:
        A float scalar above 0.

    Source: HAT (2018) Eq. 3, where progress is (b - 1) / (B - 1) for batch b of B.
    """
    return 1 / s_max + (s_max - 1 / s_max) * progress


def hat(
    wiring: Wiring | None,
    tasks: int,
    *,
    s_max: jax.typing.ArrayLike = HATOptions.s_max,
    c: jax.typing.ArrayLike = HATOptions.c,
    hard: bool = False,
    gradient: Literal["original", "published", "clipped", "ideal"] = "original",
    embedding: Literal["normal", "uniform"] = "normal",
) -> Method:
    """HAT: each task learns which units it attends to, and protects those that it used.

    Every hidden unit of every gated layer has one gate for each task. Once a task ends, a weight
    may change by the factor `1 - min(a_out, a_in)` of the largest attention that its two ends got.
    An end without a gate counts as always used.

    Args:
        wiring: which leaves the gates scale and protect; `models` give theirs, `trace_wiring`
            derives a user's.
        tasks: number of tasks.
        s_max: scale of the gates at the end of an epoch and in evaluation; above 1.
        c: weight of the regularizer, at least 0.
        hard: evaluate, store and protect with the thresholded gates `embedding > 0`. Then a
            finished task's network never changes, even if a later task diverges. A closed unit
            computes what the activation makes of 0; if that is infinite (log, a division), the
            network must be native, and take its gates, which are then bool, by `where`. False is
            the published method, whose nearly binary gates let a little through.
        gradient: see `gate`.
        embedding: start values, N(0, 1) or U(0, 2).

    Returns:
        A method whose `theta` is `{"params": ..., "embeddings": {gate: [tasks, units]}}`. The first
        task may change every leaf. Leaves between ungated ends are frozen after it, heads among
        them, so wrap the method with `multihead`; a kernel that reads gates and feeds none goes on
        learning from the units that are not used yet.

    Raises:
        ValueError: for settings out of range, and at `init` if the wiring does not fit the
            parameters.

    >>> import jaxcl
    >>> model = jaxcl.models.mlp(4, (8, 6), 2)
    >>> method = hat(model.wiring, tasks=3, hard=True)
    >>> params, _ = jax.eval_shape(model.init, jax.random.key(0))
    >>> theta, state = jax.eval_shape(method.init, jax.random.key(0), params)
    >>> {gate: embedding.shape for gate, embedding in theta["embeddings"].items()}
    {'layer0': (3, 8), 'layer1': (3, 6)}

    Source: Serra et al., HAT (2018), Eqs. 1 to 5; authors' code for evaluation with s_max.
    Differs: the factor scales the optimizer's update, not only the gradient, so that it also
        works under momentum and Adam; for plain SGD this is the same, but where a norm is clipped,
        which in the original is that of the scaled gradients: `isolate(..., soft="gradient")`.
        `hard=True` is ours.
    """
    if wiring is None:
        raise ValueError("hat: the model has no wiring; derive it with jaxcl.trace_wiring.")
    check_count("hat: tasks", tasks)
    given = {"s_max": s_max, "c": c, "gradient": gradient}
    check_options(HATOptions, given, "hat: {}".format)
    check_choice("hat: embedding", embedding, ("normal", "uniform"))

    gates = partial(_gates, s_max, hard, gradient)
    view = partial(_view, wiring, hard, gates)

    def penalty(theta, state, task, progress=None):
        return c * regularizer(gates(theta, task, progress), state.attention)

    def capacity(theta, state):
        return masks.capacity(attended_weights(wiring, theta["params"], state.attention))

    method = Method(
        init=partial(_init, wiring, tasks, embedding),
        view=view,
        trainable=partial(_trainable, wiring),
        penalty=penalty,
        project=_project,
        end_task=partial(_end_task, gates),
        measures=(
            Measure("capacity", capacity),
            Measure("overlap", lambda t, _: overlap(wiring, t["params"], t["embeddings"])),
            Measure("fewest_units", lambda t, _: _fewest(open_gates(t["embeddings"]))),
        ),
        isolates=True,
        tasks=tasks,
        params_prefix="params/",
        used=used_in(view, "params"),
        compact=partial(_compact, wiring, view, gates),
        # Soft gates let every task into every weight.
        forget_task=partial(_forget, wiring) if hard else None,
    )
    return with_rows(guarded("hat", method), lambda path: path.startswith("embeddings/"))


def _init(wiring: Wiring, tasks: int, embedding: str, key, params) -> tuple[PyTree, HATState]:
    """Embeddings are drawn; no unit has got attention yet. They lie with the units' weights."""
    check_wiring(wiring, params)
    leaves = masks.leaves_by_path(params)
    feeds = sorted((np.ndim(leaves[path]), path) for path in wiring.outputs)  # kernels are last
    units = {wiring.outputs[path]: sharding.units_of(leaves[path]) for _, path in feeds}
    sampler = {"normal": jax.random.normal, "uniform": partial(jax.random.uniform, maxval=2.0)}
    names = sorted(wiring.gates)
    tables = draw(sampler[embedding], key, [(tasks, wiring.gates[name]) for name in names])
    embeddings = {name: sharding.like(t, units[name]) for name, t in zip(names, tables)}
    attention = {name: unit.astype(float) for name, unit in units.items()}
    return {"params": params, "embeddings": embeddings}, HATState(attention)


def _gates(s_max, hard: bool, gradient: str, theta: PyTree, task, progress) -> PyTree:
    """A task's attention to each unit: annealed in training, thresholded after it if hard."""
    s = s_max if progress is None else annealed(progress, s_max)

    def attend(table):
        if hard and progress is None:
            return row(table, task) > 0
        scales = jnp.asarray(s, table.dtype), jnp.asarray(s_max, table.dtype)
        return gate(row(table, task), *scales, gradient)

    return jax.tree.map(attend, theta["embeddings"])


def _view(wiring: Wiring, hard: bool, gates, theta: PyTree, state, task, progress=None) -> PyTree:
    """The parameters with their gates folded in, or beside them where the network takes gates."""
    attention, params = gates(theta, task, progress), theta["params"]
    if hard and progress is None:
        params = cut_unattended(wiring, params, attention)
    elif not wiring.native:
        params = fold(wiring, params, attention)
    return params | {"gates": attention} if wiring.native else params


def _project(theta: PyTree) -> PyTree:
    """Embeddings stay where their gates still have a slope."""
    clip = partial(jnp.clip, min=-MOST_EMBEDDING, max=MOST_EMBEDDING)
    return theta | {"embeddings": jax.tree.map(clip, theta["embeddings"])}


def _end_task(gates, theta: PyTree, state: HATState, task) -> tuple[PyTree, HATState]:
    """Each unit keeps the largest attention that it got so far."""

    def most(before, now):  # of the two that is a number, where training has diverged
        return jnp.fmax(before, now.astype(before.dtype))

    return theta, HATState(jax.tree.map(most, state.attention, gates(theta, task, None)))


def _trainable(wiring: Wiring, theta: PyTree, state: HATState, task) -> PyTree:
    """By which share a task may change each weight, and its own row of the embeddings.

    Source: HAT (2018) Eq. 2.
    """
    first = jnp.asarray(task == 0, bool)

    def share(path, leaf):
        reads = any(name is not None for name, _ in wiring.inputs.get(path, ()))
        if reads:  # an end without a gate counts as always used, so that the other one decides
            source = input_factor(wiring, path, leaf, state.attention)
        if path in wiring.outputs:
            target = state.attention[wiring.outputs[path]]
            return masks.Attended(source, target) if reads else 1 - target
        return jnp.where(first, 1, 1 - source) if reads else first

    return {
        "params": masks.map_with_path(share, theta["params"]),
        "embeddings": jax.tree.map(
            lambda table: (jnp.arange(table.shape[0]) == task)[:, None], theta["embeddings"]
        ),
    }


def _compact(wiring: Wiring, view, gates, theta: PyTree, state, task: int, statistics):
    """The units that the task attends to; the others' gates are 0."""
    params, attention = view(theta, state, task), gates(theta, task, None)
    if wiring.native:
        params.pop("gates")
    else:  # the view has scaled what reads them already
        attention = jax.tree.map(lambda gate: gate > 0, attention)
    return compacted(wiring, params, attention, statistics)


def _forget(
    wiring: Wiring, theta: PyTree, state: HATState, memory, task: int, kept: np.ndarray, fresh
) -> tuple[PyTree, HATState, PyTree]:
    """What no remaining task protects, but the forgotten one did, starts anew."""
    rest = {
        name: jnp.any(jnp.asarray(kept)[:, None] & (table > 0), axis=0)
        for name, table in theta["embeddings"].items()
    }
    rest = jax.tree.map(lambda now, before: now.astype(before.dtype), rest, state.attention)

    def renew(path, leaf, new):
        if path not in wiring.inputs and path not in wiring.outputs:
            return leaf if kept.any() else new
        before, now = (protection(wiring, path, leaf, a) for a in (state.attention, rest))
        return jnp.where((before > 0) & (now == 0), new, leaf)

    embeddings = jax.tree.map(
        lambda table, new: table.at[task].set(new[task]), theta["embeddings"], fresh["embeddings"]
    )
    params = masks.map_with_path(renew, theta["params"], fresh["params"])
    return {"params": params, "embeddings": embeddings}, HATState(rest), memory


def regularizer(gates: PyTree, attention: PyTree) -> jax.Array:
    """The attention that a task pays to units that no finished task uses, as a share of them.

    Args:
        gates: the running task's attention, a tree of [units] arrays in [0, 1].
        attention: the finished tasks' attention, likewise.

    Returns:
        A scalar in [0, 1]: `sum a (1 - a_before) / sum (1 - a_before)` over all gates together; 0
        where no unit is free.

    Source: HAT (2018) Eqs. 4 and 5.
    """
    free = jax.tree.map(lambda a: 1 - a, attention)
    spent = jax.tree.map(lambda g, f: jnp.sum(g * f), gates, free)
    spent = sum(jax.tree.leaves(spent))
    total = sum(jnp.sum(f) for f in jax.tree.leaves(free))
    return jnp.where(total > 1e-6, spent / jnp.maximum(total, 1e-6), 0.0)


def open_gates(embeddings: PyTree) -> dict[str, jax.Array]:
    """How many units of each gate each task attends to: where there are few, it learns little.

    With none, a task's network gives the same logits whatever the input is, if all paths lead
    through that layer. In a small network the default `c` can close them all.

    Args:
        embeddings: for each gate [tasks, units], as in the `theta` of `hat`. The rows of tasks that
            are still to come are as they were drawn.

    Returns:
        For each gate an int array [tasks].

    >>> print(open_gates({"layer0": jnp.array([[0.3, -0.2, 1.0], [-1.0, -0.1, -2.0]])})["layer0"])
    [2 0]
    """
    return {name: jnp.sum(table > 0, axis=-1) for name, table in embeddings.items()}


def _fewest(units: dict[str, jax.Array]) -> jax.Array:
    """The fewest open units of any gate, for each task."""
    return jnp.stack(list(units.values())).min(axis=0)


def _build(problem: Problem, options: HATOptions) -> Built:
    model = problem.network()
    isolated = hat(
        model.wiring, problem.tasks, s_max=options.s_max, c=options.c, hard=options.hard,
        gradient=options.gradient,
    )  # fmt: skip
    return Built(problem.with_heads(isolated), model, problem.norm)


SPEC = Spec(
    name="hat",
    label="HAT",
    build=_build,
    options=HATOptions,
    color="#d1550b",
    parameters=lambda problem, options, learner: sum(
        leaf.size for leaf in jax.tree.leaves(learner.theta["params"])
    ),
    divides=True,
    limit=Limit(
        all_used,
        "no weight is free for it, so that it can but choose among the units there are",
        "a larger network or a larger --c leaves more",
    ),
    example="--s-max 100,200,400 --c 0.5,0.75,1",
    reference="Serra et al., Overcoming catastrophic forgetting with hard attention (2018)",
    by_default=True,
    presets={
        "permuted_mnist": {"learning_rate": 0.02, "s_max": 100.0},
        "permuted_digits": {"s_max": 50.0, "c": 0.25},
        "split_digits": {"learning_rate": 0.1, "s_max": 200.0, "c": 0.25},
        "split_mnist5k": {"s_max": 50.0},
    },
)
