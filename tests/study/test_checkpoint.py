"""A learner comes back bit by bit, and goes on as if it had never been away."""

import collections
import dataclasses
import os
import shutil
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx, struct
from flax.training import train_state
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1

from jaxcl import checkpoint, data, recipes, study, train
from jaxcl.methods import REGISTRY
from jaxcl.study import digests, leaves
from jaxcl.study.leaves import written_leaf
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
        assert type(a) is type(b)
        assert (np.shape(a), getattr(a, "dtype", None)) == (np.shape(b), getattr(b, "dtype", None))
        assert bits(a) == bits(b)


def bits(leaf):
    if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return leaf if type(leaf) is int else np.asarray(leaf).tobytes()


def round_trip(path, tree, abstract=None):
    checkpoint.save(path, tree)
    return checkpoint.restore(path, tree if abstract is None else abstract)


def deleted():
    leaf = jnp.ones(3)
    leaf.delete()
    return leaf


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


# Any tree


class Fields(NamedTuple):
    key: Any
    value: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Data:
    value: Any
    names: Any


@jax.tree_util.register_pytree_with_keys_class
class Twins:
    """Two children of one name."""

    def __init__(self, *children):
        self.children = children

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.DictKey("twin"), child) for child in self.children], None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


class Flaxed(struct.PyTreeNode):
    value: Any
    size: int = struct.field(pytree_node=False, default=3)


class Net(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0, dropout=nnx.RngStream(1, tag="dropout"))
        self.norm, self.drop = nnx.BatchNorm(2, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(2, 2, rngs=rngs)])
        self.value = nnx.Param(jnp.ones(2))


class Boxed(nn.Module):
    @nn.compact
    def __call__(self, x):
        init = nn.with_partitioning(nn.initializers.ones, ("in", "out"))
        return nn.Dense(2, kernel_init=init)(nn.BatchNorm(use_running_average=True)(x))


PARAMS = {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.arange(3.0)}


def optimizers():
    clip, adam = optax.clip_by_global_norm(1.0), optax.adam(0.1)
    return [
        optax.sgd(0.1, momentum=0.9),
        optax.chain(clip, optax.adamw(optax.linear_schedule(0.1, 0, 5))),
        optax.MultiSteps(adam, 2).gradient_transformation(),
        optax.masked(adam, {"w": True, "b": False}),
        optax.partition({"x": adam, "y": optax.sgd(0.1)}, {"w": "x", "b": "y"}),
        optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
        optax.apply_if_finite(adam, 3),
        optax.adafactor(0.1),
        optax.lbfgs(memory_size=2),
        optax.add_noise(0.1, 0.5, jax.random.key(3)),
        optax.chain(adam, optax.contrib.reduce_on_plateau()),
        optax.contrib.schedule_free_adamw(0.1),
        optax.contrib.muon(0.1),
        optax.lookahead(adam, 2, 0.5),
    ]


def trees():
    """Name and tree of every kind that people have."""
    net, model = Net(), Boxed()
    variables = model.init(jax.random.key(0), jnp.ones((1, 2)))
    state = train_state.TrainState.create(
        apply_fn=model.apply, params=variables["params"], tx=optax.adam(0.1)
    )
    pair = optax.LookaheadParams(PARAMS, PARAMS)
    states = [tx.init(PARAMS) for tx in optimizers()[:-1]] + [optimizers()[-1].init(pair)]
    x, y = jnp.arange(3.0), jnp.arange(2)
    return {
        "nnx": nnx.state(net),
        "nnx optimizer": nnx.state(nnx.Optimizer(net, optax.adamw(0.1), wrt=nnx.Param)),
        "nnx module": net.layers[0],
        "linen": variables,
        "train state": state,
        "stepped": state.apply_gradients(grads=state.params),
        "optax": states,
        "fields": [
            Fields(x, {"value": y}),
            Data(x, Fields(y, y)),
            Flaxed(x),
            Twins(x, y),
            (x, [y]),
        ],
        "names": {"a/b": x, "a": {"b": y, "": {"": x}}, "": y, "a.b": x, " ": y, "\u00e9\ud800": x},
        "quotes": {"'": x, "('a',)": y, "\\": x, '"': y, "\n": x, "value": y, "..": x, "leaf0": y},
        "numbers": {0: x, -1: y, 10: (x, {1: y, 2: {}})},
        "nothing": {"none": None, "empty": ((), [], {})},
        "no entries": [jnp.zeros((0, 3)), np.zeros((2, 0), np.float64), jnp.zeros(0, bool)],
        "leaf": x,
        "python": [True, 7, -(2**70), 0.1, float("nan"), -0.0, float("inf"), 1 + 0.1j],
        "numpy": [np.arange(3.0), np.float64(0.1), np.array(7), np.bool_(True), np.int8(3)],
        "bytes swapped": np.arange(3, dtype=">f8"),
        "keys": [jax.random.key(1, impl=impl) for impl in ("threefry2x32", "rbg", "unsafe_rbg")],
        "no keys": jax.random.split(jax.random.key(1), (0, 2)),
    }


@pytest.mark.parametrize("by_host", [True, False])
def test_any_tree(by_host, tmp_path, monkeypatch):
    if not by_host:
        monkeypatch.setattr(leaves, "SMALL", -1)
    for name, tree in trees().items():
        assert_same(round_trip(tmp_path / name, tree), tree)
        if all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tree)):
            assert_same(checkpoint.restore(tmp_path / name, shapes(tree)), tree)


def test_across_containers(tmp_path):
    """A tree and the dict of its arrays have the same paths."""
    state = nnx.state(Net())
    pure = nnx.to_pure_dict(state)
    assert_same(round_trip(tmp_path / "a", state, shapes(pure)), pure)
    assert_same(round_trip(tmp_path / "b", pure, shapes(state)), state)
    boxed = Boxed().init(jax.random.key(0), jnp.ones((1, 2)))
    assert_same(round_trip(tmp_path / "c", boxed, shapes(nn.unbox(boxed))), nn.unbox(boxed))
    with pytest.raises(ValueError, match="has no leaf 'value/value'"):
        checkpoint.restore(tmp_path / "a", {**pure, "value": {"value": pure["value"]}})


def test_numbers_and_their_arrays(tmp_path):
    """A fresh TrainState counts in a Python int, a trained one in an array."""
    fresh = {"step": 0, "rate": 0.1, "flag": False}
    trained = {"step": jnp.int32(7), "rate": jnp.float32(0.1), "flag": jnp.bool_(True)}
    assert_same(round_trip(tmp_path / "a", trained, fresh), trained)
    arrays = jax.tree.map(jnp.asarray, fresh)
    assert_same(round_trip(tmp_path / "b", fresh, shapes(fresh)), arrays)
    with pytest.raises(ValueError, match=r"'step' .* is Python int, but float32\[\] was expected"):
        checkpoint.restore(tmp_path / "b", {**trained, "step": jnp.float32(0)})
    with pytest.raises(ValueError, match=r"'step' .* is int32\[\], but Python float was expected"):
        checkpoint.restore(tmp_path / "a", {**fresh, "step": 0.0})
    checkpoint.save(tmp_path / "c", 2**40)
    with pytest.raises(ValueError, match=f"leaf '' is {2**40}, too much for int32"):
        checkpoint.restore(tmp_path / "c", jnp.int32(0))


TYPES = """
    bool int2 int4 int8 int16 int32 int64 uint2 uint4 uint8 uint16 uint32 uint64 float4_e2m1fn
    float8_e3m4 float8_e4m3 float8_e4m3b11fnuz float8_e4m3fn float8_e4m3fnuz float8_e5m2
    float8_e5m2fnuz float8_e8m0fnu bfloat16 float16 float32 float64 complex64 complex128
"""


@pytest.mark.parametrize(("by_host", "shape"), [(True, ()), (True, (4, 2)), (False, (4, 2))])
def test_any_type(by_host, shape, tmp_path, monkeypatch):
    """Random bits, so NaNs of all kinds; 64 bits in either mode of JAX."""
    if not by_host:
        monkeypatch.setattr(leaves, "SMALL", -1)
    host = {name: random_bits(name, shape) for name in TYPES.split()}
    with jax.enable_x64(True):
        arrays = jax.tree.map(jnp.asarray, host)
        abstract = shapes(arrays)
    assert all(leaf.dtype.name == name for name, leaf in arrays.items())
    for name, tree in {"numpy": host, "jax": arrays}.items():
        assert_same(round_trip(tmp_path / name, tree, host), host)
        assert_same(checkpoint.restore(tmp_path / name, abstract), arrays)


def random_bits(name, shape):
    dtype = np.dtype(name)
    drawn = np.random.default_rng(5).integers(0, 256, (*shape, dtype.itemsize), np.uint8)
    used = {"bool": 1, "int2": 3, "uint2": 3, "int4": 15, "uint4": 15, "float4_e2m1fn": 15}
    drawn &= used.get(name, 255)
    return drawn.reshape(-1).view(dtype).reshape(shape)


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


def test_a_mesh_without_devices_does_not_say_where(tmp_path):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    tree = {"x": jax.device_put(jnp.arange(8.0), NamedSharding(mesh, PartitionSpec("x")))}
    restored = round_trip(tmp_path / "a", tree, shapes(tree))
    assert restored["x"].sharding.device_set == {jax.devices()[0]}
    assert bits(restored["x"]) == bits(tree["x"])


# Its bits


def test_digest_does_not_depend_on_the_layout(monkeypatch):
    """The same for one array on the host, on a device and on a mesh, with nothing gathered."""
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    for name in ("float32", "bfloat16", "int4", "complex64"):
        value = random_bits(name, (8, 4))
        expected = written_leaf(("x",), value)[0]
        monkeypatch.setattr(leaves, "SMALL", -1)
        for spec in (("a", "b"), (None, "b"), (("a", "b"),), ()):
            leaf = jax.device_put(value, NamedSharding(mesh, PartitionSpec(*spec)))
            assert written_leaf(("x",), leaf)[0] == expected
            assert "all-gather" not in digests.encoded.lower(leaf).compile().as_text()
        monkeypatch.undo()
    block = digests.BLOCK
    long = np.arange(2 * block + 3, dtype=np.uint16)
    found = [digests.digest(sums) for sums in (host_sums(long), device_sums(long))]
    assert found[0] == found[1]


host_sums, device_sums = digests.host_sums, jax.jit(digests.device_sums)


def test_digest_sees_what_sums_do_not():
    """Also two changes that cancel in a weighted sum, such as two signs, and entries that swap."""
    words = np.random.default_rng(0).integers(0, 2**32, 64, np.uint32)
    signs, swapped = words.copy(), words.copy()
    signs[[3, 9]] ^= np.uint32(2**31)
    swapped[[3, 9]] = swapped[[9, 3]]
    shifted = np.roll(words, 1)
    odd = np.arange(64, dtype=np.uint32) * 2 + 1
    assert (odd * signs).sum(dtype=np.uint32) == (odd * words).sum(dtype=np.uint32)
    found = {digests.digest(host_sums(one)) for one in (words, signs, swapped, shifted)}
    assert len(found) == 4


def flip(file, bit):
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


def flips(path, tree, number, files):
    """What came of single bits that were flipped: refused, harmless or wrong, by file."""
    rng, found = np.random.default_rng(0), collections.Counter()
    files = sorted(file for file in path.rglob(files) if file.is_file() and file.stat().st_size)
    expected = [bits(leaf) for leaf in jax.tree.leaves(tree)]
    for file in files:
        for bit in rng.integers(0, 8 * file.stat().st_size, number):
            flip(file, bit)
            try:
                restored = checkpoint.restore(path, tree)
                same = [bits(leaf) for leaf in jax.tree.leaves(restored)] == expected
                found["harmless" if same else "wrong"] += 1
            except ValueError as error:
                if str(path) not in str(error):
                    raise
                found["refused"] += 1
            flip(file, bit)
    return found


@pytest.fixture
def flippable(tmp_path):
    w = np.random.default_rng(0).normal(size=(16, 20)).astype("f4")
    tree = {"w": jnp.asarray(w), "n": 7, "key": jax.random.key(0), "b": jnp.ones(9, jnp.bfloat16)}
    checkpoint.save(tmp_path / "a", tree)
    return tmp_path / "a", tree


@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
def test_a_flipped_bit_is_refused_or_harmless(flippable):
    found = flips(*flippable, 12, "*")
    assert found["refused"] > 40
    assert found["wrong"] == 0


@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
def test_without_digests_flipped_bits_would_come_in(flippable, monkeypatch):
    """The broken twin: the digests are what refuses them."""
    monkeypatch.setattr(leaves, "check_bits", lambda *_: None)
    assert flips(*flippable, 12, "d/*")["wrong"] > 0


def test_the_record_is_checked(flippable):
    """No bit of what it says can change: here the step, which no array holds."""
    path, tree = flippable
    file = path / "_CHECKPOINT_METADATA"
    text = file.read_text()
    assert text.count(r"\"7\"") == 1
    file.write_text(text.replace(r"\"7\"", r"\"5\""))
    with pytest.raises(ValueError, match="is damaged: its record is not the one that was saved"):
        checkpoint.restore(path, tree)


@pytest.mark.parametrize("reads", ["restore", "shapes", "verify"])
def test_what_other_versions_wrote_is_refused(reads, tmp_path, monkeypatch):
    tree = {"x": jnp.ones(2)}
    v1.save(tmp_path / "earlier", tree)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", 2)
        checkpoint.save(tmp_path / "later", tree)
    read = getattr(checkpoint, reads)
    arguments = [tree] if reads == "restore" else []
    with pytest.raises(ValueError, match="has no record of its leaves: an earlier version of jax"):
        read(tmp_path / "earlier", *arguments)
    with pytest.raises(
        ValueError, match="has format 2, which a later version of jaxcl wrote; this"
    ):
        read(tmp_path / "later", *arguments)


def test_sizes_are_compared_before_memory_is_taken(flippable, monkeypatch):
    path, tree = flippable
    monkeypatch.setattr(v1, "load", lambda *_: pytest.fail("memory was taken"))
    huge = jax.ShapeDtypeStruct((2**20, 2**20), jnp.float32)
    with pytest.raises(ValueError, match=r"'w' .* is float32\[16, 20\], but float32\[1048576, 10"):
        checkpoint.restore(path, {**tree, "w": huge})
    entries = checkpoint._entries
    monkeypatch.setattr(checkpoint.Entry, "stored", property(lambda entry: (2**20, 2**20)))
    with pytest.raises(ValueError, match="the array of leaf 'b' is not there, or of other size"):
        entries(path)


# A copy of its own


@pytest.mark.parametrize("by_host", [True, False])
def test_a_save_owns_what_it_writes(by_host, tmp_path, monkeypatch):
    """Orbax gets memory that nobody else can change, while it writes in the background."""
    if not by_host:
        monkeypatch.setattr(leaves, "SMALL", -1)
    given, save_async = [], v1.save_async
    monkeypatch.setattr(
        v1,
        "save_async",
        lambda path, tree, **kw: given.append(tree) or save_async(path, tree, **kw),
    )
    names = ("float32", "uint32", "bool", "bfloat16", "uint8")
    tree = {name: jnp.asarray(random_bits(name, (64, 64))) for name in names}
    tree["numpy"] = np.arange(4096, dtype=np.uint32)
    before = jax.tree.map(bits, tree)
    saving = checkpoint.save_async(tmp_path / "a", tree)
    for leaf in jax.tree.leaves(tree):
        for array in given[0].values():
            assert not np.shares_memory(np.asarray(leaf), np.asarray(array))
    abstract = shapes(tree)
    change = jax.jit(lambda tree: jax.tree.map(jnp.flip, tree), donate_argnums=0)
    tree["numpy"][:] = 0
    change({name: tree[name] for name in names})
    assert all(tree[name].is_deleted() for name in names)
    saving.result()
    assert jax.tree.map(bits, checkpoint.restore(tmp_path / "a", abstract)) == before


def test_an_asynchronous_save_tells_what_failed(tmp_path, monkeypatch):
    import orbax.checkpoint._src.path.atomicity as atomicity

    async def die(self):
        raise OSError("disk full")

    monkeypatch.setattr(atomicity.AtomicRenameTemporaryPath, "finalize", die)
    saving = checkpoint.save_async(tmp_path / "task_1", {"x": jnp.ones(2)})
    with pytest.raises(OSError, match="disk full"):
        saving.result()
    assert checkpoint.latest(tmp_path) is None


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


class Slots:
    pass


@pytest.mark.parametrize(
    ("leaf", "words"),
    [
        (lambda: "text", r"'a/b' is a str; a checkpoint holds arrays, typed keys and numbers"),
        (lambda: Slots(), "'a/b' is a Slots;"),
        (lambda: np.array(["text"], object), "'a/b' has type object, which JAX does not have"),
        (lambda: np.array(["text"]), "'a/b' has type <U4, which"),
        (lambda: np.zeros(2, "m8[s]"), r"'a/b' has type timedelta64\[s\], which"),
        (lambda: np.zeros(2, np.clongdouble), "'a/b' has type complex256, which"),
        (lambda: np.zeros(2, jax.dtypes.float0), "'a/b' has type .*float0.*, which"),
        (lambda: jax.ShapeDtypeStruct((), "f4"), "'a/b' has no values: it is a ShapeDtypeStruct"),
        (deleted, "'a/b' has no values: the array was donated or deleted"),
    ],
)
def test_what_cannot_be_saved(leaf, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        checkpoint.save(tmp_path / "a", {"a": {"b": leaf(), "c": jnp.ones(2)}})
    with pytest.raises(ValueError, match=r"'x' has no values: it is a .*Tracer"):
        jax.jit(lambda x: checkpoint.save(tmp_path / "a", {"x": x}))(1.0)
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
    with pytest.raises(ValueError, match=r"'key' .* is key<fry>\[\], but key<rbg>\[\] was expect"):
        restore(abstract._replace(key=jax.random.key(0, impl="rbg")))
    with pytest.raises(ValueError, match=r"'key' .* is key<fry>\[\], but Python int was expected"):
        restore(abstract._replace(key=1))
    with pytest.raises(ValueError, match=r"has no leaf 'theta/head/bias'"):
        restore(shapes(started("packnet", benchmark)))


@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")  # orbax's, when it fails
def test_damaged(learner, tmp_path):
    checkpoint.save(tmp_path / "a", learner)
    for path in (tmp_path / "a").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=rf"the checkpoint in {tmp_path / 'a'} is damaged: "):
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
    names = ("task_2", "task_10", "task_11.orbax-checkpoint-tmp", "other_12", "task_x", "task_012")
    for name in (*names, "task_notes", "task_-3", "task_\u0664\u0664", "task_"):
        (tmp_path / name).mkdir()
    (tmp_path / "task_20").write_text("a file")
    (tmp_path / "task_21").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "task_22")
    assert checkpoint.latest(tmp_path) == (10, tmp_path / "task_10")
    shutil.rmtree(tmp_path / "task_10")
    assert checkpoint.latest(tmp_path) == (2, tmp_path / "task_2")
    assert checkpoint.latest(tmp_path, "other") == (12, tmp_path / "other_12")


@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
def test_latest_that_is_readable(tmp_path):
    for number in (1, 2, 3, 4):
        checkpoint.save(
            tmp_path / f"task_{number}", {"x": jax.random.bits(jax.random.key(0), 4000)}
        )
    assert checkpoint.latest(tmp_path, readable=True) == (4, tmp_path / "task_4")
    (tmp_path / "task_4" / "_CHECKPOINT_METADATA").unlink()  # incomplete
    file = max((tmp_path / "task_3").rglob("d/*"), key=lambda file: file.stat().st_size)
    flip(file, 4 * file.stat().st_size)  # in the middle, where the entries are
    (tmp_path / "task_5").mkdir()
    assert checkpoint.latest(tmp_path) == (5, tmp_path / "task_5")
    assert checkpoint.latest(tmp_path, readable=True) == (2, tmp_path / "task_2")
    with pytest.raises(ValueError, match=r"the bits of leaf 'x' are not those that were saved"):
        checkpoint.verify(tmp_path / "task_3")
    for number in (1, 2):
        shutil.rmtree(tmp_path / f"task_{number}")
    assert checkpoint.latest(tmp_path, readable=True) is None


@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
def test_remove_old(tmp_path):
    """Whole checkpoints of ours go, but for the newest; nothing else does."""
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    for number in (1, 2, 3, 5, 10):
        checkpoint.save(folder / f"task_{number}", {"x": jnp.ones(2)})
    checkpoint.save(elsewhere / "task_1", {"x": jnp.ones(2)})
    (folder / "task_2" / "_CHECKPOINT_METADATA").unlink()  # incomplete
    v1.save(folder / "task_4", {"x": jnp.ones(2)})  # another program's
    (folder / "task_6").symlink_to(elsewhere / "task_1")
    (folder / "task_7").symlink_to(folder / "nowhere")
    (folder / "task_8").mkdir()
    (folder / "task_8" / "notes.txt").write_text("mine")
    (folder / "task_9").write_text("mine")
    (folder / "task_notes").mkdir()
    before = {path.name for path in folder.iterdir()}
    assert checkpoint.remove_old(folder) == [folder / "task_1", folder / "task_3"]
    assert {path.name for path in folder.iterdir()} == before - {"task_1", "task_3"}
    assert checkpoint.remove_old(folder) == []
    assert checkpoint.remove_old(folder, keep=1) == [folder / "task_5"]
    assert (elsewhere / "task_1" / "_CHECKPOINT_METADATA").exists()
    assert (folder / "task_8" / "notes.txt").exists()
    assert checkpoint.remove_old(tmp_path / "nowhere") == []
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        checkpoint.remove_old(folder, keep=0)


def test_shapes(tmp_path):
    checkpoint.save(tmp_path / "a", {"a": {0: jnp.ones((2, 3))}, "key": jax.random.key(0)})
    found = checkpoint.shapes(tmp_path / "a")
    assert {name: leaf.shape for name, leaf in found.items()} == {"a/0": (2, 3), "key": (2,)}
    tree = {"a": {"b": jnp.ones(2, jnp.bfloat16)}, "a/b": 3, "c": np.zeros((0, 2), np.int64)}
    checkpoint.save(tmp_path / "b", tree)
    assert checkpoint.shapes(tmp_path / "b") == {
        "a/b": jax.ShapeDtypeStruct((2,), jnp.bfloat16),
        "a/b (2)": jax.ShapeDtypeStruct((), np.int64),
        "c": jax.ShapeDtypeStruct((0, 2), np.int64),
    }
