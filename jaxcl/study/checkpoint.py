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
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxcl
from jaxcl.core import trees
from jaxcl.core.trees import PyTree
from jaxcl.study import digests
from jaxcl.study.leaves import (
    NUMBERS,
    Entry,
    check_bits,
    check_leaf,
    damaged,
    is_stored,
    kind_of,
    on_host,
    read_leaf,
    wanted_leaf,
    written_leaf,
)

FORMAT = 1


def save(path: str | os.PathLike, learner: PyTree, about: Mapping[str, str] | None = None) -> None:
    """Writes a checkpoint: whole, or not at all.

    It is written under another name beside `path` and renamed when it is complete.

    Args:
        path: the checkpoint's folder, which must not exist; its parents are made if need be.
        learner: any pytree of arrays, typed keys and numbers, on one device or on a mesh.
        about: what else is to be known of it, for `about`.

    Raises:
        ValueError: if there is something at `path` already, or a leaf is no array of a type that
            JAX has, no key and no number.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/task_1", {"theta": np.ones(3)}, {"benchmark": "digits"})
    ...     print(about(f"{folder}/task_1")["benchmark"])
    digits
    """
    save_async(path, learner, about).result()


def save_async(
    path: str | os.PathLike, learner: PyTree, about: Mapping[str, str] | None = None
) -> Any:
    """Like `save`, but returns when the arrays are copied; they may then be donated or changed.

    Returns:
        A handle. Its `result()` waits until the checkpoint is complete, and raises what failed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     handle = save_async(f"{folder}/task_1", {"theta": np.ones(3)})
    ...     handle.result()  # now it is complete
    ...     print(list(shapes(f"{folder}/task_1")))
    ['theta']
    """
    path = _absolute(path)
    if os.path.lexists(path):
        raise ValueError(f"{path} exists already; a checkpoint does not replace anything.")
    leaves = trees.leaves_with_keys(learner)
    for keys, leaf in leaves:
        check_leaf("/".join(keys), leaf)
    with jax.enable_x64(True):  # whatever the caller's mode, no leaf loses bits
        written = [written_leaf(keys, leaf) for keys, leaf in leaves]
    arrays = {f"leaf{i}": array for i, (entry, array) in enumerate(written) if is_stored(entry)}
    entries = [entry for entry, _ in written]
    record = json.dumps(
        {"format": FORMAT, "about": {**versions(), **(about or {})}, "leaves": entries}
    )
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

    >>> import tempfile
    >>> like = {"theta": jax.ShapeDtypeStruct((3,), "float32")}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/task_1", {"theta": np.ones(3, np.float32)})
    ...     print(restore(f"{folder}/task_1", like)["theta"])
    [1. 1. 1.]
    """
    path = _absolute(path)
    entries = _entries(path)
    pairs = _matched(path, entries, trees.leaves_with_keys(abstract))
    with jax.enable_x64(True):
        wanted = {f"leaf{i}": wanted_leaf(entries[i], leaf) for i, leaf in pairs}
        arrays = _load(
            path, entries, {name: like for name, like in wanted.items() if like is not None}
        )
        leaves = [
            read_leaf(path, entries[i], leaf, arrays.pop(f"leaf{i}", None)) for i, leaf in pairs
        ]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def verify(path: str | os.PathLike) -> None:
    """Reads a whole checkpoint and compares the digests.

    Raises:
        ValueError: if there is no checkpoint at `path`, or it is damaged; the error names the leaf.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/task_1", {"theta": np.ones(3)})
    ...     verify(f"{folder}/task_1")  # nothing is wrong with it
    """
    path = _absolute(path)
    entries = _entries(path)
    wanted = {f"leaf{i}": on_host(entry) for i, entry in enumerate(entries) if is_stored(entry)}
    arrays = _load(path, entries, wanted)
    for i, entry in enumerate(entries):
        if is_stored(entry):
            check_bits(path, entry, digests.digest(digests.host_sums(arrays[f"leaf{i}"])))


def shapes(path: str | os.PathLike) -> dict[str, Any]:
    """What a checkpoint holds: shape and dtype of each leaf, by path; of a key, those of its data.

    Of paths that read alike, the later ones get a number.

    Raises:
        ValueError: if there is no checkpoint at `path`, or it does not say what it holds.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/task_1", {"theta": np.ones((3, 2))})
    ...     print({name: leaf.shape for name, leaf in shapes(f"{folder}/task_1").items()})
    {'theta': (3, 2)}
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


def digests_of(path: str | os.PathLike) -> dict[str, str]:
    """The digest of each leaf that a checkpoint holds, by path, as its record says them.

    Raises:
        ValueError: if there is no checkpoint at `path`, or it does not say what it holds.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/task_1", {"theta": np.ones(3)})
    ...     print(list(digests_of(f"{folder}/task_1")))
    ['theta']
    """
    return {entry.name: entry.bits for entry in _entries(_absolute(path))}


def arrays(path: str | os.PathLike, names: Collection[str]) -> dict[str, np.ndarray]:
    """Some of the leaves that a checkpoint holds, on the host; the others are not read.

    Args:
        path: the folder that `save` wrote.
        names: paths of leaves that are no keys, as `shapes` gives them; those that are there are
            read.

    Raises:
        ValueError: if there is no checkpoint at `path`, or it is damaged; the error names the leaf.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/task_1", {"task": 3, "theta": jnp.ones(2)})
    ...     arrays(f"{folder}/task_1", ["task"])
    {'task': array(3)}
    """
    path = _absolute(path)
    entries = _entries(path)
    asked = {f"leaf{i}": entry for i, entry in enumerate(entries) if entry.name in names}
    every = {f"leaf{i}": ... for i, entry in enumerate(entries) if is_stored(entry)}
    wanted = {leaf: on_host(entry) for leaf, entry in asked.items() if is_stored(entry)}
    found = _load(path, entries, every | wanted) if wanted else {}
    kinds = {leaf: np.dtype(NUMBERS.get(one.dtype, one.dtype)) for leaf, one in asked.items()}
    return {
        entry.name: np.asarray(read_leaf(path, entry, kinds[leaf].type(0), found.get(leaf)))
        for leaf, entry in asked.items()
    }


def about(path: str | os.PathLike) -> dict[str, str]:
    """What was said of a checkpoint when it was saved, and the versions of jaxcl and JAX.

    Raises:
        ValueError: if there is no checkpoint at `path`, or it does not say what it holds.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/task_1", {"theta": np.ones(3)}, {"benchmark": "digits"})
    ...     print(sorted(about(f"{folder}/task_1")))
    ['benchmark', 'jax', 'jaxcl']
    """
    path = _absolute(path)
    _entries(path)
    record = json.loads(_orbax().metadata(path).custom_metadata["jaxcl"])
    return record.get("about", {})


def latest(
    folder: str | os.PathLike, name: str = "task", *, readable: bool = False
) -> tuple[int, Path] | None:
    """The newest of the checkpoints `name`_1, `name`_2, ... of a folder; None if there is none.

    A name may go on, with further words and numbers: `task_3_epoch_12` and `task_3_epoch_12_step_5`
    are, in this order, on the way to `task_3`.

    Args:
        folder: where they are. Files, and folders of other names, are passed over.
        name: what their names begin with.
        readable: pass over what `verify` refuses, too; by default `restore` will say what is wrong.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("task_2", "task_10"):
    ...         (Path(folder) / name).mkdir()
    ...     print(latest(folder)[1].name)
    task_10
    """
    for path in reversed(_in_order(_absolute(folder), name)):
        if not readable or _is_whole(path):
            return order(path.name, name)[0], path
    return None


def order(path_name: str, name: str = "task") -> tuple:
    """By what checkpoints are sorted, of which the first is the number after `name`; or ().

    >>> sorted(["task_10", "task_2", "task_10_epoch_9", "task_10_epoch_9_step_1"], key=order)
    ['task_2', 'task_10_epoch_9', 'task_10_epoch_9_step_1', 'task_10']
    """
    number = "(0|[1-9][0-9]*)"
    if not re.fullmatch(f"{re.escape(name)}_{number}(_[a-z]+_{number})*", path_name):
        return ()
    first, *more = map(int, re.findall(f"_{number}", path_name.removeprefix(name)))
    return (first, *(more or [math.inf]))


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

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("task_1", "task_2"):
    ...         save(f"{folder}/{name}", {"theta": np.ones(3)})
    ...     print([path.name for path in remove_old(folder, keep=1)])
    ['task_1']
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}.")
    found = [path for path in _in_order(_absolute(folder), name) if not path.is_symlink()]
    ours = [path for path in found if _is_ours(path)] if len(found) > keep else []
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
        raise damaged(path, _first_words(error)) from error
    given = found.custom_metadata
    if not isinstance(given, dict) or not {"jaxcl", "sha256"} <= given.keys():
        raise ValueError(
            f"the checkpoint in {path} has no record of its leaves: an earlier version of jaxcl or "
            f"another program wrote it, or it is damaged."
        )
    if _sha256(str(given["jaxcl"])) != given["sha256"]:
        raise damaged(path, "its record is not the one that was saved")
    record = json.loads(given["jaxcl"])
    if record["format"] != FORMAT:
        raise ValueError(
            f"the checkpoint in {path} has format {record['format']}, which a later version of "
            f"jaxcl wrote; this one reads format {FORMAT}."
        )
    if not isinstance(found.metadata, dict):  # orbax passes over metadata that it cannot read
        raise damaged(path, "it does not say what it holds")
    entries = [
        Entry(tuple(keys), dtype, tuple(shape), tuple(stored), bits)
        for keys, dtype, shape, stored, bits in record["leaves"]
    ]
    for i, entry in enumerate(entries):
        array = found.metadata.get(f"leaf{i}")
        there = getattr(array, "shape", None), getattr(array, "dtype", None)
        if is_stored(entry) and there != (entry.stored, digests.unsigned(entry.dtype)):
            raise damaged(path, f"the array of leaf '{entry.name}' is not there, or of other size")
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
        there, here = entries[i][1:3], kind_of(name, wanted[identity])
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
        raise damaged(path, f"{where}{_first_words(error)}") from error


# Small things


def _in_order(folder: Path, name: str) -> list[Path]:
    """The folders whose names `order` knows."""
    paths = folder.iterdir() if folder.is_dir() else ()
    found = [path for path in paths if order(path.name, name) and path.is_dir()]
    return sorted(found, key=lambda path: order(path.name, name))


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


def _first_words(error: Exception) -> str:
    """What an error says, without the specification that TensorStore appends."""
    text = str(error).strip().partition("\n")[0].partition(" [tensorstore_spec")[0]
    return text.rstrip(".") or type(error).__name__


def _text(dtype: str, shape: tuple[int, ...]) -> str:
    return dtype if dtype in NUMBERS else f"{dtype}[{', '.join(map(str, shape))}]"


def versions() -> dict[str, str]:
    """Those that decide, beside the device, whether equal steps give equal bits.

    >>> sorted(versions())
    ['jax', 'jaxcl']
    """
    return {"jaxcl": jaxcl.__version__, "jax": jax.__version__}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _absolute(path) -> Path:
    return Path(path).expanduser().absolute()


def _orbax() -> Any:
    from orbax.checkpoint import v1  # heavy, so loaded when it is used

    return v1
