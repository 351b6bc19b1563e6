"""Saves and restores a learner, or any pytree of arrays, as an orbax checkpoint.

A checkpoint is a folder. It holds all that a learner is: parameters, the method's state, running
statistics, the optimizer's state and the typed key, so a restored learner goes on to the same bits.

Orbax sees a flat dict of unsigned integers, the bits of the leaves. What they are the bits of, the
record says, which is part of the folder's metadata: for each leaf its keys, type, shape and digest.

>>> import tempfile
>>> import jax, jax.numpy as jnp
>>> learner = {"theta": jnp.arange(3.0), "key": jax.random.key(7)}
>>> with tempfile.TemporaryDirectory() as folder:
...     save(f"{folder}/task_1", learner)
...     print(restore(f"{folder}/task_1", jax.eval_shape(lambda: learner))["theta"])
[0. 1. 2.]
"""

import hashlib
import json
import math
import os
import re
import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AbstractMesh, SingleDeviceSharding

from jaxcl.core import trees
from jaxcl.core.trees import PyTree

FORMAT = 1
NUMBERS = {f"Python {kind.__name__}": kind for kind in (bool, int, float, complex)}
SMALL = 2**18  # entries; up to here the host is faster than the compilation of a program
BLOCK = 2**16  # entries that fit into the processor's cache
WEIGHTS = (0x9E3779B1, 0xC2B2AE3D)  # odd, as all factors of the digest are: no bit gets lost


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


def save(path: str | os.PathLike, learner: PyTree) -> None:
    """Writes a checkpoint: whole, or not at all.

    It is written under another name beside `path` and renamed when it is complete.

    Args:
        path: the checkpoint's folder, which must not exist; its parents are made if need be.
        learner: any pytree of arrays, typed keys and numbers, on one device or on a mesh.

    Raises:
        ValueError: if there is something at `path` already, or a leaf is no array of a type that
            JAX has, no key and no number.
    """
    save_async(path, learner).result()


def save_async(path: str | os.PathLike, learner: PyTree) -> Any:
    """Like `save`, but returns when the arrays are copied; they may then be donated or changed.

    Returns:
        A handle. Its `result()` waits until the checkpoint is complete, and raises what failed.
    """
    path = _absolute(path)
    if os.path.lexists(path):
        raise ValueError(f"{path} exists already; a checkpoint does not replace anything.")
    leaves = trees.leaves_with_keys(learner)
    for keys, leaf in leaves:
        _check_leaf("/".join(keys), leaf)
    with jax.enable_x64(True):  # whatever the caller's mode, no leaf loses bits
        written = [_written(keys, leaf) for keys, leaf in leaves]
    arrays = {f"leaf{i}": array for i, (entry, array) in enumerate(written) if _is_stored(entry)}
    record = json.dumps({"format": FORMAT, "leaves": [entry for entry, _ in written]})
    return _orbax().save_async(
        path,
        arrays or {"none": np.zeros(1, np.uint8)},  # orbax saves nothing that is empty
        custom_metadata={"jaxcl": record, "sha256": _sha256(record)},
    )


def restore(path: str | os.PathLike, abstract: PyTree) -> PyTree:
    """Reads a checkpoint into a tree of the given structure.

    Args:
        path: the folder that `save` wrote.
        abstract: the tree with a `jax.ShapeDtypeStruct` for each array, such as
            `jax.eval_shape(partial(train.start, setup, tasks=5), key)`, or with arrays, whose
            values are not read. A leaf that has a sharding is restored onto it, whatever devices
            it was saved from; NumPy's arrays come back as such; the others are put on the first
            device. A Python number stands for a number, or for the scalar that JAX makes of it,
            and such a scalar for the number.

    Returns:
        The saved leaves, bit by bit, in the structure of `abstract`.

    Raises:
        ValueError: if there is no checkpoint at `path`, if it cannot be read, if its bits are not
            those that were saved, or if a leaf is missing, not asked for, or of another shape or
            type; the error names the leaf. Shapes are compared before memory is taken.
    """
    path = _absolute(path)
    entries = _entries(path)
    pairs = _matched(path, entries, trees.leaves_with_keys(abstract))
    with jax.enable_x64(True):
        wanted = {f"leaf{i}": _wanted(entries[i], leaf) for i, leaf in pairs}
        arrays = _load(
            path, entries, {name: like for name, like in wanted.items() if like is not None}
        )
        leaves = [_read(path, entries[i], leaf, arrays.pop(f"leaf{i}", None)) for i, leaf in pairs]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def verify(path: str | os.PathLike) -> None:
    """Reads a whole checkpoint and compares the digests.

    Raises:
        ValueError: if there is no checkpoint at `path`, or it is damaged; the error names the leaf.
    """
    path = _absolute(path)
    entries = _entries(path)
    wanted = {f"leaf{i}": _on_host(entry) for i, entry in enumerate(entries) if _is_stored(entry)}
    arrays = _load(path, entries, wanted)
    for i, entry in enumerate(entries):
        if _is_stored(entry):
            _check_bits(path, entry, _hex(_host_sums(arrays[f"leaf{i}"])))


def shapes(path: str | os.PathLike) -> dict[str, Any]:
    """What a checkpoint holds: shape and dtype of each leaf, by path; of a key, those of its data.

    Of paths that read alike, the later ones get a number.

    Raises:
        ValueError: if there is no checkpoint at `path`, or it does not say what it holds.
    """
    found = {}
    for entry in _entries(_absolute(path)):
        key = entry.dtype.startswith("key<")
        dtype = np.dtype(np.uint32 if key else NUMBERS.get(entry.dtype, entry.dtype))
        name, number = entry.name, 1
        while name in found:
            number += 1
            name = f"{entry.name} ({number})"
        found[name] = jax.ShapeDtypeStruct(entry.stored if key else entry.shape, dtype)
    return found


def latest(
    folder: str | os.PathLike, name: str = "task", *, readable: bool = False
) -> tuple[int, Path] | None:
    """The newest of the checkpoints `name`_1, `name`_2, ... of a folder; None if there is none.

    Args:
        folder: where they are. Files, and folders of other names, are passed over.
        name: what their names begin with.
        readable: pass over what `verify` refuses, too; by default `restore` will say what is wrong.
    """
    for number, path in reversed(_numbered(_absolute(folder), name)):
        if not readable or _is_whole(path):
            return number, path
    return None


def remove_old(folder: str | os.PathLike, name: str = "task", keep: int = 2) -> list[Path]:
    """Removes all but the newest of the checkpoints `name`_1, `name`_2, ... of a folder.

    It removes folders that `save` wrote and finished, and nothing else; it follows no links. Of
    several processes, one may call it.

    Args:
        folder: where they are.
        name: what their names begin with.
        keep: how many to keep, at least 1.

    Returns:
        What was removed.

    Raises:
        ValueError: if `keep` is less than 1.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}.")
    ours = []
    for _, path in _numbered(_absolute(folder), name):
        if not path.is_symlink() and _is_ours(path):
            ours.append(path)
    for path in ours[:-keep]:
        shutil.rmtree(path)
    return ours[:-keep]


# The record


def _entries(path: Path) -> list[Entry]:
    """The record of a checkpoint; the arrays that are there have been compared with it."""
    ocp = _orbax()
    try:
        found = ocp.metadata(path)
    except (ocp.errors.InvalidLayoutError, FileNotFoundError, NotADirectoryError):
        raise ValueError(f"there is no checkpoint in {path}.") from None
    except Exception as error:  # whatever a damaged file leads to
        raise _damaged(path, _first_words(error)) from error
    given = found.custom_metadata
    if not isinstance(given, dict) or not {"jaxcl", "sha256"} <= given.keys():
        raise ValueError(
            f"the checkpoint in {path} has no record of its leaves: an earlier version of jaxcl or "
            f"another program wrote it, or it is damaged."
        )
    if _sha256(str(given["jaxcl"])) != given["sha256"]:
        raise _damaged(path, "its record is not the one that was saved")
    record = json.loads(given["jaxcl"])
    if record["format"] != FORMAT:
        raise ValueError(
            f"the checkpoint in {path} has format {record['format']}, which a later version of "
            f"jaxcl wrote; this one reads format {FORMAT}."
        )
    if not isinstance(found.metadata, dict):  # orbax passes over metadata that it cannot read
        raise _damaged(path, "it does not say what it holds")
    entries = [
        Entry(tuple(keys), dtype, tuple(shape), tuple(stored), bits)
        for keys, dtype, shape, stored, bits in record["leaves"]
    ]
    for i, entry in enumerate(entries):
        array = found.metadata.get(f"leaf{i}")
        there = getattr(array, "shape", None), getattr(array, "dtype", None)
        if _is_stored(entry) and there != (entry.stored, _unsigned(entry.dtype)):
            raise _damaged(path, f"the array of leaf '{entry.name}' is not there, or of other size")
    return entries


def _matched(path: Path, entries: list[Entry], leaves: list) -> list[tuple[int, Any]]:
    """For each leaf that is wanted, in order: the index of its entry, and the leaf."""
    stored = dict(zip(_identities(entry.keys for entry in entries), range(len(entries))))
    wanted = dict(zip(_identities(keys for keys, _ in leaves), (leaf for _, leaf in leaves)))
    for identity in wanted:
        if identity not in stored:
            raise ValueError(f"the checkpoint in {path} has no leaf '{'/'.join(identity[0])}'.")
    for identity, i in stored.items():
        name = entries[i].name
        if identity not in wanted:
            raise ValueError(f"the checkpoint in {path} has a leaf '{name}' that is not expected.")
        there, here = entries[i][1:3], _kind(name, wanted[identity])
        if there != here and not _stand_for_each_other(there, here):
            raise ValueError(
                f"leaf '{name}' of the checkpoint in {path} is {_text(*there)}, but "
                f"{_text(*here)} was expected."
            )
    return [(stored[identity], leaf) for identity, leaf in wanted.items()]


def _identities(paths) -> list[tuple[tuple[str, ...], int]]:
    """Keys as they are told apart: a node may call two of its children the same."""
    seen = Counter()
    found = []
    for keys in paths:
        found.append((keys, seen[keys]))
        seen[keys] += 1
    return found


def _stand_for_each_other(*kinds: tuple[str, tuple]) -> bool:
    """True for a Python number and the scalar that JAX makes of it."""
    (dtype, shape), other = kinds if kinds[0][0] in NUMBERS else kinds[::-1]
    return dtype in NUMBERS and other == (jnp.result_type(NUMBERS[dtype]).name, shape)


# Leaves


def _check_leaf(name: str, leaf: Any) -> None:
    """Raises ValueError where a leaf cannot be saved."""
    dtype, _ = _kind(name, leaf)
    if dtype in NUMBERS or isinstance(leaf, np.ndarray | np.generic):
        return
    if isinstance(leaf, Tracer) or not isinstance(leaf, jax.Array):
        raise ValueError(f"leaf '{name}' has no values: it is a {type(leaf).__name__}.")
    if leaf.is_deleted():
        raise ValueError(f"leaf '{name}' has no values: the array was donated or deleted.")


def _kind(name: str, leaf: Any) -> tuple[str, tuple[int, ...]]:
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


def _written(keys: tuple[str, ...], leaf: Any) -> tuple[Entry, Any]:
    """The entry of a leaf and its bits, in memory of their own; None for a number's."""
    dtype, shape = _kind("/".join(keys), leaf)
    if dtype in NUMBERS:
        value = str(leaf) if type(leaf) is int else np.asarray(leaf).tobytes().hex()
        return Entry(keys, dtype, shape, (), value), None
    if _is_key(leaf):
        leaf = jax.random.key_data(leaf)
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable and leaf.size <= SMALL):
        array, sums = _encoded(leaf)
        if array.is_fully_addressable:
            array = np.asarray(array)
    else:
        array = _numpy_bits(leaf)
        sums = _host_sums(array)
    return Entry(keys, dtype, shape, array.shape, _hex(sums)), array


def _wanted(entry: Entry, leaf: Any) -> Any:
    """What to ask orbax for; None where nothing is stored."""
    if not _is_stored(entry):
        return None
    if _by_host(entry, leaf):
        return _on_host(entry)
    dtype = _unsigned(entry.dtype)
    return jax.ShapeDtypeStruct(entry.stored, dtype, sharding=_sharding(leaf))


def _read(path: Path, entry: Entry, leaf: Any, array: Any) -> Any:
    """A leaf of the tree, from the bits that were stored."""
    if entry.dtype in NUMBERS:
        return _number(entry, leaf)
    if array is None:
        array = np.zeros(entry.stored, _unsigned(entry.dtype))
    if isinstance(array, np.ndarray):
        _check_bits(path, entry, _hex(_host_sums(array)))
        if not _is_key(leaf):
            array = array.reshape(-1).view(entry.dtype).reshape(entry.shape)
        if isinstance(leaf, np.ndarray):
            return array.astype(leaf.dtype, copy=False)  # of either byte order
        if isinstance(leaf, np.generic):
            return array[()]
        array = jax.device_put(array, _sharding(leaf))
    else:
        array, sums = _decoded(array, "uint32" if _is_key(leaf) else entry.dtype)
        _check_bits(path, entry, _hex(sums))
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


def _load(path: Path, entries: list[Entry], wanted: dict[str, Any]) -> dict[str, Any]:
    """The stored arrays, as they are wanted."""
    if not wanted:
        return {}
    try:
        return _orbax().load(path, wanted)
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # whatever a damaged file leads to
        leaf = re.search(r"leaf(\d+)/", str(error))
        where = f"leaf '{entries[int(leaf[1])].name}' cannot be read: " if leaf else ""
        raise _damaged(path, f"{where}{_first_words(error)}") from error


def _check_bits(path: Path, entry: Entry, digest: str) -> None:
    if digest != entry.bits:
        raise _damaged(path, f"the bits of leaf '{entry.name}' are not those that were saved")


# Bits


@jax.jit
def _encoded(leaf: jax.Array) -> tuple[jax.Array, Any]:
    """The bits of an array, copied, and their sums; each device has its part of them."""
    shape = _stored_shape(leaf.dtype, leaf.shape)
    if jnp.iscomplexobj(leaf):
        leaf = jnp.stack([leaf.real, leaf.imag], axis=-1)
    if leaf.dtype == bool:
        bits = leaf.astype(jnp.uint8)
    else:
        width = _width(leaf.dtype)
        bits = jax.lax.bitcast_convert_type(leaf, f"uint{min(width, 32)}")
        bits = bits.astype(jnp.uint8) if width < 8 else bits
    bits = jnp.copy(bits.reshape(shape))  # the program would return its very argument otherwise
    return bits, _device_sums(bits)


@partial(jax.jit, static_argnames="dtype")
def _decoded(bits: jax.Array, dtype: str) -> tuple[jax.Array, Any]:
    """The inverse of `_encoded`, and the sums of the bits."""
    sums, kind = _device_sums(bits), np.dtype(dtype)
    if dtype == "bool":
        return bits.astype(bool), sums
    if kind.kind == "c":
        part = np.dtype(f"float{4 * kind.itemsize}")
        parts = bits.reshape(_stored_shape(part, (*bits.shape[:-1], 2)))
        parts = jax.lax.bitcast_convert_type(parts, part)
        return jax.lax.complex(parts[..., 0], parts[..., 1]), sums
    width = _width(kind)
    bits = bits.astype(f"uint{width}") if width < 8 else bits
    return jax.lax.bitcast_convert_type(bits, kind), sums


def _numpy_bits(leaf: Any) -> np.ndarray:
    """The bits of an array in the host's memory, copied."""
    array = np.array(leaf)
    array = array.astype(array.dtype.newbyteorder("="), order="C")
    bits = array.reshape(-1).view(_unsigned(array.dtype.name))
    return bits.reshape(_stored_shape(array.dtype, array.shape))


def _device_sums(bits: jax.Array) -> Any:
    index = jnp.zeros(bits.shape, np.uint32)
    for axis, size in enumerate(bits.shape):
        index = index * np.uint32(size % 2**32)
        index = index + jax.lax.broadcasted_iota(np.uint32, bits.shape, axis)
    return _sums(bits, index)


def _host_sums(bits: np.ndarray) -> Any:
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


def _hex(sums: Any) -> str:
    return "".join(f"{int(one):08x}" for one in sums)


def _stored_shape(dtype: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Entries of more than 32 bits become rows of two or four."""
    return (*shape, dtype.itemsize // 4) if dtype.itemsize > 4 else tuple(shape)


def _unsigned(dtype: str) -> np.dtype:
    """The type of the integers that hold a type's bits."""
    size = 4 if dtype.startswith("key<") else np.dtype(dtype).itemsize
    return np.dtype(f"uint{8 * min(size, 4)}")


def _width(dtype: Any) -> int:
    info = jnp.iinfo if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo
    return info(dtype).bits


# Small things


def _is_stored(entry: Entry) -> bool:
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


def _on_host(entry: Entry) -> np.ndarray:
    """An array of the stored shape and type that takes no memory."""
    return np.broadcast_to(np.zeros((), _unsigned(entry.dtype)), entry.stored)


def _sharding(leaf: Any) -> Any:
    """Where a leaf goes; a mesh without devices, as `jax.eval_shape` may give, does not say."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None or isinstance(getattr(sharding, "mesh", None), AbstractMesh):
        return SingleDeviceSharding(jax.local_devices()[0])
    return sharding


def _numbered(folder: Path, name: str) -> list[tuple[int, Path]]:
    """The folders `name`_1, `name`_2, ..., in the order of their numbers."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        number = path.name.removeprefix(f"{name}_")
        if number.isdecimal() and path.name == f"{name}_{int(number)}" and path.is_dir():
            found.append((int(number), path))
    return sorted(found)


def _is_whole(path: Path) -> bool:
    try:
        verify(path)
    except ValueError:
        return False
    return True


def _is_ours(path: Path) -> bool:
    try:
        _entries(path)
    except ValueError:
        return False
    return True


def _damaged(path: Path, reason: str) -> ValueError:
    return ValueError(f"the checkpoint in {path} is damaged: {reason}.")


def _first_words(error: Exception) -> str:
    """What an error says, without the specification that TensorStore appends."""
    text = str(error).strip().partition("\n")[0].partition(" [tensorstore_spec")[0]
    return text.rstrip(".") or type(error).__name__


def _text(dtype: str, shape: tuple[int, ...]) -> str:
    return dtype if dtype in NUMBERS else f"{dtype}[{', '.join(map(str, shape))}]"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _absolute(path) -> Path:
    return Path(path).expanduser().absolute()


def _orbax() -> Any:
    from orbax.checkpoint import v1  # heavy, so loaded when it is used

    return v1
