"""The convolution of the built-in networks is JAX's, with all its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxcl
from jaxcl.models import conv_general_dilated

NUMBERS = ("NHWC", "HWIO", "NHWC")
PADS = ((1, 1), (1, 1))


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

        return jax.vmap(one)(kernel) if vmapped else one(kernel[0])

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        results(conv_general_dilated),
        results(jax.lax.conv_general_dilated),
    )


@pytest.mark.parametrize(
    "options",
    [
        {"rhs_dilation": (2, 2)},
        {"lhs_dilation": (2, 1)},
        {"feature_group_count": 3},
        {"precision": "highest"},
        {"preferred_element_type": jnp.float32},
    ],
)
def test_what_is_not_plain_is_left_to_jax(options):
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    channels = 3 // options.get("feature_group_count", 1)
    kernel = jax.random.normal(jax.random.key(1), (3, 3, channels, 6))
    options |= {"dimension_numbers": NUMBERS}
    gradients = [
        jax.grad(lambda kernel, conv=conv: conv(x, kernel, (1, 1), PADS, **options).sum())(kernel)
        for conv in (conv_general_dilated, jax.lax.conv_general_dilated)
    ]
    np.testing.assert_array_equal(*gradients)


def test_the_wiring_of_a_network_is_derived_through_it():
    def wiring(conv):
        net = nn.Sequential([
            nn.Conv(4, (3, 3), conv_general_dilated=conv), nn.relu,
            nn.Conv(5, (3, 3), strides=2, conv_general_dilated=conv), nn.relu,
            lambda x: x.reshape(x.shape[0], -1), nn.Dense(3),
        ])  # fmt: skip
        x = jax.ShapeDtypeStruct((2, 6, 6, 1), jnp.float32)
        params = jax.eval_shape(net.init, jax.random.key(0), x)["params"]
        return jaxcl.trace_wiring(lambda p, x: net.apply({"params": p}, x), params, x)

    assert wiring(conv_general_dilated) == wiring(jax.lax.conv_general_dilated)
