"""Fine-tuning, and heads for each task."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcl
from jaxcl import masks
from tests.methods.small import KEY, TASKS, equal, noise, params, row


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


def begun(theta, task, heads, **options):
    """Which leaves of each task's own have the row of the task before it, once the task begins."""
    method = jaxcl.multihead(jaxcl.finetune(), TASKS, heads, **options)
    rows, state = method.init(KEY, theta)
    rows = jax.tree.map(lambda leaf, n: leaf + n, rows, noise(1, rows))
    before, after = (
        masks.leaves_by_path(tree) for tree in (rows, method.begin_task(KEY, rows, state, task)[0])
    )
    changed = {path for path in before if np.any(before[path] != after[path])}
    for path in changed:
        equal(after[path][task], before[path][task - 1])
        equal(np.delete(after[path], task, 0), np.delete(before[path], task, 0))
    return changed


LAYERED = {
    "Dense_0": {"kernel": np.ones((4, 3), "f4"), "bias": np.ones(3, "f4")},
    "norm": {"scale": np.ones(3, "f4"), "bias": np.ones(3, "f4")},
    "Dense_1": {"kernel": np.ones((3, 2), "f4"), "bias": np.ones(2, "f4")},
}
SHARED = {"Dense_0/bias", "norm/scale", "norm/bias"}


@pytest.mark.parametrize(
    ("heads", "options", "carried"),
    [
        ("Dense_1", {}, set()),
        ("Dense_1|bias|norm", {}, SHARED),
        ("Dense_1|bias", {}, SHARED - {"norm/scale"}),
        ("Dense_1|norm", {}, SHARED - {"Dense_0/bias"}),
        ("", {}, {"norm/scale", "norm/bias"}),  # all layers are the tasks' own, and start fresh
        ("Dense_1|bias|norm", {"carried": "(?!)"}, set()),
        (
            "Dense_1|bias|norm",
            {"carried": "norm/|kernel"},
            {"norm/scale", "norm/bias", "Dense_1/kernel"},
        ),
    ],
)
def test_norms_and_biases_go_on_from_the_task_before(heads, options, carried):
    assert begun(LAYERED, 2, heads, **options) == carried
    assert begun(LAYERED, 0, heads, **options) == set()


def test_a_vector_may_be_a_head():
    """By its name; and under a method that has its own part of `theta`."""
    flat = {"hidden": np.ones((4, 3), "f4"), "head": np.ones(3, "f4")}
    assert begun(flat, 1, "head") == set()
    wiring = jaxcl.Wiring({"g": 5}, {"layers/1/kernel": (("g", 1),)}, {"layers/0/kernel": "g"})
    method = jaxcl.multihead(jaxcl.hat(wiring, TASKS), TASKS, "head|bias")
    theta, state = method.init(KEY, params())
    theta = jax.tree.map(lambda leaf, n: leaf + n, theta, noise(1, theta))
    after, _ = method.begin_task(KEY, theta, state, 1)
    biases = [tree["params"]["layers"][0]["bias"] for tree in (theta, after)]
    equal(biases[1][1], biases[0][0])
    equal(after["params"]["head"], theta["params"]["head"])


def test_multihead_is_for_the_method_s_tasks():
    with pytest.raises(ValueError, match="multihead: 4 tasks, but the method has 3"):
        jaxcl.multihead(jaxcl.packnet(3), 4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tasks": 0}, "multihead: tasks must be a whole number of at least 1, got 0"),
        ({"tasks": 2, "carried": "["}, r"multihead: carried must be a regular expression, got"),
        ({"tasks": 2, "heads": "["}, r"multihead: heads must be a regular expression, got '\['"),
    ],
)
def test_multihead_errors(options, words):
    with pytest.raises(ValueError, match=words):
        jaxcl.multihead(jaxcl.finetune(), **options)


def test_a_leaf_is_not_both_packed_and_each_task_s_own():
    heads = "head|layers/1"
    words = "makes 'layers/1/kernel' each task's own.*'head.layers/1'"
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
