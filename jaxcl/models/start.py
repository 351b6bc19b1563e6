"""A network that starts from saved weights."""

import re
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.core import masks
from jaxcl.core.checks import nearest
from jaxcl.core.heads import HEAD
from jaxcl.core.model import Model


def read_weights(path: str | Path) -> Mapping[str, np.ndarray]:
    """The arrays of an `.npz` by the path of their leaf, as `jaxcl export` writes them.

    Args:
        path: the file. Its names are those of a network's leaves, such as `params/head/kernel` or
            `head/kernel`, and `statistics/...` for running statistics.

    Raises:
        ValueError: if there is no such file, or it holds something else than arrays of numbers.

    >>> import tempfile
    >>> import numpy as np
    >>> with tempfile.TemporaryDirectory() as where:
    ...     np.savez(f"{where}/weights.npz", **{"head/kernel": np.ones((3, 2))})
    ...     print(dict(read_weights(f"{where}/weights.npz")))
    {'head/kernel': array([[1., 1.],
           [1., 1.],
           [1., 1.]])}
    """
    file = Path(path).expanduser()
    return _read(file, file.stat().st_mtime_ns if file.is_file() else 0)


@lru_cache(maxsize=4)
def _read(file: Path, changed: int) -> Mapping[str, np.ndarray]:
    """A file as it was when it was last changed: a study asks for it once for each program."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} cannot be read as an .npz of arrays: {error}") from error
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise ValueError(f"{file}: '{name}' is of type {array.dtype}, expected numbers.")
    return arrays


def start_from(model: Model, weights: Mapping[str, np.ndarray], heads: str = HEAD) -> Model:
    """The network with saved weights in the place of a fresh start.

    Leaves that are not among the weights start afresh, and heads always do: they are each task's
    own.

    Args:
        model: the network.
        weights: arrays by path, as from `read_weights`.
        heads: regular expression of the heads' paths.

    Returns:
        A Model whose `init` draws what is left.

    Raises:
        ValueError: at once, naming it, for a leaf that the network does not have or that has
            another shape; or if none is left to start from.

    >>> import numpy as np
    >>> from jaxcl import models
    >>> net = start_from(models.mlp(2, (3,), 2), {"layers/0/bias": np.ones(3)})
    >>> print(net.init(jax.random.key(0))[0]["layers"][0]["bias"])
    [1. 1. 1.]
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    known = {"params": shapes[0], "statistics": shapes[1]}
    known = masks.leaves_by_path(known)
    given = {
        path if path.startswith(("params/", "statistics/")) else f"params/{path}": array
        for path, array in weights.items()
    }
    given = {path: array for path, array in given.items() if not re.search(heads, path)}
    if not given:
        raise ValueError("the saved weights hold no leaf to start from, heads left aside.")
    for path, array in given.items():
        if path not in known:
            raise ValueError(
                f"the saved weights have '{path}', which the network does not have"
                f"{nearest(path, list(known))}."
            )
        if array.shape != known[path].shape:
            raise ValueError(
                f"the saved weights have '{path}' of shape {array.shape}, expected "
                f"{known[path].shape}."
            )

    def init(key):
        params, statistics = model.init(key)
        whole = {"params": params, "statistics": statistics}
        whole = masks.map_with_path(
            lambda path, leaf: jnp.asarray(given[path], leaf.dtype) if path in given else leaf,
            whole,
        )
        return whole["params"], whole["statistics"]

    return model._replace(init=init)
