"""CPG: the laws, what a task computes with, the masks' gradient, growth and compaction by numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from growth import NETS, OPTIMIZERS, TASKS, course, few_digits, forgotten

import jaxcl
from jaxcl import recipes, study, train
from jaxcl.methods import cpg
from jaxcl.methods.units import with_room


def make(kind="mlp", goal=1.0, **options):
    net = NETS[kind][1]
    small = net(4, 3)
    model = with_room(small, net(6, 4))
    base = jaxcl.multihead(jaxcl.finetune(), TASKS, cpg.HEADS)
    method = jaxcl.cpg(base, model.wiring, small.wiring.gates, goal=goal, **options)
    return train.Setup(method, model, OPTIMIZERS["adam"], batch=4, norm="per_task")


# Law 1: what a finished task computes with never changes.


@pytest.mark.parametrize(("kind", "names"), [("mlp", [*OPTIMIZERS]), ("conv", ["adamw"])])
def test_law_1_isolation(kind, names):
    broken, found = forgotten(make(kind), kind, names)
    assert broken == []
    for _, learner in found.values():
        stamps, owner = jax.device_get((learner.state.stamps, learner.state.owner))
        np.testing.assert_array_equal(stamps["layer0"], [1, 1, 1, 1, 1, 1])  # it grew at once
        assert all(set(np.unique(o)) == {1, 2, 3} for o in owner.values())


def test_law_1_bites_masks_that_go_on_learning():
    setup = make()
    method = setup.method

    def view(theta, state, task, progress=None):
        return method.view(theta, state._replace(current=jnp.int32(task)), task, progress)

    twin = setup._replace(method=method._replace(view=view))
    assert forgotten(twin, "mlp", ["adam"])[0] == ["adam"]


def test_law_1_bites_biases_that_all_tasks_train():
    setup = make()
    method = setup.method

    def trainable(theta, state, task):
        mask = method.trainable(theta, state, task)
        every = jax.tree.map(lambda _: True, mask["params"]["layers"][0]["bias"])
        mask["params"]["layers"][0]["bias"] = every
        return mask

    twin = setup._replace(method=method._replace(trainable=trainable))
    assert forgotten(twin, "mlp", ["momentum"])[0] == ["momentum"]


# The definition.


def filled(setup):
    """A learner in its second task, whose owners, picks and weights are all random."""
    learner = train.start(setup, jax.random.key(0), TASKS)
    rng = np.random.default_rng(1)
    theta = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), "f4"), learner.theta)
    picks = jax.tree.map(lambda leaf: leaf * 0.01, theta["picks"])
    owner = {
        p: jnp.asarray(rng.integers(0, 3, o.shape), "uint8") for p, o in learner.state.owner.items()
    }
    picked = {p: jnp.asarray(rng.random(b.shape) < 0.5) for p, b in learner.state.picked.items()}
    state = learner.state._replace(owner=owner, picked=picked, current=jnp.int32(1))
    return theta | {"picks": picks}, state


def differs_from_numpy(setup):
    """Tasks whose weights are not: the own, and of the older ones those that are picked."""
    theta, state = filled(setup)
    found = []
    for task, progress in ((0, None), (1, None), (1, 0.5)):
        view = jax.device_get(setup.method.view(theta, state, task, progress))
        for i in range(2):
            path, given = f"layers/{i}/kernel", np.asarray(theta["params"]["layers"][i]["kernel"])
            expected = np.zeros_like(given)
            for at in np.ndindex(*given.shape):
                owner = int(state.owner[path][at])
                mask = float(theta["picks"][f"{path}/pick"][at])
                picked = mask > 0.005 if task == 1 else bool(state.picked[path][task][at])
                if owner == task + 1 or (0 < owner <= task and picked):
                    expected[at] = given[at]
            if not np.array_equal(view["layers"][i]["kernel"], expected):
                found.append((task, progress, i))
    return found


def test_a_task_uses_its_own_weights_and_those_that_it_picks():
    assert differs_from_numpy(make()) == []


def test_masks_that_are_not_read_would_be_seen(monkeypatch):
    monkeypatch.setattr(cpg, "THRESHOLD", -1.0)
    assert [(task, i) for task, _, i in differs_from_numpy(make())] == [(1, 0), (1, 1)] * 2


def gradient_of_picks(setup):
    """The largest deviation from the gradient of the weight in use, times the weight."""
    theta, state = filled(setup)
    path = "layers/1/kernel"
    w = np.asarray(theta["params"]["layers"][1]["kernel"])
    slope = np.random.default_rng(3).normal(size=w.shape)

    def objective(picks):
        view = setup.method.view(theta | {"picks": picks}, state, 1, 0.5)
        return jnp.sum(view["layers"][1]["kernel"] * slope)

    found = jax.grad(objective)(theta["picks"])[f"{path}/pick"]
    return np.abs(found - np.where(state.owner[path] == 1, slope * w, 0)).max()


def test_the_gradient_passes_straight_through_the_threshold(monkeypatch):
    assert gradient_of_picks(make()) < 1e-5
    hard = lambda mask: (mask > cpg.THRESHOLD).astype(mask.dtype)  # noqa: E731
    monkeypatch.setattr(cpg, "binarize", hard)  # the broken twin
    assert gradient_of_picks(make()) > 0.1


def test_only_own_weights_masks_of_older_ones_and_the_own_rows_are_trained():
    setup = make(pick_scale=0.25)
    theta, state = filled(setup)
    mask = jax.device_get(setup.method.trainable(theta, state, 1))
    owner = jax.device_get(state.owner["layers/0/kernel"])
    np.testing.assert_array_equal(mask["params"]["layers"][0]["kernel"], owner == 2)
    np.testing.assert_array_equal(mask["picks"]["layers/0/kernel/pick"], 0.25 * (owner == 1))
    for leaf in (mask["params"]["layers"][0]["bias"], mask["params"]["head"]["kernel"]):
        np.testing.assert_array_equal(leaf.ravel(), [False, True, False])


# Growing and compacting.


def freed_as_told(setup, steps, fractions):
    """Whether owners follow the cubic schedule, the smallest weights first, all by numpy."""
    made = course(setup, "mlp")
    learner = train.start(setup, jax.random.key(0), TASKS)
    held = []
    for task in range(2):
        learner = made.begin(learner, jnp.int32(task))
        for i, phase in enumerate(setup.method.phases):
            theta, owner = jax.device_get((learner.theta["params"], learner.state.owner))
            learner = made.begin_phase(learner, jnp.int32(task), i) if i else learner
            after = jax.device_get(learner.state.owner)
            if phase.name == "compact":
                step = i - (len(setup.method.phases) - steps) + 1
                share = fractions[task] * (1 - (1 - step / steps) ** 3)
                for k in range(2):
                    path, w = f"layers/{k}/kernel", theta["layers"][k]["kernel"]
                    own = owner[path] == task + 1
                    among = own | ((owner[path] == 0) & present(learner, k))
                    least = round(share * among.sum()) - (among & ~own).sum()
                    order = np.argsort(np.where(own, np.abs(w), np.inf), axis=None, kind="stable")
                    expected = owner[path].copy()
                    expected[np.unravel_index(order[:least], own.shape)] = 0
                    held.append(np.array_equal(after[path], expected))
                    held.append(
                        (
                            np.asarray(learner.theta["params"]["layers"][k]["kernel"])[
                                after[path] == 0
                            ]
                            == 0
                        )[present(learner, k)[after[path] == 0]].all()
                    )
            learner = made.epoch(learner, jnp.int32(task), i)
        learner = made.end(learner, jnp.int32(task))
    return all(held) and len(held) == 8 * steps


def present(learner, layer):
    stamps = jax.device_get(learner.state.stamps)
    below = np.ones(6, bool) if layer == 0 else stamps["layer0"] > 0
    return below[:, None] & (stamps[f"layer{layer}"] > 0)


def test_own_weights_are_freed_on_the_cubic_schedule(monkeypatch):
    goal_of_none = make(goal=0.0, prune_steps=2)
    assert freed_as_told(goal_of_none, 2, [2 / 3, 1 / 2, 0])
    monkeypatch.setattr(cpg, "cubic", lambda step, steps: step / steps)  # the broken twin
    assert not freed_as_told(make(goal=0.0, prune_steps=2), 2, [2 / 3, 1 / 2, 0])


@pytest.mark.parametrize(("reached", "freed"), [(0.6, True), (0.4, False)])
def test_a_task_is_compacted_while_it_holds_the_goal(reached, freed, monkeypatch):
    setup = make(goal=0.5, prune_steps=2)
    method = setup.method
    learner = train.begin_task(setup, train.start(setup, jax.random.key(0), TASKS), 0)
    made = course(setup, "mlp")
    own = jax.tree.map(lambda leaf: leaf[0], made.tasks)
    monkeypatch.setattr(cpg.of_units, "accuracy", lambda *args: jnp.float32(0.7))
    learner = train.begin_phase(setup, learner, 0, phase=2, examples=own)
    assert float(learner.state.floor) == 0.5
    monkeypatch.setattr(cpg.of_units, "accuracy", lambda *args: jnp.float32(reached))
    after = train.begin_phase(setup, learner, 0, phase=3, examples=own)
    assert [phase.name for phase in method.phases] == ["train", "grow", "compact", "compact"]
    path = "layers/0/kernel"
    assert bool((after.state.owner[path] != learner.state.owner[path]).any()) == freed


@pytest.mark.parametrize(("goal", "units"), [(0.0, 4), (1.0, 6)])
def test_it_grows_where_the_goal_is_missed(goal, units):
    setup = make(goal=goal)
    made = course(setup, "mlp")
    learner = made.begin(train.start(setup, jax.random.key(0), TASKS), jnp.int32(0))
    after = made.begin_phase(learner, jnp.int32(0), 1)
    assert int(after.state.stamps["layer0"].sum()) == units
    assert bool(after.stopping.stopped) == (units == 4)
    assert int((after.state.owner["layers/0/kernel"] == 1).sum()) == 6 * units

    def logits(learner):
        view, statistics = train.network(setup, learner, 0)
        return np.asarray(setup.model.apply(view, statistics, made.tasks.x[0])[0])

    np.testing.assert_allclose(logits(after), logits(learner), rtol=1e-6, atol=1e-7)


# Laws 2 and 3.

OPTIONS = recipes.Options(hidden=(5, 4), batch=16, epochs=4, learning_rate=0.1)


def learn(seeds, studies=None):
    choice = recipes.choose("cpg", OPTIONS, goal=0.2)
    studies = studies or recipes.studies(
        choice, few_digits(3), seeds=seeds, devices=jax.devices()[:1]
    )
    ends = [e for e in study.run(studies) if isinstance(e, study.TaskEnd)]
    measures = {k: np.stack([e.measures[k] for e in ends], 1) for k in ends[0].measures}
    state = jax.device_get((ends[-1].learners.state.owner, ends[-1].learners.state.picked))
    return (np.stack([e.accuracy for e in ends], 1), measures, state), studies


def test_law_2_each_seed_grows_on_its_own_and_law_3_compile_once():
    seeds = [3, 1, 2]
    together, studies = learn(seeds)
    assert set(studies[0].traces.values()) == {1}
    assert {name for name in studies[0].traces if name.startswith("epoch")} == {"epoch", "epoch_1"}
    assert len({tuple(row) for row in together[1]["units layer0"]}) > 1, "all seeds grow alike"
    one = None
    for i, seed in enumerate(seeds):
        one = one and [one[0]._replace(seeds=np.array([seed], np.uint32))]
        alone, one = learn([seed], one)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a[0], b[i], atol=1e-6),  # noqa: B023
            alone, together,
        )  # fmt: skip
    assert set(one[0].traces.values()) == {1}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"goal": -0.5}, "cpg: goal"),
        ({"pick_scale": 2.0}, "cpg: pick_scale"),
        ({"rounds": 0}, "rounds"),
    ],
)
def test_what_cannot_be(change, words):
    with pytest.raises(ValueError, match=words):
        make(**change)
