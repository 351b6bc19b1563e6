"""A learner comes back bit by bit, and goes on as if it had never been away."""

import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxcl import checkpoint, data, recipes, study, train
from jaxcl.methods import REGISTRY
from jaxcl.study.recipes import Options

NAMES = [spec.name for spec in REGISTRY]
OPTIONS = Options(hidden=(6,), epochs=3, batch=8, optimizer="adam")


@pytest.fixture(scope="module")
def benchmark():
    generator = np.random.default_rng(0)
    y = np.arange(60) % 4
    x = generator.normal(size=(60, 5)) + y[:, None]
    return data.split(data.from_arrays("small", [(x, y)]), 2)


@pytest.fixture(scope="module")
def learner(benchmark):
    return started("hat", benchmark)


def started(method, benchmark, seed=3):
    return train.start(recipes.recipe(method, benchmark, OPTIONS)({}), jax.random.key(seed), 2)


def shapes(tree):
    return jax.eval_shape(lambda: tree)


def assert_same(tree, other):
    """Equal structures, types and bits; keys too."""
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other)):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("method", NAMES)
def test_round_trip(method, benchmark, tmp_path):
    learner = started(method, benchmark)
    checkpoint.save(tmp_path / "deep" / "task_1", learner)
    restored = checkpoint.restore(tmp_path / "deep" / "task_1", shapes(learner))
    assert_same(restored, learner)
    drawn = [jax.random.normal(one.key, 3) for one in (restored, learner)]
    np.testing.assert_array_equal(*drawn)


def test_extreme_values_keep_their_bits(tmp_path):
    tree = {
        "floats": jnp.array([np.nan, -0.0, np.inf, 1e-42], jnp.float32),
        "half": jnp.array([1.5, -3], jnp.bfloat16),
        "bytes": jnp.array([0, 255], jnp.uint8),
        "flag": jnp.bool_(True),
        "none": None,
        "empty": ((), {}),
        "keys": [jax.random.key(1), jax.random.split(jax.random.key(2, impl="rbg"), 4)],
    }
    checkpoint.save(tmp_path / "a", tree)
    restored = checkpoint.restore(tmp_path / "a", shapes(tree))
    assert_same(restored, tree)
    assert np.asarray(restored["floats"]).tobytes() == np.asarray(tree["floats"]).tobytes()
    assert jax.random.key_impl(restored["keys"][1]) == jax.random.key_impl(tree["keys"][1])


@pytest.mark.parametrize("method", sorted({*NAMES} - {"independent"}))  # a kind of pnn
def test_restored_learner_goes_on_as_uninterrupted(method, benchmark, tmp_path):
    """Law 5 in its simple form: stop after the first task, and go on from the disk."""
    (built,) = recipes.studies(method, benchmark, OPTIONS, range(2), devices=jax.devices()[:2])
    uninterrupted = []
    for event in study.run(built):
        if isinstance(event, study.TaskEnd):
            uninterrupted.append(event)
            if event.task == 0:
                checkpoint.save(tmp_path / "task_1", event.learners)
                abstract = jax.tree.map(on_mesh, event.learners)
    learners = checkpoint.restore(tmp_path / "task_1", abstract)
    assert learners.key.sharding == abstract.key.sharding
    (event,) = [e for e in study.run(built, learners, 1) if isinstance(e, study.TaskEnd)]
    np.testing.assert_array_equal(event.accuracy, uninterrupted[1].accuracy)
    jax.tree.map(np.testing.assert_array_equal, event.measures, uninterrupted[1].measures)
    assert_same(event.learners, uninterrupted[1].learners)


def on_mesh(leaf):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def test_restores_onto_another_sharding(tmp_path):
    mesh = jax.make_mesh((4,), ("replica",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = NamedSharding(mesh, PartitionSpec("replica"))
    tree = {"x": jnp.arange(8.0), "key": jax.random.split(jax.random.key(0), 8)}
    checkpoint.save(tmp_path / "one", tree)
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=spread), tree
    )
    restored = checkpoint.restore(tmp_path / "one", abstract)
    assert restored["x"].sharding == spread
    assert_same(restored, tree)
    checkpoint.save(tmp_path / "four", restored)
    back = checkpoint.restore(tmp_path / "four", shapes(tree))
    assert back["x"].sharding.device_set == {jax.devices()[0]}
    assert_same(back, tree)


def test_arrays_can_stand_for_their_shapes(learner, benchmark, tmp_path):
    checkpoint.save(tmp_path / "a", learner)
    other = started("hat", benchmark, seed=4)
    assert_same(checkpoint.restore(tmp_path / "a", other), learner)


# What can go wrong


@pytest.mark.parametrize("there", ["nothing", "a file", "an empty folder", "another folder"])
def test_no_checkpoint(there, learner, tmp_path):
    path = tmp_path / "a"
    if there == "a file":
        path.write_text("hello")
    elif there != "nothing":
        path.mkdir()
    if there == "another folder":
        (path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=f"there is no checkpoint in {path}"):
        checkpoint.restore(path, shapes(learner))


def test_never_overwrites(learner, tmp_path):
    checkpoint.save(tmp_path / "a", {"x": jnp.ones(2)})
    with pytest.raises(ValueError, match="exists already"):
        checkpoint.save(tmp_path / "a", learner)
    assert checkpoint.restore(tmp_path / "a", {"x": jnp.zeros(2)})["x"].tolist() == [1, 1]


def test_empty_leaf(tmp_path):
    with pytest.raises(ValueError, match=r"leaf 'a/b' has no entries \(shape \(0, 3\)\)"):
        checkpoint.save(tmp_path / "a", {"a": {"b": jnp.zeros((0, 3))}})
    assert not any(tmp_path.iterdir())


def test_errors_name_the_leaf(learner, benchmark, tmp_path):
    checkpoint.save(tmp_path / "a", learner)
    abstract = shapes(learner)
    restore = partial(checkpoint.restore, tmp_path / "a")

    stopping = abstract.stopping._replace(scale=jax.ShapeDtypeStruct((3,), jnp.float32))
    with pytest.raises(ValueError, match=r"'stopping/scale' .* float32\[\], but float32\[3\] was"):
        restore(abstract._replace(stopping=stopping))
    stopping = abstract.stopping._replace(scale=jax.ShapeDtypeStruct((), jnp.int32))
    with pytest.raises(ValueError, match=r"'stopping/scale' .* is float32\[\], but int32\[\] was"):
        restore(abstract._replace(stopping=stopping))
    with pytest.raises(ValueError, match=r"has no leaf 'state/extra'"):
        restore(abstract._replace(state={"extra": jnp.ones(1)}))
    with pytest.raises(ValueError, match=r"has a leaf 'state/attention/layer0' that is not"):
        restore(abstract._replace(state=()))
    with pytest.raises(ValueError, match=r"'key' .* is uint32\[2\], but uint32\[4\] was expected"):
        restore(abstract._replace(key=jax.random.key(0, impl="rbg")))
    with pytest.raises(ValueError, match=r"has no leaf 'theta/head/bias'"):
        restore(shapes(started("packnet", benchmark)))


@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")  # orbax's, when it fails
def test_damaged(learner, tmp_path):
    checkpoint.save(tmp_path / "a", learner)
    for path in (tmp_path / "a").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=rf"{tmp_path / 'a'}"):
        checkpoint.restore(tmp_path / "a", shapes(learner))


def test_damaged_metadata(tmp_path):
    checkpoint.save(tmp_path / "a", {"x": jnp.ones(2)})
    (file,) = (tmp_path / "a").rglob("_METADATA")
    file.write_text(file.read_text()[:-50])
    with pytest.raises(ValueError, match=f"in {tmp_path / 'a'} is damaged: it does not say what"):
        checkpoint.shapes(tmp_path / "a")


def test_nothing_half_written(learner, tmp_path, monkeypatch):
    """If saving dies on the way, there is nothing under the final name; the next one succeeds."""
    import asyncio

    import orbax.checkpoint._src.path.atomicity as atomicity

    class KilledError(Exception):
        pass

    async def die(self):
        await asyncio.sleep(0)
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(atomicity.AtomicRenameTemporaryPath, "finalize", die)
        with pytest.raises(KilledError):
            checkpoint.save(tmp_path / "task_1", learner)
    assert not (tmp_path / "task_1").exists()
    assert any(tmp_path.iterdir())  # the unfinished one, under another name
    assert checkpoint.latest(tmp_path) is None
    checkpoint.save(tmp_path / "task_1", learner)
    assert [path.name for path in tmp_path.iterdir()] == ["task_1"]
    assert_same(checkpoint.restore(tmp_path / "task_1", shapes(learner)), learner)


def test_latest(tmp_path):
    assert checkpoint.latest(tmp_path / "nowhere") is None
    for name in ("task_2", "task_10", "task_11.orbax-checkpoint-tmp", "other_12", "task_x"):
        (tmp_path / name).mkdir()
    assert checkpoint.latest(tmp_path) == (10, tmp_path / "task_10")
    shutil.rmtree(tmp_path / "task_10")
    assert checkpoint.latest(tmp_path) == (2, tmp_path / "task_2")


def test_shapes(tmp_path):
    checkpoint.save(tmp_path / "a", {"a": {0: jnp.ones((2, 3))}, "key": jax.random.key(0)})
    found = checkpoint.shapes(tmp_path / "a")
    assert {name: leaf.shape for name, leaf in found.items()} == {"a/0": (2, 3), "key": (2,)}
