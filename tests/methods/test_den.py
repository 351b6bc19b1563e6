"""DEN: selection, proximal steps, expansion, splits and stamps, each by numpy; and the laws."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from growth import CLASSES, NETS, OPTIMIZERS, TASKS, course, few_digits

import jaxcl
import jaxcl.core.method
from jaxcl import recipes, study, train
from jaxcl.methods import den
from jaxcl.methods.den import DENOptions, plan_copies, reaching, shrink, shrink_columns
from jaxcl.methods.units import with_room


def make(kind="mlp", optimizer=OPTIMIZERS["adam"], start=(4, 3), room=(8, 7), **options):
    net = NETS[kind][1]
    small = net(*start)
    model = with_room(small, net(*room))
    base = jaxcl.multihead(jaxcl.finetune(), TASKS, "head|norm")
    chosen = DENOptions(**{"units": 2, **options})
    method = jaxcl.den(base, model.wiring, small.wiring.gates, chosen, heads="head|norm")
    return train.Setup(method, model, optimizer, batch=4, norm="per_task")


STAMPS = {"layer0": [1, 2, 1, 0, 1, 2, 0, 0], "layer1": [1, 1, 2, 0, 1, 0, 0]}


def filled(setup, sparse=0.0):
    """A learner in its second task with random weights, of which a share is zero."""
    learner = train.start(setup, jax.random.key(0), TASKS)
    rng = np.random.default_rng(1)

    def fill(leaf):
        return jnp.asarray(rng.normal(size=leaf.shape) * (rng.random(leaf.shape) >= sparse), "f4")

    stamps = {gate: jnp.array(stamp) for gate, stamp in STAMPS.items()}
    theta = jax.tree.map(fill, learner.theta)
    before = {p: fill(leaf) for p, leaf in learner.state.before.items()}
    return theta, learner.state._replace(stamps=stamps, before=before)


def phase(setup, name):
    return {phase.name: phase for phase in setup.method.phases}[name]


def context(**fields):
    empty = dict.fromkeys(jaxcl.core.method.Context._fields)
    return jaxcl.core.method.Context(**{**empty, "task": 1, **fields})


# Selective retraining.


def selected_by_hand(theta, classes):
    """Whether a path of non-zero weights leads from a unit to a class, tried one by one."""
    first, second = (np.asarray(theta["layers"][i]["kernel"]) for i in range(2))
    head, stamps = np.asarray(theta["head"]["kernel"][1]), STAMPS
    units = {gate: np.zeros(len(stamp), bool) for gate, stamp in stamps.items()}
    for j, stamp in enumerate(stamps["layer1"]):
        units["layer1"][j] = stamp > 0 and any(head[j, c] != 0 for c in classes)
    for i, stamp in enumerate(stamps["layer0"]):
        hits = [units["layer1"][j] and second[i, j] != 0 for j in range(second.shape[1])]
        units["layer0"][i] = stamp > 0 and any(hits)
    assert first.shape[1] == len(units["layer0"])
    return units


@pytest.mark.parametrize(("columns", "classes"), [("any", range(2)), ("first", range(1))])
def test_units_are_selected_that_reach_the_head(columns, classes):
    setup = make(columns=columns)
    theta, state = filled(setup, sparse=0.7)
    lent = context(classes=jnp.array([3, 2, 3]))
    _, after = phase(setup, "select").begin(lent, theta, state)
    expected = selected_by_hand(theta, classes)
    jax.tree.map(np.testing.assert_array_equal, after.selected, expected)
    assert not all(s.all() for s in expected.values())
    others = selected_by_hand(theta, range(1) if columns == "any" else range(3))
    assert any((expected[gate] != others[gate]).any() for gate in expected)  # the broken twins

    mask = jax.device_get(phase(setup, "select").trainable(theta, after, 1))
    both = expected["layer0"][:, None] & expected["layer1"]
    np.testing.assert_array_equal(mask["layers"][1]["kernel"], both)
    np.testing.assert_array_equal(mask["layers"][0]["bias"], expected["layer0"])
    np.testing.assert_array_equal(mask["head"]["kernel"].ravel(), [False, True, False])
    squares = sum(
        float(np.sum(np.where(m, np.asarray(theta["layers"][i]["kernel"]) ** 2, 0)))
        for i, m in enumerate([expected["layer0"][None], both])
    )
    found = phase(setup, "select").penalty(theta, after, 1)
    np.testing.assert_allclose(found, 1e-4 * squares, rtol=1e-5)
    assert float(phase(setup, "select").penalty(theta, after, 0)) == 0


def test_a_head_without_a_class_selects_nothing():
    wiring = make().model.wiring
    leaves = {p: jnp.ones((4, 4)) for p in wiring.inputs}
    wiring = wiring._replace(gates=dict.fromkeys(wiring.gates, 4))
    assert all(u.all() for u in reaching(wiring, leaves, jnp.ones(4, bool)).values())
    assert not any(u.any() for u in reaching(wiring, leaves, jnp.zeros(4, bool)).values())


# Proximal steps.


def test_proximal_steps_are_those_of_their_norms():
    """Each minimizes half the squared distance plus threshold times norm: none is below."""
    rng = np.random.default_rng(0)
    w, t = rng.normal(size=(3, 4)).astype("f4"), 0.8

    def l1(v):
        return 0.5 * np.sum((v - w) ** 2) + t * np.sum(np.abs(v))

    def lasso(v):
        return 0.5 * np.sum((v - w) ** 2) + t * np.sum(np.sqrt(np.sum(v**2, 0)))

    for objective, step in ((l1, shrink), (lasso, shrink_columns)):
        least = np.asarray(step(jnp.asarray(w), t))
        for _ in range(200):
            other = least + rng.normal(0, rng.choice([1e-2, 1.0]), w.shape)
            assert objective(least) < objective(other)
    assert (np.asarray(shrink(jnp.asarray(w), t)) == 0).any()


def shrinks_by(step_size):
    """How far a kernel's largest entry shrinks in an epoch of five steps without a gradient."""
    setup = make(optimizer=optax.chain(optax.set_to_zero(), optax.sgd(step_size)), l1=1e-3)
    made = course(setup, "mlp")
    learner = made.begin(train.start(setup, jax.random.key(0), TASKS), jnp.int32(0))
    before = np.asarray(learner.theta["layers"][0]["kernel"])
    after = np.asarray(made.epoch(learner, jnp.int32(0), 0).theta["layers"][0]["kernel"])
    at = np.unravel_index(np.argmax(before), before.shape)
    return before[at] - after[at]


def test_the_thresholds_are_not_scaled_by_the_step_size(monkeypatch):
    assert [round(float(shrinks_by(rate)), 5) for rate in (0.01, 1.0)] == [0.005, 0.005]
    honest = den.shrink
    monkeypatch.setattr(den, "shrink", lambda w, t: honest(w, t * 0.01))  # the broken twin
    assert round(float(shrinks_by(0.01)), 5) != 0.005


def test_new_units_that_the_group_lasso_silences_are_dropped():
    setup = make(group_lasso=1.0, l1=0.0)
    theta, state = filled(setup)
    kernel = theta["layers"][0]["kernel"].at[:, 1].mul(1e-3)
    theta["layers"][0]["kernel"] = kernel
    after = phase(setup, "expand").project(theta, state, 1)["layers"][0]["kernel"]
    changed = (np.asarray(after) != np.asarray(kernel)).any(0)
    np.testing.assert_array_equal(changed, np.array(STAMPS["layer0"]) == 2)
    assert not np.asarray(after)[:, 1].any() and np.asarray(after)[:, 5].any()
    theta["layers"][0]["kernel"] = after
    _, dropped = phase(setup, "pull").begin(context(), theta, state)
    np.testing.assert_array_equal(dropped.stamps["layer0"], [1, 0, 1, 0, 1, 2, 0, 0])
    np.testing.assert_array_equal(dropped.stamps["layer1"], STAMPS["layer1"])


# Expansion.


@pytest.mark.parametrize(
    ("tau", "task", "grows"), [(0.0, 1, True), (1e9, 1, False), (0.0, 0, False)]
)
def test_it_expands_a_later_task_whose_loss_is_too_high(tau, task, grows):
    setup = make(tau=tau)
    made = course(setup, "mlp")
    learner = made.begin(train.start(setup, jax.random.key(0), TASKS), jnp.int32(task))
    after = made.begin_phase(learner, jnp.int32(task), 2)
    expected = [1, 1, 1, 1, 2, 2, 0, 0] if grows else [1, 1, 1, 1, 0, 0, 0, 0]
    np.testing.assert_array_equal(after.state.stamps["layer0"], expected)
    assert bool(after.stopping.stopped) != grows
    trained = made.epoch(after, jnp.int32(task), 2)
    moved = [
        np.asarray(a != b)
        for a, b in zip(jax.tree.leaves(after.theta), jax.tree.leaves(trained.theta))
    ]
    if not grows:
        assert not any(m.any() for m in moved)
        return
    head_bias, head, _, first, _, second = moved
    assert not first[:, :4].any() and first[:, 4:6].any() and not first[:, 6:].any()
    assert not second[:4, :3].any() and second[:4, 3:5].any() and second[4:6, :3].any()
    assert not head[[0, 2]].any() and not head[1, :3].any() and head[1, 3:5].any()
    assert head_bias[1].any()


# Split and duplication.


def test_units_beyond_the_drift_are_split_the_most_drifted_first():
    drift = jnp.array([0.2, 0.0, 0.9, 0.5, 0.05, 0.0])
    stamp = jnp.array([1, 0, 1, 1, 1, 0])
    most = plan_copies(drift, stamp, 0.1, 2, "most")
    np.testing.assert_array_equal(most.source, [0, 2, 2, 3, 4, 3])
    np.testing.assert_array_equal(most.split, [False, False, True, True, False, False])
    least = plan_copies(drift, stamp, 0.1, 2, "least")
    np.testing.assert_array_equal(least.source, [0, 0, 2, 3, 4, 3])
    one = plan_copies(drift, stamp, 0.6, 2, "most")
    np.testing.assert_array_equal(one.source, [0, 2, 2, 3, 4, 5])
    full = plan_copies(drift, jnp.maximum(stamp, 1), 0.1, 2, "most")
    np.testing.assert_array_equal(full.source, np.arange(6))
    assert not full.split.any()


def drift_by_hand(theta, state):
    """Distance of what feeds each older unit from older units, one by one."""
    found = {}
    for layer, below in ((0, [1] * 6), (1, STAMPS["layer0"])):
        gate = f"layer{layer}"
        now = np.asarray(theta["layers"][layer]["kernel"])
        then = np.asarray(state.before[f"layers/{layer}/kernel"])
        found[gate] = np.array(
            [
                sum((now[i, j] - then[i, j]) ** 2 for i, b in enumerate(below) if b == 1) ** 0.5
                if stamp == 1
                else 0.0
                for j, stamp in enumerate(STAMPS[gate])
            ]
        )
    return found


def test_a_split_gives_back_the_old_weights_and_keeps_the_new_in_a_copy():
    setup = make()
    theta, state = filled(setup)
    drift = drift_by_hand(theta, state)
    limit = float(min(values.max() for values in drift.values())) * 0.999  # some in each layer
    setup = make(drift=limit)
    leaves = jaxcl.masks.leaves_by_path(theta)
    found = den.drift_of(setup.model.wiring, leaves, state.before, state.stamps, 1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, drift)
    new, after = phase(setup, "split").begin(context(), theta, state)
    moved = {gate: [i for i, d in enumerate(drift[gate]) if d > limit] for gate in drift}
    assert all(moved.values())
    below = []  # the units of the layer below that were split, each with its copy
    for layer in range(2):
        gate, kernel = f"layer{layer}", np.asarray(new["layers"][layer]["kernel"])
        old = np.asarray(state.before[f"layers/{layer}/kernel"])
        now = np.asarray(theta["layers"][layer]["kernel"])
        old_rows = [True] * 6 if layer == 0 else np.array(STAMPS["layer0"]) == 1
        order = sorted(moved[gate], key=lambda i: -drift[gate][i])
        places = [i for i, s in enumerate(STAMPS[gate]) if s == 0]
        stamps = list(STAMPS[gate])
        pairs = list(zip(order[:2], places))
        for unit, place in pairs:
            np.testing.assert_array_equal(kernel[old_rows, unit], old[old_rows, unit])
            expected = now[:, unit].copy()
            for one, copy in below:  # a copy reads the copies in the place of their units
                expected[copy], expected[one] = expected[one], 0
            here = [i for i, s in enumerate(STAMPS["layer0"]) if s] + [c for _, c in below]
            here = here if layer else slice(None)
            np.testing.assert_array_equal(kernel[here, place], expected[here])
            bias, was = new["layers"][layer]["bias"], theta["layers"][layer]["bias"]
            assert bias[place] == was[unit]
            assert bias[unit] == state.before[f"layers/{layer}/bias"][unit]
            stamps[place] = 2
            if layer == 1:
                head, before = new["head"]["kernel"], theta["head"]["kernel"]
                np.testing.assert_array_equal(head[1, place], before[1, unit])
                assert not np.asarray(head[1, unit]).any()
                np.testing.assert_array_equal(head[0, unit], before[0, unit])
        for other in [i for i, s in enumerate(STAMPS[gate]) if s == 1 and i not in order[:2]]:
            for one, copy in below:  # an older unit goes on reading the unit
                assert kernel[copy, other] == 0 and kernel[one, other] == now[one, other]
        np.testing.assert_array_equal(after.stamps[gate], stamps)
        below = pairs
    assert bool(after.split)


def test_splits_only_where_it_grew_if_asked():
    for grown, expected in ((True, True), (False, False)):
        setup = make(drift=0.01, split_when="grown")
        theta, state = filled(setup)
        state = state._replace(grown=jnp.bool_(grown))
        _, after = phase(setup, "split").begin(context(), theta, state)
        assert bool(after.split) == expected


def test_the_pull_is_the_squared_distance_of_older_weights():
    setup = make(pull=0.5)
    theta, state = filled(setup)
    total = 0.0
    for layer, below in ((0, np.ones(6)), (1, np.array(STAMPS["layer0"]))):
        target = np.array(STAMPS[f"layer{layer}"]) == 1
        for name, where in (("kernel", (below == 1)[:, None] & target), ("bias", target)):
            now, then = theta["layers"][layer][name], state.before[f"layers/{layer}/{name}"]
            total += float(np.sum(np.where(where, np.asarray(now - then) ** 2, 0)))
    for name in ("pull", "split"):
        np.testing.assert_allclose(
            phase(setup, name).penalty(theta, state, 1), total / 2, rtol=1e-5
        )
        assert float(phase(setup, name).penalty(theta, state, 0)) == 0


# Stamps.


def sees_new_units(setup):
    """Whether what only newer units read and feed can change an earlier task's logits."""
    theta, state = filled(setup)
    x = np.random.default_rng(2).normal(size=(5, 6)).astype("f4")

    def logits(theta, task):
        return np.asarray(setup.model.apply(setup.method.view(theta, state, task), {}, x)[0])

    mask = phase(setup, "expand").trainable(theta, state, 1)
    mask = jaxcl.masks.resolve(mask, theta)
    other = jax.tree.map(lambda leaf, new: jnp.where(new, leaf + 1, leaf), theta, mask)
    assert not np.array_equal(logits(theta, 1), logits(other, 1))
    return not np.array_equal(logits(theta, 0), logits(other, 0))


def test_a_task_is_evaluated_with_the_units_up_to_its_own():
    setup = make()
    assert not sees_new_units(setup)
    method = setup.method

    def view(theta, state, task, progress=None):
        present = {gate: jnp.minimum(stamp, 1) for gate, stamp in state.stamps.items()}
        return method.view(theta, state._replace(stamps=present), task, progress)

    assert sees_new_units(setup._replace(method=method._replace(view=view)))  # the broken twin


# Laws 2 and 3, and a convolution's flattened output.

OPTIONS = recipes.Options(hidden=(5, 4), batch=16, epochs=5, learning_rate=0.1)


def learn(seeds, studies=None):
    choice = recipes.choose("den", OPTIONS, tau=1.9, units=2, drift=0.3, pull=0.01)
    studies = studies or recipes.studies(
        choice, few_digits(3), seeds=seeds, devices=jax.devices()[:1]
    )
    ends = [e for e in study.run(studies) if isinstance(e, study.TaskEnd)]
    measures = {k: np.stack([e.measures[k] for e in ends], 1) for k in ends[0].measures}
    last = jax.device_get((ends[-1].learners.theta, ends[-1].learners.state.stamps))
    return (np.stack([e.accuracy for e in ends], 1), measures, last), studies


def test_law_2_each_seed_grows_on_its_own_and_law_3_compile_once():
    seeds = [3, 1, 2]
    together, studies = learn(seeds)
    assert set(studies[0].traces.values()) == {1}
    grown = together[1]["units layer0"]
    assert len({tuple(row) for row in grown}) > 1, "all seeds grow alike"
    one = None
    for i, seed in enumerate(seeds):
        one = one and [one[0]._replace(seeds=np.array([seed], np.uint32))]
        alone, one = learn([seed], one)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a[0], b[i], rtol=1e-3, atol=1e-4),  # noqa: B023
            alone, together,
        )  # fmt: skip
    assert set(one[0].traces.values()) == {1}


def test_convolutions_grow_and_split():
    setup = make("conv", tau=0.0, drift=0.0, units=1, start=(2, 3), room=(6, 7))
    made = course(setup, "conv")
    learner = train.start(setup, jax.random.key(0), TASKS)
    for task in range(2):
        learner = made.run(learner, task)
    stamps = jax.device_get(learner.state.stamps)
    assert {gate: int((s == 2).sum()) for gate, s in stamps.items()} == dict.fromkeys(stamps, 2)
    view, statistics = train.network(setup, learner, 1)
    logits, _ = setup.model.apply(view, statistics, made.tasks.x[0, :3])
    assert logits.shape == (3, CLASSES) and bool(jnp.isfinite(logits).all())


@pytest.mark.parametrize(
    ("change", "words"), [({"tau": -1.0}, "den: tau"), ({"columns": "all"}, "den: columns")]
)
def test_what_cannot_be(change, words):
    with pytest.raises(ValueError, match=words):
        make(**change)
