"""Convolution and max pooling whose gradients are fast on a CPU."""

import itertools
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

COLUMN_BYTES = 4 << 20  # of an array that should stay in the cache from its making to its use


class Window(NamedTuple):
    """How a kernel moves over an image of any number of axes.

    Attributes:
        strides: for each axis.
        pads: low and high, for each axis.
        image_dilation: 1 where nothing lies between two entries of the image; for each axis.
        kernel_dilation: likewise.
        groups: parts of the channels, each with its own kernels.
    """

    strides: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    image_dilation: tuple[int, ...]
    kernel_dilation: tuple[int, ...]
    groups: int


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Any,
    padding: Any,
    lhs_dilation: Any = None,
    rhs_dilation: Any = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    **options: Any,
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, which layers of Flax take in its place.

    On a CPU, XLA has a fast routine for a convolution whose channels come last. JAX's gradients are
    convolutions over other orders of the axes, and within a loop, such as an epoch's, they were
    measured to take 5 to 25 times as long. So here the gradient of the image is the convolution
    with the turned kernel, brought into that order, and the gradient of the kernel one matrix
    product over the image's columns: what the kernel sees at each place. The columns of some
    examples are made at a time, `COLUMN_BYTES` of them or one example's, so they take no more
    memory than that. Other devices keep JAX's gradients.

    Args:
        lhs: image `[B, ..., C]` with any number of axes, floating.
        rhs: kernel `[..., C / feature_group_count, features]`.
        window_strides: for each axis.
        padding: `"SAME"`, `"VALID"` or low and high for each axis.
        lhs_dilation: of the image; by default none.
        rhs_dilation: of the kernel; likewise.
        dimension_numbers: of `lax`; by default channels last, as above. Other orders are left to
            JAX.
        feature_group_count: groups of channels.
        options: `lax`'s other options, with which all is left to JAX.

    Returns:
        The image `[B, ..., features]`.

    Differs: without forward-mode differentiation.

    >>> conv_general_dilated(jnp.ones((1, 5, 5, 2)), jnp.ones((3, 3, 2, 4)), (2, 2), "SAME").shape
    (1, 3, 3, 4)
    """
    last = _channels_last(lhs.ndim)
    numbers = jax.lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers or last)
    ones = (1,) * (lhs.ndim - 2)
    dilations = tuple(lhs_dilation or ones), tuple(rhs_dilation or ones)
    given = [value for value in options.values() if value is not None]
    transposed = isinstance(padding, str) and dilations[0] != ones  # an error of JAX's
    if given or transposed or numbers != last or not jnp.issubdtype(lhs.dtype, jnp.floating):
        return jax.lax.conv_general_dilated(
            lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, numbers,
            feature_group_count, **options,
        )  # fmt: skip
    if isinstance(padding, str):
        reach = [_reach(size, step) for size, step in zip(rhs.shape, dilations[1])]
        padding = jax.lax.padtype_to_pads(lhs.shape[1:-1], reach, window_strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    return _conv(lhs, rhs, Window(tuple(window_strides), pads, *dilations, feature_group_count))


def _channels_last(axes: int) -> jax.lax.ConvDimensionNumbers:
    inner = tuple(range(1, axes - 1))
    image = (0, axes - 1, *inner)
    return jax.lax.ConvDimensionNumbers(image, (axes - 1, axes - 2, *range(axes - 2)), image)


def _reach(size: int, step: int) -> int:
    """From the first to the last of `size` entries that are `step` apart."""
    return (size - 1) * step + 1


def _plain(x, kernel, window):
    strides, pads, of_image, of_kernel, groups = window
    numbers = _channels_last(x.ndim)
    return jax.lax.conv_general_dilated(
        x, kernel, strides, pads, of_image, of_kernel, numbers, groups
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x, kernel, window):
    return _plain(x, kernel, window)


def _forward(x, kernel, window):
    return _plain(x, kernel, window), (x, kernel)


def _backward(window, saved, gradient):
    x, kernel = saved
    if gradient.size == 0:
        return jnp.zeros_like(x), jnp.zeros_like(kernel)

    def jax_of_x(kernel, gradient):
        return jax.linear_transpose(lambda x: _plain(x, kernel, window), x)(gradient)[0]

    def jax_of_kernel(x, gradient):
        return jax.linear_transpose(lambda kernel: _plain(x, kernel, window), kernel)(gradient)[0]

    of_x = jax.lax.platform_dependent(
        kernel, gradient, cpu=partial(_of_x, shape=x.shape, window=window), default=jax_of_x
    )
    of_kernel = jax.lax.platform_dependent(
        x, gradient, cpu=partial(_of_kernel, shape=kernel.shape, window=window),
        default=jax_of_kernel,
    )  # fmt: skip
    return of_x, of_kernel


_conv.defvjp(_forward, _backward)


def _of_x(kernel, gradient, shape, window):
    """The image's gradient: the turned kernel, outputs for inputs, over the gradient."""
    axes = tuple(range(len(shape) - 2))
    split = (*kernel.shape[:-1], window.groups, -1)  # inputs of a group, groups, outputs of a group
    turned = jnp.flip(kernel.reshape(split), axes).swapaxes(-3, -1)
    turned = turned.reshape(*kernel.shape[:-2], -1, shape[-1])
    pads = []
    for i in axes:
        kernel_reach = _reach(kernel.shape[i], window.kernel_dilation[i])
        low = kernel_reach - 1 - window.pads[i][0]
        high = _reach(shape[1 + i], window.image_dilation[i]) + kernel_reach - 1 - low
        pads.append((low, high - _reach(gradient.shape[1 + i], window.strides[i])))
    back = Window(
        window.image_dilation, tuple(pads), window.strides, window.kernel_dilation, window.groups
    )
    return _conv(gradient, turned, back)


def _of_kernel(x, gradient, shape, window):
    """The kernel's gradient: the gradient times the image's columns, some examples at a time."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    *sizes, inputs, outputs = shape
    groups, size = window.groups, math.prod(sizes)

    def of_part(x, gradient):
        columns = _columns(x, shape, gradient.shape, window)
        return jnp.einsum(
            "mgo,mkgc->gokc",
            gradient.reshape(-1, groups, outputs // groups),
            columns.reshape(-1, size, groups, inputs),
            preferred_element_type=dtype,
        )

    one = math.prod(gradient.shape[1:-1]) * size * x.shape[-1] * x.dtype.itemsize
    parts = _parts(x.shape[0], one)
    if parts == 1:
        found = of_part(x, gradient)
    else:
        cut = [leaf.reshape(parts, -1, *leaf.shape[1:]) for leaf in (x, gradient)]
        zeros = jnp.zeros((groups, outputs // groups, size, inputs), dtype)
        found, _ = jax.lax.scan(lambda sum, part: (sum + of_part(*part), None), zeros, cut)
    return found.transpose(2, 3, 0, 1).reshape(shape).astype(x.dtype)


def _parts(examples: int, one: int) -> int:
    """Into how many equal parts to cut so many examples of `one` byte of columns each."""
    fits = [n for n in range(1, examples + 1) if examples % n == 0 and n * one <= COLUMN_BYTES]
    return examples // max(fits, default=1)


def _columns(x, shape, out, window):
    """What a kernel of that shape sees at each place of its result: `[*out, K * C]`."""
    zero = jnp.zeros((), x.dtype)
    gaps = [step - 1 for step in window.image_dilation]
    inner = [(low, high, gap) for (low, high), gap in zip(window.pads, gaps)]
    x = jax.lax.pad(x, zero, [(0, 0, 0), *inner, (0, 0, 0)])
    seen = []
    for entry in itertools.product(*map(range, shape[:-2])):
        first = [i * step for i, step in zip(entry, window.kernel_dilation)]
        ends = [f + _reach(n, step) for f, n, step in zip(first, out[1:], window.strides)]
        ends = (x.shape[0], *ends, x.shape[-1])
        seen.append(jax.lax.slice(x, (0, *first, 0), ends, (1, *window.strides, 1)))
    return jnp.concatenate(seen, -1) if len(seen) > 1 else seen[0]


def max_pool(x: jax.Array, window: tuple[int, ...], strides: tuple[int, ...]) -> jax.Array:
    """Max pooling without padding, as Flax's, with a gradient that is fast on a CPU.

    On a CPU the largest is taken of strided slices, one for each entry of the window, which takes a
    tenth of the time, gradient included. Other devices keep JAX's.

    Args:
        x: image `[B, ..., C]`, floating.
        window: size along each axis between the first and the last.
        strides: likewise.

    Returns:
        The image of the largest entries, `[B, ..., C]`. Of equal ones the first has the gradient.

    Differs: without forward-mode differentiation.

    >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), (2, 2), (2, 2)).ravel().tolist()
    [5.0, 7.0, 13.0, 15.0]
    """
    return _pool(x, window, strides)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _pool(x, window, strides):
    return _window_max(x, window, strides)


def _window_max(x, window, strides):
    least = np.asarray(-np.inf, x.dtype)
    return jax.lax.reduce_window(x, least, jax.lax.max, (1, *window, 1), (1, *strides, 1), "VALID")


def _slices_max(x, window, strides):
    """`_window_max` of slices; `where` has the first of equal entries, and NaN, as that has."""
    out = [(size - n) // step + 1 for size, n, step in zip(x.shape[1:], window, strides)]
    found = None
    for first in itertools.product(*map(range, window)):
        ends = [f + _reach(n, step) for f, n, step in zip(first, out, strides)]
        ends = (x.shape[0], *ends, x.shape[-1])
        part = jax.lax.slice(x, (0, *first, 0), ends, (1, *strides, 1))
        if found is None:
            found = part
        else:
            found = jnp.where((found >= part) | jnp.isnan(found), found, part)
    return found


def _pool_forward(x, window, strides):
    function, default = (
        partial(f, window=window, strides=strides) for f in (_slices_max, _window_max)
    )
    return jax.lax.platform_dependent(x, cpu=function, default=default), x


def _pool_backward(window, strides, x, gradient):
    def of(function):
        return lambda x, g: jax.vjp(lambda x: function(x, window, strides), x)[1](g)

    return jax.lax.platform_dependent(x, gradient, cpu=of(_slices_max), default=of(_window_max))


_pool.defvjp(_pool_forward, _pool_backward)
