"""HAT: hard attention to the task."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.core import masks
from jaxcl.core.checks import check_choice, check_count
from jaxcl.core.guard import guarded
from jaxcl.core.method import Measure, Method, used_in
from jaxcl.core.model import Wiring
from jaxcl.core.trees import PyTree, draw
from jaxcl.methods.compaction import compacted
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

    s_max: float = option(400.0, above=1, sweep=True)
    c: float = option(0.75, least=0, sweep=True)
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

    def gates(theta, task, progress):
        s = s_max if progress is None else annealed(progress, s_max)

        def attend(table):
            if hard and progress is None:
                return table[task] > 0
            scales = jnp.asarray(s, table.dtype), jnp.asarray(s_max, table.dtype)
            return gate(table[task], *scales, gradient)

        return jax.tree.map(attend, theta["embeddings"])

    def view(theta, state, task, progress=None):
        attention, params = gates(theta, task, progress), theta["params"]
        if hard and progress is None:
            params = cut_unattended(wiring, params, attention)
        elif not wiring.native:
            params = fold(wiring, params, attention)
        return params | {"gates": attention} if wiring.native else params

    def penalty(theta, state, task, progress=None):
        return c * regularizer(gates(theta, task, progress), state.attention)

    def project(theta):
        clip = partial(jnp.clip, min=-MOST_EMBEDDING, max=MOST_EMBEDDING)
        return theta | {"embeddings": jax.tree.map(clip, theta["embeddings"])}

    def end_task(theta, state, task):
        def most(before, now):  # of the two that is a number, where training has diverged
            return jnp.fmax(before, now.astype(before.dtype))

        attention = gates(theta, task, None)
        return theta, HATState(jax.tree.map(most, state.attention, attention))

    def capacity(theta, state):
        return masks.capacity(attended_weights(wiring, theta["params"], state.attention))

    method = Method(
        init=partial(_init, wiring, tasks, embedding),
        view=view,
        trainable=partial(_trainable, wiring),
        penalty=penalty,
        project=project,
        end_task=end_task,
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
    return guarded("hat", method)


def _init(wiring: Wiring, tasks: int, embedding: str, key, params) -> tuple[PyTree, HATState]:
    """Embeddings are drawn; no unit has got attention yet."""
    check_wiring(wiring, params)
    sampler = {"normal": jax.random.normal, "uniform": partial(jax.random.uniform, maxval=2.0)}
    names = sorted(wiring.gates)
    tables = draw(sampler[embedding], key, [(tasks, wiring.gates[name]) for name in names])
    attention = {name: jnp.zeros(units) for name, units in wiring.gates.items()}
    return {"params": params, "embeddings": dict(zip(names, tables))}, HATState(attention)


def _trainable(wiring: Wiring, theta: PyTree, state: HATState, task) -> PyTree:
    """By which share a task may change each weight, and its own row of the embeddings.

    Source: HAT (2018) Eq. 2.
    """
    first = jnp.asarray(task == 0, bool)

    def share(path, leaf):
        if path in wiring.inputs:
            source = input_factor(wiring, path, leaf, state.attention)
        if path in wiring.outputs:
            target = state.attention[wiring.outputs[path]]
            return masks.Attended(source, target) if path in wiring.inputs else 1 - target
        return jnp.where(first, 1, 1 - source) if path in wiring.inputs else first

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
        before, now = (_protection(wiring, path, leaf, a) for a in (state.attention, rest))
        return jnp.where((before > 0) & (now == 0), new, leaf)

    embeddings = jax.tree.map(
        lambda table, new: table.at[task].set(new[task]), theta["embeddings"], fresh["embeddings"]
    )
    params = masks.map_with_path(renew, theta["params"], fresh["params"])
    return {"params": params, "embeddings": embeddings}, HATState(rest), memory


def _protection(wiring: Wiring, path: str, leaf: jax.Array, attention: PyTree) -> jax.Array:
    """The smaller of the attentions at a leaf's two ends, 1 where there is no gate: broadcasts."""
    source = target = jnp.ones((1,) * leaf.ndim)
    if path in wiring.inputs:
        source = input_factor(wiring, path, leaf, attention)
    if path in wiring.outputs:
        target = attention[wiring.outputs[path]].reshape((1,) * (leaf.ndim - 1) + (-1,))
    return jnp.minimum(source, target)


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


def input_factor(wiring: Wiring, path: str, leaf: jax.Array, gates: PyTree) -> jax.Array:
    """The gates along a kernel's input axis, as an array that broadcasts against the kernel.

    Raw input counts as always used: 1. A channel that a flattening spreads over space repeats its
    gate (NHWC: the whole vector is tiled). In a grouped convolution each output sees its own
    group's inputs alone.
    """
    segments = [
        jnp.ones(repeats) if name is None else jnp.tile(gates[name], repeats)
        for name, repeats in wiring.inputs[path]
    ]
    factor = jnp.concatenate(segments)[:, None]
    groups = wiring.groups.get(path, 1)
    if groups > 1:
        factor = jnp.repeat(factor.reshape(groups, -1), leaf.shape[-1] // groups, axis=0).T
    return factor.reshape((1,) * (leaf.ndim - 2) + factor.shape)


def fold(wiring: Wiring, params: PyTree, gates: PyTree) -> PyTree:
    """Scales each kernel's input axis by the gates that feed it.

    This equals multiplying the activations, whatever the activation function, if the gate is the
    last operation before the kernel.
    """

    def scale(path, leaf):
        if path not in wiring.inputs:
            return leaf
        return leaf * input_factor(wiring, path, leaf, gates).astype(leaf.dtype)

    return masks.map_with_path(scale, params)


def cut_unattended(wiring: Wiring, params: PyTree, gates: PyTree) -> PyTree:
    """Zeroes what feeds a unit whose gate is 0 and what reads it: a task's network is only its own.

    Later tasks move what is cut, so it is not multiplied by zero, but replaced: 0 * inf is nan. For
    gates of 0 and 1 this is what `fold` computes.
    """

    def cut(path, leaf):
        if path in wiring.outputs:
            leaf = jnp.where(gates[wiring.outputs[path]] == 0, jnp.zeros_like(leaf), leaf)
        if path in wiring.inputs:
            closed = input_factor(wiring, path, leaf, gates) == 0
            leaf = jnp.where(closed, jnp.zeros_like(leaf), leaf)
        return leaf

    return masks.map_with_path(cut, params)


def attended_weights(wiring: Wiring, params: PyTree, attention: PyTree) -> PyTree:
    """Which weights lie between two attended units: bool, one array for each gated kernel.

    Source: HAT (2018), Sec. 4.4: capacity used is the share of these weights.
    """
    leaves = masks.leaves_by_path(params)
    return {
        path: jnp.broadcast_to(
            masks.dense(
                masks.Attended(
                    input_factor(wiring, path, leaves[path], attention),
                    attention[wiring.outputs[path]],
                )
            )
            < 0.5,
            leaves[path].shape,
        )
        for path in wiring.inputs
        if path in wiring.outputs
    }


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


def overlap(wiring: Wiring, params: PyTree, embeddings: PyTree) -> jax.Array:
    """The share of the network's weights that both of two tasks use: between two open gates.

    Args:
        wiring: HAT's table.
        params: the network's parameters, or their shapes.
        embeddings: for each gate [tasks, units]; a gate is open where the embedding is positive.

    Returns:
        [tasks, tasks], in [0, 1]; the diagonal is what each task uses by itself.
    """
    gates = jax.tree.map(lambda e: (e > 0).astype(jnp.float32), embeddings)
    leaves, both, total = masks.leaves_by_path(params), jnp.float32(0), 0
    for path in [path for path in wiring.inputs if path in wiring.outputs]:
        leaf, target = leaves[path], gates[wiring.outputs[path]]
        source = jax.vmap(lambda g: input_factor(wiring, path, leaf, g))(gates)  # noqa: B023
        source = source.reshape(*source.shape[:1], *source.shape[-2:])
        if source.shape[-1] == 1:  # all outputs have the same inputs
            used = jnp.einsum("tik,sik->ts", source, source) * (target @ target.T)
        else:
            used = jnp.einsum("tio,sio,to,so->ts", source, source, target, target)
        both += used * math.prod(leaf.shape[:-2])
        total += leaf.size
    return both / max(total, 1)


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
    },
)
