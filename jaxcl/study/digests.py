"""The bits of arrays as unsigned integers, and digests of them, on devices and on the host.

Both sides find the same digest, whatever the layout of the array.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 2**16  # entries that fit into the processor's cache
WEIGHTS = (0x9E3779B1, 0xC2B2AE3D)  # odd, as all factors of the digest are: no bit gets lost


@jax.jit
def encoded(leaf: jax.Array) -> tuple[jax.Array, Any]:
    """The bits of an array, copied, and their sums; each device has its part of them."""
    shape = stored_shape(leaf.dtype, leaf.shape)
    if jnp.iscomplexobj(leaf):
        leaf = jnp.stack([leaf.real, leaf.imag], axis=-1)
    if leaf.dtype == bool:
        bits = leaf.astype(jnp.uint8)
    else:
        width = width_of(leaf.dtype)
        bits = jax.lax.bitcast_convert_type(leaf, f"uint{min(width, 32)}")
        bits = bits.astype(jnp.uint8) if width < 8 else bits
    bits = jnp.copy(bits.reshape(shape))  # the program would return its very argument otherwise
    return bits, device_sums(bits)


@partial(jax.jit, static_argnames="dtype")
def decoded(bits: jax.Array, dtype: str) -> tuple[jax.Array, Any]:
    """The inverse of `encoded`, and the sums of the bits."""
    sums, kind = device_sums(bits), np.dtype(dtype)
    if dtype == "bool":
        return bits.astype(bool), sums
    if kind.kind == "c":
        part = np.dtype(f"float{4 * kind.itemsize}")
        parts = bits.reshape(stored_shape(part, (*bits.shape[:-1], 2)))
        parts = jax.lax.bitcast_convert_type(parts, part)
        return jax.lax.complex(parts[..., 0], parts[..., 1]), sums
    width = width_of(kind)
    bits = bits.astype(f"uint{width}") if width < 8 else bits
    return jax.lax.bitcast_convert_type(bits, kind), sums


def numpy_bits(leaf: Any) -> np.ndarray:
    """The bits of an array in the host's memory, copied."""
    array = np.array(leaf)
    array = array.astype(array.dtype.newbyteorder("="), order="C")
    bits = array.reshape(-1).view(unsigned(array.dtype.name))
    return bits.reshape(stored_shape(array.dtype, array.shape))


def device_sums(bits: jax.Array) -> Any:
    index = jnp.zeros(bits.shape, np.uint32)
    for axis, size in enumerate(bits.shape):
        index = index * np.uint32(size % 2**32)
        index = index + jax.lax.broadcasted_iota(np.uint32, bits.shape, axis)
    return _sums(bits, index)


def host_sums(bits: np.ndarray) -> Any:
    """The same sums, block by block."""
    bits, total = bits.reshape(-1), np.zeros(len(WEIGHTS), np.uint32)
    for start in range(0, bits.size, BLOCK):
        part = bits[start : start + BLOCK]
        index = np.arange(part.size, dtype=np.uint32) + np.uint32(start % 2**32)
        total = total + np.array(_sums(part, index))
    return total


def _sums(bits: Any, index: Any) -> list:
    """Two sums modulo 2^32 over all entries, each of them mixed with its position.

    The order of the sum makes no difference, so the layout does not. A single entry that is
    another one changes both sums, for each step below can be undone.
    """
    sums = []
    for weight in WEIGHTS:
        word = bits.astype(np.uint32) + index * np.uint32(weight)
        word = (word ^ (word >> 16)) * np.uint32(0x7FEB352D)
        word = (word ^ (word >> 15)) * np.uint32(0x846CA68B)
        sums.append((word ^ (word >> 16)).sum(dtype=np.uint32))
    return sums


def digest(sums: Any) -> str:
    return "".join(f"{int(one):08x}" for one in sums)


def stored_shape(dtype: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Entries of more than 32 bits become rows of two or four."""
    return (*shape, dtype.itemsize // 4) if dtype.itemsize > 4 else tuple(shape)


def unsigned(dtype: str) -> np.dtype:
    """The type of the integers that hold a type's bits."""
    size = 4 if dtype.startswith("key<") else np.dtype(dtype).itemsize
    return np.dtype(f"uint{8 * min(size, 4)}")


def width_of(dtype: Any) -> int:
    info = jnp.iinfo if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo
    return info(dtype).bits
