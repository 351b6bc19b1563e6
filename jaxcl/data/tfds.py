"""Sets that tensorflow-datasets has prepared: their arrays, decoded once and kept in a file."""

import hashlib
import json
import os
import uuid
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcl.core.checks import load_extra
from jaxcl.data.images import resize

RECIPE = "tfds.builder({!r}, data_dir={!r}).download_and_prepare(file_format='array_record')"
FEATURES = ("image", "label")
PARTS = ("train", "test")
_ARRAYS = ("x_train", "y_train", "x_test", "y_test")


def read(
    name: str, data_dir: str | os.PathLike | None, size: int | None = None
) -> tuple[np.ndarray, ...]:
    """The arrays of a prepared set: images and labels for training, then those for testing.

    They are kept beside the set, or where that cannot be written in the user's cache.

    Args:
        name: of the set; NAME/CONFIG for one of several configurations.
        data_dir: folder of tensorflow-datasets; None for TFDS_DATA_DIR, else ~/tensorflow_datasets.
        size: pixels along a side, to which the images are resized; None leaves them as they are.

    Raises:
        ValueError: if the set is not prepared, or damaged: the sentence names the file.
        ImportError: if a package is missing that has to read it.
    """
    at = folder(name, data_dir)
    info = at / "dataset_info.json"
    counts = described(name, info, count)
    digest = hashlib.sha256(info.read_bytes()).hexdigest()[:12]
    sized = "" if size is None else f"-{size}"
    file = f"jaxcl-{name.replace('/', '-')}-{at.name}-{digest}{sized}.npz"
    paths = [place / file for place in (at, *user_cache())]
    for path in paths:
        arrays = _kept(path, counts)
        if arrays is not None:
            return arrays
    arrays = decode(name, at, size)
    for path in paths:
        try:
            save(path, arrays)
            break
        except OSError:  # not writable: try the next, and do without at last
            continue
    return arrays


def _kept(path: Path, counts: Sequence[int]) -> tuple[np.ndarray, ...] | None:
    """What a file keeps; None, with a warning if there is one, where it cannot be used."""
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as stored:
            arrays = tuple(stored[key] for key in _ARRAYS)
    except OSError:  # absent, or not for this user
        return None
    except Exception:  # partial or broken: zip keeps checksums
        arrays = ()
    if arrays and fits(arrays, counts):
        return arrays
    warnings.warn(f"{path} does not hold what the set does; it is decoded again.", stacklevel=3)
    return None


def check_images(name: str, data_dir: str | os.PathLike | None, size: int | None) -> None:
    """Raises ValueError, before anything is decoded, for a set that is not one of labelled images.

    Args:
        name: of the set.
        data_dir: as for `read`.
        size: to which images of different sizes are resized.
    """
    at = folder(name, data_dir)
    splits = described(name, at / "dataset_info.json", lambda info: info["splits"])
    parts = [split["name"] for split in splits]
    for part in PARTS:
        if part not in parts:
            raise ValueError(
                f"tfds:{name} has the splits {', '.join(parts)}; it takes train and test."
            )
    found = described(name, at / "features.json", lambda f: f["featuresDict"]["features"])
    for feature in FEATURES:
        if feature not in found:
            raise ValueError(
                f"tfds:{name} has the features {', '.join(sorted(found))}; it takes sets with an "
                f"image and a label."
            )
    shape = found["image"].get("image", {}).get("shape", {}).get("dimensions", [])
    if size is None and any(int(n) < 1 for n in shape[:2]):
        raise ValueError(f"tfds:{name} has images of different sizes; give size, in pixels.")


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


def decode(
    name: str,
    folder: Path,
    size: int | None = None,
    features: Sequence[str] = FEATURES,
) -> tuple[np.ndarray, ...]:
    """Reads all records: array_record without TensorFlow, tfrecord with it.

    Args:
        name: of the set.
        folder: of its version.
        size: pixels along a side, to which images are resized.
        features: the image, and the numbers that are read beside it.
    """
    tfds = load_extra("tensorflow_datasets")
    file = folder / "features.json"
    described(name, file, lambda f: [f["featuresDict"]["features"][k] for k in features])
    arrays = []
    for part in PARTS:
        try:
            builder = tfds.builder_from_directory(folder)
            try:
                found = _by_number(builder, part, size, features)
            except NotImplementedError:  # tfrecord files cannot be read by number
                recipe = RECIPE.format(name, "ANOTHER_FOLDER")
                remedy = f"the tfrecord files in {folder} need TensorFlow; install it, or prepare "
                load_extra("tensorflow", f"{remedy}the set once more by {recipe}")
                records = tfds.as_numpy(builder.as_dataset(split=part, batch_size=-1))
                images, *numbers = (records[key] for key in features)
                if size is not None:
                    images = np.stack([resize(image, size) for image in images])
                found = [images, *(values.astype(np.int32) for values in numbers)]
        except (ImportError, MemoryError):
            raise
        except Exception as error:  # each of the packages below has errors of its own
            raise ValueError(damaged(name, folder / f"{name}-{part}.*", error)) from error
        arrays += found
    return tuple(arrays)


def _by_number(
    builder: Any, part: str, size: int | None, features: Sequence[str]
) -> list[np.ndarray]:
    """All records of a part, each by its number."""
    source = builder.as_data_source(part)
    shape = builder.info.features["image"].shape
    shape = shape if size is None else (size, size, shape[-1])
    x = np.empty((len(source), *shape), np.uint8)
    numbers = [np.empty(len(source), np.int32) for _ in features[1:]]
    for start in range(0, len(x), 1024):
        rows = range(start, min(start + 1024, len(x)))
        records = source.__getitems__(list(rows))
        images = (record[features[0]] for record in records)
        x[rows] = [image if size is None else resize(image, size) for image in images]
        for values, key in zip(numbers, features[1:]):
            values[rows] = [record[key] for record in records]
    return [x, *numbers]


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
