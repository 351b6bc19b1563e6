"""Saves and restores a learner, or any pytree of arrays, as an orbax checkpoint.

A checkpoint is a folder. It holds all that a learner is: parameters, the method's state, running
statistics, the optimizer's state and the typed key, so a restored learner goes on to the same bits.

>>> import tempfile
>>> import jax, jax.numpy as jnp
>>> learner = {"theta": jnp.arange(3.0), "key": jax.random.key(7)}
>>> with tempfile.TemporaryDirectory() as folder:
...     save(f"{folder}/task_1", learner)
...     print(restore(f"{folder}/task_1", jax.eval_shape(lambda: learner))["theta"])
[0. 1. 2.]
"""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from jaxcl.core import masks
from jaxcl.core.trees import PyTree


def save(path: str | os.PathLike, learner: PyTree) -> None:
    """Writes a checkpoint: whole, or not at all.

    It is written under another name beside `path` and renamed when it is complete.

    Args:
        path: the checkpoint's folder, which must not exist; its parents are made if need be.
        learner: any pytree of arrays and typed keys, on one device or on a mesh.

    Raises:
        ValueError: if there is something at `path` already, or a leaf has no entries.
    """
    path = _absolute(path)
    if path.exists():
        raise ValueError(f"{path} exists already; a checkpoint does not replace anything.")
    for name, leaf in masks.leaves_by_path(learner).items():
        if leaf.size == 0:
            raise ValueError(
                f"leaf '{name}' has no entries (shape {leaf.shape}): orbax saves none."
            )
    _orbax().save(path, learner)


def restore(path: str | os.PathLike, abstract: PyTree) -> PyTree:
    """Reads a checkpoint into a tree of the given structure.

    Args:
        path: the folder that `save` wrote.
        abstract: the tree with a `jax.ShapeDtypeStruct` for each array, such as
            `jax.eval_shape(partial(train.start, setup, tasks=5), key)`, or with arrays, whose
            values are not read. A leaf that has a sharding is restored onto it, whatever devices
            it was saved from; the others are put on the first device.

    Returns:
        The saved arrays, bit by bit, in the structure of `abstract`.

    Raises:
        ValueError: if there is no checkpoint at `path`, if it cannot be read, or if a leaf is
            missing, not asked for, or of another shape or type; the error names the leaf.
    """
    path = _absolute(path)
    _check(path, shapes(path), masks.leaves_by_path(abstract))
    try:
        return _orbax().load(path, jax.tree.map(_placed, abstract))
    except (ValueError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"the checkpoint in {path} is damaged: {reason}") from error


def shapes(path: str | os.PathLike) -> dict[str, Any]:
    """What a checkpoint holds: shape and dtype of each leaf, by path; of a key, those of its data.

    Raises:
        ValueError: if there is no checkpoint at `path`, or it does not say what it holds.
    """
    path, ocp = _absolute(path), _orbax()
    try:
        found = masks.leaves_by_path(ocp.metadata(path).metadata)
    except (ocp.errors.InvalidLayoutError, FileNotFoundError, NotADirectoryError):
        raise ValueError(f"there is no checkpoint in {path}.") from None
    if not found:  # orbax passes over metadata that it cannot read
        raise ValueError(f"the checkpoint in {path} is damaged: it does not say what it holds.")
    return found


def latest(folder: str | os.PathLike, name: str = "task") -> tuple[int, Path] | None:
    """The newest of the checkpoints `name`_1, `name`_2, ... of a folder; None if there is none."""
    found = {}
    for path in _absolute(folder).glob(f"{name}_*"):
        number = path.name.removeprefix(f"{name}_")
        if number.isdecimal():  # a checkpoint that is not complete has a longer name
            found[int(number)] = path
    return max(found.items()) if found else None


def _check(path: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Compares names, shapes and types: orbax would cast, and list both trees in its errors."""
    for name in wanted:
        if name not in stored:
            raise ValueError(f"the checkpoint in {path} has no leaf '{name}'.")
    for name, leaf in stored.items():
        if name not in wanted:
            raise ValueError(f"the checkpoint in {path} has a leaf '{name}' that is not expected.")
        there = leaf.shape, leaf.dtype
        here = wanted[name]
        if jnp.issubdtype(here.dtype, jax.dtypes.prng_key):
            here = jax.eval_shape(jax.random.key_data, here)
        if there != (here.shape, here.dtype):
            raise ValueError(
                f"leaf '{name}' of the checkpoint in {path} is {_text(*there)}, but "
                f"{_text(here.shape, here.dtype)} was expected."
            )


def _placed(leaf):
    sharding = getattr(leaf, "sharding", None) or SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _text(shape, dtype) -> str:
    return f"{dtype}[{', '.join(map(str, shape))}]"


def _absolute(path) -> Path:
    return Path(path).expanduser().absolute()


def _orbax() -> Any:
    from orbax.checkpoint import v1  # heavy, so loaded when it is used

    return v1
