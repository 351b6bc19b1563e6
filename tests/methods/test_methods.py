"""What each method does, piece by piece: PackNet, HAT, PNN, heads for each task."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxcl
from jaxcl import data, masks, models, recipes
from jaxcl.methods.hat import (
    annealed,
    attended_weights,
    cut_unattended,
    fold,
    input_factor,
    regularizer,
)
from jaxcl.methods.packnet import ledger, prune_fractions
from jaxcl.methods.pnn import apply_lateral, init_laterals

KEY = jax.random.key(0)
TASKS = 3
quickly = settings(deadline=None, max_examples=25, database=None)
SEEDS = st.integers(0, 2**16)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def close(a, b, tolerance=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, tolerance, tolerance), a, b)


def row(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


def noise(seed, tree, scale=1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: scale * rng.normal(0, 1, leaf.shape).astype("f4"), tree)


def move(seed, method, theta, state, task):
    """Training as a method sees it: everything that is trainable ends somewhere else."""
    mask = masks.resolve(method.trainable(theta, state, task), theta)
    return jax.tree.map(lambda leaf, m, n: leaf + m * n, theta, mask, noise(seed, theta))


@functools.cache
def mlp(**options):
    model = models.mlp(4, (5, 3), 2, **options)
    return model._replace(init=jax.jit(model.init))


@functools.cache
def params():
    return noise(0, mlp().init(KEY)[0])


# The protocol

METHODS = {
    "finetune": lambda: jaxcl.finetune(),
    "packnet": lambda: jaxcl.packnet(TASKS, reinit_free="random"),
    "hat": lambda: jaxcl.hat(mlp().wiring, TASKS),
    "hat hard": lambda: jaxcl.hat(mlp().wiring, TASKS, hard=True),
    "pnn": lambda: jaxcl.pnn(mlp(), TASKS)[0],
    "multihead": lambda: jaxcl.multihead(jaxcl.packnet(TASKS), TASKS),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_traced_from_its_start_to_its_end(name):
    method = METHODS[name]()

    @jax.jit
    def learn(key, params, task):
        theta, state = method.init(key, params)
        theta, state = method.begin_task(key, theta, state, task)
        mask = masks.resolve(method.trainable(theta, state, task), theta)
        view = method.view(theta, state, task, 0.5)
        penalty = method.penalty(theta, state, task, 0.5)
        theta, state = method.end_task(method.project(theta), state, task)
        return mask, penalty, method.capacity(theta, state), view, (theta, state)

    mask, penalty, capacity, _, last = learn(KEY, params(), 1)
    assert all(np.all((leaf >= 0) & (leaf <= 1)) for leaf in jax.tree.leaves(mask))
    assert penalty.shape == capacity.shape == ()
    assert np.isfinite(penalty)
    assert 0 <= capacity <= 1
    rows = jax.vmap(learn, in_axes=(0, None, None))(jax.random.split(KEY, 2), params(), 1)
    shapes = jax.tree.map(np.shape, last)
    assert jax.tree.map(lambda leaf: leaf.shape[1:], rows[-1]) == shapes


def test_finetune_protects_nothing():
    method = jaxcl.finetune()
    theta, state = method.init(KEY, params())
    equal(theta, params())
    for task in range(2):
        theta, state = method.begin_task(KEY, theta, state, task)
        assert method.trainable(theta, state, task) is True
        equal(method.view(theta, state, task, 0.0), params())
        theta, state = method.end_task(theta, state, task)
    assert method.penalty(theta, state, 1, 0.0) == 0
    assert method.capacity(theta, state) == 1


# Heads


def test_multihead_gives_each_task_its_own_row():
    method = jaxcl.multihead(jaxcl.finetune(), TASKS)
    theta, state = method.init(KEY, params())
    head, first = theta["head"], params()["head"]
    assert jax.tree.map(np.shape, head) == {"bias": (3, 2), "kernel": (3, 3, 2)}
    equal(theta["layers"], params()["layers"])
    equal(row(head, 0), first)
    for task in (1, 2):  # the entries of further rows are drawn from the first one's
        assert np.any(head["kernel"][task] != first["kernel"])
        assert np.isin(head["kernel"][task], first["kernel"]).all()
    assert np.any(head["kernel"][1] != head["kernel"][2])
    for task in range(TASKS):
        view = method.view(theta, state, task, 0.0)
        equal(view, theta | {"head": row(head, task)})
        mask = masks.resolve(method.trainable(theta, state, task), theta)
        for leaf, m in zip(jax.tree.leaves(head), jax.tree.leaves(mask["head"])):
            rows = np.broadcast_to(m, leaf.shape).reshape(TASKS, -1)
            equal(rows, np.broadcast_to((np.arange(TASKS) == task)[:, None], rows.shape))
        assert all(np.all(m) for m in jax.tree.leaves(mask["layers"]))


def test_multihead_passes_heads_through_the_method_below():
    method = jaxcl.multihead(jaxcl.packnet(TASKS, 0.5), TASKS)
    theta, state = method.init(KEY, params())
    for task in range(TASKS):
        before = theta
        theta, state = method.begin_task(KEY, theta, state, task)
        theta, state = method.end_task(theta, state, task)
        equal(before["head"], theta["head"])
    assert masks.leaves_by_path(theta).keys() == masks.leaves_by_path(params()).keys()


def test_multihead_starts_vectors_as_they_are():
    """So that a norm's scale, all ones, and a bias start every task in the same way."""
    method = jaxcl.multihead(jaxcl.finetune(), TASKS, "")
    theta, _ = method.init(KEY, params())
    equal(theta["head"]["bias"], [params()["head"]["bias"]] * TASKS)


def test_multihead_is_for_the_method_s_tasks():
    with pytest.raises(ValueError, match="multihead: 4 tasks, but the method has 3"):
        jaxcl.multihead(jaxcl.packnet(3), 4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tasks": 0}, "multihead: tasks must be a whole number of at least 1, got 0"),
        ({"tasks": 2, "heads": "["}, r"multihead: heads must be a regular expression, got '\['"),
    ],
)
def test_multihead_errors(options, words):
    with pytest.raises(ValueError, match=words):
        jaxcl.multihead(jaxcl.finetune(), **options)


def test_a_leaf_is_not_both_packed_and_each_task_s_own():
    heads = "head|layers/1"
    words = "makes 'layers/1/kernel' each task's own.*packnet.*'head.layers/1'"
    with pytest.raises(ValueError, match=words):
        jaxcl.multihead(jaxcl.packnet(2), 2, heads).init(KEY, params())
    _, state = jaxcl.multihead(jaxcl.packnet(2, heads=heads), 2, heads).init(KEY, params())
    assert list(state.owner) == ["layers/0/kernel"]


@pytest.mark.parametrize("heads", ["head", "^head/"])
def test_embeddings_are_no_heads(heads):
    """A gate may be called what it likes; and patterns begin where the network's paths do."""
    start = {name: params()["layers"][0] for name in ("preheader", "other")}
    start["head"] = {"kernel": jnp.ones((5, 2))}
    wiring = jaxcl.Wiring(
        {"preheader": 5}, {"head/kernel": (("preheader", 1),)}, {"preheader/kernel": "preheader"}
    )
    method = jaxcl.multihead(jaxcl.hat(wiring, TASKS), TASKS, heads)
    theta, state = method.init(KEY, start)
    assert theta["embeddings"]["preheader"].shape == (TASKS, 5)
    assert theta["params"]["head"]["kernel"].shape == (TASKS, 5, 2)
    assert np.ndim(theta["params"]["preheader"]["bias"]) == (2 if heads == "head" else 1)
    assert method.view(theta, state, 1)["head"]["kernel"].shape == (5, 2)


def test_multihead_covers_any_leaves():
    method = jaxcl.multihead(jaxcl.finetune(), TASKS, r"head|layers/\d+/bias")
    theta, _ = method.init(KEY, params())
    shapes = {path: leaf.shape for path, leaf in masks.leaves_by_path(theta).items()}
    assert shapes["layers/0/bias"] == (3, 5)
    assert shapes["layers/0/kernel"] == (4, 5)
    with pytest.raises(ValueError, match=r"'tail' matches no leaf.*'head/bias'"):
        jaxcl.multihead(jaxcl.finetune(), TASKS, "tail").init(KEY, params())


# PackNet

ONE = {"layer": {"kernel": jnp.zeros((20, 16)), "bias": jnp.zeros(16)}, "head": jnp.zeros((16, 2))}


@functools.partial(jax.jit, static_argnames=("reinit_free", "ties", "scope"))
def packnet_run(seed_params, noises, fractions, **options):
    """Every task's owners before and after pruning, and the weights after it."""
    method = jaxcl.packnet(TASKS, fractions, **options)
    theta, state = method.init(KEY, seed_params)
    history = []
    for task in range(TASKS):
        theta, state = method.begin_task(jax.random.key(task), theta, state, task)
        claimed = state.owner
        mask = masks.resolve(method.trainable(theta, state, task), theta)
        theta = jax.tree.map(lambda leaf, m, n: leaf + m * n, theta, mask, noises[task])
        trained = theta
        theta, state = method.end_task(theta, state, task)
        history.append((claimed, state.owner, trained, theta, method.capacity(theta, state)))
    return history, [method.view(theta, state, k) for k in range(TASKS)]


FRACTION = st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0, 1, width=32)


@quickly
@given(
    SEEDS,
    st.tuples(FRACTION, FRACTION, FRACTION),
    st.sampled_from(["zero", "keep", "random"]),
    st.sampled_from(["leaf", "global"]),
)
def test_owners_partition_the_weights(seed, fractions, reinit_free, scope):
    start = noise(seed, params())
    noises = [noise(seed + 1 + task, start) for task in range(TASKS)]
    fractions = jnp.asarray(fractions, jnp.float32)
    options = {"reinit_free": reinit_free, "ties": "exact", "scope": scope}
    history, views = jax.device_get(packnet_run(start, noises, fractions, **options))
    total = sum(leaf.size for leaf in history[0][0].values())
    before = {path: np.zeros_like(leaf) for path, leaf in history[0][0].items()}
    for task, (claimed, owner, trained, theta, capacity) in enumerate(history):
        weights, trained = masks.leaves_by_path(theta), masks.leaves_by_path(trained)
        pruned, owned = {}, {}
        for path in owner:
            # What was free is claimed; what was owned stays so, whatever happens later.
            equal(claimed[path], np.where(before[path] == 0, task + 1, before[path]))
            settled = claimed[path] <= task
            equal(owner[path][settled], claimed[path][settled])
            assert set(np.unique(owner[path][~settled])) <= {0, task + 1}
            pruned[path], owned[path] = np.sum(owner[path] == 0), np.sum(~settled)
            if reinit_free != "keep":
                assert not np.any(weights[path][owner[path] == 0])
            equal(weights[path][owner[path] > 0], trained[path][owner[path] > 0])
            # The kept ones are no smaller than the freed ones.
            kept, freed = (np.abs(trained[path][owner[path] == o]) for o in (task + 1, 0))
            if kept.size and freed.size and scope == "leaf":
                assert kept.min() >= freed.max()
        if scope == "leaf":
            assert pruned == {p: round(fractions[task].item() * n) for p, n in owned.items()}
        else:
            assert sum(pruned.values()) == round(fractions[task].item() * sum(owned.values()))
        counts = ledger(jaxcl.PackNetState(owner, {}), TASKS)
        for path, o in owner.items():
            equal(counts[path], [np.sum(o == k) for k in range(TASKS + 1)])
            assert counts[path].sum() == o.size
        assert capacity == pytest.approx(1 - sum(c[0] for c in counts.values()) / total)
        before = owner
    # Each view holds the weights of its task and of those before it, where they are now.
    for k, view in enumerate(views):
        for path, leaf in masks.leaves_by_path(view).items():
            last = masks.leaves_by_path(history[-1][3])[path]
            if path in before:
                last = np.where((before[path] > 0) & (before[path] <= k + 1), last, 0)
            equal(leaf, last)


def test_packnet_trains_its_own_weights_and_the_rest_just_once():
    method = jaxcl.packnet(TASKS, 0.5)
    theta, state = method.init(KEY, params())
    assert set(state.owner) == {"layers/0/kernel", "layers/1/kernel"}  # no biases, no head
    assert all(leaf.dtype == jnp.uint8 for leaf in jax.tree.leaves(state.owner))
    for task in range(TASKS):
        theta, state = method.begin_task(KEY, theta, state, task)
        for phase in ("training", "retraining"):
            mask = masks.leaves_by_path(method.trainable(theta, state, task))
            for path, leaf in mask.items():
                own = state.owner[path] == task + 1 if path in state.owner else task == 0
                equal(leaf, own)
            theta = move(task, method, theta, state, task)
            if phase == "training":
                theta, state = method.end_task(theta, state, task)
        for path, owner in state.owner.items():  # what was freed stays zero in the retraining
            assert not np.any(np.asarray(masks.leaves_by_path(theta)[path])[owner == 0])


@pytest.mark.parametrize("heads", ["head", "head|bias"])
def test_packnet_s_biases_may_be_each_task_s_own(heads):
    """As in CPG: the second task moves its own, and the first one's network is what it was."""
    method = jaxcl.multihead(jaxcl.packnet(TASKS, 0.5), TASKS, heads)
    theta, state = method.begin_task(KEY, *method.init(KEY, params()), 0)
    theta, state = method.end_task(move(0, method, theta, state, 0), state, 0)
    first = method.view(theta, state, 0)
    theta, state = method.begin_task(KEY, theta, state, 1)
    before, theta = theta, move(1, method, theta, state, 1)
    equal(method.view(theta, state, 0), first)
    old, new = (method.view(t, state, 1)["layers"][0]["bias"] for t in (before, theta))
    assert np.all(old != new) == (heads == "head|bias")
    assert np.array_equal(old, new) == (heads == "head")


@pytest.mark.parametrize(
    ("reinit_free", "bias", "wakes"),
    [
        ("zero", 0.0, False),
        ("zero", -0.1, False),
        ("zero", 0.1, True),  # it fires, so its outgoing weights learn
        ("keep", 0.0, True),
        ("random", 0.0, True),
    ],
)
def test_a_unit_whose_weights_are_all_free_may_be_dead(reinit_free, bias, wakes):
    """Claimed at zero beside a frozen bias <= 0, it gets no gradient at either side."""
    start = jax.tree.map(lambda leaf: jnp.sign(leaf) * (1 + jnp.abs(leaf)), params())
    first, second = (start["layers"][i] for i in (0, 1))
    first["kernel"] = first["kernel"].at[:, 2].multiply(0.01)
    first["bias"] = first["bias"].at[2].set(bias)
    second["kernel"] = second["kernel"].at[2].multiply(0.01)
    method = jaxcl.packnet(2, [1 / 5, 0.0], reinit_free=reinit_free)  # one unit of five
    theta, state = method.init(KEY, start)
    for task in range(2):
        theta, state = method.begin_task(KEY, theta, state, task)
        theta, state = method.end_task(theta, state, task) if task == 0 else (theta, state)
        if task == 0:
            freed = state.owner["layers/0/kernel"][:, 2], state.owner["layers/1/kernel"][2]
            assert all(np.all(owner == 0) for owner in freed)
            assert sum(np.sum(owner == 0) for owner in state.owner.values()) == 4 + 3
    tx = jaxcl.isolate(optax.sgd(0.1), method.trainable(theta, state, 1))
    x, y = noise(1, jnp.zeros((32, 4))), noise(2, jnp.zeros((32, 2)))

    @jax.jit
    def step(carry, _):
        def loss(theta):
            return jnp.mean((mlp().apply(method.view(theta, state, 1, 0.5), {}, x)[0] - y) ** 2)

        updates, opt_state = tx.update(jax.grad(loss)(carry[0]), carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), opt_state), None

    trained = jax.lax.scan(step, (theta, tx.init(theta)), length=5)[0][0]
    for i, own in enumerate([np.s_[:, 2], np.s_[2]]):
        old, new = (np.asarray(tree["layers"][i]["kernel"][own]) for tree in (theta, trained))
        assert np.any(old != new) == wakes


@pytest.mark.parametrize("reinit_free", ["zero", "keep", "random"])
def test_where_claimed_weights_start(reinit_free):
    method = jaxcl.packnet(TASKS, 0.5, reinit_free=reinit_free)
    theta, state = method.init(KEY, params())
    first, state = method.begin_task(KEY, theta, state, 0)
    equal(first, params())  # the first task starts from the network's own initial values
    pruned, state = method.end_task(first, state, 0)
    second, state = method.begin_task(KEY, pruned, state, 1)
    for path, owner in state.owner.items():
        old, new = (masks.leaves_by_path(tree)[path] for tree in (first, second))
        claimed = np.asarray(owner == 2)
        assert 0 < claimed.sum() < claimed.size
        equal(new[~claimed], old[~claimed])
        if reinit_free == "zero":
            assert not np.any(new[claimed])
        elif reinit_free == "keep":
            equal(new[claimed], old[claimed])
        else:
            assert np.isin(new[claimed], old).all()
            assert np.any(new[claimed] != old[claimed])


@pytest.mark.parametrize("reinit_free", ["zero", "keep", "random"])
def test_packnet_hides_what_is_free_and_what_comes_later(reinit_free):
    """In training as in evaluation; and to hide twice is to hide once."""
    method = jaxcl.packnet(TASKS, 0.5, reinit_free=reinit_free)
    theta, state = method.begin_task(KEY, *method.init(KEY, params()), 0)
    theta, state = method.end_task(theta, state, 0)
    for progress in (None, 0.5):
        view = masks.leaves_by_path(method.view(theta, state, 0, progress))
        for path, owner in state.owner.items():
            assert not np.any(np.asarray(view[path])[owner == 0])
    theta, state = method.begin_task(KEY, theta, state, 1)
    theta = move(0, method, theta, state, 1)
    old = method.view(theta, state, 0)
    equal(method.view(old, state, 0), old)
    for path, owner in state.owner.items():
        assert not np.any(np.asarray(masks.leaves_by_path(old)[path])[owner == 2])
    equal(method.view(theta, state, 1, 0.5), theta)


@pytest.mark.parametrize(
    ("prune", "shares"),
    [
        ([0.5, 0.75, 0.75, 0.0], [50, 12.5, 9.375, 28.125]),
        ([0.75, 0.75, 0.75, 0.0], [25, 18.75, 14.0625, 42.1875]),
        (0.75, [25, 18.75, 14.0625, 42.1875]),
        ("equal", [25, 25, 25, 25]),
        ([0.5, 0.5, 0.5, 1.0], [50, 25, 12.5, 0]),
        ([1.0, 1.0, 1.0, 1.0], [0, 0, 0, 0]),
    ],
)
def test_shares_of_the_network(prune, shares):
    method = jaxcl.packnet(4, prune)
    theta, state = method.init(
        KEY, jax.tree.map(lambda p: p + jnp.arange(p.size).reshape(p.shape), ONE)
    )
    for task in range(4):
        theta, state = method.begin_task(KEY, theta, state, task)
        theta, state = method.end_task(theta, state, task)
    owner = np.asarray(state.owner["layer/kernel"])
    # Of 320 weights; the shares 1/2, 1/8, ... within the rounding to whole weights.
    got = [100 * np.mean(owner == task + 1) for task in range(4)]
    np.testing.assert_allclose(got, shares, atol=0.5)
    assert method.capacity(theta, state) == pytest.approx(np.mean(owner > 0))


def test_equal_schedule():
    for tasks in (1, 2, 5, 10, 254):
        fractions = prune_fractions(tasks, "equal")
        k = np.arange(1, tasks + 1)
        np.testing.assert_allclose(fractions, (tasks - k) / (tasks - k + 1), rtol=1e-6)
        free = np.cumprod(fractions)
        np.testing.assert_allclose(-np.diff([1, *free]), 1 / tasks, rtol=1e-4)
    np.testing.assert_allclose(prune_fractions(3, 0.25), [0.25, 0.25, 0])
    np.testing.assert_allclose(prune_fractions(2, [0.25, 0.5]), [0.25, 0.5])


def test_original_ties_prune_all_that_are_equal():
    start = {"kernel": jnp.array([[0.0, 0.0, 0.0, 1.0]])}
    freed = {}
    for ties in ("exact", "original"):
        method = jaxcl.packnet(2, 0.5, ties=ties)
        theta, state = method.begin_task(KEY, *method.init(KEY, start), 0)
        _, state = method.end_task(theta, state, 0)
        freed[ties] = np.sum(state.owner["kernel"] == 0)
    assert freed == {"exact": 2, "original": 3}


def test_packnet_rounds_as_python_does():
    """round(0.3 * 95) is 28, and round(0.7 * 45) is 31; in float32 they are 29 and 31."""
    start = {"a": {"kernel": noise(0, jnp.zeros((5, 19)))}, "b": {"kernel": jnp.ones((5, 9))}}
    for share, freed in ((0.3, (28, 14)), (0.7, (66, 31))):
        method = jaxcl.packnet(2, share)
        theta, state = method.begin_task(KEY, *method.init(KEY, start), 0)
        _, state = jax.jit(method.end_task)(theta, state, 0)
        assert tuple(np.sum(owner == 0) for owner in state.owner.values()) == freed
        assert freed == (round(share * 95), round(share * 45))


def test_packnet_prunes_what_it_is_told():
    method = jaxcl.packnet(2, 0.5, prunable=lambda path, leaf: path.endswith("bias"))
    _, state = method.init(KEY, params())
    assert set(state.owner) == {"head/bias", "layers/0/bias", "layers/1/bias"}


def test_254_tasks_fit_the_owners():
    method = jaxcl.packnet(254, 0.99)
    theta, state = method.begin_task(KEY, *method.init(KEY, params()), 253)
    assert masks.leaves_by_path(state.owner)["layers/0/kernel"].max() == 254
    assert method.trainable(theta, state, 253)["layers"][0]["kernel"].all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tasks": 0}, "packnet: tasks must be a whole number from 1 to 254, got 0"),
        ({"tasks": 2.5}, "packnet: tasks must be a whole number from 1 to 254, got 2.5"),
        ({"tasks": 255}, "tasks must be a whole number from 1 to 254, got 255"),
        ({"tasks": 2, "prune": 1.5}, "prune must be at most 1, got 1.5"),
        ({"tasks": 2, "prune": [0.5, -0.5]}, "prune must be at least 0, got"),
        ({"tasks": 2, "prune": [0.5]}, "one share for each of 2 tasks, got 1"),
        ({"tasks": 2, "prune": "evenly"}, "or 'equal', got 'evenly'"),
        (
            {"tasks": 3, "prune": [0.5, 0.0, 0.5]},
            "task 2 gives up no weight.*none is free for task 3",
        ),
        ({"tasks": 2, "prune": 0.0}, "task 1 gives up no weight"),
        ({"tasks": 2, "reinit_free": "ones"}, "reinit_free must be .* got 'ones'"),
        ({"tasks": 2, "prune": np.nan}, "prune must be finite, got nan"),
        ({"tasks": 2, "ties": "none"}, "ties must be one of 'exact', 'original', got 'none'"),
        ({"tasks": 2, "scope": "layer"}, "scope must be one of 'leaf', 'global', got 'layer'"),
        ({"tasks": 2, "heads": "("}, r"packnet: heads must be a regular expression, got '\('"),
    ],
)
def test_packnet_errors(options, words):
    with pytest.raises(ValueError, match=words):
        jaxcl.packnet(**options)


def test_packnet_needs_something_to_prune():
    with pytest.raises(ValueError, match=r"no leaf is prunable.*'bias'"):
        jaxcl.packnet(2).init(KEY, {"bias": jnp.ones(3)})


@pytest.mark.parametrize("scope", ["leaf", "global"])
def test_packnet_needs_a_free_weight_for_every_task(scope):
    """Of 20 and 15 weights a tenth is 2 and 2, of which a tenth is none; of 35 it is 4, 0."""
    method = jaxcl.packnet(5, 0.1, scope=scope)
    words = "no weight is free for task 3 of 5: its predecessors keep all 35"
    with pytest.raises(ValueError, match=words):
        jax.jit(method.init)(KEY, params())
    jaxcl.packnet(2, 0.1, scope=scope).init(KEY, params())
    jax.jit(lambda prune: jaxcl.packnet(5, prune).init(KEY, params()))(0.1)  # cannot be known


# HAT: gates


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


@pytest.mark.parametrize("mode", ["original", "clipped", "ideal"])
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


# HAT: regularizer


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


# HAT: attention


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


# HAT: what the network computes with

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
            "gradient must be one of 'original', 'clipped', 'ideal', got 'exact'",
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


# PNN


@functools.cache
def grown(lateral, tasks=TASKS, **options):
    """A progressive network whose columns and laterals have all been moved."""
    method, network = jaxcl.pnn(mlp(), tasks, lateral, **options)
    theta, state = method.init(KEY, params())
    for task in range(tasks):
        theta, state = method.begin_task(jax.random.key(task), theta, state, task)
        if task:
            theta = jax.tree.map(lambda leaf, n: leaf + n, theta, noise(task, theta, 0.3))
        theta, state = method.end_task(theta, state, task)
    return method, network, theta, state


def columns_in_numpy(state, x, upto, lateral):
    """Rusu et al. (2016), Eqs. 1 and 2, written out for the MLP: logits and hidden activations."""

    def relu(x):
        return np.maximum(x, 0)

    def dense(x, layer):
        return x @ layer["kernel"] + layer["bias"]

    def arriving(p, sources):
        if lateral == "linear":
            return sum((h @ u for h, u in zip(sources, p["kernel"])), np.float32(0))
        if not sources:
            return np.float32(0)
        reduced = sum(a * h @ v for a, h, v in zip(p["alpha"], sources, p["project"]))
        return relu(reduced + p["bias"]) @ p["kernel"]

    hidden = []  # of each column, the two layers' activations
    for k in range(upto + 1):
        theta = row(jax.device_get(state.columns), k)
        column, laterals = theta["column"], theta["laterals"]
        first = relu(dense(x, column["layers"][0]))
        second = dense(first, column["layers"][1]) + arriving(laterals[0], [h[0] for h in hidden])
        second = relu(second)
        logits = dense(second, column["head"]) + arriving(laterals[1], [h[1] for h in hidden])
        hidden.append([first, second])
    return logits, hidden


@pytest.mark.parametrize("lateral", ["linear", "adapter"])
def test_pnn_computes_the_papers_equations(lateral):
    method, network, theta, state = grown(lateral)
    x = noise(3, jnp.zeros((6, 4)))
    for task in range(TASKS):
        view = method.view(theta, state, task)
        logits, _ = network.apply(view, {}, x)
        expected, hidden = columns_in_numpy(state, x, task, lateral)
        close(logits, expected, 1e-4)
        # What a column sees of its sources is what they compute, with their own laterals.
        features = network.frozen(view, {}, x)
        for layer, feature in enumerate(features):
            for j in range(TASKS - 1):
                source = hidden[j][layer] if j < task else np.zeros_like(hidden[0][layer])
                close(feature[..., j, :], source, 1e-4)
        close(network.apply(view, {}, x, features=features)[0], logits)


@pytest.mark.parametrize("lateral", ["linear", "adapter"])
def test_every_lateral_parameter_gets_a_gradient(lateral):
    """The test that other implementations fail: dead laterals, sources without theirs."""
    method, network, _, state = grown(lateral)
    x = noise(4, jnp.zeros((64, 4)))
    for task in (1, 2):
        theta = row(state.columns, task)
        state = state._replace(current=jnp.int32(task))

        def loss(theta):
            logits, _ = network.apply(method.view(theta, state, task, 0.5), {}, x)  # noqa: B023
            return jnp.sum(jnp.sin(logits))

        for path, leaf in masks.leaves_by_path(jax.grad(loss)(theta)["laterals"]).items():
            leaf = np.asarray(leaf)
            sources = {"project": 0, "alpha": 0, "kernel": -3 if lateral == "linear" else None}
            axis = sources.get(path.split("/")[-1])
            if axis is None:
                assert np.any(leaf), path
                continue
            by_source = np.moveaxis(leaf, axis, 0).reshape(TASKS - 1, -1)
            exists = np.arange(TASKS - 1) < task  # columns to come get none
            equal(np.any(by_source, axis=1), exists)
        assert not np.any(jax.grad(loss)(theta)["column"]["head"]["bias"] == 0)


@pytest.mark.parametrize("lateral", ["linear", "adapter", None])
def test_columns_to_come_have_no_influence(lateral):
    method, network, theta, state = grown(lateral)
    x = noise(5, jnp.zeros((6, 4)))
    apply = jax.jit(network.apply)
    for task in range(TASKS):
        ruined = state._replace(
            columns=jax.tree.map(lambda leaf: leaf.at[task + 1 :].set(jnp.nan), state.columns)  # noqa: B023
        )
        views = [method.view(theta, s, task) for s in (state, ruined)]
        if task == TASKS - 1:
            equal(*views)
        equal(*(apply(view, {}, x)[0] for view in views))
    # Nor does an old column know that new ones joined, but for laterals: it does know older ones.
    ruined = state._replace(
        columns=jax.tree.map(lambda leaf: leaf.at[0].set(leaf[0] + 1), state.columns)
    )
    views = [method.view(theta, s, 1) for s in (state, ruined)]
    old, new = (apply(view, {}, x)[0] for view in views)
    assert np.array_equal(old, new) == (lateral is None)


@pytest.mark.parametrize("lateral", ["linear", "adapter", None])
def test_the_first_column_is_the_plain_network(lateral):
    method, network, theta, state = grown(lateral)
    x = noise(6, jnp.zeros((6, 4)))
    close(network.apply(method.view(theta, state, 0), {}, x)[0], mlp().apply(params(), {}, x)[0])


def test_a_running_column_is_theta_and_a_finished_one_is_stored():
    method, _ = jaxcl.pnn(mlp(), TASKS)
    theta, state = method.init(KEY, params())
    theta, state = method.begin_task(KEY, theta, state, 0)
    moved = jax.tree.map(lambda leaf: leaf + 1, theta)
    equal(method.view(moved, state, 0)["own"], moved)
    first, state = method.end_task(moved, state, 0)
    second, state = method.begin_task(KEY, first, state, 1)
    assert method.capacity(second, state) == 1
    equal(method.view(second, state, 0)["own"], moved)
    equal(method.view(second, state, 1)["own"], second)
    assert np.any(second["column"]["head"]["kernel"] != moved["column"]["head"]["kernel"])
    assert method.trainable(second, state, 1) is True


@pytest.mark.parametrize("lateral", ["linear", "adapter"])
def test_frozen_columns_run_in_inference_mode(lateral):
    """Neither dropout nor running statistics touch them while another column trains."""
    model = mlp(dropout=0.5)
    method, network = jaxcl.pnn(model, TASKS, lateral)
    theta, state = method.init(KEY, params())
    for task in range(2):
        theta, state = method.begin_task(jax.random.key(task), theta, state, task)
        theta, state = method.end_task(theta, state, task)
    x = noise(7, jnp.zeros((6, 4)))
    view = method.view(theta, state, 1, 0.0)
    # With a head of zeros only what the head's laterals bring remains, and no dropout is in it.
    view["own"] = jax.tree.map(lambda leaf: leaf, view["own"])
    view["own"]["column"]["head"] = jax.tree.map(jnp.zeros_like, view["own"]["column"]["head"])
    one, two = (
        network.apply(view, {}, x, train=True, key=jax.random.key(key))[0] for key in (0, 1)
    )
    equal(one, two)
    assert np.ptp(one) > 0


def test_statistics_belong_to_one_column():
    model = models.resnet18((8, 8, 1), 2, width=1)
    method, network = jaxcl.pnn(model, 2, None)
    fresh, statistics = jax.jit(network.init)(KEY)
    theta, state = method.init(KEY, fresh)
    x = noise(8, jnp.zeros((4, 8, 8, 1)))
    state = state._replace(current=jnp.int32(1))
    apply = jax.jit(network.apply, static_argnames="train")
    _, after = apply(method.view(theta, state, 1, 0.0), statistics, x, train=True)
    for old, new in zip(jax.tree.leaves(statistics), jax.tree.leaves(after)):
        equal(old[0], new[0])
        assert np.any(old[1] != new[1])


def start_lateral(spec, sources, task, kind, alpha=1.0, projection=None):
    return init_laterals([spec], sources, kind, alpha, projection, KEY, task)[0]


def test_shapes_of_laterals():
    dense = models.LateralSpec((5,), (3,))
    conv = models.LateralSpec((6, 6, 5), (4, 4, 3), (3, 3), (1, 1), "VALID")
    shapes = lambda *args: jax.tree.map(np.shape, start_lateral(*args))  # noqa: E731
    assert shapes(dense, 2, 1, "linear") == {"kernel": (2, 5, 3)}
    assert shapes(conv, 2, 1, "linear") == {"kernel": (3, 3, 2, 5, 3)}
    adapter = {"alpha": (2,), "project": (2, 5, 5), "bias": (5,)}
    assert shapes(dense, 2, 1, "adapter") == adapter | {"kernel": (5, 3)}
    assert shapes(conv, 2, 1, "adapter") == adapter | {"kernel": (3, 3, 5, 3)}
    narrow = {"alpha": (2,), "project": (2, 5, 7), "bias": (7,), "kernel": (7, 3)}
    assert shapes(dense, 2, 1, "adapter", 1.0, 7) == narrow
    start = start_lateral(dense, 3, 2, "adapter", 0.1)
    close(start["alpha"], [0.1, 0.1, 0.0])
    equal(np.any(start["project"], axis=(1, 2)), [True, True, False])


@pytest.mark.parametrize("kind", ["linear", "adapter"])
def test_lateral_convolutions_are_sums_over_the_sources(kind):
    spec = models.LateralSpec((6, 6, 5), (3, 3, 3), (3, 3), (2, 2), "SAME")
    lateral = start_lateral(spec, 2, 2, kind, 0.5)
    hidden = noise(9, jnp.zeros((2, 6, 6, 2, 5)))

    def conv(h, kernel):
        return jax.lax.conv_general_dilated(
            h, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    if kind == "linear":
        expected = sum(conv(hidden[..., j, :], lateral["kernel"][:, :, j]) for j in range(2))
    else:
        reduced = sum(0.5 * hidden[..., j, :] @ lateral["project"][j] for j in range(2))
        expected = conv(jax.nn.relu(reduced), lateral["kernel"])
    close(apply_lateral(lateral, spec, hidden, 2), expected, 1e-4)


def test_a_single_column_has_no_laterals():
    method, network = jaxcl.pnn(mlp(), 1)
    theta, state = method.begin_task(KEY, *method.init(KEY, params()), 0)
    assert theta["laterals"] == []
    assert network.frozen is None
    x = noise(6, jnp.zeros((6, 4)))
    close(network.apply(method.view(theta, state, 0), {}, x)[0], mlp().apply(params(), {}, x)[0])


def test_narrow_columns_have_the_size_of_the_hat_code_s():
    """Its eight columns with their own heads have 7,160,706 parameters, and ours one bias less.

    There U has a bias beside V's, although the layer that it adds to has one already. All else is
    the same: the widths, V of as many units as it reads, one alpha for each source column and
    layer, laterals into the head.
    """
    classes = [10, 100, 100, 10, 10, 10, 10, 43]
    images = data.from_arrays("images", [(np.zeros((10, 32, 32, 3), np.uint8), np.arange(10) % 2)])
    alexnet = recipes.Options(network="alexnet")
    ours = biases = 0
    for sources, count in enumerate(classes):
        task = images.tasks[0]._replace(classes=count)
        column = recipes.network(images._replace(tasks=(task,)), alexnet, 1.117 / len(classes))
        method, _ = jaxcl.pnn(column, sources + 1)
        theta = jax.eval_shape(lambda key, c=column, m=method: m.init(key, c.init(key)[0])[0], KEY)
        ours += sum(leaf.size for leaf in jax.tree.leaves(theta))
        widths = [spec.out[-1] for spec in column.laterals]
        assert widths == [17, 35, 285, 285, count]
        biases += sum(widths) if sources else 0
    assert (ours, biases, ours + biases) == (7_156_069, 4_637, 7_160_706)


def test_a_recipe_s_columns_are_as_wide_as_asked():
    benchmark = data.split_digits(2)
    for method in ("pnn", "independent"):
        options = recipes.Options(hidden=(100, 29), column_width=0.1)
        setup = recipes.recipe(method, benchmark, options)({})
        params, _ = jax.eval_shape(setup.model.init, KEY)
        widths = [layer["kernel"].shape[1] for layer in params["layers"].values()]
        assert widths == ([10, 2] if method == "pnn" else [100, 29])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tasks": 0}, "pnn: tasks must be a whole number of at least 1, got 0"),
        ({"tasks": 2, "alpha": np.inf}, "pnn: alpha must be finite, got inf"),
        ({"tasks": 2, "projection": 0}, "pnn: projection must be a whole number of at least 1"),
        ({"tasks": 2, "lateral": "dense"}, "lateral must be .* got 'dense'"),
    ],
)
def test_pnn_errors(options, words):
    with pytest.raises(ValueError, match=words):
        jaxcl.pnn(mlp(), **options)


def test_pnn_needs_layers_to_connect():
    plain = mlp()._replace(column=None, laterals=())
    with pytest.raises(ValueError, match=r"the model shows no layers to connect.*lateral=None"):
        jaxcl.pnn(plain, 2)
    jaxcl.pnn(plain, 2, None)
