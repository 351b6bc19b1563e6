"""One leaf of a checkpoint: what the record says of it, the bits that are stored, and back."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AbstractMesh, SingleDeviceSharding

from jaxcl.study import digests

NUMBERS = {f"Python {kind.__name__}": kind for kind in (bool, int, float, complex)}
SMALL = 2**18  # entries; up to here the host is faster than the compilation of a program


class Entry(NamedTuple):
    """What the record says of one leaf.

    Attributes:
        keys: the keys of its path.
        dtype: the name of its type; one of `NUMBERS` where it is no array.
        shape: its shape; of typed keys, that of the array of keys.
        stored: shape of the unsigned integers that hold its bits.
        bits: their digest; of a number, the number itself.
    """

    keys: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]
    stored: tuple[int, ...]
    bits: str

    @property
    def name(self) -> str:
        return "/".join(self.keys)


def check_leaf(name: str, leaf: Any) -> None:
    """Raises ValueError where a leaf cannot be saved."""
    dtype, _ = kind_of(name, leaf)
    if dtype in NUMBERS or isinstance(leaf, np.ndarray | np.generic):
        return
    if isinstance(leaf, Tracer) or not isinstance(leaf, jax.Array):
        raise ValueError(f"leaf '{name}' has no values: it is a {type(leaf).__name__}.")
    if leaf.is_deleted():
        raise ValueError(f"leaf '{name}' has no values: the array was donated or deleted.")


def kind_of(name: str, leaf: Any) -> tuple[str, tuple[int, ...]]:
    """Type and shape of a leaf, of a tree that is saved or of an abstract one."""
    number = f"Python {type(leaf).__name__}"
    if NUMBERS.get(number) is type(leaf):
        return number, ()
    if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
        raise ValueError(
            f"leaf '{name}' is a {type(leaf).__name__}; a checkpoint holds arrays, typed keys and "
            f"numbers."
        )
    if not _is_key(leaf) and not _has_bits(np.dtype(leaf.dtype)):
        raise ValueError(f"leaf '{name}' has type {leaf.dtype}, which JAX does not have.")
    return leaf.dtype.name, tuple(leaf.shape)


def _has_bits(dtype: np.dtype) -> bool:
    """True for the types of JAX's arrays, keys aside."""
    if dtype.kind == "V":  # bfloat16, int4, float8_e4m3fn, ...
        return jnp.issubdtype(dtype, jnp.number)
    return dtype.kind in "biufc" and dtype.itemsize <= (16 if dtype.kind == "c" else 8)


def written_leaf(keys: tuple[str, ...], leaf: Any) -> tuple[Entry, Any]:
    """The entry of a leaf and its bits, in memory of their own; None for a number's."""
    dtype, shape = kind_of("/".join(keys), leaf)
    if dtype in NUMBERS:
        value = str(leaf) if type(leaf) is int else np.asarray(leaf).tobytes().hex()
        return Entry(keys, dtype, shape, (), value), None
    if _is_key(leaf):
        leaf = jax.random.key_data(leaf)
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable and leaf.size <= SMALL):
        array, sums = digests.encoded(leaf)
        if array.is_fully_addressable:
            array = np.asarray(array)
    else:
        array = digests.numpy_bits(leaf)
        sums = digests.host_sums(array)
    return Entry(keys, dtype, shape, array.shape, digests.digest(sums)), array


def wanted_leaf(entry: Entry, leaf: Any) -> Any:
    """What to ask orbax for; None where nothing is stored."""
    if not is_stored(entry):
        return None
    if _by_host(entry, leaf):
        return on_host(entry)
    dtype = digests.unsigned(entry.dtype)
    return jax.ShapeDtypeStruct(entry.stored, dtype, sharding=_sharding(leaf))


def read_leaf(path: Path, entry: Entry, leaf: Any, array: Any) -> Any:
    """A leaf of the tree, from the bits that were stored."""
    if entry.dtype in NUMBERS:
        return _number(entry, leaf)
    if array is None:
        array = np.zeros(entry.stored, digests.unsigned(entry.dtype))
    if isinstance(array, np.ndarray):
        check_bits(path, entry, digests.digest(digests.host_sums(array)))
        if not _is_key(leaf):
            array = array.reshape(-1).view(entry.dtype).reshape(entry.shape)
        if isinstance(leaf, np.ndarray):
            return array.astype(leaf.dtype, copy=False)  # of either byte order
        if isinstance(leaf, np.generic):
            return array[()]
        array = jax.device_put(array, _sharding(leaf))
    else:
        array, sums = digests.decoded(array, "uint32" if _is_key(leaf) else entry.dtype)
        check_bits(path, entry, digests.digest(sums))
    if _is_key(leaf):
        array = jax.random.wrap_key_data(array, impl=_implementation(leaf))
    return jax.device_put(array, _sharding(leaf))


def _number(entry: Entry, leaf: Any) -> Any:
    """A Python number, or the scalar that JAX makes of it."""
    kind = NUMBERS[entry.dtype]
    value = int(entry.bits) if kind is int else np.frombuffer(bytes.fromhex(entry.bits), kind)[0]
    if type(leaf) is kind:
        return kind(value)
    try:
        array = np.asarray(value, leaf.dtype)
    except OverflowError:
        raise ValueError(f"leaf '{entry.name}' is {value}, too much for {leaf.dtype}.") from None
    return array[()] if isinstance(leaf, np.generic) else jax.device_put(array, _sharding(leaf))


def check_bits(path: Path, entry: Entry, digest: str) -> None:
    if digest != entry.bits:
        raise damaged(path, f"the bits of leaf '{entry.name}' are not those that were saved")


def is_stored(entry: Entry) -> bool:
    return entry.dtype not in NUMBERS and 0 not in entry.stored


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _implementation(keys: Any) -> Any:
    """That of typed keys, which may be abstract."""
    found = []
    jax.eval_shape(lambda one: found.append(jax.random.key_impl(one)), keys)
    return found[0]


def _by_host(entry: Entry, leaf: Any) -> bool:
    if isinstance(leaf, np.ndarray | np.generic) or type(leaf) in NUMBERS.values():
        return True
    return _sharding(leaf).is_fully_addressable and math.prod(entry.stored) <= SMALL


def on_host(entry: Entry) -> np.ndarray:
    """An array of the stored shape and type that takes no memory."""
    return np.broadcast_to(np.zeros((), digests.unsigned(entry.dtype)), entry.stored)


def _sharding(leaf: Any) -> Any:
    """Where a leaf goes; a mesh without devices, as `jax.eval_shape` may give, does not say."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None or isinstance(getattr(sharding, "mesh", None), AbstractMesh):
        return SingleDeviceSharding(jax.local_devices()[0])
    return sharding


def damaged(path: Path, reason: str) -> ValueError:
    return ValueError(f"the checkpoint in {path} is damaged: {reason}.")
