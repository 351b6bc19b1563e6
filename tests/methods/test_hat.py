"""HAT: gates, regularizer, attention, and what the network computes with."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxcl
from jaxcl import masks, models
from jaxcl.methods import hat as hat_module
from jaxcl.methods.hat import (
    annealed,
    attended_weights,
    cut_unattended,
    fold,
    input_factor,
    open_gates,
    regularizer,
)
from jaxcl.models.layers import apply_gate
from tests.methods.small import KEY, SEEDS, TASKS, close, equal, mlp, move, noise, params, quickly

# Gates


def slope(e, s, mode, s_max=400.0):
    return float(jax.grad(jaxcl.gate)(jnp.float32(e), jnp.float32(s), jnp.float32(s_max), mode))


@pytest.mark.parametrize(
    ("s", "e", "mode", "value"),
    [
        (5, 1, "original", 78.645),
        (20, -1, "original", 78.645),
        (20, 1, "original", 0.0),
        (100, 0.1, "original", 99.80),
        (1 / 400, 0, "original", 100.0),
        (5, 1, "ideal", 78.645),
        (20, 1, "ideal", 78.645),
        (100, 0.1, "ideal", 99.75),
        (1 / 400, 0, "ideal", 100.0),
        (400, 6, "ideal", 400 * 0.0024665),
        (20, 1, "clipped", 78.645),
        (60, 1, "clipped", 78.645 * np.exp(-10)),
        (60, -1, "clipped", 78.645 * np.exp(-10)),
        (60, -1, "original", 78.645 * np.exp(-10)),
    ],
)
def test_gradient_of_a_gate(s, e, mode, value):
    """What float32 makes of the published compensation, and the closed forms."""
    assert slope(e, s, mode) == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize(
    ("s", "e", "mode", "value"),
    [
        (20, 1, "original", 0.0),
        (5, 1, "original", 78.645),
        (20, -1, "original", 78.645),
        (20, 1, "published", 78.645),
    ],
)
def test_gradient_of_a_gate_in_float64(s, e, mode, value):
    """The original's is that of float32, which decides how long active units are held."""
    with jax.enable_x64(True):
        slope = jax.grad(jaxcl.gate)(jnp.float64(e), jnp.float64(s), jnp.float64(400), mode)
        assert slope.dtype == jnp.float64
        assert slope == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_original_gradient_is_float32_s_in_low_precision_too(dtype):
    s, e = jnp.asarray([5, 20], dtype), jnp.asarray([1, -1], dtype)
    slope = jax.vmap(lambda e, s: jax.grad(jaxcl.gate)(e, s, jnp.asarray(400, dtype)))(e, s)
    assert slope.dtype == dtype
    close(slope.astype("f4"), [78.645, 78.645], 1e-2)


@pytest.mark.parametrize("mode", ["original", "published", "clipped", "ideal"])
def test_gates_are_finite_everywhere(mode):
    e = jnp.linspace(-6, 6, 49)
    for s in (1 / 400, 1.0, 16.0, 400.0):
        gates, vjp = jax.vjp(lambda e: jaxcl.gate(e, jnp.float32(s), jnp.float32(400), mode), e)  # noqa: B023
        (gradient,) = vjp(jnp.ones_like(e))
        assert np.all((gates >= 0) & (gates <= 1))
        assert np.all(np.diff(gates) >= 0)
        assert np.isfinite(gradient).all()
        assert np.all((gradient >= 0) & (gradient <= 101))


def test_gates_send_no_gradient_to_their_scale():
    gradient = jax.grad(lambda s, s_max: jaxcl.gate(jnp.float32(0.3), s, s_max), (0, 1))
    equal(gradient(jnp.float32(2), jnp.float32(400)), (0, 0))


def test_annealing():
    for s_max in (25.0, 400.0):
        assert annealed(0.0, s_max) == pytest.approx(1 / s_max)
        assert annealed(1.0, s_max) == pytest.approx(s_max)
        s = annealed(np.linspace(0, 1, 11), s_max)
        assert np.all(s > 0)
        np.testing.assert_allclose(np.diff(s), np.diff(s)[0])


# Regularizer


def regularizer_in_numpy(gates, attention):
    spent = sum(np.sum(gates[name] * (1 - attention[name])) for name in gates)
    return spent / sum(np.sum(1 - attention[name]) for name in gates)


@quickly
@given(SEEDS)
def test_regularizer(seed):
    """One ratio over all layers; the mean gate for the first task; no pull on units in use."""
    rng = np.random.default_rng(seed)
    gates = {"a": rng.uniform(0, 1, 5).astype("f4"), "b": rng.uniform(0, 1, 3).astype("f4")}
    fresh = jax.tree.map(np.zeros_like, gates)
    close(regularizer(gates, fresh), np.mean([*gates["a"], *gates["b"]]))
    attention = {"a": rng.choice([0, 0.25, 1], 5).astype("f4"), "b": np.float32([0, 0.5, 1])}
    close(regularizer(gates, attention), regularizer_in_numpy(gates, attention))
    gradient = jax.grad(regularizer)(gates, attention)
    for name in gates:
        equal(np.asarray(gradient[name]) == 0, attention[name] == 1)
        assert np.all(gradient[name] >= 0)


def test_regularizer_is_0_once_the_capacity_is_exhausted():
    gates, full = {"a": jnp.array([0.5, 1.0])}, {"a": jnp.ones(2)}
    value, gradient = jax.value_and_grad(regularizer)(gates, full)
    assert value == 0
    assert not np.any(gradient["a"])


def test_penalty_is_c_times_the_regularizer_at_the_current_scale():
    for progress in (0.0, 0.3, None):
        method = jaxcl.hat(mlp().wiring, TASKS, c=0.25)
        theta, state = method.init(KEY, params())
        s = 400.0 if progress is None else annealed(progress, 400.0)
        gates = {k: jax.nn.sigmoid(s * e[1]) for k, e in theta["embeddings"].items()}
        close(method.penalty(theta, state, 1, progress), 0.25 * regularizer(gates, state.attention))


# Attention


@functools.partial(jax.jit, static_argnames="hard")
def hat_run(seed_embeddings, hard):
    method = jaxcl.hat(mlp().wiring, TASKS, hard=hard)
    theta, state = method.init(KEY, params())
    theta = theta | {"embeddings": seed_embeddings}
    attention, capacity = [state.attention], []
    for task in range(TASKS):
        theta, state = method.end_task(theta, state, task)
        attention.append(state.attention)
        capacity.append(method.capacity(theta, state))
    return attention, capacity


@quickly
@given(SEEDS, st.booleans())
def test_attention_never_falls(seed, hard):
    rng = np.random.default_rng(seed)
    embeddings = {
        name: rng.normal(0, rng.choice([0.01, 1.0]), (TASKS, units)).astype("f4")
        for name, units in mlp().wiring.gates.items()
    }
    attention, capacity = hat_run(embeddings, hard)
    for task in range(TASKS):
        for name, table in embeddings.items():
            now = (table[task] > 0) if hard else jax.nn.sigmoid(400 * table[task])
            equal(attention[task + 1][name], np.maximum(attention[task][name], now))
            assert np.all((attention[task + 1][name] >= 0) & (attention[task + 1][name] <= 1))
    assert np.all(np.diff(capacity) >= 0)
    one, two = (np.asarray(attention[-1][name]) > 0.5 for name in ("layer0", "layer1"))
    used = 4 * one.sum() + one.sum() * two.sum()  # first layer: the raw input is always used
    assert capacity[-1] == pytest.approx(used / (4 * 5 + 5 * 3))


def test_trainable_is_one_minus_the_smaller_attention_of_both_ends():
    method = jaxcl.hat(mlp().wiring, TASKS)
    theta, _ = method.init(KEY, params())
    a = {"layer0": np.float32([0, 1, 0.5, 1, 0]), "layer1": np.float32([1, 0, 0.25])}
    mask = masks.leaves_by_path(masks.resolve(method.trainable(theta, jaxcl.HATState(a), 1), theta))
    equal(np.broadcast_to(mask["params/layers/0/kernel"], (4, 5)), [1 - a["layer0"]] * 4)
    equal(mask["params/layers/0/bias"], 1 - a["layer0"])
    pairs = 1 - np.minimum(a["layer0"][:, None], a["layer1"][None])
    equal(mask["params/layers/1/kernel"], pairs)
    equal(mask["params/layers/1/bias"], 1 - a["layer1"])
    # An output without a gate counts as used: only what reads a free unit may still change.
    equal(np.broadcast_to(mask["params/head/kernel"], (3, 2)), (1 - a["layer1"])[:, None] * [1, 1])
    assert not mask["params/head/bias"].any()
    rows = np.broadcast_to(mask["embeddings/layer0"], (TASKS, 5))
    equal(rows, np.broadcast_to([[False], [True], [False]], rows.shape))
    fresh = method.init(KEY, params())[1]
    assert all(
        np.all(leaf)
        for leaf in jax.tree.leaves(
            masks.resolve(method.trainable(theta, fresh, 0), theta)["params"]
        )
    )


def test_a_kernel_that_feeds_no_gate_goes_on_learning_from_free_units():
    """As a transformer's `down`; and what it learns never reaches a finished task's network."""
    widths = {"up": (4, 6), "down": (10, 4), "head": (4, 2)}
    start = noise(0, {name: {"kernel": np.zeros(shape)} for name, shape in widths.items()})

    def apply(params, x):  # beside the gated units, `down` reads its own input
        hidden = jnp.concatenate([jax.nn.relu(x @ params["up"]["kernel"]), x], -1)
        return (x + hidden @ params["down"]["kernel"]) @ params["head"]["kernel"]

    x = noise(1, jnp.zeros((5, 4)))
    wiring = jaxcl.trace_wiring(apply, start, x, gates=["up"])
    method = jaxcl.multihead(jaxcl.hat(wiring, TASKS, hard=True), TASKS)
    theta, state = method.init(KEY, start)
    open_units = np.asarray(theta["embeddings"]["up"] > 0)
    assert not open_units[:2].all(axis=1).any()
    kept = []
    for task in range(TASKS):
        theta, state = method.begin_task(KEY, theta, state, task)
        before, theta = theta, move(task, method, theta, state, task)
        moved = np.all(theta["params"]["down"]["kernel"] != before["params"]["down"]["kernel"], 1)
        free = ~np.any(open_units[:task], axis=0)
        equal(moved, np.concatenate([free, [task == 0] * 4]))
        theta, state = method.end_task(theta, state, task)
        for k, view in enumerate(kept):
            equal(method.view(theta, state, k), view)
            equal(apply(method.view(theta, state, k), x), apply(view, x))
        kept.append(method.view(theta, state, task))


def test_flattened_channels_are_tiled():
    """NHWC: in a row of a flattened feature map the channel varies fastest."""
    model = models.alexnet((28, 28, 1), 2, widths=(2, 2, 3, 2, 2))
    shapes = jax.eval_shape(model.init, KEY)[0]
    leaves = masks.leaves_by_path(shapes)
    path = "layers/3/kernel"
    channels = 3
    gates = {name: jnp.arange(1.0, n + 1) for name, n in model.wiring.gates.items()}
    factor = input_factor(model.wiring, path, leaves[path], gates)
    repeats = leaves[path].shape[0] // channels
    feature_map = np.broadcast_to(np.arange(1.0, channels + 1), (1, repeats, 1, channels))
    equal(factor.ravel(), feature_map.ravel())
    conv = input_factor(model.wiring, "layers/1/kernel", leaves["layers/1/kernel"], gates)
    assert conv.shape == (1, 1, 2, 1)
    raw = input_factor(model.wiring, "layers/0/kernel", leaves["layers/0/kernel"], gates)
    assert np.all(raw == 1)


def test_groups_read_their_own_inputs():
    wiring = jaxcl.Wiring(
        {"g": 4, "h": 6},
        {"conv": (("g", 1),), "last": (("h", 1),)},
        {"first": "g", "conv": "h"},
        groups={"conv": 2},
    )
    kernel = jnp.ones((3, 3, 2, 6))
    factor = input_factor(wiring, "conv", kernel, {"g": jnp.arange(4.0)})
    assert factor.shape == (1, 1, 2, 6)
    equal(factor[0, 0], [[0, 0, 0, 2, 2, 2], [1, 1, 1, 3, 3, 3]])


def test_project_clips_embeddings_alone():
    method = jaxcl.hat(mlp().wiring, TASKS)
    theta, _ = method.init(KEY, params())
    theta = jax.tree.map(lambda leaf: leaf * 100, theta)
    after = method.project(theta)
    equal(after["params"], theta["params"])
    equal(after["embeddings"], jax.tree.map(lambda e: np.clip(e, -6, 6), theta["embeddings"]))


@pytest.mark.parametrize("hard", [False, True])
def test_embeddings_of_other_tasks_get_no_gradient(hard):
    method = jaxcl.hat(mlp().wiring, TASKS, hard=hard)
    theta, state = method.init(KEY, params())
    x = noise(1, jnp.zeros((6, 4)))

    def loss(theta):
        logits, _ = mlp().apply(method.view(theta, state, 1, 0.001), {}, x)
        return jnp.sum(logits**2) + method.penalty(theta, state, 1, 0.001)

    gradient = jax.grad(loss)(theta)["embeddings"]
    for leaf in jax.tree.leaves(gradient):
        equal(np.any(np.asarray(leaf) != 0, axis=1), [False, True, False])


def test_embeddings_start_as_asked():
    for embedding, low, high in (("normal", -6, 6), ("uniform", 0, 2)):
        method = jaxcl.hat(models.mlp(4, (400, 3), 2).wiring, TASKS, embedding=embedding)
        theta, _ = method.init(KEY, models.mlp(4, (400, 3), 2).init(KEY)[0])
        table = np.asarray(theta["embeddings"]["layer0"])
        assert np.all((table >= low) & (table <= high))
        assert abs(table.mean() - (0 if embedding == "normal" else 1)) < 0.1
        assert abs(table.std() - (1 if embedding == "normal" else 12**-0.5 * 2)) < 0.05


def test_a_small_network_that_closed_is_seen_in_its_open_gates():
    """Five units and three close under the default weight of the regularizer."""
    x = noise(3, jnp.zeros((64, 4)))
    y = (x[:, 0] > 0).astype(int)

    @jax.jit
    def learn(c):
        method = jaxcl.hat(mlp().wiring, 1, c=c)
        theta, state = method.init(KEY, params())
        tx = optax.sgd(0.05)

        def step(carry, progress):
            def loss(theta):
                logits, _ = mlp().apply(method.view(theta, state, 0, progress), {}, x)
                cross = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
                return cross + method.penalty(theta, state, 0, progress)

            updates, opt_state = tx.update(jax.grad(loss)(carry[0]), carry[1])
            return (method.project(optax.apply_updates(carry[0], updates)), opt_state), None

        epochs = jnp.tile(jnp.linspace(0, 1, 10), 20)
        theta = jax.lax.scan(step, (theta, tx.init(theta)), epochs)[0][0]
        right = jnp.argmax(mlp().apply(method.view(theta, state, 0), {}, x)[0], -1) == y
        fewest = next(m for m in method.measures if m.name == "fewest_units").of(theta, state)
        return jnp.mean(right), open_gates(theta["embeddings"]), fewest

    accuracy, gates, fewest = learn(0.0)
    assert accuracy > 0.7 and min(gates.values()) == fewest > 0
    accuracy, gates, fewest = learn(0.75)
    assert accuracy < 0.6 and max(gates.values()) == fewest == 0


# What the network computes with

CONV = functools.cache(lambda: models.alexnet((28, 28, 1), 2, widths=(2, 2, 3, 2, 2)))


@functools.partial(jax.jit, static_argnames=("conv", "hard", "training", "native"))
def hat_logits(theta, x, progress, conv, hard, training, native):
    model = CONV() if conv else mlp()
    wiring = model.wiring._replace(native=native)
    method = jaxcl.hat(wiring, TASKS, hard=hard)
    _, state = method.init(KEY, theta["params"])
    view = method.view(theta, state, 1, progress if training else None)
    assert ("gates" in view) == native
    return model.apply(view, {}, x)[0]


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize(("hard", "training"), [(False, True), (False, False), (True, False)])
def test_folding_equals_gating(conv, hard, training):
    model, shape = (CONV(), (3, 28, 28, 1)) if conv else (mlp(), (3, 4))
    theta, _ = jaxcl.hat(model.wiring, TASKS).init(KEY, jax.jit(model.init)(KEY)[0])
    theta = jax.tree.map(lambda leaf, n: leaf + 0.3 * n, theta, noise(5, theta))
    x = noise(2, jnp.zeros(shape))
    gated, folded = (
        hat_logits(theta, x, 0.01, conv=conv, hard=hard, training=training, native=native)
        for native in (True, False)
    )
    close(gated, folded, 1e-4)
    assert np.ptp(gated) > 0


@quickly
@given(SEEDS)
def test_folding_binary_gates_twice_is_folding_once(seed):
    rng = np.random.default_rng(seed)
    wiring = mlp().wiring
    gates = {name: rng.integers(0, 2, n).astype("f4") for name, n in wiring.gates.items()}
    once = fold(wiring, params(), gates)
    equal(fold(wiring, once, gates), once)
    cut = cut_unattended(wiring, params(), gates)
    equal(cut_unattended(wiring, cut, gates), cut)
    # A unit that is gated away may as well not exist.
    x = noise(seed, jnp.zeros((2, 4)))
    equal(
        mlp().apply(params() | {"gates": gates}, {}, x)[0],
        mlp().apply(cut | {"gates": gates}, {}, x)[0],
    )
    used = attended_weights(wiring, params(), gates)
    assert set(used) == {"layers/0/kernel", "layers/1/kernel"}
    equal(used["layers/1/kernel"], np.outer(gates["layer0"], gates["layer1"]) > 0)


OPEN = {"layer0": np.array([1, 0, 1, 1, 0], bool), "layer1": np.array([1, 0, 1], bool)}


def hard_task(native, value):
    """A view of a task with the gates OPEN after a later task: what may move is then `value`."""
    method = jaxcl.hat(mlp().wiring._replace(native=native), TASKS, hard=True)
    theta, state = method.init(KEY, params())
    tables = {name: np.tile(np.where(on, 1.0, -1.0), (TASKS, 1)) for name, on in OPEN.items()}
    theta, state = method.end_task(theta | {"embeddings": tables}, state, 0)
    mask = masks.resolve(method.trainable(theta, state, 1), theta)
    moved = jax.tree.map(lambda leaf, m: jnp.where(m != 0, value, leaf), theta, mask)
    return method.view(theta, state, 0), method.view(moved, state, 0)


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("value", [1e4, np.inf, -np.inf, np.nan])
def test_a_later_task_may_diverge(native, value):
    """The weights from units that are not attended into attended ones may become anything."""
    before, after = hard_task(native, value)
    equal(before, after)
    x = noise(2, jnp.zeros((3, 4)))
    equal(mlp().apply(before, {}, x)[0], mlp().apply(after, {}, x)[0])
    assert not np.any(before["layers"][1]["kernel"][~OPEN["layer0"]])
    assert not np.any(before["head"]["kernel"][~OPEN["layer1"]])


def test_cutting_by_multiplication_would_not_do(monkeypatch):
    """The broken twin of the test above."""

    def scaled(wiring, params, gates):
        return fold(wiring, params, {name: gate.astype("f4") for name, gate in gates.items()})

    monkeypatch.setattr(hat_module, "cut_unattended", scaled)
    with pytest.raises(AssertionError):
        test_a_later_task_may_diverge(False, np.nan)


def test_a_closed_unit_may_be_infinite():
    """As the logarithm of a unit all of whose inputs are cut."""
    units = jnp.log(jnp.array([[0.0, 1.0, 4.0]]))
    hard, soft = jnp.array([False, True, True]), jnp.array([0.0, 1.0, 1.0])
    equal(apply_gate(units, {"g": hard}, "g"), [[0, 0, np.log(np.float32(4))]])
    assert np.isnan(apply_gate(units, {"g": soft}, "g")[0, 0])  # it is differentiated, so a product


def test_attention_survives_embeddings_that_diverge():
    method = jaxcl.hat(mlp().wiring, TASKS)
    theta, state = method.init(KEY, params())
    _, first = method.end_task(theta, state, 0)
    broken = jax.tree.map(lambda e: e.at[1].set(jnp.nan), theta["embeddings"])
    _, second = method.end_task(theta | {"embeddings": broken}, first, 1)
    equal(first.attention, second.attention)


def test_hard_gates_are_0_or_1_in_evaluation_and_soft_in_training():
    method = jaxcl.hat(mlp().wiring, TASKS, hard=True)
    theta, state = method.init(KEY, params())
    for task in range(TASKS):
        gates = method.view(theta, state, task)["gates"]
        equal(gates, {name: e[task] > 0 for name, e in theta["embeddings"].items()})
        soft = method.view(theta, state, task, 0.0)["gates"]
        assert all(np.all((g > 0.4) & (g < 0.6)) for g in soft.values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"s_max": 1.0}, "hat: s_max must be above 1, got 1.0"),
        ({"s_max": np.inf}, "hat: s_max must be finite, got inf"),
        ({"c": -1.0}, "hat: c must be at least 0, got -1.0"),
        ({"c": np.nan}, "hat: c must be finite, got nan"),
        ({"tasks": 0}, "hat: tasks must be a whole number of at least 1, got 0"),
        (
            {"gradient": "exact"},
            "gradient must be one of 'original', 'published', 'clipped', 'ideal', got 'exact'",
        ),
        ({"embedding": "zeros"}, "embedding must be one of 'normal', 'uniform', got 'zeros'"),
    ],
)
def test_hat_errors(options, words):
    with pytest.raises(ValueError, match=words):
        jaxcl.hat(mlp().wiring, **({"tasks": TASKS} | options))


@pytest.mark.parametrize("transform", [lambda f: f, jax.grad, jax.jit])
def test_gate_refuses_an_unknown_gradient(transform):
    s = jnp.float32(400)
    gate = transform(lambda e: jaxcl.gate(e, s, s, "originl"))
    with pytest.raises(ValueError, match=r"gate: gradient must be one of 'original'.*'originl'"):
        gate(jnp.float32(0.1))


def test_hat_checks_its_table_against_the_parameters():
    with pytest.raises(ValueError, match="layers/0/kernel"):
        jaxcl.hat(mlp().wiring, TASKS).init(KEY, {"head": params()["head"]})
