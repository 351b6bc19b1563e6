"""What a trained network uses of its earlier tasks: PNN's sensitivities, HAT's reuse, transfer.

`afs` and `aps` say from which column a progressive network takes each of its layers, `reuse` and
`compression` which weights HAT's tasks share, `transfer_score` how much faster a task is learned
than from scratch. All but `transfer_score` are pure functions that may be jitted, and
vmapped over seeds.

Examples are given as the network sees them, so normalized. They are held on the device together
with the activations of all columns; a few thousand of them are plenty.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from jaxcl.core.model import Model, Wiring
from jaxcl.core.trees import PyTree
from jaxcl.methods.gated import overlap
from jaxcl.methods.pnn import apply_lateral

__all__ = ["AFS", "APS", "afs", "aps", "compression", "reuse", "transfer_score"]


class AFS(NamedTuple):
    """Average Fisher sensitivities. Columns after the task's own have none.

    Attributes:
        layers: [layers, columns], the mean of `features` over the features that some column uses;
            the columns add up to 1.
        summed: [layers, columns], the column's share of the Fisher information of all features
            together; the columns add up to 1.
        features: for each layer [columns, units], the column's share of the Fisher information of
            its m-th feature and the other columns' m-th; 0 where no column uses it.
    """

    layers: jax.Array
    summed: jax.Array
    features: tuple[jax.Array, ...]


class APS(NamedTuple):
    """Average perturbation sensitivities. Columns after the task's own have none.

    Attributes:
        layers: [layers, columns], shares of 1 / `variance`; the columns add up to 1.
        variance: [layers, columns], the noise, relative to each feature's own variance, that
            halves performance; infinite where none does.
    """

    layers: jax.Array
    variance: jax.Array


def afs(
    model: Model,
    view: PyTree,
    statistics: PyTree,
    x: jax.Array,
    *,
    key: jax.Array | None = None,
    classes: int | None = None,
) -> AFS:
    """How strongly a task's predictions depend on each layer of each column of a PNN.

    The Fisher information of a feature is the mean of (d log p(y|x) / d h)^2, where y is drawn from
    the network's own predictions and h is the feature over its standard deviation. A change of a
    feature acts wherever it is read: in its own column's next layer, and in later columns.

    Args:
        model: the columns' architecture, as given to `pnn`.
        view: of the task, from the method's `view`.
        statistics: of all columns, [columns, ...], as `pnn`'s network carries them; {} for none.
        x: inputs [B, ...] of the task, from its test set.
        key: draws one y for each x; None for the exact expectation, one pass a class.
        classes: number of the task's classes, if the network has more logits.

    Returns:
        AFS, where layer i is the input of `model.laterals[i]`: all hidden layers in order.

    Raises:
        ValueError: if the model shows no hidden activations.

    Source: Rusu et al., Progressive Neural Networks (2016), Sec. 3 and App. A.
    Differs: p(y|x) takes the policy's place. `layers` is a mean over features, where the paper's
        sum adds up to their number; `summed` is ours. As in the paper a convolution's derivatives
        are summed over positions, but where its output is flattened for a dense layer each position
        is a feature of its own.
    """
    _check(model)
    shapes = _shapes(model, view, x)
    logits, pull, hiddens = jax.vjp(
        lambda shifts: _run(model, view, statistics, x, shifts, classes),
        [jnp.zeros(shape) for shape in shapes],
        has_aux=True,
    )
    predicted = jax.nn.softmax(logits)

    def information(y, weight):
        """[columns, units] for each layer: the squared derivatives of log p(y|x), summed over x."""
        (gradients,) = pull(jax.nn.one_hot(y, logits.shape[-1], dtype=logits.dtype) - predicted)
        gradients = [g.sum(tuple(range(2, g.ndim - 1))) for g in gradients]
        return [jnp.einsum("b,kbm->km", weight, g**2) for g in gradients]

    if key is None:
        each = (jnp.arange(logits.shape[-1]), predicted.T)
        every = jax.lax.map(lambda c: information(jnp.full(len(x), c[0]), c[1]), each)
        fisher = [f.sum(0) for f in every]
    else:
        fisher = information(jax.random.categorical(key, logits), jnp.ones(len(x)))
    fisher = [f * _deviation(h) ** 2 for f, h in zip(fisher, hiddens)]
    features = tuple(_shares(f) for f in fisher)
    means = [f.sum(1) / jnp.maximum(f.sum(), 1) for f in features]
    return AFS(jnp.stack(means), jnp.stack([_shares(f.sum(1)) for f in fisher]), features)


def aps(
    model: Model,
    view: PyTree,
    statistics: PyTree,
    x: jax.Array,
    y: jax.Array,
    *,
    key: jax.Array,
    classes: int | None = None,
    draws: int = 8,
    least: float = 1e-3,
    most: float = 1e4,
    steps: int = 16,
) -> APS:
    """How little noise in each layer of each column of a PNN halves a task's performance.

    Gaussian noise is added to the activations of one layer of one column, in proportion to each
    feature's standard deviation. Its relative variance is bisected on a logarithmic scale.

    Args:
        model: the columns' architecture, as given to `pnn`.
        view: of the task, from the method's `view`.
        statistics: of all columns, [columns, ...], as `pnn`'s network carries them; {} for none.
        x: inputs [B, ...] of the task, from its test set.
        y: their labels [B], counted from 0 within the task.
        key: draws the noise.
        classes: number of the task's classes, if the network has more logits.
        draws: noise for each example; the same draws serve every variance.
        least: smallest relative variance, above 0; what halves performance earlier gets it.
        most: largest relative variance; where it does not halve performance, nothing does.
        steps: bisections.

    Returns:
        APS, where layer i is the input of `model.laterals[i]`: all hidden layers in order. A
        network that is no better than chance has no performance to halve: all shares are 0.

    Raises:
        ValueError: for settings out of range, or if the model shows no hidden activations.

    Source: Rusu et al., Progressive Neural Networks (2016), Sec. 3 and App. A.
    Differs: performance is accuracy above chance (1 / classes) in the place of a game's score.
    """
    _check(model)
    if not 0 < least < most or draws < 1 or steps < 1:
        raise ValueError(
            f"aps: expected 0 < least < most, draws >= 1 and steps >= 1, got {least}, {most}, "
            f"{draws} and {steps}."
        )
    shapes = _shapes(model, view, x)
    columns = shapes[0][0]
    silent = [jnp.zeros(shape) for shape in shapes]
    logits, hiddens = _run(model, view, statistics, x, silent, classes)
    deviations = [_deviation(h).reshape(columns, *[1] * (h.ndim - 2), h.shape[-1]) for h in hiddens]

    def performance(logits):
        return jnp.mean(jnp.argmax(logits, axis=-1) == y) - 1 / logits.shape[-1]

    def perturbed(place, variance):
        def once(key):
            noise = []
            for i, (shape, deviation) in enumerate(zip(shapes, deviations)):
                here = (i == place // columns) & (jnp.arange(columns) == place % columns)
                scale = jnp.where(here, jnp.sqrt(variance), 0.0)
                scale = deviation * scale.reshape(columns, *[1] * (len(shape) - 1))
                noise.append(scale * jax.random.normal(jax.random.fold_in(key, i), shape))
            return performance(_run(model, view, statistics, x, noise, classes)[0])

        return jnp.mean(jax.lax.map(once, jax.random.split(key, draws)))

    clean = performance(logits)

    def halving(place):
        def bisect(_, ends):
            middle = ends.mean()
            halved = perturbed(place, jnp.exp(middle)) <= clean / 2
            return jnp.where(halved, ends.at[1].set(middle), ends.at[0].set(middle))

        ends = jax.lax.fori_loop(0, steps, bisect, jnp.log(jnp.array([least, most])))
        ever = (perturbed(place, most) <= clean / 2) & (clean > 0)
        return jnp.where(ever, jnp.exp(ends[1]), jnp.inf)

    variance = jax.lax.map(halving, jnp.arange(len(shapes) * columns)).reshape(-1, columns)
    return APS(_shares((1 / variance).T).T, variance)


def reuse(wiring: Wiring, params: PyTree, embeddings: Mapping[str, jax.Array]) -> jax.Array:
    """Which share of each HAT task's weights each other task uses too.

    A weight is active in a task if the units at both its ends are, those with `embedding > 0`.
    Weights with no gate on their output, such as heads, do not count.

    Args:
        wiring: HAT's table.
        params: the network's parameters, or their shapes.
        embeddings: `theta["embeddings"]`: for each gate [tasks, units].

    Returns:
        [tasks, tasks]: entry [i, j] is the share of task i's weights that are active in task j, in
        [0, 1]; row i is 0 if task i has no active weight.

    >>> wiring = Wiring({"u": 2, "v": 2}, {"b": (("u", 1),)}, {"a": "u", "b": "v"})
    >>> params = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 2))}
    >>> first, other = [1.0, 1.0], [1.0, -1.0]  # which has closed a unit of each layer
    >>> embeddings = {"u": jnp.array([first, other]), "v": jnp.array([first, other])}
    >>> print(reuse(wiring, params, embeddings))
    [[1.   0.25]
     [1.   1.  ]]

    Source: Serra et al., HAT (2018), Sec. 4.4.
    """
    shared = overlap(wiring, params, embeddings)
    own = jnp.diag(shared)[:, None]
    return jnp.where(own > 0, shared / jnp.where(own > 0, own, 1.0), 0.0)


def compression(wiring: Wiring, params: PyTree, embeddings: Mapping[str, jax.Array]) -> jax.Array:
    """Which share of the network's weights each HAT task uses by itself.

    Args:
        wiring: HAT's table.
        params: the network's parameters, or their shapes.
        embeddings: `theta["embeddings"]`: for each gate [tasks, units].

    Returns:
        [tasks], in [0, 1]: active weights over all weights, counted as in `reuse`.

    >>> wiring = Wiring({"u": 2, "v": 2}, {"b": (("u", 1),)}, {"a": "u", "b": "v"})
    >>> params = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 2))}
    >>> first, other = [1.0, 1.0], [1.0, -1.0]  # which has closed a unit of each layer
    >>> embeddings = {"u": jnp.array([first, other]), "v": jnp.array([first, other])}
    >>> print(compression(wiring, params, embeddings))
    [1.   0.25]

    Source: Serra et al., HAT (2018), Sec. 4.4.
    """
    return jnp.diag(overlap(wiring, params, embeddings))


def transfer_score(curve, baseline) -> np.ndarray:
    """How fast a task is learned, in proportion to a baseline: the ratio of two areas.

    Args:
        curve: [..., N], performance at N evenly spaced moments of training, such as accuracy.
        baseline: likewise, at the same moments, for one column trained from scratch.

    Returns:
        [...]: area under `curve` over the area under `baseline`; above 1 there is positive
        transfer.

    Raises:
        ValueError: if there are fewer than two moments, or not as many of each.

    >>> round(float(transfer_score([0.5, 0.8, 0.9], [0.1, 0.6, 0.7])), 3)  # 1.5 / 1.0
    1.5

    Source: Rusu et al., Progressive Neural Networks (2016), Sec. 4.
    """
    curve, baseline = (np.asarray(values, np.float64) for values in (curve, baseline))
    if curve.shape[-1:] != baseline.shape[-1:] or curve.ndim == 0 or curve.shape[-1] < 2:
        raise ValueError(
            f"transfer_score: expected two curves of the same two or more moments, got shapes "
            f"{curve.shape} and {baseline.shape}."
        )
    return np.asarray(np.trapezoid(curve) / np.trapezoid(baseline))


# All columns of a progressive network, with something added to their hidden activations


def _run(model, view, statistics, x, shifts, classes):
    """The task's logits [B, C], and the hidden activations of all columns after their shifts.

    Shifts and activations are one array [columns, B, ..., units] a layer. Columns after the task's
    own run too, so that the task may be traced; nothing that they give is read.
    """
    task = view["task"]
    rows = jax.tree.map(
        lambda leaf, own: jnp.asarray(leaf).at[task].set(own), view["columns"], view["own"]
    )

    def run(sources, row):
        j, column, statistics, shift = row
        laterals = [
            apply_lateral(params, spec, h[..., :-1, :], j)
            for params, spec, h in zip(column["laterals"], model.laterals, sources)
        ]
        laterals = laterals or [None] * len(model.laterals)
        logits, hiddens = _shifted(model, column["column"], statistics, x, laterals, shift)
        sources = [h.at[..., j, :].set(new) for h, new in zip(sources, hiddens)]
        return sources, (logits, hiddens)

    shapes = [shift.shape for shift in shifts]
    sources = [jnp.zeros((*shape[1:-1], shape[0], shape[-1])) for shape in shapes]
    each = (jnp.arange(shapes[0][0]), rows, statistics, shifts)
    _, (logits, hiddens) = jax.lax.scan(run, sources, each)
    return logits[task][:, :classes], hiddens


def _shifted(model, params, statistics, x, laterals, shifts):
    """`model.column` with shifts[i] added to hiddens[i], for all that reads it in the column.

    The column's own program is run here, operation by operation, and each hidden activation is
    changed as soon as it is computed. So any model's column can be perturbed as it is.
    """
    arguments = params, statistics, x, laterals
    closed = jax.make_jaxpr(lambda *given: model.column(*given)[:2])(*arguments)
    jaxpr = closed.jaxpr
    shift_of = dict(zip(jaxpr.outvars[1:], shifts, strict=True))
    read = {atom for eqn in jaxpr.eqns for atom in _variables(eqn)}
    made = {atom for eqn in jaxpr.eqns for atom in eqn.outvars}
    for i, hidden in enumerate(jaxpr.outvars[1:]):
        if hidden not in read & made:
            raise ValueError(
                f"The model's hiddens[{i}] is not what its next layer reads, so it cannot be "
                f"perturbed; `column` must return that very array, and not be jitted as a whole."
            )
    values = dict(zip(jaxpr.constvars, closed.consts))
    values |= zip(jaxpr.invars, jax.tree.leaves(arguments), strict=True)
    for eqn in jaxpr.eqns:
        atoms = _variables(eqn)
        operation = jaxpr.replace(constvars=[], invars=atoms, outvars=eqn.outvars, eqns=[eqn])
        results = jaxpr_as_fun(ClosedJaxpr(operation, ()))(*(values[atom] for atom in atoms))
        for atom, result in zip(eqn.outvars, results, strict=True):
            shift = shift_of.get(atom)
            values[atom] = result if shift is None else result + shift.astype(result.dtype)
    logits, *hiddens = (values[atom] for atom in jaxpr.outvars)
    return logits, hiddens


def _variables(eqn):
    """What an operation of a jaxpr reads, but for the numbers that are written in it."""
    return list(dict.fromkeys(atom for atom in eqn.invars if not isinstance(atom, Literal)))


def _shapes(model, view, x):
    """Of the hidden activations of all columns, [columns, B, ..., units] a layer."""
    columns = jax.tree.leaves(view["columns"])[0].shape[0]
    return [(columns, len(x), *spec.hidden) for spec in model.laterals]


def _deviation(hidden):
    """[columns, units]: standard deviation of each feature over examples and positions."""
    return jnp.std(hidden.astype(float), axis=tuple(range(1, hidden.ndim - 1)))


def _shares(values):
    """Divides by the sum over the first axis, the columns; 0 where that is 0."""
    total = values.sum(0, keepdims=True)
    return jnp.where(total > 0, values / jnp.where(total > 0, total, 1.0), 0.0)


def _check(model: Model) -> None:
    if model.column is None or not model.laterals:
        raise ValueError(
            "The model shows no hidden activations; give the columns' architecture, with `column` "
            "and `laterals`, as it was given to pnn."
        )
