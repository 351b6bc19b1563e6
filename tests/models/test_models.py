"""Networks: sizes, gates, laterals and statistics; nnx, linen and plain functions as Models."""

import contextlib
import functools
import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

import jaxcl
from jaxcl import masks, models, train
from jaxcl.models import adapters
from jaxcl.wiring import check_wiring

pytestmark = pytest.mark.filterwarnings("error")

# Tiny networks: constructor, options, shape of one input.
TINY = {
    "mlp": (models.mlp, {"features_in": 6, "hidden": (5, 4), "classes": 3}, (6,)),
    "alexnet": (
        models.alexnet,
        {"shape": (28, 28, 2), "classes": 3, "widths": (2, 3, 4, 5, 6)},
        (28, 28, 2),
    ),
    "resnet18": (models.resnet18, {"shape": (9, 8, 3), "classes": 3, "width": 2}, (9, 8, 3)),
    "resnet18 without norm": (
        models.resnet18,
        {"shape": (8, 8, 3), "classes": 3, "width": 2, "norm": False},
        (8, 8, 3),
    ),
    "vgg16": (
        models.vgg16,
        {"shape": (32, 32, 1), "classes": 3, "width": 2, "hidden": (4, 5), "dropout": 0.0},
        (32, 32, 1),
    ),
    "vgg16 without norm": (
        models.vgg16,
        {
            "shape": (32, 64, 1),
            "classes": 3,
            "width": 2,
            "hidden": (4, 5),
            "norm": False,
            "dropout": 0.0,
        },
        (32, 64, 1),
    ),
}


class Tiny:
    """A tiny model, compiled, with all its parameters and statistics random, and two inputs."""

    def __init__(self, name):
        self.build, self.options, shape = TINY[name]
        self.model = self.build(**self.options)
        rng = np.random.default_rng(0)

        def vary(leaf):
            """Moves biases, scales and statistics off their zeros and ones, and ReLUs open."""
            return leaf + rng.uniform(0, 0.2, leaf.shape).astype("f4") if leaf.ndim == 1 else leaf

        self.params, self.statistics = jax.tree.map(
            vary, jax.jit(self.model.init)(jax.random.key(0))
        )
        self.x = rng.normal(0, 1, (2, *shape)).astype("f4")
        self.zeros = tuple(np.zeros((2, *spec.out), "f4") for spec in self.model.laterals)
        self._apply, self._column = jax.jit(self.model.apply), jax.jit(self.model.column)

    def apply(self, params=None, gates=None):
        params = params or self.params
        gates = gates or {name: np.ones(n, "f4") for name, n in self.model.wiring.gates.items()}
        logits, statistics = self._apply(params | {"gates": gates}, self.statistics, self.x)
        jax.tree.map(np.testing.assert_array_equal, statistics, self.statistics)
        return logits

    def column(self, laterals):
        logits, hiddens, statistics = self._column(self.params, self.statistics, self.x, laterals)
        jax.tree.map(np.testing.assert_array_equal, statistics, self.statistics)
        return logits, hiddens


tiny_model = functools.cache(Tiny)


@pytest.fixture(params=TINY)
def tiny(request):
    return tiny_model(request.param)


def count(model):
    return models.parameter_count(jax.eval_shape(model.init, jax.random.key(0))[0])


def map_paths(function, tree):
    return jax.tree_util.tree_map_with_path(
        lambda path, x: function(jax.tree_util.keystr(path, simple=True, separator="/"), x), tree
    )


def random_gates(model, binary=False):
    rng = np.random.default_rng(1)
    draw = (lambda n: rng.integers(0, 2, n)) if binary else (lambda n: rng.uniform(0, 1, n))
    return {name: jnp.asarray(draw(n), "float32") for name, n in model.wiring.gates.items()}


def fold(params, wiring, gates, spread=jnp.tile):
    """Scales the rows of every consumer's kernel by the gates of its inputs."""

    def scale(path, leaf):
        if path not in wiring.inputs:
            return leaf
        parts = [
            jnp.ones(n) if name is None else spread(gates[name], n)
            for name, n in wiring.inputs[path]
        ]
        return leaf * jnp.concatenate(parts).reshape((1,) * (leaf.ndim - 2) + (-1, 1))

    return map_paths(scale, params)


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


# Sizes


def test_alexnet_has_the_size_the_hat_paper_states():
    heads = [count(models.alexnet(classes=c)) for c in (10, 100, 100, 10, 10, 10, 10, 43)]
    trunk = heads[0] - 2049 * 10
    assert trunk + sum(n - trunk for n in heads) == 7_104_229
    assert sum(models.alexnet().wiring.gates.values()) == 4_544


def test_mnist_networks_have_the_sizes_of_the_hat_code():
    hat = count(models.mlp(784, (2000, 2000), 10, dropout=0.5, input_dropout=0.2))
    assert hat + 9 * 2001 * 10 == 5_772_100
    assert count(models.mlp(784, (800, 800, 800))) + 9 * 801 * 10 == 1_989_700


def test_resnet18_and_vgg16_have_the_known_sizes():
    assert count(models.resnet18()) == 11_173_962
    assert count(models.vgg16(norm=False)) == 14_714_688 + 2 * 513 * 512 + 513 * 10


def test_parameter_paths():
    params, statistics = jax.eval_shape(models.mlp(3, (2, 2), 2).init, jax.random.key(0))
    paths = []
    map_paths(lambda path, leaf: paths.append(path), params)
    layers = ["head/bias", "head/kernel", "layers/0/bias", "layers/0/kernel"]
    assert paths == [*layers, "layers/1/bias", "layers/1/kernel"]
    assert statistics == {}
    params, _ = jax.eval_shape(models.resnet18().init, jax.random.key(0))
    map_paths(lambda path, leaf: paths.append(path), params)
    assert all("norm" in path for path in paths if path.endswith("scale"))
    assert any(path == "head/kernel" for path in paths)


# The networks as functions


def test_apply(tiny):
    logits = tiny.apply()
    assert logits.shape == (2, 3)
    assert logits.dtype == jnp.float32
    assert np.isfinite(logits).all()
    assert np.ptp(logits) > 0


def test_mlp_runs_nothing_but_its_layers():
    model = models.mlp(4, (3, 3), 2)
    params, statistics = jax.eval_shape(model.init, jax.random.key(0))
    jaxpr = jax.make_jaxpr(model.apply)(params, statistics, jnp.ones((5, 4)))
    layer = ["dot_general", "reshape", "add"]  # the reshape is that of the bias
    names = [equation.primitive.name for equation in jaxpr.eqns]
    assert names == [*layer, "custom_jvp_call", *layer, "custom_jvp_call", *layer]


@pytest.mark.parametrize("name", ["mlp", "resnet18"])
def test_bfloat16_computes_in_half_precision_between_float32_ends(name):
    exact = tiny_model(name)
    model, gates = exact.build(**exact.options, dtype=jnp.bfloat16), random_gates(exact.model)
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    logits, hiddens, _ = jax.jit(model.column)(
        exact.params | {"gates": gates}, exact.statistics, exact.x, exact.zeros
    )
    assert logits.dtype == jnp.float32
    assert all(h.dtype == jnp.bfloat16 for h in hiddens)
    expected = exact.apply(gates=gates)
    close(logits, expected, 0.1)
    assert not np.array_equal(logits, expected)


def test_init_and_apply_vmap():
    model, keys = models.mlp(3, (4,), 2), jax.random.split(jax.random.key(3), 2)

    def run(key):
        return model.apply(*model.init(key), np.arange(6, dtype="f4").reshape(2, 3))[0]

    logits = jax.jit(jax.vmap(run))(keys)
    close(logits[1], jax.jit(run)(keys[1]))
    assert not np.allclose(logits[0], logits[1])


def test_training_scans_vmaps_and_shards():
    model, y = models.from_nnx(NnxNet), np.eye(2, dtype="f4")[[0, 1, 0, 1]]

    def step(carry, key):
        params, statistics = carry

        def loss(params):
            logits, new = model.apply(params, statistics, X, train=True, key=key)
            return -(jax.nn.log_softmax(logits) * y).mean(), new

        gradient, statistics = jax.grad(loss, has_aux=True)(params)
        return (jax.tree.map(lambda p, g: p - 0.01 * g, params, gradient), statistics), None

    def run(key):
        return jax.lax.scan(step, model.init(key), jax.random.split(key, 3))[0]

    mesh = jax.make_mesh(
        (2,), ("replicas",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2]
    )
    spec = PartitionSpec("replicas")
    sharded = jax.shard_map(
        jax.vmap(run), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
    )
    params, statistics = jax.jit(sharded)(jax.random.split(jax.random.key(1), 4))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert len(np.unique(statistics["norm"]["mean"][:, 0])) == 4


def test_dropout_needs_a_key_and_keeps_the_mean():
    model = models.mlp(4, (2000,), 1, dropout=0.5)
    params, statistics = model.init(jax.random.key(0))
    params = {
        **jax.tree.map(jnp.ones_like, params),
        "head": {"kernel": jnp.ones((2000, 1)), "bias": jnp.zeros(1)},
    }
    x = jnp.ones((1, 4))
    with pytest.raises(ValueError, match=r"dropouts/1.*needs a key"):
        model.apply(params, statistics, x, train=True)
    logits = [
        model.apply(params, statistics, x, train=True, key=jax.random.key(i))[0] for i in (1, 2)
    ]
    expected = model.apply(params, statistics, x)[0]
    assert expected == 2000 * 5
    assert logits[0] != logits[1]
    close(logits[0], expected, 0.1)


def test_inputs_are_flattened_and_must_fit():
    model = models.mlp(12, (2,), 2)
    params, statistics = model.init(jax.random.key(0))
    x = jnp.arange(24.0).reshape(2, 2, 2, 3)
    close(
        model.apply(params, statistics, x)[0],
        model.apply(params, statistics, x.reshape(2, 12))[0],
    )
    with pytest.raises(TypeError, match="12"):
        model.apply(params, statistics, jnp.ones((2, 11)))


@pytest.mark.parametrize(("init", "bound"), [("torch", 0.05), ("xavier", (6 / 900) ** 0.5)])
def test_uniform_initializers(init, bound):
    params, _ = models.mlp(400, (500,), 2, init=init).init(jax.random.key(0))
    layer = params["layers"][0]
    assert 0.98 * bound < np.abs(layer["kernel"]).max() < bound
    largest = np.abs(layer["bias"]).max()
    assert largest == 0 if init == "xavier" else 0.98 * bound < largest < bound


def test_normal_initializers():
    for init, gain in (("lecun", 1), ("he", 2)):
        params, _ = models.alexnet((24, 24, 8), widths=(64, 128, 1, 1, 1), init=init).init(
            jax.random.key(0)
        )
        kernel = params["layers"][1]["kernel"]
        close(kernel.std(), (gain / (64 * 9)) ** 0.5, 1e-3)
        assert np.abs(kernel).max() < 2 * kernel.std() / 0.87


# Gates


def test_gating_equals_scaling_the_consumers_kernels(tiny):
    gates = random_gates(tiny.model)
    gated = tiny.apply(gates=gates)
    close(gated, tiny.apply(fold(tiny.params, tiny.model.wiring, gates)))
    assert not np.allclose(gated, tiny.apply(), atol=1e-3)


def test_flattening_tiles_gates_and_does_not_repeat_them():
    tiny = tiny_model("alexnet")
    wiring, gates = tiny.model.wiring, random_gates(tiny.model)
    assert wiring.inputs["layers/3/kernel"] == (("layer2", 4),)
    gated = tiny.apply(gates=gates)
    close(gated, tiny.apply(fold(tiny.params, wiring, gates)))
    wrong = fold(tiny.params, wiring, gates, spread=np.repeat)
    assert not np.allclose(gated, tiny.apply(wrong), atol=1e-5)


def test_a_unit_without_its_outputs_is_a_unit_behind_a_closed_gate(tiny):
    gates, outputs = random_gates(tiny.model, binary=True), tiny.model.wiring.outputs

    def remove(path, leaf):
        if path not in outputs:
            return leaf
        return leaf * gates[outputs[path]].reshape((1,) * (leaf.ndim - 1) + (-1,))

    close(tiny.apply(gates=gates), tiny.apply(map_paths(remove, tiny.params)))


def test_the_table_fits_and_covers_everything_but_the_head(tiny):
    wiring = tiny.model.wiring
    check_wiring(wiring, tiny.params)
    assert wiring.native
    paths = []
    map_paths(lambda path, leaf: paths.append(path), tiny.params)
    assert set(wiring.outputs) == {p for p in paths if not p.startswith("head/")}
    assert set(wiring.inputs) == {p for p in paths if p.endswith("kernel")}


def test_unknown_gates_are_an_error():
    model = models.mlp(2, (2,), 2)
    params, statistics = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"'layer7'.*layer0"):
        model.apply(params | {"gates": {"layer7": jnp.ones(2)}}, statistics, jnp.ones((1, 2)))


# Laterals


def test_column_without_laterals_and_gates_is_apply_with_open_gates(tiny):
    close(tiny.column(tiny.zeros)[0], tiny.apply())


def test_every_lateral_arrives(tiny):
    expected, _ = tiny.column(tiny.zeros)
    for i, zero in enumerate(tiny.zeros):
        laterals = (*tiny.zeros[:i], zero + 3, *tiny.zeros[i + 1 :])
        assert not np.allclose(tiny.column(laterals)[0], expected, atol=1e-6)
    head = (*tiny.zeros[:-1], tiny.zeros[-1] + 3)
    close(tiny.column(head)[0], expected + 3)


def test_hiddens_are_the_inputs_of_the_lateral_layers(tiny):
    specs, params = tiny.model.laterals, tiny.params
    logits, hiddens = tiny.column(tiny.zeros)
    for hidden, spec in zip(hiddens, specs, strict=True):
        assert hidden.shape == (2, *spec.hidden)
        if spec.kernel is None:
            assert (spec.strides, spec.padding, len(spec.out)) == (None, None, 1)
            continue
        kernel = jax.ShapeDtypeStruct((*spec.kernel, spec.hidden[-1], spec.out[-1]), jnp.float32)
        out = jax.eval_shape(
            lambda x, w, spec=spec: jax.lax.conv_general_dilated(
                x, w, spec.strides, spec.padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
            ),
            hidden,
            kernel,
        )
        assert out.shape == (2, *spec.out)
    close(logits, hiddens[-1] @ params["head"]["kernel"] + params["head"]["bias"][None])


def test_laterals_may_be_absent():
    tiny = tiny_model("mlp")
    close(tiny.column((None, None))[0], tiny.apply())
    close(tiny.column((None, tiny.zeros[1] + 3))[0], tiny.apply() + 3)


def test_column_wants_one_lateral_a_layer():
    model = models.mlp(2, (2, 2), 2)
    params, statistics = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"expected 2 laterals.*not 1"):
        model.column(params, statistics, jnp.ones((1, 2)), (None,))


# Statistics


@pytest.mark.parametrize(("name", "function"), [("resnet18", "column"), ("vgg16", "apply")])
def test_statistics_move_in_training_alone(name, function):
    tiny = tiny_model(name)
    laterals = [tiny.zeros] if function == "column" else []
    run = jax.jit(functools.partial(getattr(tiny.model, function), train=True))
    new = run(tiny.params, tiny.statistics, tiny.x, *laterals)[-1]
    assert jax.tree.structure(new) == jax.tree.structure(tiny.statistics)
    for old, moved in zip(*map(jax.tree.leaves, (tiny.statistics, new)), strict=True):
        assert old.dtype == moved.dtype
        assert not np.array_equal(old, moved)


# Adapters


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(3, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(8, 2, kernel_init=nnx.initializers.constant(1.0), rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(nnx.relu(self.norm(self.first(x)))))


class LinenNet(nn.Module):
    """A residual net with BatchNorm and dropout."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Dense(4, kernel_init=nn.initializers.constant(0.1))(x)
        y = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = x + nn.Dropout(0.5, deterministic=not train)(y)
        return nn.Dense(2, name="head")(x)


X = np.arange(12, dtype="f4").reshape(4, 3)


@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_adapters(kind):
    model, x = models.from_nnx(NnxNet) if kind == "nnx" else models.from_linen(LinenNet(), X), X
    params, statistics = jax.jit(model.init)(jax.random.key(0))
    assert type(params) is dict
    assert statistics
    apply = jax.jit(model.apply, static_argnames="train")
    logits, same = apply(params, statistics, x)
    assert logits.shape == (4, 2)
    jax.tree.map(np.testing.assert_array_equal, same, statistics)
    one, new = apply(params, statistics, x, train=True, key=jax.random.key(1))
    two, _ = apply(params, statistics, x, train=True, key=jax.random.key(2))
    assert not np.allclose(one, two)
    assert jax.tree.structure(new) == jax.tree.structure(statistics)
    assert not any(map(np.array_equal, jax.tree.leaves(new), jax.tree.leaves(statistics)))
    with pytest.raises(ValueError, match="key"):
        model.apply(params, statistics, x, train=True)
    rows = jax.vmap(lambda key: model.apply(*model.init(key), x)[0])
    assert jax.eval_shape(rows, jax.random.split(jax.random.key(0), 2)).shape == (2, 4, 2)


def test_from_nnx_takes_a_module_with_its_weights_and_leaves_it_alone():
    net = NnxNet(nnx.Rngs(0))
    net.eval()
    x = jnp.ones((2, 3))
    model = models.from_nnx(net)
    params, statistics = model.init(jax.random.key(7))
    close(model.apply(params, statistics, x)[0], net(x))
    jax.eval_shape(
        functools.partial(model.apply, train=True), params, statistics, x, key=jax.random.key(0)
    )
    assert net.dropout.deterministic
    assert np.array_equal(net.norm.mean[...], np.zeros(8))


def test_from_nnx_takes_the_built_in_networks():
    model = models.from_nnx(lambda rngs: models.MLP(3, (4,), 2, dropout=0.5, rngs=rngs))
    params, statistics = jax.jit(model.init)(jax.random.key(0))
    builtin = models.mlp(3, (4,), 2, dropout=0.5)
    jax.tree.map(np.testing.assert_array_equal, params, builtin.init(jax.random.key(0))[0])
    args, options = (
        (params, statistics, jnp.ones((2, 3))),
        {"train": True, "key": jax.random.key(1)},
    )
    jaxprs = [
        jax.make_jaxpr(functools.partial(m.apply, **options))(*args) for m in (model, builtin)
    ]
    assert str(jaxprs[0]) == str(jaxprs[1])


def test_the_mode_may_be_an_argument_of_the_call():
    class Nnx(nnx.Module):
        def __call__(self, x, deterministic):
            return x if deterministic else -x

    class Linen(nn.Module):
        def __call__(self, x, mode):
            return {"train": -x, "eval": x}[mode]

    x = jnp.ones((1, 1))
    kwargs = {"train_kwargs": {"mode": "train"}, "eval_kwargs": {"mode": "eval"}}
    for model in (models.from_nnx(lambda rngs: Nnx()), models.from_linen(Linen(), x, **kwargs)):
        params, statistics = model.init(jax.random.key(0))
        assert model.apply(params, statistics, x)[0] == 1
        assert model.apply(params, statistics, x, train=True)[0] == -1


class OwnNorm(nnx.Module):
    """A norm with running statistics as users write them; its mode is an argument."""

    def __init__(self, rngs):
        self.mean = nnx.BatchStat(jnp.zeros(3))

    def __call__(self, x, train):
        mean = x.mean(0) if train else self.mean[...]
        if train:
            self.mean[...] = 0.9 * self.mean[...] + 0.1 * mean
        return x - mean[None]


class TrainNorm(nnx.BatchNorm):
    def __call__(self, x, *, train):
        return super().__call__(x, not train)


class Nested(nnx.Module):
    """A layer that is neither: the norm is below it, in a compiled and rematerialized function."""

    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(3, use_running_average=None, rngs=rngs)

    def __call__(self, x, is_training):
        run = nnx.jit(nnx.remat(lambda norm, x: norm(x, use_running_average=not is_training)))
        return run(self.norm, x)


def batch_norm(rngs):
    return nnx.BatchNorm(3, rngs=rngs)


def spectral_norm(rngs):
    return nnx.SpectralNorm(nnx.Linear(3, 3, rngs=rngs), rngs=rngs)


def nnx_mode(norm, call):
    """build(rate): a network of this norm and dropout, with this call."""

    class Net(nnx.Module):
        __call__ = call

        def __init__(self, rngs, rate):
            self.norm, self.drop = norm(rngs), nnx.Dropout(rate, rngs=rngs)
            self.head = nnx.Linear(3, 2, rngs=rngs)

    return lambda rate, **kwargs: models.from_nnx(functools.partial(Net, rate=rate), **kwargs)


def linen_mode(call):
    class Net(nn.Module):
        rate: float
        __call__ = nn.compact(call)

    return lambda rate, **kwargs: models.from_linen(Net(rate), X, **kwargs)


class LinenNorm(nn.Module):
    """A norm of one's own in linen."""

    @nn.compact
    def __call__(self, x, train):
        kept = self.variable("batch_stats", "mean", jnp.zeros, 3)
        mean = x.mean(0) if train else kept.value
        if train and not self.is_initializing():
            kept.value = 0.9 * kept.value + 0.1 * mean
        return x - mean[None]


def linen_drop(net, x, train):
    return nn.Dense(2, name="head")(nn.Dropout(net.rate)(x, deterministic=not train))


NNX_MODES = {
    "train": (batch_norm, lambda net, x, train=False: net.head(
        net.drop(net.norm(x, use_running_average=not train), deterministic=not train))),
    "training": (batch_norm, lambda net, x, training: net.head(
        net.drop(net.norm(x, not training), deterministic=not training))),
    "is_training": (Nested, lambda net, x, *, is_training: net.head(
        net.drop(net.norm(x, is_training), deterministic=not is_training))),
    "use_running_average": (batch_norm, lambda net, x, use_running_average: net.head(net.drop(
        net.norm(x, use_running_average), deterministic=use_running_average))),
    "deterministic": (batch_norm, lambda net, x, deterministic: net.head(
        net.drop(net.norm(x), deterministic=deterministic))),
    "attributes": (batch_norm, lambda net, x: net.head(net.drop(net.norm(x)))),
    "spectral": (spectral_norm, lambda net, x, train: net.head(
        net.drop(net.norm(x, update_stats=train), deterministic=not train))),
    "spectral attributes": (spectral_norm, lambda net, x: net.head(net.drop(net.norm(x)))),
    "subclass": (lambda rngs: TrainNorm(3, rngs=rngs), lambda net, x, train: net.head(
        net.drop(net.norm(x, train=train), deterministic=not train))),
    "own": (OwnNorm, lambda net, x, train: net.head(
        net.drop(net.norm(x, train), deterministic=not train))),
}  # fmt: skip
LINEN_MODES = {
    "train": lambda net, x, train: linen_drop(
        net, nn.BatchNorm()(x, use_running_average=not train), train),
    "training": lambda net, x, training: linen_drop(net, nn.BatchNorm()(x, not training), training),
    "is_training": lambda net, x, is_training=False: linen_drop(
        net, nn.BatchNorm(use_running_average=not is_training)(x), is_training),
    "use_running_average": lambda net, x, use_running_average: linen_drop(
        net, nn.BatchNorm()(x, use_running_average), not use_running_average),
    "deterministic": lambda net, x, train, deterministic: linen_drop(
        net, nn.BatchNorm(use_running_average=not train)(x), not deterministic),
    "spectral": lambda net, x, train: linen_drop(
        net, nn.SpectralNorm(nn.Dense(3))(x, update_stats=train), train),
    "own": lambda net, x, train: linen_drop(net, LinenNorm()(x, train), train),
    "remat": lambda net, x, train: linen_drop(
        net, nn.remat(LinenNorm, static_argnums=2)()(x, train), train),
}  # fmt: skip
MODES = {f"nnx {name}": (nnx_mode(*how), how[1]) for name, how in NNX_MODES.items()}
MODES |= {f"linen {name}": (linen_mode(call), call) for name, call in LINEN_MODES.items()}


@pytest.mark.parametrize("given", [False, True], ids=["found", "given"])
@pytest.mark.parametrize("name", MODES)
def test_frozen_norms_use_their_statistics_and_dropout_stays_on(name, given):
    """`given`: the flags are the caller's own, the same ones."""
    build, call = MODES[name]
    names = list(inspect.signature(call).parameters)[2:]
    on = {flag: flag not in ("deterministic", "use_running_average") for flag in names}
    off = {flag: not value for flag, value in on.items()}
    kwargs = {"train_kwargs": on, "eval_kwargs": off} if given else {}
    without, with_dropout = (build(rate, **kwargs) for rate in (0.0, 0.5))
    params, statistics = without.init(jax.random.key(0))
    statistics = jax.tree.map(lambda leaf: leaf + 0.3, statistics)

    def train(model, seed, **mode):
        return model.apply(params, statistics, X, train=True, key=jax.random.key(seed), **mode)

    expected = without.apply(params, statistics, X)[0]
    logits, kept = train(without, 1, freeze_norm=True)
    np.testing.assert_allclose(logits, expected, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, kept, statistics)
    one, two = (train(with_dropout, seed, freeze_norm=True)[0] for seed in (1, 2))
    assert not np.array_equal(one, two)
    logits, moved = train(without, 1)  # and without the freeze it is training
    assert not any(map(np.array_equal, jax.tree.leaves(moved), jax.tree.leaves(statistics)))
    assert "spectral" in name or not np.allclose(logits, expected)
    one, two = (with_dropout.apply(params, statistics, X, key=jax.random.key(k))[0] for k in (1, 2))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_and_another_mode_would_be_noticed(monkeypatch, mode):
    monkeypatch.setitem(adapters._MODES, "freeze_norm", adapters._MODES[mode])
    with pytest.raises(AssertionError):
        test_frozen_norms_use_their_statistics_and_dropout_stays_on("nnx attributes", False)


def test_dropout_stays_on_in_later_tasks():
    """The engine's own step: with a frozen norm, two keys give two losses after the first task."""
    model = MODES["nnx train"][0](0.5)
    drawn = model.init(jax.random.key(0))
    model = model._replace(init=lambda key: drawn)
    setup = train.Setup(jaxcl.finetune(), model, optax.sgd(0.1), batch=4, norm="frozen")
    examples = train.Data(X, np.array([0, 1, 0, 1]), 4)
    losses, kept = [], []
    for seed in (0, 1):
        learner = train.begin_task(setup, train.start(setup, jax.random.key(seed), 2), 1)
        learner, metrics = train.epoch(setup, learner, examples, 1, 0)
        losses.append(float(metrics.loss))
        kept.append(learner.statistics)
    assert losses[0] != losses[1]
    np.testing.assert_array_equal(kept[0]["norm"]["mean"][1], np.zeros(3))


class Sower(nnx.Module):
    def __init__(self, rngs, kind=nnx.Intermediate):
        self.kind, self.head = kind, nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        self.sow(self.kind, "hidden", x.sum())
        return self.head(x)


class LinenSower(nn.Module):
    collection: str

    @nn.compact
    def __call__(self, x):
        self.sow(self.collection, "hidden", x.sum())
        return nn.Dense(2, name="head")(self.perturb("input", x))


@pytest.fixture
def _sowing():
    """Flax would rather have what is sown collected; the modules here are a user's."""
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        yield


@pytest.mark.usefixtures("_sowing")
@pytest.mark.parametrize("kind", ["nnx", "nnx after a call", "linen"])
def test_what_is_sown_on_the_way_is_dropped(kind):
    net = Sower(nnx.Rngs(0))
    if kind == "nnx after a call":
        net(X)
    linen = models.from_linen(LinenSower("intermediates"), X)
    model = linen if kind == "linen" else models.from_nnx(net)
    params, statistics = model.init(jax.random.key(0))
    assert sorted(params) == ["head"] and statistics == {}
    for mode in ({}, {"train": True}, {"train": True, "freeze_norm": True}):
        logits, after = model.apply(params, statistics, X, **mode)
        assert logits.shape == (4, 2) and after == {}


@pytest.mark.usefixtures("_sowing")
def test_what_is_sown_to_be_kept_is_refused():
    class Loss(nnx.Variable):
        pass

    nnx_model = models.from_nnx(lambda rngs: Sower(rngs, Loss))
    linen = models.from_linen(LinenSower("losses"), X)
    for model, words in ((nnx_model, "'hidden/0'.*nnx.Intermediate"), (linen, "'losses/hidden/1'")):
        drawn = model.init(jax.random.key(0))
        with pytest.raises(ValueError, match=f"adds {words}"):
            model.apply(*drawn, X, train=True)


def test_arrays_that_are_no_variables_are_statistics():
    """As the scales of nnx.WeightNorm are in some versions of Flax, which then trains them not."""

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.table = jax.random.normal(rngs.params(), (3,))
            self.layer = nnx.WeightNorm(nnx.Linear(3, 3, rngs=rngs), rngs=rngs)
            self.head = nnx.Linear(3, 2, rngs=rngs)

        def __call__(self, x):
            return self.head(self.layer(x + self.table[None]))

    net = Net(nnx.Rngs(jax.random.key(4)))
    for model in (models.from_nnx(Net), models.from_nnx(net)):
        params, statistics = model.init(jax.random.key(4))
        np.testing.assert_array_equal(statistics["table"], net.table)
        paths = masks.leaves_by_path((params, statistics))
        assert sum("scales" in path for path in paths) == 1
        logits, after = model.apply(params, statistics, X, train=True)
        close(logits, nnx.clone(net)(X))
        jax.tree.map(np.testing.assert_array_equal, after, statistics)
        rows = jax.vmap(lambda key, model=model: model.init(key))(
            jax.random.split(jax.random.key(0))
        )
        assert rows[1]["table"].shape == (2, 3)


@pytest.mark.parametrize("kind", ["nnx", "partitioned", "logical"])
@pytest.mark.parametrize("at", ["inside", "outside"])
def test_partitioned_parameters_are_plain_arrays(kind, at):
    """With the mesh at hand all along, and only where nnx asks for it."""
    axes = ("a", "b")
    mesh = jax.make_mesh((1, 2), axes, axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:2])
    initialize = nn.initializers.lecun_normal()

    class Nnx(nnx.Module):
        def __init__(self, rngs):
            kernel = nnx.with_partitioning(initialize, axes)
            self.hidden = nnx.Linear(3, 4, kernel_init=kernel, rngs=rngs)
            self.head = nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            return self.head(self.hidden(x))

    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x):
            boxed = nn.with_logical_partitioning if kind == "logical" else nn.with_partitioning
            x = nn.Dense(4, kernel_init=boxed(initialize, axes), name="hidden")(x)
            return nn.Dense(2, name="head")(x)

    @contextlib.contextmanager
    def meshed(wanted):
        with contextlib.ExitStack() as stack:
            if wanted:
                stack.enter_context(jax.set_mesh(mesh))
                stack.enter_context(nn.logical_axis_rules([(axis, axis) for axis in axes]))
            yield

    with meshed(at == "inside"):
        with meshed(kind == "nnx"):
            model = models.from_nnx(Nnx(nnx.Rngs(0))) if kind == "nnx" else None
        model = model or models.from_linen(Linen(), X)
        params, statistics = model.init(jax.random.key(0))
        assert all(isinstance(leaf, jax.Array) for leaf in masks.leaves_by_path(params).values())
        assert masks.leaves_by_path(params)["hidden/kernel"].shape == (3, 4)
        assert model.apply(params, statistics, X, train=True)[0].shape == (4, 2)
        if kind != "nnx" and at == "inside":
            assert params["hidden"]["kernel"].sharding.spec == PartitionSpec(*axes)


@pytest.mark.parametrize("default", [False, True])
def test_rngs_that_the_call_takes_are_given(default):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.drop, self.head = nnx.Dropout(0.5), nnx.Linear(3, 2, rngs=rngs)

        def __call__(self, x, rngs, train=False):
            return self.head(self.drop(x, rngs=rngs, deterministic=not train))

    class Default(Net):
        def __call__(self, x, *, rngs=None, train=False):
            return super().__call__(x, rngs, train)

    model = models.from_nnx(Default if default else Net)
    params, statistics = model.init(jax.random.key(0))
    np.testing.assert_array_equal(
        model.apply(params, statistics, X)[0], X @ params["head"]["kernel"]
    )
    one, same, two = (
        model.apply(params, statistics, X, train=True, key=jax.random.key(seed))[0]
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, two)
    with pytest.raises(ValueError, match="takes rngs: training needs a key"):
        model.apply(params, statistics, X, train=True)


@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_tokens(kind):
    class Nnx(nnx.Module):
        def __init__(self, rngs):
            self.embed, self.head = nnx.Embed(9, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            return self.head(self.embed(x).mean(1))

    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, name="head")(nn.Embed(9, 4, name="embed")(x).mean(1))

    x = np.arange(10, dtype=np.int32).reshape(2, 5) % 9
    shape = jax.ShapeDtypeStruct((1, 5), jnp.int32)
    model = models.from_nnx(Nnx) if kind == "nnx" else models.from_linen(Linen(), shape)
    params, statistics = model.init(jax.random.key(0))
    logits = model.apply(params, statistics, x, train=True)[0]
    expected = params["embed"]["embedding"][x].mean(1) @ params["head"]["kernel"]
    close(logits, expected + params["head"]["bias"][None])


def test_gates_that_a_module_does_not_read_are_refused():
    """As those of a built-in network's table, which is for the built-in Model."""
    x, wiring = jnp.ones((2, 3)), models.mlp(3, (4,), 2).wiring
    module = models.from_nnx(lambda rngs: models.MLP(3, (4,), 2, rngs=rngs))
    linen = models.from_linen(nn.Dense(2), x)
    for model, name in ((module, "from_nnx"), (linen, "from_linen")):
        params, statistics = model.init(jax.random.key(0))
        with pytest.raises(ValueError, match=f"{name}: .*gates.*native=False"):
            model.apply(params | {"gates": {"layer0": jnp.ones(4)}}, statistics, x)
    params, statistics = module.init(jax.random.key(0))
    method = jaxcl.hat(wiring._replace(native=False), 2)
    view = method.view(*method.init(jax.random.key(0), params), 0)
    assert module.apply(view, statistics, x)[0].shape == (2, 2)


def test_from_function():
    def apply(params, x):
        return x @ params["head"]

    drawn = models.from_function(apply, lambda key: {"head": jax.random.normal(key, (3, 2))})
    given = models.from_function(apply, {"head": jnp.ones((3, 2))})
    for model in (drawn, given):
        params, statistics = model.init(jax.random.key(0))
        logits, new = model.apply(params, statistics, jnp.ones((4, 3)), train=True, key=None)
        assert logits.shape == (4, 2)
        assert statistics == new == {}
    np.testing.assert_array_equal(logits, np.full((4, 2), 3))


# Errors


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: models.mlp(4, (3,), init="uniform"), "init.*'lecun'.*'uniform'"),
        (lambda: models.mlp(4, (3, 0)), "layer 1: .*width.*0"),
        (lambda: models.mlp(4, (3,), dropout=1.0), r"dropout: .*\[0.0, 1.0\]"),
        (lambda: models.mlp(4, (3,), input_dropout=-0.1), "dropout"),
        (lambda: models.resnet18(width=0), "width"),
        (lambda: models.resnet18((28, 28)), r"\(H, W, C\).*\(28, 28\)"),
        (lambda: models.vgg16((784,)), r"layer 0: .*\(H, W, C\), not \(784,\)"),
        (lambda: models.alexnet((8, 8, 3)), r"layer 1 .*\(8, 8, 3\)"),
        (lambda: models.alexnet(widths=(1, 2)), "five entries"),
        (lambda: models.vgg16((16, 16, 3)), "layer 12"),
        (lambda: models.from_nnx(3), "nnx.Module.*3"),
        (lambda: models.from_nnx(lambda rngs: 3), "nnx.Module"),
        (lambda: models.from_linen(NnxNet, jnp.ones(3)), "linen.Module.*NnxNet"),
        (lambda: models.from_function({}, {}), "function"),
        (lambda: models.from_nnx(lambda rngs: nnx.Module()), "can be called"),
        (
            lambda: models.from_nnx(
                lambda rngs: nnx.MultiHeadAttention(1, 2, rngs=rngs), train_kwargs={"mode": 1}
            ),
            "MultiHeadAttention cannot be called.*'mode'.*train_kwargs",
        ),
        (lambda: models.from_linen(nn.SpectralNorm(nn.Dense(2)), X), "SpectralNorm.*update_stats"),
    ],
)
def test_errors_say_what_was_expected(build, words):
    with pytest.raises(ValueError, match=words):
        build()
