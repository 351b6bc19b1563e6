"""Networks: sizes, gates, laterals and statistics; nnx, linen and plain functions as Models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import PartitionSpec

from jaxcl import models
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
        {"shape": (32, 32, 1), "classes": 3, "width": 2, "hidden": (4, 5)},
        (32, 32, 1),
    ),
    "vgg16 without norm": (
        models.vgg16,
        {"shape": (32, 64, 1), "classes": 3, "width": 2, "hidden": (4, 5), "norm": False},
        (32, 64, 1),
    ),
}


@pytest.fixture(params=TINY)
def tiny(request):
    """A tiny model whose every parameter and statistic is random, and a batch of two inputs."""
    build, options, shape = TINY[request.param]
    model = build(**options)
    params, statistics = jax.jit(model.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: p + rng.normal(0, 0.1, p.shape).astype("float32"), params)
    statistics = jax.tree.map(lambda s: s + rng.uniform(0, 1, s.shape).astype("f4"), statistics)
    return model, params, statistics, jnp.asarray(rng.normal(0, 1, (2, *shape)), "float32")


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
    params, statistics = models.mlp(3, (2, 2), 2).init(jax.random.key(0))
    paths = []
    map_paths(lambda path, leaf: paths.append(path), params)
    layers = ["head/bias", "head/kernel", "layers/0/bias", "layers/0/kernel"]
    assert paths == [*layers, "layers/1/bias", "layers/1/kernel"]
    assert statistics == {}
    params, statistics = models.resnet18((8, 8, 1), width=1).init(jax.random.key(0))
    map_paths(lambda path, leaf: paths.append(path), params)
    assert all("norm" in path for path in paths if path.endswith("scale"))
    assert any("head/kernel" == path for path in paths)


# The networks as functions


def test_apply(tiny):
    model, params, statistics, x = tiny
    logits, same = jax.jit(model.apply)(params, statistics, x)
    assert logits.shape == (2, 3) and logits.dtype == jnp.float32
    assert np.isfinite(logits).all() and np.ptp(logits) > 0
    jax.tree.map(np.testing.assert_array_equal, same, statistics)


def test_mlp_runs_nothing_but_its_layers():
    model = models.mlp(4, (3, 3), 2)
    params, statistics = jax.eval_shape(model.init, jax.random.key(0))
    jaxpr = jax.make_jaxpr(model.apply)(params, statistics, jnp.ones((5, 4)))
    layer = ["dot_general", "reshape", "add"]  # the reshape is that of the bias
    names = [equation.primitive.name for equation in jaxpr.eqns]
    assert names == [*layer, "custom_jvp_call", *layer, "custom_jvp_call", *layer]


def test_bfloat16_computes_in_half_precision_between_float32_ends(tiny):
    exact, params, statistics, x = tiny
    name = next(name for name in TINY if TINY[name][2] == x.shape[1:])
    build, options, _ = TINY[name]
    model = build(**options, dtype=jnp.bfloat16)
    gates = {"gates": random_gates(model)}
    logits, _ = model.apply(params | gates, statistics, x)
    assert logits.dtype == jnp.float32
    assert jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0))[0])[0].dtype == "float32"
    assert all(h.dtype == jnp.bfloat16 for h in _column(model, params, statistics, x)[1])
    expected, _ = exact.apply(params | gates, statistics, x)
    close(logits, expected, 0.1)
    assert not np.array_equal(logits, expected)


def test_init_and_apply_vmap(tiny):
    model, _, _, x = tiny
    keys = jax.random.split(jax.random.key(3), 2)
    rows = jax.vmap(model.init)(keys)
    logits = jax.vmap(lambda p, s: model.apply(p, s, x)[0])(*rows)
    params, statistics = model.init(jax.random.split(jax.random.key(3), 2)[1])
    close(logits[1], model.apply(params, statistics, x)[0], 1e-4)
    assert not np.allclose(logits[0], logits[1])


def test_training_steps_scan_and_shard():
    model = models.resnet18((8, 8, 1), 2, width=1)
    x, y = jnp.ones((4, 8, 8, 1)), jnp.arange(4) % 2

    def step(carry, key):
        params, statistics = carry

        def loss(params):
            logits, new = model.apply(params, statistics, x, train=True, key=key)
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean(), new

        gradient, statistics = jax.grad(loss, has_aux=True)(params)
        return (jax.tree.map(lambda p, g: p - 0.01 * g, params, gradient), statistics), None

    def run(keys):
        carry = model.init(jax.random.key(0))
        return jax.lax.scan(step, carry, keys[0])[0][1]["stem_norm"]["mean"][None]

    mesh = jax.make_mesh((1,), ("replicas",), devices=jax.devices()[:1])
    spec = PartitionSpec("replicas")
    sharded = jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    keys = jax.random.split(jax.random.key(1), (1, 3))
    mean = jax.jit(sharded)(keys)
    assert mean.shape == (1, 1) and np.isfinite(mean).all() and mean != 0


def test_dropout_needs_a_key_and_keeps_the_mean():
    model = models.mlp(4, (2000,), 1, dropout=0.5, init=jax.nn.initializers.ones)
    params, statistics = model.init(jax.random.key(0))
    x = jnp.ones((1, 4))
    with pytest.raises(ValueError, match="dropouts/1.*needs a key"):
        model.apply(params, statistics, x, train=True)
    logits = [
        model.apply(params, statistics, x, train=True, key=jax.random.key(i))[0] for i in (1, 2)
    ]
    expected = model.apply(params, statistics, x)[0]
    assert expected == 8000
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


@pytest.mark.parametrize("init, bound", [("torch", 0.05), ("xavier", (6 / 900) ** 0.5)])
def test_uniform_initializers(init, bound):
    params, _ = models.mlp(400, (500,), 2, init=init).init(jax.random.key(0))
    layer = params["layers"][0]
    assert 0.98 * bound < np.abs(layer["kernel"]).max() < bound
    largest = np.abs(layer["bias"]).max()
    assert largest == 0 if init == "xavier" else 0.98 * bound < largest < bound


def test_normal_initializers():
    for init, gain in (("lecun", 1), ("he", 2)):
        params, _ = models.alexnet((16, 16, 8), init=init).init(jax.random.key(0))
        close(params["layers"][1]["kernel"].std(), (gain / (64 * 9)) ** 0.5, 1e-3)


# Gates


def test_gating_equals_scaling_the_consumers_kernels(tiny):
    model, params, statistics, x = tiny
    gates = random_gates(model)
    gated, _ = model.apply(params | {"gates": gates}, statistics, x)
    close(gated, model.apply(fold(params, model.wiring, gates), statistics, x)[0])
    assert not np.allclose(gated, model.apply(params, statistics, x)[0])
    ones = jax.tree.map(jnp.ones_like, gates)
    close(
        model.apply(params | {"gates": ones}, statistics, x)[0],
        model.apply(params, statistics, x)[0],
    )


def test_flattening_tiles_gates_and_does_not_repeat_them():
    build, options, shape = TINY["alexnet"]
    model = build(**options)
    params, statistics = model.init(jax.random.key(0))
    x, gates = jax.random.normal(jax.random.key(1), (2, *shape)), random_gates(model)
    assert model.wiring.inputs["layers/3/kernel"] == (("layer2", 4),)
    gated, _ = model.apply(params | {"gates": gates}, statistics, x)
    folded = fold(params, model.wiring, gates)
    close(gated, model.apply(folded, statistics, x)[0])
    wrong = fold(params, model.wiring, gates, spread=jnp.repeat)
    assert not np.allclose(gated, model.apply(wrong, statistics, x)[0], atol=1e-5)


def test_a_unit_without_its_outputs_is_a_unit_behind_a_closed_gate(tiny):
    model, params, statistics, x = tiny
    gates, outputs = random_gates(model, binary=True), model.wiring.outputs

    def remove(path, leaf):
        if path not in outputs:
            return leaf
        return leaf * gates[outputs[path]].reshape((1,) * (leaf.ndim - 1) + (-1,))

    gated, _ = model.apply(params | {"gates": gates}, statistics, x)
    close(gated, model.apply(map_paths(remove, params), statistics, x)[0])


def test_the_table_fits_and_covers_everything_but_the_head(tiny):
    model, params, _, _ = tiny
    check_wiring(model.wiring, params)
    assert model.wiring.native
    paths = []
    map_paths(lambda path, leaf: paths.append(path), params)
    assert set(model.wiring.outputs) == {p for p in paths if not p.startswith("head/")}
    assert set(model.wiring.inputs) == {p for p in paths if p.endswith("kernel")}


def test_unknown_gates_are_an_error():
    model = models.mlp(2, (2,), 2)
    params, statistics = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match="'layer7'.*layer0"):
        model.apply(params | {"gates": {"layer7": jnp.ones(2)}}, statistics, jnp.ones((1, 2)))


# Laterals


def _column(model, params, statistics, x, laterals=None):
    return model.column(params, statistics, x, laterals or (None,) * len(model.laterals))


def test_column_without_laterals_is_apply(tiny):
    model, params, statistics, x = tiny
    expected, _ = model.apply(params, statistics, x)
    zeros = tuple(jnp.zeros((2, *spec.out)) for spec in model.laterals)
    for laterals in (None, zeros):
        logits, _, same = _column(model, params, statistics, x, laterals)
        close(logits, expected)
        jax.tree.map(np.testing.assert_array_equal, same, statistics)


def test_every_lateral_arrives(tiny):
    model, params, statistics, x = tiny
    zeros = tuple(jnp.zeros((2, *spec.out)) for spec in model.laterals)

    def total(laterals):
        return _column(model, params, statistics, x, laterals)[0].sum()

    assert all(np.abs(g).max() > 0 for g in jax.grad(total)(zeros))


def test_hiddens_are_the_inputs_of_the_lateral_layers(tiny):
    model, params, statistics, x = tiny
    _, hiddens, _ = _column(model, params, statistics, x)
    assert len(hiddens) == len(model.laterals)
    for hidden, spec in zip(hiddens, model.laterals, strict=True):
        assert hidden.shape == (2, *spec.hidden)
        if spec.kernel is None:
            assert (spec.strides, spec.padding, len(spec.out)) == (None, None, 1)
        else:
            kernel = jnp.ones((*spec.kernel, spec.hidden[-1], spec.out[-1]))
            out = jax.lax.conv_general_dilated(
                hidden,
                kernel,
                spec.strides,
                spec.padding,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            assert out.shape == (2, *spec.out)
    close(
        _column(model, params, statistics, x)[0],
        hiddens[-1] @ params["head"]["kernel"] + params["head"]["bias"].reshape(1, -1),
    )


def test_column_wants_one_lateral_a_layer():
    model = models.mlp(2, (2, 2), 2)
    params, statistics = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match="expected 2 laterals.*not 1"):
        model.column(params, statistics, jnp.ones((1, 2)), (None,))


# Statistics


@pytest.mark.parametrize("name", ["resnet18", "vgg16"])
def test_statistics_move_in_training_alone(name):
    build, options, shape = TINY[name]
    model = build(**options)
    params, statistics = model.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (4, *shape)) + 1
    key = jax.random.key(2)
    _, same = model.apply(params, statistics, x, key=key)
    jax.tree.map(np.testing.assert_array_equal, same, statistics)
    logits, new = model.apply(params, statistics, x, train=True, key=key)
    assert jax.tree.structure(new) == jax.tree.structure(statistics)
    for old, moved in zip(*map(jax.tree.leaves, (statistics, new)), strict=True):
        assert old.dtype == moved.dtype and not np.array_equal(old, moved)
    column = model.column(params, statistics, x, (None,) * len(model.laterals), train=True, key=key)
    close(column[0], logits)
    jax.tree.map(close, column[2], new)


# Adapters


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(3, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(nnx.relu(self.norm(self.first(x)))))


class LinenNet(nn.Module):
    """A residual net with BatchNorm and dropout."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(4, (3, 3))(x)
        y = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = x + nn.Dropout(0.5, deterministic=not train)(nn.Conv(4, (3, 3))(y))
        return nn.Dense(2, name="head")(x.mean((1, 2)))


def _nnx():
    return models.from_nnx(NnxNet), jnp.arange(12.0).reshape(4, 3)


def _linen():
    x = jax.random.normal(jax.random.key(1), (4, 5, 5, 1))
    return models.from_linen(LinenNet(), x), x


@pytest.mark.parametrize("build", [_nnx, _linen])
def test_adapters(build):
    model, x = build()
    params, statistics = jax.jit(model.init)(jax.random.key(0))
    assert type(params) is dict and statistics
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
    rows = jax.vmap(model.init)(jax.random.split(jax.random.key(0), 2))
    assert jax.vmap(lambda p, s: model.apply(p, s, x)[0])(*rows).shape == (2, 4, 2)


def test_from_nnx_takes_a_module_with_its_weights_and_leaves_it_alone():
    net = NnxNet(nnx.Rngs(0))
    net.eval()
    x = jnp.ones((2, 3))
    model = models.from_nnx(net)
    params, statistics = model.init(jax.random.key(7))
    close(model.apply(params, statistics, x)[0], net(x))
    model.apply(params, statistics, x, train=True, key=jax.random.key(0))
    assert net.dropout.deterministic and np.array_equal(net.norm.mean[...], np.zeros(8))


def test_from_nnx_takes_the_built_in_networks():
    model = models.from_nnx(lambda rngs: models.MLP(3, (4,), 2, dropout=0.5, rngs=rngs))
    params, statistics = model.init(jax.random.key(0))
    builtin = models.mlp(3, (4,), 2, dropout=0.5)
    jax.tree.map(np.testing.assert_array_equal, params, builtin.init(jax.random.key(0))[0])
    x, key = jnp.ones((2, 3)), jax.random.key(1)
    one, two = (m.apply(params, statistics, x, train=True, key=key)[0] for m in (model, builtin))
    np.testing.assert_array_equal(one, two)


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


def test_from_function():
    def apply(params, x):
        return x @ params["head"]

    drawn = models.from_function(apply, lambda key: {"head": jax.random.normal(key, (3, 2))})
    given = models.from_function(apply, {"head": jnp.ones((3, 2))})
    for model in (drawn, given):
        params, statistics = model.init(jax.random.key(0))
        logits, new = model.apply(params, statistics, jnp.ones((4, 3)), train=True, key=None)
        assert logits.shape == (4, 2) and statistics == new == {}
    np.testing.assert_array_equal(logits, np.full((4, 2), 3))


# Errors


@pytest.mark.parametrize(
    "build, words",
    [
        (lambda: models.mlp(4, (3,), init="uniform"), "init.*'lecun'.*'uniform'"),
        (lambda: models.mlp(4, (3, 0)), "layer 1: .*width.*0"),
        (lambda: models.mlp(4, (3,), dropout=1.0), r"dropout: .*\[0.0, 1.0\]"),
        (lambda: models.mlp(4, (3,), input_dropout=-0.1), "dropout"),
        (lambda: models.resnet18(width=0), "width"),
        (lambda: models.alexnet((8, 8, 3)), r"layer 1 .*\(8, 8, 3\)"),
        (lambda: models.alexnet(widths=(1, 2)), "five entries"),
        (lambda: models.vgg16((16, 16, 3)), "layer 12"),
        (lambda: models.from_nnx(3), "nnx.Module.*3"),
        (lambda: models.from_nnx(lambda rngs: 3), "nnx.Module"),
        (lambda: models.from_linen(NnxNet, jnp.ones(3)), "linen.Module.*NnxNet"),
        (lambda: models.from_function({}, {}), "function"),
    ],
)
def test_errors_say_what_was_expected(build, words):
    with pytest.raises(ValueError, match=words):
        build()
