"""Sensitivities, reuse and transfer against networks whose numbers are known by hand."""

import functools
import math
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcl
from jaxcl import LateralSpec, Model, Wiring, analysis, masks, models
from jaxcl.methods import analysis as internals
from jaxcl.methods.hat import attended_weights, overlap
from jaxcl.models import builtin

WEIGHT = 0.5  # of the lateral, in the network of `scalar`
SHARES = np.array([WEIGHT**2, 1]) / (1 + WEIGHT**2)  # of its two columns, in AFS and in APS

# What is computed is small: most of the time goes into compiling.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
afs = jit(analysis.afs, static_argnums=0, static_argnames="classes")
aps = jit(analysis.aps, static_argnums=0)


def scalar(weight=WEIGHT, scale=1.0):
    """A view of two columns of one hidden feature: the logits are +-z, z = h_2 + weight h_1.

    h_2 = x and h_1 = scale x. Of an image, the head reads the mean and the lateral one pixel.
    """
    head = np.array([[1.0, -1.0]], np.float32)
    columns = {"first": np.array([[[scale]], [[1]]], np.float32), "head": np.stack([head, head])}
    laterals = [] if weight is None else [{"kernel": (weight / scale * head)[None]}]
    own = {"column": row(columns, 1), "laterals": laterals}
    stacked = {"column": columns, "laterals": jax.tree.map(lambda k: np.stack([k, k]), laterals)}
    return {"own": own, "columns": stacked, "task": np.int32(1)}


def scalar_column(params, statistics, x, laterals, **mode):
    hidden = x @ params["first"]
    space = tuple(range(1, x.ndim - 1))
    logits = hidden.mean(space) @ params["head"]
    if laterals[0] is not None:
        logits = logits + laterals[0][:, *(0 for _ in space)]
    return logits, (hidden,), statistics


SCALAR = Model(None, None, scalar_column, (LateralSpec((1,), (2,)),))
IMAGE = Model(None, None, scalar_column, (LateralSpec((3, 3, 1), (3, 3, 2)),))


def columns_of(model, tasks=3, lateral="adapter"):
    """A progressive network of random columns, and the views of its tasks, one a row."""
    method, network = jaxcl.pnn(model, tasks, lateral)
    rng = np.random.default_rng(0)

    def draw(key):
        params, statistics = network.init(key)
        theta, state = method.init(key, params)
        return jax.vmap(lambda t: method.view(theta, state, t))(jnp.arange(tasks)), statistics

    views, statistics = jax.tree.map(
        lambda leaf: rng.uniform(-0.5, 0.8, leaf.shape).astype(leaf.dtype),
        jax.eval_shape(draw, jax.random.key(0)),
    )
    views["task"] = np.arange(tasks)
    return network, jax.tree.map(jnp.abs, statistics), views


def row(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


MLP = models.mlp(4, (6, 5), 3)._replace(wiring=None)  # hashable without


@functools.cache
def mlp():
    """Three columns, 20 inputs, a program for the AFS of all tasks, traced, and what it gives."""
    _, statistics, views = columns_of(MLP)
    x = np.random.default_rng(7).normal(size=(20, 4)).astype("f4")
    run = jit(jax.vmap(lambda view: analysis.afs(MLP, view, statistics, x)))
    return statistics, views, x, run, run(views)


def silent(model, columns, batch):
    return [jnp.zeros((columns, batch, *spec.hidden)) for spec in model.laterals]


# AFS


@pytest.mark.parametrize("key", [None, jax.random.key(3)], ids=["exact", "sampled"])
def test_afs_by_hand(key):
    """d log p / d h_1 is WEIGHT times d log p / d h_2, and both features have one deviation."""
    x = np.array([[-1.0], [1.0], [0.5]], np.float32)
    result = afs(SCALAR, scalar(), {}, x, key=key)
    np.testing.assert_allclose(result.layers, [SHARES], rtol=1e-5)
    np.testing.assert_allclose(result.summed, [SHARES], rtol=1e-5)
    np.testing.assert_allclose(result.features[0], SHARES[:, None], rtol=1e-5)


def test_afs_is_of_normalized_features():
    """Four times the source's feature and a fourth of its weight change nothing."""
    x = np.array([[-1.0], [1.0], [0.5]], np.float32)
    result = afs(SCALAR, scalar(scale=4.0), {}, x)
    np.testing.assert_allclose(result.layers, [SHARES], rtol=1e-5)


def test_afs_sums_a_convolution_over_positions():
    """The own column is read at all positions, the source at one: a channel counts once."""
    x = np.random.default_rng(0).normal(size=(4, 3, 3, 1)).astype("f4")
    result = afs(IMAGE, scalar(), {}, x)
    np.testing.assert_allclose(result.layers, [SHARES], rtol=1e-5)


def test_afs_against_derivatives_of_the_written_out_network():
    """Two columns, two hidden layers: the first column's first layer acts through its second."""
    model = models.mlp(4, (5, 5), 3)._replace(wiring=None)
    _, statistics, views = columns_of(model, 2, "linear")
    view, x = row(views, 1), np.random.default_rng(7).normal(size=(12, 4)).astype("f4")
    first, second = row(view["columns"]["column"], 0), view["own"]["column"]
    laterals = [params["kernel"][0] for params in view["own"]["laterals"]]

    def dense(layer, h):
        return layer["kernel"].T @ h + layer["bias"]

    def log_p(x, added):
        a1 = jax.nn.relu(dense(first["layers"][0], x)) + added[0, 0]
        a2 = jax.nn.relu(dense(first["layers"][1], a1)) + added[1, 0]
        b1 = jax.nn.relu(dense(second["layers"][0], x)) + added[0, 1]
        b2 = jax.nn.relu(dense(second["layers"][1], b1) + laterals[0].T @ a1) + added[1, 1]
        logits = dense(second["head"], b2) + laterals[1].T @ a2
        return jax.nn.log_softmax(logits), jnp.array([[a1, b1], [a2, b2]])

    @jit
    @jax.vmap
    def each(x):
        silence = jnp.zeros((2, 2, 5))
        jacobian, hidden = jax.jacobian(log_p, argnums=1, has_aux=True)(x, silence)
        return jnp.einsum("c,clkm->lkm", jnp.exp(log_p(x, silence)[0]), jacobian**2), hidden

    squares, hidden = map(np.asarray, each(x))  # [examples, layers, columns, features]
    fisher = squares.sum(0) * hidden.std(0) ** 2
    result = afs(model, view, statistics, x)
    summed = fisher.sum(2) / fisher.sum((1, 2))[:, None]
    np.testing.assert_allclose(result.summed, summed, rtol=1e-4)
    total = fisher.sum(1, keepdims=True)
    shares = np.where(total > 0, fisher / np.where(total > 0, total, 1), 0)
    np.testing.assert_allclose(np.stack(result.features), shares, rtol=1e-4, atol=1e-6)
    means = shares.sum(2) / (total > 0).sum(2)
    np.testing.assert_allclose(result.layers, means, rtol=1e-4)


def test_sampled_labels_approach_the_exact_expectation():
    statistics, views, x, _, exact = mlp()
    many = np.tile(x, (500, 1))
    sampled = afs(MLP, row(views, 2), statistics, many, key=jax.random.key(0))
    np.testing.assert_allclose(sampled.summed, exact.summed[2], atol=0.02)


def test_afs_of_columns_adds_up_to_one_and_later_ones_have_none():
    *_, result = mlp()
    assert [f.shape for f in result.features] == [(3, 3, 6), (3, 3, 5)]
    for task in range(3):
        for shares in (result.layers[task], result.summed[task]):
            np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-5)
            assert (shares[:, : task + 1] > 0).all()
            assert (shares[:, task + 1 :] == 0).all()
        for feature in result.features:
            total = np.asarray(feature[task].sum(0))
            np.testing.assert_allclose(total[total > 0], 1, rtol=1e-5)


def test_classes_cut_the_logits():
    """Logits beyond the task's classes take no part: as if they were very small."""
    statistics, views, x, run, _ = mlp()
    views = jax.tree.map(lambda leaf: leaf, views)
    bias = views["own"]["column"]["head"]["bias"]
    views["own"]["column"]["head"]["bias"] = bias + np.array([[0, 0, -1e9]], np.float32)
    together = row(run(views), 2)
    views["own"]["column"]["head"]["bias"] = bias
    alone = afs(MLP, row(views, 2), statistics, x, classes=2)  # and without vmap
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), together, alone)


# APS


def test_aps_by_hand():
    """x = +-1: accuracy under noise in the own column is Phi((1 + w) / sigma), 3/4 at half."""
    x, y = np.tile([[-1.0], [1.0]], (2000, 1)).astype("f4"), np.tile([1, 0], 2000)
    result = aps(SCALAR, scalar(), {}, x, y, key=jax.random.key(0))
    own = ((1 + WEIGHT) / NormalDist().inv_cdf(0.75)) ** 2
    np.testing.assert_allclose(result.variance, [[own / WEIGHT**2, own]], rtol=0.1)
    np.testing.assert_allclose(result.layers, [SHARES], atol=0.02)


def test_a_network_at_chance_has_nothing_to_halve():
    x, y = np.array([[-1.0], [1.0], [2.0]], np.float32), np.array([0, 1, 1])
    result = aps(SCALAR, scalar(), {}, x, y, key=jax.random.key(0))
    assert np.isinf(result.variance).all()
    assert (result.layers == 0).all()


@pytest.mark.parametrize("weight", [0.0, None], ids=["laterals of zeros", "no laterals"])
def test_a_column_that_is_not_used_has_no_sensitivity(weight):
    x, y = np.array([[-1.0], [1.0], [2.0]], np.float32), np.array([1, 0, 0])
    result = aps(SCALAR, scalar(weight), {}, x, y, key=jax.random.key(0))
    np.testing.assert_array_equal(result.layers, [[0, 1]])
    assert np.isinf(result.variance[0, 0])
    assert np.isfinite(result.variance[0, 1])
    np.testing.assert_array_equal(afs(SCALAR, scalar(weight), {}, x).layers, [[0, 1]])


# The network that is perturbed


def chain(shape, units):
    return builtin.as_model(functools.partial(models.Chain, shape, units, 3))


def test_silence_changes_nothing():
    """Without noise the network gives the logits that it has, for every task."""
    units = [models.Unit(3, 2, norm=True, pool=True), models.Unit(2, 2), models.Unit(4)]
    model = chain((7, 7, 1), units)
    network, statistics, views = columns_of(model, 2)
    x = np.random.default_rng(0).normal(size=(5, 7, 7, 1)).astype("f4")

    @jit
    @jax.vmap
    def both(view):
        ours = internals._run(model, view, statistics, x, silent(model, 2, 5), None)[0]
        return ours, network.apply(view, statistics, x)[0]

    ours, logits = both(views)
    assert np.ptp(logits) > 0.1
    np.testing.assert_allclose(ours, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", [models.resnet18, models.vgg16])
def test_every_network_can_be_perturbed(build):
    model = build(width=1)

    def run():
        _, statistics, views = columns_of(model, 2)
        return analysis.afs(model, row(views, 1), statistics, jnp.zeros((3, 32, 32, 3)))

    assert jax.eval_shape(run).layers.shape == (len(model.laterals), 2)


def test_every_shift_acts_on_its_own_column_and_later_ones_alone():
    statistics, views, x, *_ = mlp()
    quiet = silent(MLP, 3, len(x))

    @jit
    def changes(view, layer, column):
        loud = [q.at[column].set(jnp.where(layer == i, 1.0, 0.0)) for i, q in enumerate(quiet)]
        before, after = (
            internals._run(MLP, view, statistics, x, s, None)[0] for s in (quiet, loud)
        )
        return (before != after).any()

    for task in range(3):
        for layer in range(2):
            changed = [changes(row(views, task), layer, column) for column in range(3)]
            np.testing.assert_array_equal(changed, [column <= task for column in range(3)])


def test_bad_input():
    view, x, y = scalar(), np.ones((2, 1), np.float32), np.zeros(2, int)
    blind = models.from_function(lambda params, x: x, {})
    with pytest.raises(ValueError, match="shows no hidden activations"):
        analysis.afs(blind, view, {}, x)
    with pytest.raises(ValueError, match=r"hiddens\[0\] is not what its next layer reads"):
        analysis.afs(SCALAR._replace(column=jax.jit(scalar_column)), view, {}, x)
    for bad in ({"least": 0.0}, {"most": 1e-9}, {"draws": 0}, {"steps": 0}):
        with pytest.raises(ValueError, match="aps: expected 0 < least < most"):
            analysis.aps(SCALAR, view, {}, x, y, key=jax.random.key(0), **bad)
    for curves in (([1.0], [1.0]), ([1.0, 2.0], [1.0, 2.0, 3.0]), (1.0, 1.0)):
        with pytest.raises(ValueError, match="two curves of the same"):
            analysis.transfer_score(*curves)


# HAT


def test_reuse_by_hand():
    """A kernel [3 inputs, 4 units], then [4, 2]; the head counts for nothing."""
    wiring = Wiring(
        {"a": 4, "b": 2},
        {"one": ((None, 3),), "two": (("a", 1),), "head": (("b", 1),)},
        {"one": "a", "two": "b"},
    )
    params = {"one": jnp.ones((3, 4)), "two": jnp.ones((4, 2)), "head": jnp.ones((2, 5))}
    embeddings = {
        "a": jnp.array([[1.0, 1, 0, -1], [-1, 1, 1, 1], [-1, -1, -1, -1]]),
        "b": jnp.array([[2.0, -2], [2, 2], [-1, 3]]),
    }
    # Task 0: 3 * 2 + 2 * 1 = 8 weights; task 1: 3 * 3 + 3 * 2 = 15; in both: 3 * 1 + 1 * 1 = 4.
    np.testing.assert_allclose(
        analysis.reuse(wiring, params, embeddings),
        [[1, 4 / 8, 0], [4 / 15, 1, 0], [0, 0, 0]],
        rtol=1e-6,
    )
    compression = analysis.compression(wiring, params, embeddings)
    np.testing.assert_allclose(compression, [8 / 20, 15 / 20, 0], rtol=1e-6)


def test_reuse_agrees_with_the_capacity_of_hat():
    """With one task, what it uses is the capacity used."""
    model = models.alexnet((28, 28, 1), 3, widths=(2, 3, 3, 4, 3))
    method = jaxcl.hat(model.wiring, 1, hard=True)
    params = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape), jax.eval_shape(model.init, jax.random.key(0))[0]
    )

    @jit
    def both():
        theta, state = method.end_task(*method.init(jax.random.key(0), params), 0)
        used = analysis.compression(model.wiring, params, theta["embeddings"])
        return used[0], method.capacity(theta, state)

    used, capacity = both()
    assert 0 < used < 1
    np.testing.assert_allclose(used, capacity, rtol=1e-6)


def test_overlap_counts_the_weights_between_open_gates():
    """As the attended weights do, of which these are the numbers; grouped convolutions too."""
    wiring = Wiring(
        {"a": 6, "b": 4, "c": 5},
        {"one": ((None, 2),), "two": (("a", 1),), "three": (("b", 9),)},
        {"one": "a", "two": "b", "three": "c"},
        groups={"two": 2},
    )
    shapes = {"one": (3, 3, 2, 6), "two": (3, 3, 3, 4), "three": (36, 5)}
    params = jax.tree.map(jnp.zeros, shapes, is_leaf=lambda node: isinstance(node, tuple))
    rng = np.random.default_rng(0)
    embeddings = {name: rng.normal(size=(3, n)) for name, n in wiring.gates.items()}
    expected = np.zeros((3, 3))
    for i, j in np.ndindex(3, 3):
        both = {name: jnp.float32((e[i] > 0) & (e[j] > 0)) for name, e in embeddings.items()}
        expected[i, j] = masks.capacity(attended_weights(wiring, params, both))
    assert np.ptp(expected) > 0.4
    np.testing.assert_allclose(overlap(wiring, params, embeddings), expected, rtol=1e-6)


# Transfer and plot


def test_transfer_score_over_seeds():
    curves = np.array([[0.0, 1.0, 1.0], [0.5, 0.5, 0.5]])
    np.testing.assert_allclose(analysis.transfer_score(curves, [0.0, 0.5, 1.0]), [1.5, 1.0])


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    shares = {"AFS": [[0.25, 0.75], [0.5, 0.5]], "APS": jnp.array([[0.0, 1.0], [1.0, 0.0]])}
    paths = analysis.plot(shares, tmp_path / "new", "digits", columns=["source", "target"])
    assert [path.name for path in paths] == ["digits.svg", "digits.png"]
    drawn = paths[0].read_bytes()
    analysis.plot(shares, tmp_path / "new", "digits", columns=["source", "target"])
    assert paths[0].read_bytes() == drawn
    assert b"\x89PNG" in paths[1].read_bytes()[:8]
    assert math.isclose(sum(map(sum, shares["AFS"])), 2)
