"""The convolution and the pooling of the built-in networks are JAX's, with all their gradients.

And their dropout, which draws fewer random bits.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxcl
from jaxcl.core import convolution
from jaxcl.core.convolution import COLUMN_BYTES, max_pool
from jaxcl.models import conv_general_dilated
from jaxcl.models.layers import drop

NUMBERS = ("NHWC", "HWIO", "NHWC")
PADS = ((1, 1), (1, 1))


def close(a, b, tolerance=1e-4):
    a, b = jax.tree.map(lambda leaf: np.asarray(leaf, "f8"), (a, b))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), a, b)


@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (3, 2)])
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((0, 2), (1, 0))])
@pytest.mark.parametrize("vmapped", [False, True])
def test_values_and_gradients_are_those_of_jax(strides, padding, vmapped):
    x = jax.random.normal(jax.random.key(0), (4, 9, 11, 3))
    kernel = jax.random.normal(jax.random.key(1), (2, 3, 2, 3, 5))
    options = {"dimension_numbers": NUMBERS}

    def results(conv):
        def one(kernel):
            def loss(x, kernel):
                return jnp.sum(jnp.sin(conv(x, kernel, strides, padding, **options)))

            return jax.value_and_grad(loss, (0, 1))(x, kernel)

        return jax.jit(jax.vmap(one))(kernel) if vmapped else jax.jit(one)(kernel[0])

    close(results(conv_general_dilated), results(jax.lax.conv_general_dilated))


@st.composite
def convolutions(draw):
    """Shapes of image and kernel, and the arguments that go with them."""
    axes = draw(st.integers(1, 3))
    small = partial(st.integers, 1)

    def each(values):
        return tuple(draw(st.tuples(*[values] * axes)))

    groups, inputs, outputs = draw(small(3)), draw(small(2)), draw(small(2))
    image = (draw(small(3)), *each(st.integers(4, 7)), groups * inputs)
    kernel = (*each(small(3)), inputs, groups * outputs)
    inner = "WHD"[:axes]
    arguments = {
        "window_strides": each(small(3)),
        "rhs_dilation": each(small(2)),
        "feature_group_count": groups,
        "dimension_numbers": (f"N{inner}C", f"{inner}IO", f"N{inner}C"),
    }
    if draw(st.booleans()):
        arguments["padding"] = draw(st.sampled_from(["SAME", "VALID"]))
    else:
        arguments["padding"] = each(st.tuples(st.integers(-1, 3), st.integers(-1, 3)))
        arguments["lhs_dilation"] = each(small(2))
    return image, kernel, arguments


@settings(deadline=None, max_examples=12, database=None)
@given(convolutions(), st.sampled_from(["float32", "bfloat16", "float64"]))
def test_any_window_of_any_image(case, dtype):
    image, kernel, arguments = case
    with jax.enable_x64(dtype == "float64"):
        x = jax.random.normal(jax.random.key(0), image, dtype)
        kernel = jax.random.normal(jax.random.key(1), kernel, dtype)

        @partial(jax.jit, static_argnums=0)
        def results(conv, x, kernel):
            out, pull = jax.vjp(partial(conv, **arguments), x, kernel)
            return out, pull(jnp.cos(out))

        convs = conv_general_dilated, jax.lax.conv_general_dilated
        found, expected = (results(conv, x, kernel) for conv in convs)
        jax.tree.map(lambda a, b: np.testing.assert_equal(a.dtype, b.dtype), found, expected)
        close(found, expected, {"float32": 1e-4, "bfloat16": 0.15, "float64": 1e-12}[dtype])


@pytest.mark.parametrize("shape", [(2, 2, 4, 1), (0, 5, 5, 1)])
def test_an_empty_image_has_gradients_of_zero(shape):
    """A kernel that fits nowhere, and a batch of no examples."""
    x, kernel = jnp.ones(shape), jnp.ones((3, 3, 1, 2))

    def loss(x, kernel):
        return conv_general_dilated(x, kernel, (2, 2), "VALID").sum()

    gradients = jax.grad(loss, (0, 1))(x, kernel)
    jax.tree.map(np.testing.assert_array_equal, gradients, (0 * x, 0 * kernel))


def test_columns_are_made_of_a_few_examples_at_a_time(monkeypatch):
    x = jax.random.normal(jax.random.key(0), (6, 16, 16, 32))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 32, 2))
    one = 4 * 9 * x[0].size

    def compiled(examples):
        monkeypatch.setattr(convolution, "COLUMN_BYTES", examples * one)

        def loss(kernel, x):
            return jnp.sum(jnp.sin(conv_general_dilated(x, kernel, (1, 1), "SAME")))

        program = jax.jit(jax.grad(loss)).lower(kernel, x).compile()
        return program(kernel, x), program.memory_analysis().temp_size_in_bytes

    whole, most = compiled(6)
    assert most > 6 * one
    for examples in (0, 2, 5):
        found, used = compiled(examples)
        close(found, whole)
        assert used < most - 3 * one
    monkeypatch.undo()
    assert COLUMN_BYTES == 4 << 20  # as the docstring says
    assert [convolution._parts(64, COLUMN_BYTES // n) for n in (1, 3, 16, 64)] == [64, 32, 4, 1]


@pytest.mark.parametrize("axes", [1, 2])
def test_second_derivatives(axes):
    x = jax.random.normal(jax.random.key(0), (2, *(7, 6)[:axes], 2))
    kernel = jax.random.normal(jax.random.key(1), (*(3, 2)[:axes], 2, 3))

    def results(conv):
        def steepness(x, kernel):
            def loss(x, kernel):
                return jnp.sum(jnp.sin(conv(x, kernel, (2, 1)[:axes], "SAME")))

            of_x, of_kernel = jax.grad(loss, (0, 1))(x, kernel)
            return jnp.sum(of_x**2) + jnp.sum(of_kernel**3)

        return jax.jit(jax.grad(steepness, (0, 1)))(x, kernel)

    def plain(*args):
        return jax.lax.conv_general_dilated(
            *args, dimension_numbers=convolution._channels_last(len(args[0].shape))
        )

    close(results(conv_general_dilated), results(plain), 1e-3)


def lowered(function, *args, platform):
    traced = jax.jit(function).trace(*args)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def test_only_a_cpu_gets_other_gradients_than_jax_s():
    x = jnp.ones((4, 8, 8, 2))
    kernel = jnp.ones((3, 3, 2, 4))

    def orders(conv, platform):
        """How the axes lie in the convolutions of a loop's body, and how many columns are made."""

        def step(_, both):
            def loss(x, kernel):
                return jnp.sum(conv(x, kernel, (2, 2), "SAME", dimension_numbers=NUMBERS) ** 2)

            return jax.grad(loss, (0, 1))(*both)

        text = lowered(
            lambda *both: jax.lax.fori_loop(0, 3, step, both), x, kernel, platform=platform
        )
        found = re.findall(r"dim_numbers = (\[.*?\]x\[.*?\]->\[.*?\])", text)
        return sorted(found), text.count("stablehlo.concatenate")

    fast = "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"
    assert orders(conv_general_dilated, "cpu") == ([fast] * 2, 1)
    assert orders(jax.lax.conv_general_dilated, "cpu")[0] != [fast] * 3
    for platform in ("cuda", "tpu"):
        assert orders(conv_general_dilated, platform) == orders(
            jax.lax.conv_general_dilated, platform
        )


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "highest"},
        {"preferred_element_type": jnp.float32},
        {"batch_group_count": 2},
        {"dimension_numbers": ("NCHW", "HWIO", "NHWC")},
    ],
)
def test_what_is_not_plain_is_left_to_jax(options):
    options = {"dimension_numbers": NUMBERS} | options
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 8))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 8, 6))
    gradients = [
        jax.grad(lambda kernel, conv=conv: conv(x, kernel, (1, 1), PADS, **options).sum())(kernel)
        for conv in (conv_general_dilated, jax.lax.conv_general_dilated)
    ]
    np.testing.assert_array_equal(*gradients)


def test_a_word_for_the_padding_of_a_dilated_image_is_jax_s_error():
    with pytest.raises(ValueError, match="String padding"):
        conv_general_dilated(jnp.ones((1, 4, 4, 1)), jnp.ones((2, 2, 1, 1)), (1, 1), "SAME", (2, 2))


def test_the_wiring_of_a_network_is_derived_through_them():
    def wiring(conv, pool):
        net = nn.Sequential([
            nn.Conv(4, (3, 3), conv_general_dilated=conv), nn.relu,
            lambda x: pool(x, (2, 2), (2, 2)),
            nn.Conv(5, (3, 3), strides=2, conv_general_dilated=conv), nn.relu,
            lambda x: x.reshape(x.shape[0], -1), nn.Dense(3),
        ])  # fmt: skip
        x = jax.ShapeDtypeStruct((2, 12, 12, 1), jnp.float32)
        params = jax.eval_shape(net.init, jax.random.key(0), x)["params"]
        return jaxcl.trace_wiring(lambda p, x: net.apply({"params": p}, x), params, x)

    theirs = wiring(jax.lax.conv_general_dilated, nn.max_pool)
    assert wiring(conv_general_dilated, max_pool) == theirs


# Pooling


@pytest.mark.parametrize(
    ("shape", "window", "strides"),
    [
        ((3, 5, 6, 2), (2, 2), (2, 2)),
        ((2, 7, 7, 3), (3, 3), (2, 2)),
        ((2, 9, 2), (3,), (1,)),
        ((1, 4, 5, 4, 2), (2, 1, 2), (2, 2, 1)),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pooling_is_flax_s(shape, window, strides, dtype):
    """Small integers, so that most windows have several largest entries."""
    x = jax.random.randint(jax.random.key(0), shape, -1, 2).astype(dtype)
    pulled = jax.random.normal(jax.random.key(1), nnx.max_pool(x, window, strides).shape, dtype)

    def results(pool):
        def one(x, pulled):
            out, pull = jax.vjp(lambda x: pool(x, window, strides), x)
            return pool(x, window, strides), out, *pull(pulled)

        return jax.jit(jax.vmap(one))(jnp.stack([x, -x]), jnp.stack([pulled] * 2))

    found, expected = results(max_pool), results(nnx.max_pool)
    tolerance = {"float32": 1e-6, "bfloat16": 0.05}[dtype]  # of sums in another order
    close(found, expected, tolerance if strides != window else 0)


def test_the_first_of_equal_entries_has_the_gradient():
    """A plain maximum would share it out."""
    x = jnp.array([[1.0, 1.0], [1.0, 0.0]]).reshape(1, 2, 2, 1)
    gradient = jax.grad(lambda x: max_pool(x, (2, 2), (2, 2)).sum())(x)
    np.testing.assert_array_equal(gradient.ravel(), [1, 0, 0, 0])
    shared = jax.grad(lambda x: jnp.maximum(x[:, 0, 0], x[:, 0, 1]).sum())(x)
    np.testing.assert_array_equal(shared.ravel(), [0.5, 0.5, 0, 0])


def test_pooling_keeps_nan():
    for i in range(4):
        x = jnp.arange(4.0).at[i].set(jnp.nan).reshape(1, 2, 2, 1)
        out, _ = jax.vjp(lambda x: max_pool(x, (2, 2), (2, 2)), x)
        assert jnp.isnan(out).all()


def test_only_a_cpu_pools_by_slices():
    def loss(x):
        return jnp.sum(max_pool(x, (2, 2), (2, 2)) ** 2)

    for platform, scatters in (("cpu", 0), ("cuda", 1), ("tpu", 1)):
        text = lowered(jax.grad(loss), jnp.ones((2, 4, 4, 3)), platform=platform)
        assert text.count('"stablehlo.select_and_scatter"') == scatters
        assert text.count('"stablehlo.reduce_window"') == scatters


# Dropout


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_dropout_keeps_its_rate_and_the_mean(rate):
    layer = nnx.Dropout(rate, rngs=nnx.Rngs(0))
    x = jnp.ones((300, 5, 67))
    dropped = np.asarray(drop(layer, x), "f8")
    assert abs(np.mean(dropped == 0) - rate) < 0.005
    assert abs(dropped.mean() - 1) < 0.01
    assert abs(np.mean(dropped == 0, (0, 1)) - rate).max() < 0.06  # both halves of a word
    assert np.any(dropped != drop(layer, x))
    layer.eval()
    np.testing.assert_array_equal(drop(layer, x), x)


def test_dropout_draws_half_as_many_bits():
    def drawn(function):
        def run(x):
            return function(nnx.Dropout(0.5, rngs=nnx.Rngs(0)), x)

        text = str(jax.make_jaxpr(run)(jnp.ones((4, 8))))
        return re.findall(r"random_bits\[bit_width=(\d+) shape=(\(.*?\))", text)

    assert drawn(drop) == [("32", "(4, 4)")]
    assert drawn(lambda layer, x: layer(x)) == [("32", "(4, 8)")]
