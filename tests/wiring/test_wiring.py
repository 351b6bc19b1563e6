"""Tables traced from models: what they say, and that they protect what they promise."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcl import masks, models
from jaxcl.core.model import Wiring
from jaxcl.methods import hat
from jaxcl.wiring import check_wiring, trace_wiring

WIDTHS = 5, 6, 7, 3


def random_tree(tree, seed=0):
    """The same leaves with random values, none of which is special."""
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: (0.1 + 0.5 * random.standard_normal(leaf.shape)).astype("f"), tree
    )


def mlp():
    params = {
        str(i): {"kernel": jnp.ones((a, b)), "bias": jnp.ones(b)}
        for i, (a, b) in enumerate(itertools.pairwise(WIDTHS))
    }

    def apply(params, x, gates=None):
        for i in range(3):
            x = x @ params[str(i)]["kernel"] + params[str(i)]["bias"][None]
            x = jax.nn.sigmoid(x) if i < 2 else x
            x = x * gates[str(i)][None] if gates and i < 2 else x
        return x

    return apply, params, (5,), None


def conv(channels_last=True):
    """Convolution, bias, pooling and a head on the flattened features."""
    params = {
        "conv": {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)},
        "dense": {"kernel": jnp.ones((36, 5)), "bias": jnp.ones(5)},
        "head": {"kernel": jnp.ones((5, 3))},
    }

    def apply(params, x, gates=None):
        layout = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            x, params["conv"]["kernel"], (1, 1), "SAME", dimension_numbers=layout
        )
        x = jax.nn.gelu(x + params["conv"]["bias"].reshape(1, 1, 1, -1))
        x = linen.max_pool(x, (2, 2), (1, 1))
        x = linen.avg_pool(x, (2, 2), (2, 2), "SAME")
        x = x * gates["conv"][None, None, None] if gates else x
        x = x if channels_last else jnp.moveaxis(x, -1, 1)
        x = x.reshape(len(x), -1)
        x = jnp.cos(x @ params["dense"]["kernel"] + params["dense"]["bias"][None])
        x = x * gates["dense"][None] if gates else x
        return x @ params["head"]["kernel"]

    return apply, params, (6, 6, 2), None


class ResNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        norm = functools.partial(linen.BatchNorm, use_running_average=True)
        x = linen.relu(norm()(linen.Conv(4, (3, 3), use_bias=False)(x)))
        for strides, width in ((1, 4), (2, 6)):
            y = linen.relu(norm()(linen.Conv(width, (3, 3), strides)(x)))
            y = norm()(linen.Conv(width, (3, 3))(y))
            if strides > 1:
                x = norm()(linen.Conv(width, (1, 1), strides)(x))
            x = linen.relu(x + y)
        return linen.log_softmax(linen.Dense(3, name="head")(x.mean((1, 2))))


class Dense(linen.Module):
    """Concatenated features, a squeeze-and-excitation, and a depthwise-separable layer."""

    @linen.compact
    def __call__(self, x, gates=None):
        def gate(name, x):
            return x * gates[name].reshape(1, 1, 1, -1) if gates else x

        grow = gate("grow", linen.tanh(linen.Conv(3, (3, 3), name="grow")(x)))
        x = jnp.concatenate([x, grow], -1)
        more = gate("more", linen.tanh(linen.Conv(2, (3, 3), name="more")(x)))
        x = jnp.concatenate([more, x], -1)
        x = gate("mix", linen.silu(linen.Conv(6, (1, 1), name="mix")(x)))
        s = linen.relu(linen.Dense(2, name="squeeze")(x.mean((1, 2), keepdims=True)))
        x = x * linen.sigmoid(linen.Dense(6, name="excite")(gate("squeeze", s)))
        x = gate("depth", linen.Conv(12, (3, 3), feature_group_count=6, name="depth")(x))
        x = linen.tanh(linen.Conv(8, (3, 3), feature_group_count=2, name="grouped")(x))
        x = gate("grouped", x)
        return linen.Dense(3, name="head")(x[:, 1, -1])


def linen_model(module, shape):
    variables = jax.eval_shape(module.init, jax.random.key(0), jnp.ones((1, *shape)))
    statistics = {k: random_tree(v, 1) for k, v in variables.items() if k != "params"}
    statistics = jax.tree.map(np.abs, statistics)

    def apply(params, x, *gates):
        return module.apply({"params": params, **statistics}, x, *gates)

    return apply, variables["params"], shape, None


class Block(nnx.Module):
    """A transformer block with a gated linear unit."""

    def __init__(self, rngs):
        self.norm, self.norm2 = nnx.LayerNorm(8, rngs=rngs), nnx.LayerNorm(8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.up, self.gate = nnx.Linear(8, 12, rngs=rngs), nnx.Linear(8, 12, rngs=rngs)
        self.down = nnx.Linear(12, 8, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm(x))
        h = self.norm2(x)
        return x + self.down(nnx.silu(self.gate(h)) * self.up(h))


class Transformer(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(11, 8, rngs=rngs)
        self.blocks = nnx.List([Block(rngs), Block(rngs)])
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed((jnp.abs(tokens) * 5).astype(int) % 11)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def transformer():
    graph, state = nnx.split(Transformer(nnx.Rngs(0)))

    def apply(params, x):
        pure = nnx.clone(state)
        nnx.replace_by_pure_dict(pure, params)
        return nnx.merge(graph, pure)(x)

    return apply, nnx.to_pure_dict(state), (5,), ["up", r"gate/kernel"]


def draw(**shapes):
    return {name: jnp.ones(shape) for name, shape in shapes.items()}


def rnn():
    """A plain recurrent network, unrolled, whose state starts from zeros."""
    params = draw(wx=(3, 5), wh=(5, 5), b=(5,), head=(5, 2))

    def apply(params, x, gates=None):
        gate = gates["wx"][None] if gates else 1
        h = jnp.zeros((len(x), 5))
        for t in range(x.shape[1]):
            h = jnp.tanh(x[:, t] @ params["wx"] + h @ params["wh"] + params["b"][None]) * gate
        return h @ params["head"]

    return apply, params, (4, 3), None


class Recurrent(linen.Module):
    """Two recurrent layers in a scan each; the second's memory is told from its state."""

    @linen.compact
    def __call__(self, x):
        x = linen.RNN(linen.GRUCell(4))(x)
        x = linen.RNN(linen.LSTMCell(5), reverse=True)(x)
        return linen.Dense(3, name="head")(x[:, 0])


def stack():
    """Residual blocks, scanned over."""
    params = draw(a=(3, 5), up=(4, 5, 6), up_bias=(4, 6), scale=(4,), down=(4, 6, 5), head=(5, 2))

    def apply(params, x, gates=None):
        outer, inner = (gates[name][None] if gates else 1 for name in ("a", "up"))

        def block(h, layer):
            up, bias, scale, down = layer
            g = jnp.tanh((h * outer) @ up + bias[None]) * scale * inner
            return h + jnp.sin(g @ down), None

        layers = [params[name] for name in ("up", "up_bias", "scale", "down")]
        h, _ = jax.lax.scan(block, jax.nn.relu(x @ params["a"]), layers)
        return (h * outer) @ params["head"]

    return apply, params, (3,), None


def loops():
    """The same layer in a map, a while loop and one branch of a condition."""
    params = draw(a=(3, 5), b=(5,), again=(5, 5), other=(5, 5), head=(10, 2))

    def apply(params, x, gates=None):
        gate = gates["a"][None] if gates else 1
        first = lambda row: jnp.tanh(row @ params["a"] + params["b"][None]) * gate  # noqa: E731
        again = lambda h: jnp.tanh(h @ params["again"]) * gate  # noqa: E731
        h = jax.lax.map(first, x.swapaxes(0, 1))
        h = jnp.concatenate([h[0], h[1]], -1)
        count = jnp.int32(jnp.abs(x[0, 0, 0]) * 3) + 1
        one = jax.lax.while_loop(
            lambda carry: carry[0] < count,
            lambda carry: (carry[0] + 1, again(carry[1])),
            (0, h[:, :5]),
        )[1]
        two = jax.lax.cond(
            x[0, 0, 0] > 0, again, lambda h: jnp.cos(h @ params["other"]) * gate, h[:, 5:]
        )
        return jnp.concatenate([one, two], -1) @ params["head"]

    return apply, params, (2, 3), None


MODELS = {
    "mlp": mlp,
    "conv": conv,
    "resnet": lambda: linen_model(ResNet(), (6, 6, 2)),
    "dense": lambda: linen_model(Dense(), (5, 5, 2)),
    "transformer": transformer,
    "rnn": rnn,
    "recurrent": lambda: linen_model(Recurrent(), (3, 2)),
    "stack": stack,
    "loops": loops,
}


@functools.cache
def traced(name):
    apply, params, shape, gates = MODELS[name]()
    params = random_tree(params)
    x = np.random.default_rng(2).standard_normal((4, *shape)).astype("f")
    wiring = trace_wiring(apply, params, x, gates)
    check_wiring(wiring, params)
    return jax.jit(apply), params, x, wiring


def factor(wiring, path, leaf, gates):
    """Gates at a leaf's input and output, each broadcast to the leaf."""
    above = below = np.ones(leaf.shape, "f")
    if path in wiring.inputs:
        parts = [gates.get(name, np.ones(1, "f")) for name, _ in wiring.inputs[path]]
        repeats = [repeats for _, repeats in wiring.inputs[path]]
        rows = np.concatenate([np.tile(part, n) for part, n in zip(parts, repeats)])
        rows = rows.reshape(wiring.groups.get(path, 1), -1)
        outputs = leaf.shape[-1]
        below = np.stack([rows[o * len(rows) // outputs] for o in range(outputs)], -1)
    if path in wiring.outputs:
        above = gates[wiring.outputs[path]]
    return np.broadcast_to(below, leaf.shape), np.broadcast_to(above, leaf.shape)


def fold(wiring, params, gates):
    return masks.map_with_path(
        lambda path, leaf: leaf * factor(wiring, path, leaf, gates)[0], params
    )


def draw_gates(wiring, seed, soft=False):
    random = np.random.default_rng(seed)
    draw = random.random if soft else lambda units: random.integers(0, 2, units)
    return {name: draw(units).astype("f") for name, units in wiring.gates.items()}


def change_unprotected(wiring, params, gates, seed):
    """Noise on every entry that a task with these gates leaves free."""
    random = np.random.default_rng(seed)

    def change(path, leaf):
        free = np.minimum(*factor(wiring, path, leaf, gates)) == 0
        return np.where(free, leaf + 3 * random.standard_normal(leaf.shape), leaf).astype("f")

    return masks.map_with_path(change, params)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_what_the_table_leaves_free_never_reaches_the_logits(name, seed):
    apply, params, x, wiring = traced(name)
    gates = draw_gates(wiring, seed)
    before = apply(fold(wiring, params, gates), x)
    changed = change_unprotected(wiring, params, gates, seed)
    np.testing.assert_allclose(apply(fold(wiring, changed, gates), x), before, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_every_gate_matters(name):
    apply, params, x, wiring = traced(name)
    gates = {gate: np.ones(units) for gate, units in wiring.gates.items()}
    np.testing.assert_array_equal(apply(fold(wiring, params, gates), x), apply(params, x))
    for gate in gates:
        closed = gates | {gate: np.zeros(len(gates[gate]))}
        assert np.abs(apply(fold(wiring, params, closed), x) - apply(params, x)).max() > 1e-3


@pytest.mark.parametrize("name", ["mlp", "conv", "dense", "rnn", "stack", "loops"])
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_folding_equals_multiplying_the_activations(name, seed):
    """HAT's own folding, and this module's, which is written out."""
    apply, params, x, wiring = traced(name)
    gates = draw_gates(wiring, seed, soft=True)
    gated = apply(params, x, gates)
    for scaled in (fold(wiring, params, gates), hat.fold(wiring, params, gates)):
        np.testing.assert_allclose(apply(scaled, x), gated, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "table", "change"),
    [
        ("mlp", "inputs", {"1/kernel": ((None, 6),)}),
        ("mlp", "outputs", {"0/bias": "other 6"}),
        ("resnet", "inputs", {"Conv_1/kernel": ((None, 4),)}),
        ("resnet", "outputs", {"Conv_2/kernel": "other 4"}),
        ("dense", "inputs", {"mix/kernel": (("grow", 1), (None, 2), ("more", 1))}),
        ("dense", "outputs", {"excite/bias": "other 6"}),
        ("rnn", "inputs", {"wh": ((None, 5),)}),
        ("rnn", "outputs", {"wh": "other 5"}),
        ("stack", "inputs", {"up": ((None, 5),)}),
        ("stack", "outputs", {"down": "other 5"}),
        ("loops", "outputs", {"b": "other 5"}),
    ],
)
def test_a_wrong_table_would_be_noticed(name, table, change):
    apply, params, x, wiring = traced(name)
    broken = wiring._replace(**{table: getattr(wiring, table) | change})
    broken = broken._replace(gates=broken.gates | {"other 4": 4, "other 5": 5, "other 6": 6})
    worst = 0.0
    for seed in range(8):
        gates = draw_gates(broken, seed)
        changed = change_unprotected(broken, params, gates, seed)
        difference = apply(fold(broken, changed, gates), x) - apply(fold(broken, params, gates), x)
        worst = max(worst, float(jnp.abs(difference).max()))
    assert worst > 1e-2


def test_mlp_table():
    assert traced("mlp")[-1] == Wiring(
        gates={"0": 6, "1": 7},
        inputs={
            "0/kernel": ((None, 5),),
            "1/kernel": (("0", 1),),
            "2/kernel": (("1", 1),),
        },
        outputs={"0/kernel": "0", "0/bias": "0", "1/kernel": "1", "1/bias": "1"},
    )


def test_flattened_channels_are_tiled():
    wiring = traced("conv")[-1]
    assert wiring.inputs["dense/kernel"] == (("conv", 9),)
    assert wiring.inputs["head/kernel"] == (("dense", 1),)


def test_residual_sum_shares_one_gate():
    wiring = traced("resnet")[-1]
    assert wiring.gates == {"Conv_0": 4, "Conv_1": 4, "Conv_3": 6, "Conv_4": 6}
    stream = {path for path, gate in wiring.outputs.items() if gate == "Conv_0"}
    assert {"Conv_0/kernel", "Conv_2/kernel", "BatchNorm_0/scale", "BatchNorm_2/bias"} <= stream
    assert wiring.outputs["Conv_5/kernel"] == wiring.outputs["Conv_4/kernel"] == "Conv_4"
    assert wiring.inputs["head/kernel"] == (("Conv_4", 1),)
    assert "head/kernel" not in wiring.outputs


def test_concatenation_grouped_convolution_and_excitation():
    wiring = traced("dense")[-1]
    assert wiring.inputs["mix/kernel"] == (("more", 1), (None, 2), ("grow", 1))
    assert wiring.outputs["excite/kernel"] == "mix"
    assert wiring.groups == {"depth/kernel": 6, "grouped/kernel": 2}
    assert wiring.inputs["depth/kernel"] == (("mix", 1),)
    assert wiring.inputs["grouped/kernel"] == (("depth", 1),)


def test_a_recurrent_cell_has_one_gate():
    wiring = traced("rnn")[-1]
    assert wiring == Wiring(
        gates={"wx": 5},
        inputs={"wx": ((None, 3),), "wh": (("wx", 1),), "head": (("wx", 1),)},
        outputs={"wx": "wx", "wh": "wx", "b": "wx"},
    )
    wiring = traced("recurrent")[-1]
    assert sorted(wiring.gates.values()) == [4, 5]
    gru, lstm = wiring.inputs["LSTMCell_0/ii/kernel"], wiring.inputs["head/kernel"]
    assert (
        wiring.inputs["GRUCell_0/hn/kernel"] == gru != lstm == wiring.inputs["LSTMCell_0/ho/kernel"]
    )


@pytest.mark.parametrize("scan", [False, True])
def test_a_cell_of_one_kernel_that_reads_zeros_at_first(scan):
    """The kernel's uses differ: in the first, zeros stand where the units are in the others."""

    def apply(p, x):
        def step(h, row):
            return jnp.tanh(jnp.concatenate([row, h], -1) @ p[W]), None

        h, rows = jnp.zeros((len(x), 5)), x.swapaxes(0, 1)
        if scan:
            return jax.lax.scan(step, h, rows)[0] @ p[V]
        for row in rows:
            h, _ = step(h, row)
        return h @ p[V]

    params = draw(W=(8, 5), V=(5, 2))
    wiring = trace_wiring(apply, params, jnp.ones((2, 4, 3)))
    assert wiring.inputs == {W: ((None, 3), (W, 1)), V: ((W, 1),)}


@pytest.mark.parametrize(
    "zeros",
    [
        lambda x: jnp.zeros((len(x), 5)),
        lambda x: x[:, :1] * np.zeros((1, 5), "f"),
        lambda x: -jnp.tanh(jnp.pad(jnp.zeros((len(x), 3)), ((0, 0), (1, 1)))),
        lambda x: jnp.where(x[:, :1] > 0, jnp.zeros((1, 5)), 0.0),
        lambda x: jnp.zeros_like(x, shape=(len(x), 5)).at[:].get() + 0,
    ],
)
def test_what_is_always_zero_carries_nothing(zeros):
    params = draw(W=(3, 5), U=(5, 5), V=(5, 2))
    apply = lambda p, x: jnp.tanh(x @ p[W] + zeros(x) @ p[U]) @ p[V]  # noqa: E731
    assert trace_wiring(apply, params, jnp.ones((2, 3))).inputs == {W: ((None, 3),), V: ((W, 1),)}


@pytest.mark.parametrize("constant", [jnp.ones((1, 5)), jnp.eye(1, 5)], ids=["ones", "one"])
def test_a_state_that_starts_from_constants_is_no_zero(constant):
    params = draw(W=(3, 5), U=(5, 5), V=(5, 2))
    apply = lambda p, x: jnp.tanh(x @ p[W] + constant @ p[U]) @ p[V]  # noqa: E731
    with pytest.raises(ValueError, match=r"starts from anything but zeros.*'U'"):
        trace_wiring(apply, params, jnp.ones((2, 3)))


def scanned_linen(gates):
    class Block(linen.Module):
        @linen.compact
        def __call__(self, x, _):
            h = linen.relu(linen.Dense(6, name="up")(linen.LayerNorm()(x)))
            return x + linen.Dense(5, name="down")(h), None

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.Dense(5, name="mix")(linen.relu(linen.Dense(4, name="first")(x)))
            blocks = linen.scan(
                Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
            )
            return linen.Dense(2, name="head")(blocks(name="blocks")(x, None)[0])

    return *linen_model(Net(), (3,))[:2], gates


def scanned_nnx(gates):
    class Layer(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.LayerNorm(5, rngs=rngs)
            self.up, self.down = nnx.Linear(5, 6, rngs=rngs), nnx.Linear(6, 5, rngs=rngs)

        def __call__(self, x):
            return x + self.down(nnx.relu(self.up(self.norm(x))))

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first, self.mix = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 5, rngs=rngs)
            self.blocks = nnx.split_rngs(splits=3)(nnx.vmap(Layer, in_axes=0))(rngs)
            self.head = nnx.Linear(5, 2, rngs=rngs)

        def __call__(self, x):
            run = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            return self.head(run(self.mix(nnx.relu(self.first(x))), self.blocks))

    model = models.from_nnx(Net)
    params, statistics = model.init(jax.random.key(0))
    return lambda p, x: model.apply(p, statistics, x)[0], params, gates


@pytest.mark.parametrize("build", [scanned_linen, scanned_nnx])
@pytest.mark.parametrize(
    ("gates", "found"),
    [(["first"], {"first": 4}), (["up"], {"blocks/up": 6}), (["first", "up"], None)],
)
def test_scanned_layers(build, gates, found):
    """Those before them alone, and theirs, although a norm mixes what the loop carries on."""
    apply, params, gates = build(gates)
    params, x = random_tree(params), jnp.ones((2, 3)) * jnp.arange(1.0, 3)[:, None]
    wiring = trace_wiring(apply, params, x, gates)
    check_wiring(wiring, params)
    assert wiring.gates == (found or {"first": 4, "blocks/up": 6})
    closed = draw_gates(wiring, 3)
    before = apply(fold(wiring, params, closed), x)
    changed = change_unprotected(wiring, params, closed, 4)
    np.testing.assert_allclose(apply(fold(wiring, changed, closed), x), before, rtol=1e-5)
    with pytest.raises(ValueError, match="mixes the units of 'mix'"):
        trace_wiring(apply, params, x)


def test_only_chosen_layers_get_gates():
    wiring = traced("transformer")[-1]
    assert wiring.gates == {"blocks/0/gate": 12, "blocks/1/gate": 12}
    assert wiring.outputs["blocks/0/up/bias"] == "blocks/0/gate"
    assert wiring.inputs["blocks/1/down/kernel"] == (("blocks/1/gate", 1),)
    assert not any("attention" in p or "norm" in p for p in (*wiring.inputs, *wiring.outputs))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (models.mlp(5, (6, 7), 3), (5,)),
        (models.alexnet((32, 32, 3), 3, widths=(2, 3, 4, 5, 6)), (32, 32, 3)),
        (models.resnet18((8, 8, 3), 3, width=2), (8, 8, 3)),
        (models.vgg16((32, 32, 3), 3, width=2), (32, 32, 3)),
    ],
    ids=["mlp", "alexnet", "resnet18", "vgg16"],
)
def test_built_in_models_have_the_same_table(model, shape):
    params, statistics = jax.eval_shape(model.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    statistics = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), statistics)
    found = trace_wiring(lambda params, x: model.apply(params, statistics, x)[0], params, x)
    given = {gate: found.outputs[path] for path, gate in model.wiring.outputs.items()}
    assert found.gates == {given[gate]: units for gate, units in model.wiring.gates.items()}
    assert found.outputs == {path: given[gate] for path, gate in model.wiring.outputs.items()}
    assert found.inputs == {
        path: tuple((given.get(gate), repeats) for gate, repeats in parts)
        for path, parts in model.wiring.inputs.items()
    }


def test_batch_size_and_shapes_alone_do():
    apply, params, _, wiring = traced("dense")
    shapes = jax.eval_shape(lambda: params)
    assert trace_wiring(apply, shapes, jax.ShapeDtypeStruct((1, 5, 5, 2), jnp.float32)) == wiring


W, V, U = "W", "V", "U"


def scan_layers(kernels, x):
    return jax.lax.scan(lambda h, kernel: (h @ kernel, 0), x, kernels)[0]


def in_shards(x, kernel):
    mesh = jax.make_mesh((1,), ("i",), devices=jax.devices()[:1])
    P = jax.sharding.PartitionSpec
    return jax.shard_map(jnp.matmul, mesh=mesh, in_specs=P(), out_specs=P())(x, kernel)


REFUSED = [
    (lambda p, x: jax.nn.softmax(x @ p[W]) @ p[V], "'reduce_max' mixes.*'W'; the near"),
    (lambda p, x: (x + x @ p[W]) @ p[V], "'add' combines 'W', which has a gate.*has none"),
    (lambda p, x: (x @ p[W] @ p[W]) @ p[V], "'W' is used in two ways"),
    (lambda p, x: (x @ p[W].T) @ p[V], "last two axes"),
    (lambda p, x: (x @ p[W]) @ jnp.tanh(p[V]), "computed from its parameter.*'V'"),
    (lambda p, x: (x @ p[W])[:, ::-1] @ p[V], "units of 'W' do not come as a whole"),
    (lambda p, x: jnp.sort(x @ p[W]) @ p[V], "'sort' may mix"),
    (lambda p, x: (x @ p[W])[:, :2] @ p[U], "as a whole"),
    (lambda p, x: (x @ p[W] + p["b"][None, :1]) @ p[V], "applies to 'W' a part of a parameter"),
    (lambda p, x: (x @ p[W] + p["t"].T) @ p[V], "last axis is not 'W'.*'t'"),
    (lambda p, x: (x @ p[W] + jnp.ones((1, 4)) @ p["X"]) @ p[V], "but zeros.*'X'"),
    (lambda p, x: (x @ p[W] + x[0, 0]) @ p[V], "combines"),
    (lambda p, x: (x @ p[W] * p["b"][None]) @ p[V] + p["b"].sum(), "'b' is used in two"),
    (
        lambda p, x: (jnp.stack([x @ p[W], x @ p["X"]], 1) * p["b"][None, None]).sum(1) @ p[V],
        "'mul' mixes the units of 'W', 'X'",
    ),
    (
        lambda p, x: (jnp.concatenate([x @ p[W], x @ p["X"]], 1) + p["c"][None]) @ p["Y"],
        "last axis of 'c' has the gates.*expected one",
    ),
    (lambda p, x: scan_layers(p["S"][:, ::-1], x @ p[W]) @ p[V], "computed from.*'S'"),
    (lambda p, x: in_shards(x, p[W]) @ p[V], "'shard_map' hides.*'W'"),
    (
        lambda p, x: jax.lax.cond((h := x @ p[W])[0, 0] > 0, jnp.tanh, jnp.cos, h) @ p[V],
        "'cond' decides by the units of 'W'",
    ),
    (
        lambda p, x: jax.lax.while_loop(lambda h: h[0, 0] < 1, lambda h: h + 1, x @ p[W]) @ p[V],
        "'while' decides by the units of 'W'",
    ),
    (
        lambda p, x: jax.lax.scan(lambda h, k: (h @ k, 0), x, p["S"])[0] @ p[V],
        "'scan' combines 'S', which has a gate",
    ),
]  # fmt: skip


def refused_params():
    params = draw(W=(4, 4), V=(4, 3), U=(2, 3), b=(4,), S=(2, 4, 4), t=(4, 1), c=(8,), X=(4, 4))
    return params | draw(Y=(8, 3))


@pytest.mark.parametrize(("apply", "message"), REFUSED)
def test_what_cannot_be_told_is_an_error_whose_advice_can_be_followed(apply, message):
    """The same behind two layers of which the first alone gets a gate, as the error says."""
    x = jax.random.normal(jax.random.key(0), (2, 4))
    with pytest.raises(ValueError, match=message) as caught:
        trace_wiring(apply, refused_params(), x)
    assert "gates=[...]" in str(caught.value)

    def behind(p, x, gates=None):
        h = jnp.tanh(x @ p["first"])
        return apply(p, (h * gates["first"][None] if gates else h) @ p["second"])

    params = random_tree(refused_params() | draw(first=(4, 6), second=(6, 4)))
    wiring = trace_wiring(behind, params, x, ["first"])
    assert wiring.gates == {"first": 6} and wiring.inputs["second"] == (("first", 1),)
    gates = draw_gates(wiring, 0, soft=True)
    expected = behind(params, x, gates)
    np.testing.assert_allclose(behind(fold(wiring, params, gates), x), expected, rtol=1e-4)


def test_a_loop_is_gated_with_what_feeds_it_or_not_at_all():
    apply = lambda p, x: scan_layers(p["S"], x @ p[W]) @ p[V]  # noqa: E731
    params, x = refused_params(), jnp.ones((2, 4))
    with pytest.raises(ValueError, match=r"'scan' combines 'W'.*both must have one.*'S'.*gates="):
        trace_wiring(apply, params, x, [W])
    wiring = trace_wiring(apply, params, x, [W, "S"])
    assert wiring == trace_wiring(apply, params, x)
    assert wiring.gates == {W: 4} and wiring.outputs == {W: W, "S": W}


@pytest.mark.parametrize("kind", ["sort", "shard_map"])
def test_a_table_by_hand_says_what_tracing_cannot(kind):
    def apply(p, x, gates=None):
        gate = gates[W][None, None] if gates else 1
        h = jnp.tanh(x @ p[W] if kind == "sort" else in_shards(x, p[W])) * gate
        h = jnp.sort(h, 1)[:, 1:] if kind == "sort" else h[:, :2]
        return h.reshape(len(x), -1) @ p[V]

    params = random_tree(draw(W=(4, 5), V=(10, 3)))
    x = jax.random.normal(jax.random.key(0), (2, 3, 4))
    with pytest.raises(ValueError, match=f"'{kind}'.*by hand as a jaxcl.wiring.Wiring"):
        trace_wiring(apply, params, x)
    wiring = Wiring(gates={W: 5}, inputs={W: ((None, 4),), V: ((W, 2),)}, outputs={W: W})
    check_wiring(wiring, params)
    gates = draw_gates(wiring, 0, soft=True)
    np.testing.assert_allclose(
        apply(fold(wiring, params, gates), x), apply(params, x, gates), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(("gates", "message"), [([W, "x"], "for 'x'.*'V', 'W'"), ([V], "for 'V'")])
def test_a_pattern_without_a_hidden_layer_is_an_error(gates, message):
    params, x = draw(W=(4, 4), V=(4, 3)), jnp.ones((2, 4))
    apply = lambda p, x: x @ p[W] @ p[V]  # noqa: E731
    with pytest.raises(ValueError, match=f"finds no hidden dense or convolution layer {message}"):
        trace_wiring(apply, params, x, gates)
    assert trace_wiring(apply, params, x, [W]).gates == {W: 4}


def test_a_model_without_a_hidden_layer_is_an_error():
    params, x = draw(W=(4, 3), V=(3, 3)), jnp.ones((2, 4))
    for apply in (lambda p, x: x @ p[W], lambda p, x: (h := x @ p[W]) + h @ p[V]):
        with pytest.raises(ValueError, match=r"reaches the results.*the kernels are 'V', 'W'\."):
            trace_wiring(apply, params, x)


def test_channels_first_flattening_is_an_error():
    apply, params, shape, _ = conv(channels_last=False)
    with pytest.raises(ValueError, match=r"conv\[0\], conv\[0\].*channels together and last"):
        trace_wiring(apply, params, jnp.ones((1, *shape)))


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        ("up", "gates must be a list of at least one regular expression.*got 'up'"),
        ([], r"gates must be a list of at least one.*got \[\]"),
        (["up", "(gate"], r"gates must be a regular expression, got '\(gate'"),
    ],
)
def test_gates_are_a_list_of_patterns(gates, message):
    _, params, shape, _ = mlp()
    with pytest.raises(ValueError, match=message):
        trace_wiring(lambda *_: pytest.fail("traced"), params, jnp.ones((1, *shape)), gates)


@pytest.mark.parametrize(
    ("join", "repeats"),
    [
        (lambda h: jnp.stack([h, h], 1).reshape(len(h), -1), 2),
        (lambda h: jnp.tile(h, (1, 3)), 3),
        (lambda h: sum(jnp.unstack(jnp.stack([h, 2 * h], 1), axis=1)), 1),
        (lambda h: jnp.stack([h, 2 * h], -1).max(-1), 1),
    ],
    ids=["stack", "tile", "unstack", "stack last"],
)
def test_what_only_moves_elements_keeps_their_units(join, repeats):
    params = {W: jnp.ones((4, 5)), V: jnp.ones((5 * repeats, 3))}
    wiring = trace_wiring(lambda p, x: join(x @ p[W]) @ p[V], params, jnp.ones((2, 4)))
    assert wiring.inputs[V] == ((W, repeats),)


@pytest.mark.parametrize(
    ("mix", "found"),
    [
        (lambda h: jnp.repeat(h, 2, 1), "as W.0., W.0., W.1., W.1., W.2., W.2., ..., where"),
        (lambda h: jnp.stack([h, h], -1).reshape(len(h), -1), "as W.0., W.0., W.1., W.1."),
        (
            lambda h: h.reshape(-1, 2, 3).swapaxes(1, 2).reshape(-1, 6),
            "as W.0., W.3., W.1., W.4., W.2., W.5., where",
        ),
        (
            lambda h: jax.nn.silu(h[:, :3]) * h[:, 3:],
            "as W.0., W.1., W.2., W.0., W.1., W.2., where",
        ),
        (lambda h: h[:, 1:], "as W.1., W.2."),
    ],
    ids=["repeat", "stack last", "shuffle", "fused glu", "cut"],
)
def test_units_out_of_order_are_listed(mix, found):
    params = {W: jnp.ones((4, 6)), V: jnp.ones((mix(jnp.ones((1, 6))).shape[1], 3))}
    with pytest.raises(ValueError, match=f"do not come as a whole.*{found}"):
        trace_wiring(lambda p, x: mix(x @ p[W]) @ p[V], params, jnp.ones((2, 4)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"inputs": {"1/kernl": (("0", 1),)}},
            "'1/kernl' is no parameter; the nearest are '1/kernel'",
        ),
        ({"outputs": {"0/kernel": "00"}}, "gate '00', which is no gate"),
        ({"inputs": {"1/kernel": (("0", 2),)}}, "'1/kernel' span 12 units"),
        ({"outputs": {"1/bias": "0"}}, r"'1/bias' of shape \(7,\) on gate '0' with 6"),
        ({"gates": {"x": 4}}, "feeds gate 'x'"),
        ({"gates": {"x": 0}}, "'x' of the wiring has 0 units"),
        ({"inputs": {"2/kernel": ((None, 7),)}}, "reads gate '1'"),
        ({"groups": {"1/kernel": 4}}, "groups of '1/kernel' must divide its 7"),
    ],
)
def test_check_names_the_wrong_entry(change, message):
    _, params, _, wiring = traced("mlp")
    check_wiring(wiring, params)
    wrong = wiring._replace(**{k: getattr(wiring, k) | v for k, v in change.items()})
    with pytest.raises(ValueError, match=message):
        check_wiring(wrong, params)
