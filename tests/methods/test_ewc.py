"""EWC: the Fisher information against its definition, the sum of penalties, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxcl
from jaxcl import models, train
from jaxcl.methods import importance
from jaxcl.methods.ewc import latest, weighted
from jaxcl.methods.importance import Anchored
from jaxcl.train.forward import lend

INPUTS, CLASSES, N = 3, 4, 6
RNG = np.random.default_rng(0)
W = RNG.normal(0, 1, (INPUTS, CLASSES)).astype("f4")
X = RNG.normal(0, 1, (N, INPUTS)).astype("f4")
Y = np.array([0, 1, 2, 2, 1, 0])


@pytest.fixture(params=[1, 4], ids=["one by one", "side by side"])
def _chunk(request, monkeypatch):
    """As on a CPU and as on accelerators."""
    monkeypatch.setattr(importance, "SIDE_BY_SIDE", {"cpu": request.param})


def linear(method, **options):
    """A linear softmax, whose logits beyond `classes` do not take part."""
    model = models.from_function(lambda params, x: x @ params["w"], {"w": jnp.asarray(W)})
    return train.Setup(method, model, optax.sgd(0.1), batch=4, classes=(3, 3), **options)


def importance_after(setup, data, key=0):
    """What a method finds important once its first task ends."""
    learner = train.start(setup, jax.random.key(key), 2)
    end = jax.jit(lambda learner, data: train.end_task(setup, learner, 0, data))
    return end(learner, data).state.importance


def linear_fisher(fisher, key=0, length=None, examples=None, **options):
    setup = linear(jaxcl.ewc(jaxcl.finetune(), fisher=fisher, heads=None, examples=examples))
    data = train.examples(X, Y, length=length)
    return np.asarray(importance_after(setup._replace(**options), data, key)["w"])


def probabilities(visible=3):
    logits = np.where(np.arange(CLASSES) < visible, X.astype("f8") @ W, -np.inf)
    p = np.exp(logits - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * 1e-1)


# The Fisher information of a linear softmax is known: d log p(y | x) / dW = x (e_y - p)^T.


@pytest.mark.usefixtures("_chunk")
def test_exact_fisher_is_the_analytic_one():
    p = probabilities()
    close(linear_fisher("exact"), np.mean(X[:, :, None] ** 2 * (p * (1 - p))[:, None], 0))


@pytest.mark.usefixtures("_chunk")
def test_empirical_fisher_is_the_analytic_one():
    error = np.eye(CLASSES)[Y] - probabilities()
    expected = np.mean((X[:, :, None] * error[:, None]) ** 2, 0)
    close(linear_fisher("empirical"), expected)
    of_mean = np.mean(X[:, :, None] * error[:, None], 0) ** 2  # the broken twin: a batch's gradient
    assert not np.allclose(linear_fisher("empirical"), of_mean, rtol=0.1)


def test_sampled_fisher_draws_labels_from_the_prediction():
    setup = linear(jaxcl.ewc(jaxcl.finetune(), fisher="sampled", heads=None))
    data = jax.tree.map(jnp.asarray, train.examples(X[:1], Y[:1]))

    def draw(key):
        context = lend(setup, {}, 0, key, None, data)
        theta, state = setup.method.init(key, {"w": jnp.asarray(W)})
        return setup.method.consolidate(context, theta, state, ())[0].importance["w"]

    drawn = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 2000)))
    p = probabilities()[0]
    error = np.eye(CLASSES)[:3] - p
    squares = (X[0][:, None] * error[:, None]) ** 2  # by label
    distance = np.abs(drawn[:, None] - squares[None]).max((2, 3))
    assert distance.min(1).max() < 1e-5  # each is that of one label
    share = np.bincount(distance.argmin(1), minlength=3) / 2000
    np.testing.assert_allclose(share, p[:3], atol=0.04)
    assert np.abs(share - 1 / 3).max() > 0.1  # uniform labels, a broken twin, would be seen


@pytest.mark.usefixtures("_chunk")
def test_rows_that_fill_up_the_data_do_not_count():
    for fisher in ("exact", "empirical"):
        close(linear_fisher(fisher, length=11), linear_fisher(fisher))
    counted = train.examples(X, Y, length=11)._replace(count=np.int32(11))  # the broken twin
    setup = linear(jaxcl.ewc(jaxcl.finetune(), heads=None))
    wrong = importance_after(setup, counted)["w"]
    assert not np.allclose(wrong, linear_fisher("exact"), rtol=0.1)


@pytest.mark.usefixtures("_chunk")
def test_fewer_examples_are_drawn_without_replacement():
    p = probabilities()
    each = X[:, :, None] ** 2 * (p * (1 - p))[:, None]

    def chosen(key, most):
        found = linear_fisher("exact", key, length=9, examples=most)
        masks = (np.arange(2**N)[:, None] >> np.arange(N)) & 1
        masks = masks[masks.sum(1) == min(most, N)]
        means = np.einsum("mn,nij->mij", masks, each) / min(most, N)
        return tuple(masks[np.argmin(np.abs(means - found).max((1, 2)))])

    assert len({chosen(key, 2) for key in range(4)}) > 1
    assert chosen(0, 100) == (1,) * N


@pytest.mark.usefixtures("_chunk")
def test_fisher_sees_the_network_as_it_is_evaluated():
    """BatchNorm's batch statistics of one example would make its gradient another one."""

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(1, 2, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(2, momentum=0.5, rngs=rngs)
            self.head = nnx.Linear(2 * 16, 3, rngs=rngs)

        def __call__(self, x):
            h = jax.nn.relu(self.norm(self.conv(x)))
            return self.head(h.reshape(x.shape[0], -1))

    model = models.from_nnx(Net)
    base = jaxcl.multihead(jaxcl.finetune(), 2)
    setup = train.Setup(
        jaxcl.ewc(base, fisher="empirical"), model, optax.adam(0.05), batch=4, classes=(3, 3),
        norm="shared",
    )  # fmt: skip
    x = np.random.default_rng(1).normal(1, 2, (N, 4, 4, 1)).astype("f4")
    data = jax.tree.map(jnp.asarray, train.examples(x, Y))

    @jax.jit
    def learn(key):
        learner = train.begin_task(setup, train.start(setup, key, 2), 0)
        learner, _ = train.epoch(setup, learner, data, 0, 0)
        return learner, train.end_task(setup, learner, 0, data).state.importance

    learner, found = learn(jax.random.key(0))
    params, statistics = train.network(setup, learner, 0)

    @jax.jit
    def expected(mode):
        def loss(params, x, y):
            out = jax.lax.cond(
                mode,
                lambda: model.apply(params, statistics, x[None], train=True)[0],
                lambda: model.apply(params, statistics, x[None])[0],
            )
            return -jax.nn.log_softmax(out)[0, y]

        gradients = jax.vmap(jax.grad(loss), (None, 0, 0))(params, x, Y)
        return jaxcl.masks.leaves_by_path(jax.tree.map(lambda g: jnp.mean(g**2, 0), gradients))

    evaluated, trained = expected(False), expected(True)
    assert set(found) == {path for path in evaluated if not path.startswith("head")}
    for path in found:
        close(found[path], evaluated[path], 1e-3)
    assert not np.allclose(found["norm/scale"], trained["norm/scale"], rtol=0.1)


# Several tasks


def quadratics(seed=0, tasks=3):
    """Importances and anchors of several tasks, some of which find an entry unimportant."""
    rng = np.random.default_rng(seed)
    fisher = rng.exponential(1, (tasks, 2, 5)).astype("f4")
    fisher[:, 0, 0] = fisher[0, 0, 1] = fisher[1:, 1, 1] = 0
    return fisher, rng.normal(0, 1, (tasks, 2, 5)).astype("f4")


def merged(merge, fisher, anchors):
    state = Anchored((), {"w": jnp.zeros((2, 5))}, {"w": jnp.full((2, 5), 7.0)})
    for new, anchor in zip(fisher, anchors):
        state = merge(state, {"w": new}, {"w": anchor})
    return state


def gradient(state, theta):
    return jax.grad(lambda w: importance.quadratic({"w": w}, state) / 2)(jnp.asarray(theta))


def test_one_quadratic_is_the_sum_of_all_tasks_quadratics():
    fisher, anchors = quadratics()
    theta = np.random.default_rng(1).normal(0, 1, (2, 5)).astype("f4")
    exact = np.sum(fisher.astype("f8") * (theta - anchors), 0)
    state = merged(weighted, fisher, anchors)
    close(gradient(state, theta), exact, 1e-5)
    # The value lacks a constant alone.
    whole = [
        0.5 * np.sum(fisher.astype("f8") * (point - anchors) ** 2) for point in (theta, theta * 0)
    ]
    value = [importance.quadratic({"w": jnp.asarray(p)}, state) / 2 for p in (theta, theta * 0)]
    close(value[0] - value[1], whole[0] - whole[1], 1e-4)
    unweighted = state._replace(anchor={"w": jnp.asarray(anchors.mean(0))})  # the broken twin
    assert not np.allclose(gradient(unweighted, theta), exact, rtol=0.01)


def test_online_importance_fades_and_is_the_sum_for_gamma_1():
    fisher, anchors = quadratics()
    for gamma in (1.0, 0.5, 0.0):
        state = merged(lambda *args: latest(gamma, *args), fisher, anchors)  # noqa: B023
        close(state.importance["w"], gamma**2 * fisher[0] + gamma * fisher[1] + fisher[2])
        np.testing.assert_array_equal(state.anchor["w"], anchors[-1])
    close(merged(weighted, fisher, anchors).importance["w"], fisher.sum(0))


def test_what_no_task_needs_is_not_held():
    fisher, anchors = quadratics()
    state = merged(weighted, fisher * 0, anchors)
    theta = np.ones((2, 5), "f4")
    np.testing.assert_array_equal(gradient(state, theta), 0)
    np.testing.assert_array_equal(gradient(merged(weighted, fisher, anchors), theta)[0, 0], 0)


@pytest.mark.parametrize("online", [False, True])
def test_penalty_is_half_of_strength(online):
    """In the engine: the second task's gradient is pulled as the definition says."""
    method = jaxcl.ewc(jaxcl.finetune(), strength=3.0, online=online, heads=None)
    setup = linear(method)
    learner = train.start(setup, jax.random.key(0), 2)
    learner = train.end_task(setup, learner, 0, train.examples(X, Y))
    moved = {"w": jnp.asarray(W + 0.5)}
    p = probabilities()
    fisher = np.mean(X[:, :, None] ** 2 * (p * (1 - p))[:, None], 0)
    close(method.penalty(moved, learner.state, 1), 1.5 * 0.25 * fisher.sum())
    close(jax.grad(method.penalty)(moved, learner.state, 1)["w"], 3 * 0.5 * fisher)


# Scenarios


def test_a_head_that_all_tasks_share_is_held_for_the_classes_so_far():
    """Class-incremental: the Fisher information has no entry for classes still to come."""
    base = jaxcl.finetune()
    setup = linear(jaxcl.ewc(base, heads=None), scenario="class")._replace(classes=(2, 2))
    found = np.asarray(importance_after(setup, train.examples(X, Y % 2))["w"])
    p = probabilities(visible=2)
    close(found, np.mean(X[:, :, None] ** 2 * (p * (1 - p))[:, None], 0))
    assert (found[:, 2:] == 0).all() and (found[:, :2] > 0).all()
    kept = setup._replace(unseen="kept")
    assert (np.asarray(importance_after(kept, train.examples(X, Y % 2))["w"]) > 0).all()
    with pytest.raises(ValueError, match="ewc: the pattern 'w' matches every leaf"):
        importance_after(linear(jaxcl.ewc(base, heads="w")), train.examples(X, Y))


def test_heads_are_left_out():
    method = jaxcl.ewc(jaxcl.multihead(jaxcl.finetune(), 2))
    model = models.mlp(INPUTS, (4,), 3)
    theta, state = method.init(jax.random.key(0), model.init(jax.random.key(0))[0])
    assert theta["head"]["kernel"].shape == (2, 4, 3)
    assert {path.split("/")[0] for path in state.importance} == {"layers"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"strength": -1.0}, "ewc: strength must be at least 0, got -1.0"),
        ({"gamma": 1.5}, "ewc: gamma must be at most 1, got 1.5"),
        ({"fisher": "batch"}, "ewc: fisher must be one of 'exact', 'sampled', 'empirical'"),
        ({"examples": 0}, "ewc: examples must be a whole number of at least 1, got 0"),
        ({"heads": "("}, r"ewc: heads must be a regular expression, got '\('"),
    ],
)
def test_refuses(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        jaxcl.ewc(jaxcl.finetune(), **options)


def test_refuses_a_base_that_consolidates_and_a_task_without_examples():
    with pytest.raises(ValueError, match="ewc: the base method brings consolidate of its own"):
        jaxcl.ewc(jaxcl.ewc(jaxcl.finetune()))
    with pytest.raises(ValueError, match="ewc: the base method brings phases of its own"):
        jaxcl.ewc(jaxcl.packnet(2))
    setup = linear(jaxcl.ewc(jaxcl.finetune(), heads=None))
    learner = train.start(setup, jax.random.key(0), 2)
    with pytest.raises(ValueError, match="needs the task's examples"):
        train.end_task(setup, learner, 0)
