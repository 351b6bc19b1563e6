"""Sets that tensorflow-datasets has prepared: their arrays, decoded once and kept in a file."""

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcl.core.checks import load_extra

RECIPE = "tfds.builder({!r}, data_dir={!r}).download_and_prepare(file_format='array_record')"
_FEATURES = ("image", "label")
_ARRAYS = ("x_train", "y_train", "x_test", "y_test")


def read(name: str, data_dir: str | os.PathLike | None) -> tuple[np.ndarray, ...]:
    """The arrays of a prepared set: images and labels for training, then those for testing.

    They are kept beside the set, or where that cannot be written in the user's cache.

    Args:
        name: of the set.
        data_dir: folder of tensorflow-datasets; None for TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Raises:
        ValueError: if the set is not prepared, or damaged: the sentence names the file.
        ImportError: if a package is missing that has to read it.
    """
    at = folder(name, data_dir)
    info = at / "dataset_info.json"
    counts = described(name, info, count)
    digest = hashlib.sha256(info.read_bytes()).hexdigest()[:12]
    paths = [place / f"jaxcl-{name}-{at.name}-{digest}.npz" for place in (at, *user_cache())]
    for path in paths:
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = tuple(stored[key] for key in _ARRAYS)
        except Exception:  # absent, partial or broken (zip keeps checksums): decode again
            continue
        if fits(arrays, counts):
            return arrays
    arrays = decode(name, at)
    for path in paths:
        try:
            save(path, arrays)
            break
        except OSError:  # not writable: try the next, and do without at last
            continue
    return arrays


def described(name: str, file: Path, read: Callable[[Any], Any]) -> Any:
    """What `read` makes of a JSON file that describes a prepared set.

    Raises:
        ValueError: if the file is missing or damaged.
    """
    try:
        return read(json.loads(file.read_bytes()))
    except FileNotFoundError:
        raise ValueError(damaged(name, file, "there is no such file")) from None
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error}.") from error
    except KeyError as error:
        raise ValueError(damaged(name, file, f"it has no {error}")) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(damaged(name, file, error)) from error


def count(info: Any) -> list[int]:
    """How many examples a set has, for training and for testing."""
    shards = {split["name"]: split["shardLengths"] for split in info["splits"]}
    return [sum(map(int, shards[part])) for part in ("train", "test")]


def damaged(name: str, file: Path, error: Any) -> str:
    """The sentence for a file that cannot be used."""
    reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
    return (
        f"{name} in {file.parent} is damaged ({file.name}: {reason}); delete that folder and "
        f"prepare it again."
    )


def user_cache() -> list[Path]:
    """The user's cache, if there is a user."""
    try:
        place = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:  # no home
        return []
    return [place / "jaxcl"]


def fits(arrays: Sequence[np.ndarray], counts: Sequence[int]) -> bool:
    """Whether stored arrays are images and labels, as many as the set has."""
    pairs = zip(arrays[::2], arrays[1::2], counts, strict=True)
    return all(
        x.dtype == np.uint8 and x.ndim == 4 and y.dtype == np.int32 and y.shape == (n,) == (len(x),)
        for x, y, n in pairs
    )


def folder(name: str, data_dir: str | os.PathLike | None) -> Path:
    """The newest prepared version of a set."""
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = Path(root).expanduser().absolute()
    found = {}
    for info in root.glob(f"{name}/*/dataset_info.json"):
        numbers = info.parent.name.split(".")
        if all(number.isdecimal() for number in numbers):
            found[tuple(map(int, numbers))] = info.parent
    if found:
        return found[max(found)]
    load_extra("tensorflow_datasets")
    raise ValueError(
        f"{name} is not prepared in {root / name}; `import tensorflow_datasets as tfds; "
        f"{RECIPE.format(name, str(root))}` prepares it, once, with a network and TensorFlow."
    )


def decode(name: str, folder: Path) -> tuple[np.ndarray, ...]:
    """Reads all records: array_record without TensorFlow, tfrecord with it."""
    tfds = load_extra("tensorflow_datasets")
    features = folder / "features.json"
    described(name, features, lambda f: [f["featuresDict"]["features"][k] for k in _FEATURES])
    arrays = []
    for part in ("train", "test"):
        try:
            builder = tfds.builder_from_directory(folder)
            try:
                x, y = _by_number(builder, part)
            except NotImplementedError:  # tfrecord files cannot be read by number
                recipe = RECIPE.format(name, "ANOTHER_FOLDER")
                remedy = f"the tfrecord files in {folder} need TensorFlow; install it, or prepare "
                load_extra("tensorflow", f"{remedy}the set once more by {recipe}")
                records = tfds.as_numpy(builder.as_dataset(split=part, batch_size=-1))
                x, y = records["image"], records["label"].astype(np.int32)
        except (ImportError, MemoryError):
            raise
        except Exception as error:  # each of the packages below has errors of its own
            raise ValueError(damaged(name, folder / f"{name}-{part}.*", error)) from error
        arrays += [x, y]
    return tuple(arrays)


def _by_number(builder: Any, part: str) -> tuple[np.ndarray, np.ndarray]:
    """All records of a part, each by its number."""
    source = builder.as_data_source(part)
    x = np.empty((len(source), *builder.info.features["image"].shape), np.uint8)
    y = np.empty(len(source), np.int32)
    for start in range(0, len(y), 1024):
        rows = range(start, min(start + 1024, len(y)))
        records = source.__getitems__(list(rows))
        x[rows] = [record["image"] for record in records]
        y[rows] = [record["label"] for record in records]
    return x, y


def save(path: Path, arrays: Sequence[np.ndarray]) -> None:
    """Writes the cache file whole or not at all; a folder marked read-only stays untouched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.parent.stat().st_mode & 0o222:  # root could write there nevertheless
        raise PermissionError(path)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, **dict(zip(_ARRAYS, arrays, strict=True)))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
