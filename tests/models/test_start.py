"""Networks that start from saved weights."""

import jax
import numpy as np
import pytest

from jaxcl import data, models, recipes, train
from jaxcl.core.trees import leaves_by_path

KEY = jax.random.key(0)


@pytest.fixture
def trained(tmp_path):
    """The weights of a network with a norm, in a file as `jaxcl export` writes it."""
    model = models.resnet18((8, 8, 1), 2, width=2)
    params, statistics = model.init(jax.random.key(7))
    weights = leaves_by_path({"params": params, "statistics": statistics})
    np.savez(tmp_path / "weights.npz", **{path: np.asarray(leaf) for path, leaf in weights.items()})
    return tmp_path / "weights.npz", weights


def test_all_but_the_heads_starts_as_saved(trained):
    path, weights = trained
    net = models.resnet18((8, 8, 1), 5, width=2)  # with other heads
    params, statistics = models.start_from(net, models.read_weights(path)).init(KEY)
    fresh = leaves_by_path(net.init(KEY)[0])
    for name, leaf in leaves_by_path({"params": params, "statistics": statistics}).items():
        expected = fresh[name.removeprefix("params/")] if "head" in name else weights[name]
        np.testing.assert_array_equal(leaf, expected)


def test_what_the_file_leaves_out_starts_afresh():
    net = models.mlp(4, (3, 3), 2)
    kernel = np.full((4, 3), 0.5, np.float32)
    params, _ = models.start_from(net, {"layers/0/kernel": kernel}).init(KEY)
    fresh = net.init(KEY)[0]
    np.testing.assert_array_equal(params["layers"][0]["kernel"], kernel)
    np.testing.assert_array_equal(params["layers"][1]["kernel"], fresh["layers"][1]["kernel"])


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"layers/0/kernl": np.ones((4, 3))}, "'params/layers/0/kernl'.*'params/layers/0/kernel'"),
        ({"layers/0/kernel": np.ones((3, 4))}, r"'params/layers/0/kernel' of shape \(3, 4\)"),
        ({"head/kernel": np.ones((3, 2))}, "hold no leaf"),
    ],
)
def test_weights_that_do_not_fit_are_named(weights, said):
    with pytest.raises(ValueError, match=said):
        models.start_from(models.mlp(4, (3,), 2), weights)


def test_files_that_hold_something_else_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"missing\.npz cannot be read"):
        models.read_weights(tmp_path / "missing.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ValueError, match=r"text\.npz cannot be read"):
        models.read_weights(tmp_path / "text.npz")
    np.savez(tmp_path / "objects.npz", a=np.array([{}], object))
    with pytest.raises(ValueError, match=r"objects\.npz cannot be read"):
        models.read_weights(tmp_path / "objects.npz")
    np.savez(tmp_path / "words.npz", a=np.array(["b"]))
    with pytest.raises(ValueError, match=r"words\.npz: 'a' is of type"):
        models.read_weights(tmp_path / "words.npz")


def test_a_study_starts_from_the_option(tmp_path):
    """Every seed's trunk is the file's before the first step; its head is its own."""
    kernel = np.full((4, 3), 0.25, np.float32)
    np.savez(tmp_path / "w.npz", **{"layers/0/kernel": kernel})
    x, y = np.eye(4, dtype=np.float32).repeat(2, 0), np.arange(8) % 2
    benchmark = data.from_arrays("b", [(x, y)])
    options = recipes.Options(hidden=(3,), init=str(tmp_path / "w.npz"), batch=4)
    setup = recipes.recipe("finetune", benchmark, options)({})
    learners = jax.vmap(lambda key: train.start(setup, key, 1))(jax.random.split(KEY, 2))
    np.testing.assert_array_equal(learners.theta["layers"][0]["kernel"], [kernel] * 2)
    heads = learners.theta["head"]["kernel"]
    assert (heads[0] != heads[1]).any()
