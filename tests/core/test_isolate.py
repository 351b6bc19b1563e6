"""isolate: it fits into everything that optax and Flax offer, and freezes exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.training import train_state

from jaxcl import IsolateState, isolate, masks, set_trainable
from jaxcl.core import isolate as isolation

PARAMS = {"a": np.arange(1.0, 7.0, dtype="f4").reshape(2, 3), "b": np.array([1.0, -2.0], "f4")}
MASK = {"a": np.array([[True, False, True], [False, False, True]]), "b": False}
OTHER = {"a": ~MASK["a"], "b": True}

# Optimizers that move what has no gradient: by momentum, decay or orthogonalization.
INNER = {
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "adamw": lambda: optax.adamw(0.1, weight_decay=0.1),
    "lamb": lambda: optax.lamb(0.1, weight_decay=0.1),
    "muon": lambda: optax.contrib.muon(0.1, weight_decay=0.1),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.1)),
}

# The places where an isolate may stand in a larger optimizer, inside and outside.
COMPOSED = {
    "alone": lambda inner, mask: isolate(inner, mask),
    "chain inside": lambda inner, mask: isolate(optax.chain(optax.clip(1.0), inner), mask),
    "chain outside": lambda inner, mask: optax.chain(optax.clip(1.0), isolate(inner, mask)),
    "steps inside": lambda inner, mask: isolate(optax.MultiSteps(inner, 2), mask),
    "steps outside": lambda inner, mask: optax.MultiSteps(isolate(inner, mask), 2),
    "finite inside": lambda inner, mask: isolate(optax.apply_if_finite(inner, 3), mask),
    "finite outside": lambda inner, mask: optax.apply_if_finite(isolate(inner, mask), 3),
    "hyperparams inside": lambda inner, mask: isolate(
        optax.inject_hyperparams(optax.adamw)(learning_rate=0.1), mask
    ),
    "hyperparams outside": lambda inner, mask: optax.inject_hyperparams(
        lambda learning_rate: isolate(optax.adamw(learning_rate), mask)
    )(learning_rate=0.1),
    "twice": lambda inner, mask: isolate(isolate(inner, mask), mask),
}


def gradients(params, step):
    """Gradients without a zero, of any tree of parameters."""
    rng = np.random.default_rng(step)
    return jax.tree.map(lambda p: jnp.asarray(rng.uniform(0.5, 2, p.shape), p.dtype), params)


def trainer(tx, steps=4):
    @jax.jit
    def train(state, params):
        for step in range(steps):
            updates, state = tx.update(gradients(params, step), state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    return train


def train(tx, state, params, steps=4):
    return trainer(tx, steps)(state, params)


def moved(before, after):
    return jax.tree.map(lambda a, b: np.asarray(a) != np.asarray(b), before, after)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def full(mask):
    return jax.tree.map(lambda m, p: np.broadcast_to(m, p.shape), mask, PARAMS)


# Composition


@pytest.mark.parametrize(
    ("place", "inner"),
    [(place, "adamw") for place in COMPOSED] + [("alone", inner) for inner in INNER],
)
def test_moves_just_the_trainable_entries_wherever_it_stands(place, inner):
    tx = COMPOSED[place](INNER[inner](), full(MASK))
    train = trainer(tx)
    first, state = train(tx.init(PARAMS), PARAMS)
    equal(moved(PARAMS, first), full(MASK))
    # The next task, with the optimizer's state carried over, moves the others alone.
    second, state = train(set_trainable(state, full(OTHER)), first)
    equal(moved(first, second), full(OTHER))
    nothing = jax.tree.map(np.zeros_like, full(MASK))
    third, _ = train(set_trainable(state, nothing), second)
    equal(second, third)


@pytest.mark.parametrize("place", ["chain outside", "steps inside", "steps outside", "twice"])
def test_state_keeps_its_structure(place):
    tx = COMPOSED[place](optax.adamw(0.1), MASK)
    before = tx.init(PARAMS)
    _, after = train(tx, before, PARAMS, steps=2)
    after = set_trainable(after, OTHER)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    kinds = [jax.tree.map(lambda s: (s.shape, s.dtype), state) for state in (before, after)]
    assert kinds[0] == kinds[1]


def test_without_a_mask_it_is_the_inner_optimizer():
    inner = optax.adamw(0.1, weight_decay=0.1)
    plain, _ = train(inner, inner.init(PARAMS), PARAMS)
    tx = isolate(inner)
    isolated, _ = train(tx, tx.init(PARAMS), PARAMS)
    jax.tree.map(lambda p, i: np.testing.assert_allclose(p, i, rtol=1e-6), plain, isolated)


def test_frozen_entries_are_as_good_as_absent():
    """Neither the moments nor a clipped norm of the others know of them."""
    inner = optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.1))
    tx = isolate(inner, {"a": True, "b": False})
    isolated, state = train(tx, tx.init(PARAMS), PARAMS)
    alone = {"a": PARAMS["a"]}
    expected, _ = train(inner, inner.init(alone), alone)
    np.testing.assert_allclose(expected["a"], isolated["a"], rtol=1e-6)
    assert not np.any(optax.tree.get(state, "mu")["b"])


def test_masked_outside_hides_leaves_from_it():
    tx = optax.masked(isolate(optax.adamw(0.1), MASK), {"a": True, "b": False})
    state = tx.init(PARAMS)
    updates, state = tx.update(gradients(PARAMS, 0), state, PARAMS)
    equal(np.asarray(updates["a"]) != 0, MASK["a"])
    equal(updates["b"], gradients(PARAMS, 0)["b"])  # optax.masked passes these on as they are
    updates, _ = tx.update(gradients(PARAMS, 0), set_trainable(state, OTHER), PARAMS)
    equal(np.asarray(updates["a"]) != 0, OTHER["a"])


def test_partition_outside_gives_each_label_its_own():
    tx = optax.partition(
        {"slow": isolate(optax.adamw(1e-3), MASK), "fast": isolate(optax.sgd(1.0), MASK)},
        {"a": "slow", "b": "fast"},
    )
    first, state = train(tx, tx.init(PARAMS), PARAMS)
    equal(moved(PARAMS, first), full(MASK))
    second, _ = train(tx, set_trainable(state, OTHER), first)
    equal(moved(first, second), full(OTHER))


def test_partition_inside():
    inner = optax.partition({"x": optax.adamw(0.1), "y": optax.sgd(0.1)}, {"a": "x", "b": "y"})
    tx = isolate(inner, {"a": MASK["a"], "b": np.array([False, True])})
    after, _ = train(tx, tx.init(PARAMS), PARAMS)
    equal(moved(PARAMS, after), {"a": MASK["a"], "b": np.array([False, True])})


def test_map_params_tells_moments_from_masks():
    tx = isolate(optax.adam(0.1), MASK)
    state = tx.init(PARAMS)
    marked = optax.tree.map_params(
        tx,
        lambda leaf: "param",
        state,
        transform_non_params=lambda leaf: "other",
    )
    assert marked.inner[0].mu == marked.inner[0].nu == {"a": "param", "b": "param"}
    assert marked.trainable == {"a": "other", "b": "other"}
    assert marked.inner[0].count == "other"


def test_extra_arguments_reach_the_inner_optimizer():
    def update(updates, state, params=None, *, factor, **rest):
        return jax.tree.map(lambda u: factor * u, updates), state

    inner = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    tx = isolate(inner, MASK)
    grads = gradients(PARAMS, 0)
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS, factor=3.0, unknown=1)
    equal(updates["a"], np.where(MASK["a"], 3 * grads["a"], 0))
    # An optimizer that takes none is not given any.
    tx = isolate(optax.sgd(1.0), MASK)
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS, factor=3.0)
    equal(updates["a"], np.where(MASK["a"], -grads["a"], 0))


def test_a_reduction_on_plateau_goes_on():
    tx = isolate(optax.chain(optax.sgd(1.0), optax.contrib.reduce_on_plateau(patience=1)), MASK)
    state = tx.init(PARAMS)
    for _ in range(4):
        updates, state = tx.update(gradients(PARAMS, 0), state, PARAMS, value=1.0)
    assert optax.tree.get(state, "scale") < 1
    equal(jax.tree.map(lambda u: u != 0, updates), full(MASK))


# Copies of the parameters within an optimizer's state


def averaged(decay, copy):
    """A transform of a user's own: a running average of the parameters, beside SGD."""

    def update(updates, state, params):
        updates = jax.tree.map(lambda u: -0.1 * u, updates)
        after = optax.apply_updates(params, updates)
        return updates, optax.incremental_update(after, state, 1 - decay)

    return optax.GradientTransformation(lambda params: jax.tree.map(copy, params), update)


AVERAGES = {
    "schedule-free": (
        lambda: optax.contrib.schedule_free_adamw(0.1, weight_decay=0.1),
        optax.contrib.schedule_free_eval_params,
    ),
    "schedule-free in steps": (
        lambda: optax.MultiSteps(optax.contrib.schedule_free_adamw(0.1, weight_decay=0.1), 2),
        lambda state, params: optax.contrib.schedule_free_eval_params(
            state.inner_opt_state, params
        ),
    ),
    "average": (lambda: averaged(0.9, jnp.copy), lambda state, params: state),
    "average in a program": (
        lambda: averaged(0.9, jax.jit(lambda p: 1 * p)),
        lambda state, params: state,
    ),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_copies_of_frozen_entries_stay(name):
    """Also those that earlier tasks have moved; and what is trainable is averaged as ever."""
    build, average = AVERAGES[name]
    tx = isolate(build(), full(MASK))
    train = trainer(tx)
    first, state = train(tx.init(PARAMS), PARAMS)
    equal(moved(PARAMS, average(state.inner, first)), full(MASK))
    jax.tree.map(
        lambda mine, m, whole: np.testing.assert_allclose(mine[m], whole[m], 1e-6),
        average(state.inner, first),
        full(MASK),
        average(*reversed(trainer(build())(build().init(PARAMS), PARAMS))),
    )
    second, later = train(set_trainable(state, full(OTHER)), first)
    equal(moved(average(state.inner, first), average(later.inner, second)), full(OTHER))


def test_schedule_free_evaluation_of_a_frozen_entry():
    """It was 2.0222 after ten steps, by weight decay on the optimizer's own copy."""
    tx = isolate(
        optax.contrib.schedule_free_adamw(0.1, weight_decay=0.1), {"w": np.array([True, False])}
    )
    params = {"w": jnp.array([1.0, 2.0])}
    after, state = train(tx, tx.init(params), params, steps=10)
    assert optax.contrib.schedule_free_eval_params(state.inner, after)["w"][1] == 2


def test_copies_bite_without_their_hold(monkeypatch):
    """The broken twin of the tests above."""
    monkeypatch.setattr(isolation, "_find_copies", lambda *_: {})
    for name in AVERAGES:
        with pytest.raises(AssertionError):
            test_copies_of_frozen_entries_stay(name)


def test_lookahead_is_refused():
    tx = isolate(optax.lookahead(optax.adamw(0.1), 2, 0.5), MASK)
    with pytest.raises(ValueError, match=r"isolate: optax\.lookahead is not supported"):
        tx.init(optax.LookaheadParams(PARAMS, PARAMS))


def test_a_soft_mask_scales_how_copies_move():
    share = {"a": np.float32(0.25), "b": np.array([0.0, 1.0], "f4")}
    start = jax.tree.map(lambda p: p + 1, PARAMS)
    tx, inner = isolate(averaged(0.9, jnp.copy), share), averaged(0.9, jnp.copy)
    state = tx.init(PARAMS)._replace(inner=start)
    _, whole = inner.update(gradients(PARAMS, 0), start, PARAMS)
    gradient = jax.tree.map(lambda g, s: g * (s != 0), gradients(PARAMS, 0), share)
    _, state = tx.update(gradient, state, PARAMS)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
    close(state.inner["a"], start["a"] + 0.25 * (whole["a"] - start["a"]))
    equal(state.inner["b"], np.array([start["b"][0], whole["b"][1]]))


def test_a_snapshot_is_no_copy():
    """It starts as the parameters, but holds the last updates; and a monitor's state grows."""
    snapshot = optax.snapshot("last", lambda updates: updates)
    monitor = optax.monitor({"here": lambda updates: updates})
    inner = optax.chain(monitor, snapshot, AVERAGES["schedule-free"][0]())
    tx = isolate(inner, full(MASK))
    state, params, gradient = tx.init(PARAMS), PARAMS, gradients(PARAMS, 0)
    for _ in range(3):
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    equal(optax.tree.get(state, "last"), jax.tree.map(np.multiply, gradient, full(MASK)))
    average = optax.contrib.schedule_free_eval_params(state.inner[2], params)
    equal(moved(PARAMS, average), full(MASK))


@pytest.mark.parametrize("inner", INNER)
def test_what_keeps_no_copies_has_no_more_to_compute(inner, monkeypatch):
    tx = isolate(INNER[inner](), full(MASK))
    state = tx.init(PARAMS)
    lowered = jax.jit(tx.update).lower(PARAMS, state, PARAMS).as_text()
    monkeypatch.setattr(isolation, "_hold", lambda mask, new, old, copies: new)
    assert lowered == jax.jit(tx.update).lower(PARAMS, state, PARAMS).as_text()


# Numbers


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("soft", [False, True])
def test_a_bad_gradient_of_a_frozen_entry_is_harmless(bad, soft):
    mask = jax.tree.map(lambda m: np.asarray(m, "f4") * 0.5, MASK) if soft else MASK
    tx = isolate(optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1)), mask)
    grads = jax.tree.map(lambda g, m: jnp.where(m, g, bad), gradients(PARAMS, 0), full(MASK))
    updates, state = tx.update(grads, tx.init(PARAMS), PARAMS)
    after = optax.apply_updates(PARAMS, updates)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((after, state.inner)))
    equal(moved(PARAMS, after), full(MASK))


def test_multiplying_by_the_mask_would_not_do(monkeypatch):
    """The broken twin of the test above."""
    monkeypatch.setattr(isolation, "_drop_frozen", lambda mask, gradient: mask * gradient)
    with pytest.raises(AssertionError):
        test_a_bad_gradient_of_a_frozen_entry_is_harmless(np.inf, soft=False)


def test_apply_if_finite_judges_what_it_is_shown():
    grads = {"a": jnp.ones((2, 3)), "b": jnp.array([jnp.nan, 1.0])}
    outside = optax.apply_if_finite(isolate(optax.sgd(1.0), MASK), 3)
    updates, _ = outside.update(grads, outside.init(PARAMS), PARAMS)
    assert not np.any(updates["a"])
    inside = isolate(optax.apply_if_finite(optax.sgd(1.0), 3), MASK)
    updates, _ = inside.update(grads, inside.init(PARAMS), PARAMS)
    equal(updates["a"] != 0, MASK["a"])


@pytest.mark.parametrize("inner", [optax.sgd(1.0), optax.adam(1.0), optax.adamw(1.0)])
def test_a_soft_mask_scales_the_update(inner):
    """Adam would undo a factor on the gradient."""
    share = {"a": np.array([[0.0, 0.25, 1.0], [0.5, 1e-4, 0.125]], "f4"), "b": np.float32(0.5)}
    tx = isolate(inner, share)
    updates, _ = tx.update(gradients(PARAMS, 0), tx.init(PARAMS), PARAMS)
    whole, _ = inner.update(gradients(PARAMS, 0), inner.init(PARAMS), PARAMS)
    jax.tree.map(
        lambda u, s, w: np.testing.assert_allclose(u, s * w, rtol=1e-6), updates, share, whole
    )


@pytest.mark.parametrize(("soft", "moved"), [("update", 0.01), ("gradient", 0.1)])
def test_whether_a_clipped_norm_knows_of_soft_entries(soft, moved):
    """In HAT's original code gradients are scaled before they are clipped."""
    inner = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))
    tx = isolate(inner, {"w": np.array([1e-6, 1.0], "f4")}, soft=soft)
    params = {"w": jnp.ones(2)}
    updates, _ = tx.update({"w": jnp.array([10.0, 0.1])}, tx.init(params), params)
    np.testing.assert_allclose(-updates["w"], [1e-6 if soft == "update" else 1e-5, moved], 1e-4)


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("soft", ["update", "gradient"])
def test_soft_entries_of_zero_are_frozen(inner, soft):
    share = jax.tree.map(lambda m: m * np.float32(0.5), full(MASK))
    tx = isolate(INNER[inner](), share, soft=soft)
    gradient = jax.tree.map(lambda p, m: jnp.where(m, p, jnp.nan), PARAMS, full(MASK))
    updates, _ = tx.update(gradient, tx.init(PARAMS), PARAMS)
    equal(jax.tree.map(lambda u: u != 0, updates), full(MASK))


def test_attended_is_a_soft_mask_in_two_factors():
    source, target = np.array([[0.0], [0.25]], "f4"), np.array([1.0, 0.75, 0.0], "f4")
    tx = isolate(optax.sgd(1.0), {"a": masks.Attended(source, target), "b": True})
    updates, state = tx.update({"a": jnp.ones((2, 3)), "b": jnp.ones(2)}, tx.init(PARAMS))
    equal(-updates["a"], 1 - np.minimum(source, target))
    again = set_trainable(state, {"a": masks.Attended(target[:2, None], target), "b": True})
    updates, _ = tx.update({"a": jnp.ones((2, 3)), "b": jnp.ones(2)}, again)
    equal(-updates["a"], 1 - np.minimum(target[:2, None], target))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("mask", [True, np.float32(0.5), np.array([True, False])])
def test_dtype_is_preserved(dtype, mask):
    params = {"w": jnp.ones((3, 2), dtype)}
    tx = isolate(optax.sgd(0.1, momentum=0.9), {"w": mask})
    updates, state = tx.update(params, tx.init(params), params)
    assert updates["w"].dtype == optax.tree.get(state, "trace")["w"].dtype == dtype


def test_a_mask_of_fewer_axes_broadcasts_like_an_array():
    params = {"w": jnp.ones((4, 3, 2)), "v": jnp.ones(2)}
    for mask in (np.array([0.5, 0.0], "f4"), np.array([True, False])):
        tx = isolate(optax.sgd(1.0), mask)
        updates, _ = tx.update(params, tx.init(params), params)
        expected = -np.asarray(mask, "f4")
        equal(updates, {"w": np.broadcast_to(expected, (4, 3, 2)), "v": expected})


# Transformations


def test_vmap_over_masks_equals_one_by_one():
    rows = np.random.default_rng(0).integers(0, 2, (5, 2, 3)).astype(bool)
    tx = isolate(optax.adamw(0.1))
    state = tx.init(PARAMS)

    def run(row):
        carry = PARAMS, set_trainable(state, {"a": row, "b": True})

        def step(carry, number):
            params, state = carry
            grads = jax.tree.map(lambda p: p * number, params)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, jax.tree.map(jnp.asarray, carry), jnp.arange(1.0, 4.0))[0][0]

    together = jax.jit(jax.vmap(run))(rows)
    for index, row in enumerate(rows):
        alone = jax.jit(run)(row)
        mine = jax.tree.map(lambda leaf: leaf[index], together)  # noqa: B023
        jax.tree.map(lambda m, a: np.testing.assert_allclose(m, a, rtol=1e-6), mine, alone)
        equal(np.asarray(together["a"][index]) != PARAMS["a"], row)


def test_a_new_mask_does_not_retrace():
    traces = []
    tx = isolate(optax.adamw(0.1), full(MASK))

    @jax.jit
    def step(params, state):
        traces.append(None)
        updates, state = tx.update(gradients(params, 0), state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, tx.init(PARAMS)
    for task in range(5):
        state = set_trainable(state, full(MASK if task % 2 else OTHER))
        for _ in range(2):
            params, state = step(params, state)
    assert len(traces) == 1


def test_a_mask_in_the_closure_retraces():
    """The broken twin of the test above."""
    traces = []

    @functools.partial(jax.jit, static_argnums=2)
    def step(params, state, task):
        traces.append(None)
        tx = isolate(optax.sgd(0.1), full(MASK if task % 2 else OTHER))
        return tx.update(gradients(params, 0), state, params)

    state = isolate(optax.sgd(0.1)).init(PARAMS)
    for task in range(5):
        step(PARAMS, state, task)
    assert len(traces) == 5


# Flax


def test_linen_train_state():
    module = nn.Dense(2)
    params = module.init(jax.random.key(0), jnp.ones((1, 3)))["params"]
    mask = masks.by_path(params, [("kernel", np.array([[True], [False], [True]])), ("", False)])
    state = train_state.TrainState.create(
        apply_fn=module.apply, params=params, tx=isolate(optax.adamw(0.1), mask)
    )

    @jax.jit
    def step(state):
        loss = lambda p: jnp.sum(state.apply_fn({"params": p}, jnp.ones((4, 3))) ** 2)  # noqa: E731
        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    first = step(step(state))
    expected = np.broadcast_to([[True], [False], [True]], (3, 2))
    equal(moved(params, first.params), {"kernel": expected, "bias": [False, False]})
    state = first.replace(opt_state=set_trainable(first.opt_state, {"kernel": False, "bias": True}))
    second = step(step(state))
    equal(
        moved(first.params, second.params),
        {"kernel": np.zeros((3, 2), bool), "bias": [True, True]},
    )


def test_nnx_optimizer():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    kernel = masks.by_path(params, [("kernel", True), ("bias", False)])
    bias = masks.by_path(params, [("kernel", False), ("bias", True)])
    optimizer = nnx.Optimizer(model, isolate(optax.adamw(0.1), kernel), wrt=nnx.Param)
    traces = []

    @nnx.jit
    def step(model, optimizer):
        traces.append(None)
        optimizer.update(model, nnx.grad(lambda m: jnp.sum(m(jnp.ones((4, 3))) ** 2))(model))

    def values():
        return {name: np.asarray(getattr(model, name)[...]) for name in ("kernel", "bias")}

    start = values()
    step(model, optimizer)
    first = values()
    assert moved(start, first)["kernel"].all()
    equal(start["bias"], first["bias"])
    counts = []
    for mask, name, other in [(bias, "bias", "kernel"), (kernel, "kernel", "bias")] * 2:
        before = values()
        optimizer.opt_state = set_trainable(optimizer.opt_state, mask)
        step(model, optimizer)
        assert moved(before, values())[name].all()
        equal(before[other], values()[other])
        counts.append(len(traces))
    assert len(set(counts)) == 1  # from the first new mask on


def test_nnx_mask_as_plain_dict():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(
        model, isolate(optax.adamw(0.1), {"kernel": False, "bias": True}), wrt=nnx.Param
    )
    grads = nnx.state(model, nnx.Param)
    before = np.asarray(model.kernel[...]), np.asarray(model.bias[...])
    optimizer.update(model, jax.tree.map(jnp.ones_like, grads))
    equal(before[0], model.kernel[...])
    assert np.all(before[1] != np.asarray(model.bias[...]))


@pytest.mark.parametrize("boxed", [False, True])
def test_linen_boxed_parameters(boxed):
    kernel_init = nn.with_partitioning(nn.initializers.ones, (None, "model"))
    module = nn.Dense(2, kernel_init=kernel_init)
    params = module.init(jax.random.key(0), jnp.ones((1, 3)))["params"]
    assert isinstance(params["kernel"], nn.Partitioned)
    mask = {"kernel": np.array([[True], [False], [True]]), "bias": False}
    after, _ = train(tx := isolate(optax.adamw(0.1), mask), tx.init(params), params)
    expected = {"kernel": np.broadcast_to(mask["kernel"], (3, 2)), "bias": np.zeros(2, bool)}
    equal(moved(nn.unbox(params), nn.unbox(after)), expected)


def test_a_mask_may_be_a_function_of_the_parameters():
    tx = isolate(optax.adamw(0.1), lambda params: masks.by_path(params, [("a", True), ("", False)]))
    after, _ = train(tx, tx.init(PARAMS), PARAMS)
    equal(moved(PARAMS, after), {"a": np.ones((2, 3), bool), "b": np.zeros(2, bool)})
    marked = optax.tree.map_params(tx, lambda leaf: "param", tx.init(PARAMS))
    assert marked.inner[0].mu == {"a": "param", "b": "param"}
    with pytest.raises(ValueError, match="expected a mask, not a function"):
        set_trainable(tx.init(PARAMS), lambda params: True)


# Errors


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ({"a": True}, "no leaf for parameter 'b'"),
        ({"a": True, "b": True, "c": True}, "'c' matches no parameter"),
        ({"a": np.ones((3, 2), bool), "b": True}, r"'a' has shape \(3, 2\).*\(2, 3\)"),
        ({"a": np.ones((1, 2, 3), bool), "b": True}, r"'a' has shape \(1, 2, 3\)"),
        ({"a": True, "b": 1}, "'b' must be bool or float, got int"),
    ],
)
def test_errors_name_the_leaf(mask, words):
    with pytest.raises(ValueError, match=words):
        isolate(optax.sgd(0.1), mask).init(PARAMS)
    tx = isolate(optax.sgd(0.1))
    state = set_trainable(tx.init(PARAMS), mask)
    with pytest.raises(ValueError, match=words):
        tx.update(PARAMS, state, PARAMS)


def test_soft_is_one_of_two():
    with pytest.raises(ValueError, match="isolate: soft must be one of 'update', 'gradient', got"):
        isolate(optax.sgd(0.1), soft="both")


@pytest.mark.parametrize(
    "tx", [optax.adam(0.1), optax.sgd(0.1), optax.chain(optax.clip(1.0), optax.adam(0.1))]
)
def test_set_trainable_needs_an_isolate(tx):
    with pytest.raises(ValueError, match="holds no isolate"):
        set_trainable(tx.init(PARAMS), MASK)


def test_set_trainable_changes_the_mask_alone():
    tx = optax.chain(optax.clip(1.0), isolate(optax.adam(0.1), MASK))
    _, state = train(tx, tx.init(PARAMS), PARAMS)
    renewed = set_trainable(state, OTHER)
    equal(renewed[1].trainable, OTHER)
    equal(renewed[1].inner, state[1].inner)
    assert isinstance(renewed[1], IsolateState)
    equal(state[1].trainable, MASK)
