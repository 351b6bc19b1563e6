"""Sets in a user's own files: an archive of arrays, or images in a folder for each class."""

import dataclasses
import os
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from jaxcl.data.benchmark import Benchmark, from_arrays, provenance, stratify
from jaxcl.data.images import channels_of, open_image, resize
from jaxcl.data.streaming import Images

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")


def npz(path: str | os.PathLike, *, seed: int = 0, validation: float | None = None) -> Benchmark:
    """A set of one task in an archive of arrays, as `numpy.savez` writes it.

    Args:
        path: of the archive. It holds `x` and `y`, which are divided 60/20/20 class by class; or
            `x_train`, `y_train`, `x_test` and `y_test`, and `x_val` and `y_val` or none, in whose
            place a share of the training examples is held out. `from_arrays` says what they may be.
        seed: for the division.
        validation: that share; 0.1 by default.

    Raises:
        ValueError: for a file that is no such archive, arrays that are missing, objects.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as where:
    ...     np.savez(f"{where}/mine.npz", x=np.ones((20, 3), np.float32), y=np.arange(20) % 2)
    ...     print(len(npz(f"{where}/mine.npz").tasks[0].train.x))
    12
    """
    path = Path(path).expanduser()
    found = _arrays(path)
    if {"x", "y"} <= found.keys():
        return from_arrays(path.stem, [(found["x"], found["y"])], seed=seed)
    needed = ("x_train", "y_train", "x_test", "y_test")
    if missing := [key for key in needed if key not in found]:
        raise ValueError(
            f"{path} holds {', '.join(sorted(found)) or 'nothing'}; it needs x and y, or "
            f"{', '.join(missing)}."
        )
    train, test = (found["x_train"], found["y_train"]), (found["x_test"], found["y_test"])
    own = {"x_val", "y_val"} & found.keys()
    if len(own) == 1:
        raise ValueError(
            f"{path} holds {own.pop()} alone; it needs both x_val and y_val, or neither."
        )
    val = (found["x_val"], found["y_val"]) if own else None
    return official(path.stem, train, test, val, seed=seed, validation=validation)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an archive, by name."""
    try:
        with open(path, "rb") as file:
            stored = np.load(file, allow_pickle=False)
            if isinstance(stored, np.ndarray):
                raise ValueError(f"{path} is one array, not an archive of several (.npz).")
            return {key: _array(path, stored, key) for key in stored.files}
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}.") from error
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is no archive of arrays (.npz): {error}.") from error
    except Exception as error:  # whatever a damaged file leads to
        if isinstance(error, ValueError) and str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path} is no archive of arrays (.npz).") from error


def _array(path: Path, stored: Any, key: str) -> np.ndarray:
    """One array of an archive, read to the end of its file, where its checksum is compared."""
    try:
        with stored.zip.open(f"{key}.npy") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
            if file.read(1):
                raise ValueError("there are more bytes than its shape says")
            return array
    except MemoryError as error:
        raise ValueError(f"{path}: {key!r} is said to be larger than the memory.") from error
    except (ValueError, KeyError) as error:
        kind = "Python objects" if "allow_pickle" in str(error) else "what numpy cannot read"
        raise ValueError(f"{path}: {key!r} holds {kind}; save arrays of numbers.") from error


def official(
    name: str,
    train: Sequence[Any],
    test: Sequence[Any],
    val: Sequence[Any] | None = None,
    *,
    seed: int = 0,
    validation: float | None = None,
    **options: Any,
) -> Benchmark:
    """A set that says itself what is for testing; a share of the rest is for validation.

    Args:
        name: of the set.
        train: x and y.
        test: likewise.
        val: likewise; None holds out a share of `train`, class by class.
        seed: for that share.
        validation: that share, above 0 and below 1; 0.1 by default.
        **options: of `from_arrays`.
    """
    share = 0.1 if validation is None else validation
    if not 0 < share < 1:
        raise ValueError(f"{name}: validation must be above 0 and below 1, got {share}.")
    given = [np.asarray(array) for array in (*train, *(val or ()), *test)]
    if val is None:
        x, y = np.asarray(train[0]), np.asarray(train[1])
        if len(x) != len(y):
            raise ValueError(f"{name}, train: {len(x)} examples and {len(y)} labels.")
        held, rest = stratify(f"{name}, train", y, (share,), seed)
        train, val = (x[rest], y[rest]), (x[held], y[held])
    benchmark = from_arrays(name, [(train, val, test)], **options)
    return benchmark._replace(provenance=(provenance(benchmark, given),))


def folder(
    path: str | os.PathLike,
    *,
    seed: int = 0,
    validation: float | None = None,
    size: int | None = None,
    skip_corrupt: bool = False,
    stream: bool = False,
    augment: bool = False,
) -> Benchmark:
    """A set of one task in a folder of images, with a folder for each class.

    Args:
        path: of the folder. It holds the folders `train` and `test` and perhaps `val`, with the
            same classes in each; or the classes, whose images are divided 60/20/20. A class may lie
            deeper: it is called by its path, such as Greek/alpha. Links to folders are followed.
        seed: for the division.
        validation: share of `train` that is held out where there is no `val`; 0.1 by default.
        size: pixels along a side, to which all images are resized; None where they have one size.
        skip_corrupt: leave out images that cannot be read, and name them in `left_out`.
        stream: read the images for training while a network trains; it needs `size`, and `train`
            and `test`. Those for validation and testing are held. Each is opened once beforehand,
            to tell damage and whether all are grey.
        augment: give them cropped and flipped at random; with `stream`.

    Raises:
        ValueError: for a folder without classes, an image that cannot be read or has another size
            than the first, or different classes in `train` and `test`; it names the file.
        ImportError: if pillow is missing.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as where:
    ...     for i in range(20):
    ...         (Path(where) / "ab"[i % 2]).mkdir(exist_ok=True)
    ...         Image.new("L", (4, 4), i).save(f"{where}/{'ab'[i % 2]}/{i}.png")
    ...     print(folder(where).tasks[0].names)
    ('a', 'b')
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        raise ValueError(f"{path} is no folder.")
    parts = [part for part in ("train", "val", "test") if (path / part).is_dir()]
    parted = {"train", "test"} <= {*parts}
    roots = [path / part for part in parts] if parted else [path]
    files = [files_by_class(root) for root in roots]
    classes = sorted(files[0])
    for root, own in zip(roots, files):
        if sorted(own) != classes:
            odd = sorted({*own} ^ {*classes})[0]
            raise ValueError(f"{root}: the class {odd} is not in each of {', '.join(parts)}.")
    if augment and not stream:
        raise ValueError(f"{path}: augment is for images that are streamed; give stream as well.")
    if stream:
        if size is None or not parted:
            raise ValueError(
                f"{path}: to stream it give size, in pixels, and folders train and test."
            )
        channels, skipped = _opened(files, skip_corrupt)
        of = dict(zip(parts, files))
        made = _streamed(path, of, classes, size, channels, augment, seed, validation)
        return made._replace(left_out=tuple(map(str, skipped)))
    read = [_read(own, classes, size, skip_corrupt) for own in files]
    left_out = tuple(str(file) for *_, skipped in read for file in skipped)
    arrays = _one_kind(path, [(images, labels) for images, labels, _ in read])
    if parted:
        of = dict(zip(parts, arrays))
        made = official(
            path.name, of["train"], of["test"], of.get("val"), seed=seed, validation=validation
        )
    else:
        made = from_arrays(path.name, arrays, seed=seed)
    tasks = (made.tasks[0]._replace(names=tuple(classes)),)
    return made._replace(tasks=tasks, left_out=left_out)


def _streamed(
    path: Path, files: dict, classes: list[str], size: int, channels: int, augment: bool, seed: int,
    validation: float | None,
) -> Benchmark:  # fmt: skip
    """The set whose images for training are read while a network trains."""

    def listed(part: str, augment: bool = False) -> tuple[Images, np.ndarray]:
        every = [(file, i) for i, name in enumerate(classes) for file in files[part][name]]
        x = Images(tuple(file for file, _ in every), size, channels, augment)
        return x, np.asarray([label for _, label in every], np.int32)

    x, y = listed("train", augment)
    if "val" in files:
        val = listed("val")
    else:
        share = 0.1 if validation is None else validation
        held, rest = stratify(f"{path.name}, train", y, (share,), seed)
        val, x, y = (dataclasses.replace(x[held], augment=False), y[held]), x[rest], y[rest]
    held_out = [(np.asarray(images), labels) for images, labels in (val, listed("test"))]
    made = from_arrays(path.name, [((x, y), *held_out)])
    return made._replace(tasks=(made.tasks[0]._replace(names=tuple(classes)),))


def _opened(parts: list[dict[str, list[Path]]], skip_corrupt: bool) -> tuple[int, list[Path]]:
    """Opens every image of each part and class.

    Those that cannot be read are taken out, if asked.

    Returns:
        The channels that all images are brought to, and what was taken out.
    """
    channels, skipped = 1, []
    with ThreadPoolExecutor() as threads:
        for files in parts:
            for name, own in files.items():
                found = dict(zip(own, threads.map(_channels_or_error, own)))
                errors = {file: one for file, one in found.items() if isinstance(one, ValueError)}
                if errors and not skip_corrupt:
                    raise next(iter(errors.values()))
                if len(errors) == len(own):
                    raise ValueError(_none_of(name, own))
                files[name] = [file for file in own if file not in errors]
                channels = max(channels, *(one for one in found.values() if isinstance(one, int)))
                skipped += errors
    return channels, skipped


def _none_of(name: str, files: list[Path]) -> str:
    return f"none of the images of {name} can be read, such as {files[0]}."


def _channels_or_error(file: Path) -> int | ValueError:
    try:
        return channels_of(file)
    except ValueError as error:
        return error


def files_by_class(root: Path) -> dict[str, list[Path]]:
    """The images of each class, in order; a class is a folder, or a link to one, with images."""
    found: dict[str, list[Path]] = {}
    for file in sorted(_below(root)):
        hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
        if file.suffix.lower() in IMAGES and file.parent != root and not hidden and file.is_file():
            found.setdefault(file.parent.relative_to(root).as_posix(), []).append(file)
    if len(found) < 2:
        raise ValueError(
            f"{root} holds {len(found) or 'no'} folder with images; it needs one for each class."
        )
    return found


def _below(root: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """All files below a folder. Links are followed, but not back to a folder that they are in."""
    real = root.resolve()
    if real in above:
        return
    for path in root.iterdir():
        if path.is_dir():
            yield from _below(path, (*above, real))
        else:
            yield path


def _read(
    files: dict[str, list[Path]], classes: Sequence[str], size: int | None, skip_corrupt: bool
) -> tuple[list[np.ndarray], np.ndarray, list[Path]]:
    """Images and labels, and the files that are left out."""
    images, labels, skipped, first = [], [], [], None
    for label, name in enumerate(classes):
        for file in files[name]:
            try:
                image = open_image(file)
            except ValueError:
                if not skip_corrupt:
                    raise
                skipped.append(file)
                continue
            image = image if size is None else resize(image, size)
            first = first or (file, image.shape[:2])
            if image.shape[:2] != first[1]:
                sizes = [f"{shape[1]} x {shape[0]}" for shape in (image.shape, first[1])]
                raise ValueError(
                    f"{file} has {sizes[0]} pixels, {first[0]} has {sizes[1]}; give size, in "
                    f"pixels, to bring all images to one."
                )
            images.append(image)
            labels.append(label)
        if label not in labels[-1:]:
            raise ValueError(_none_of(name, files[name]))
    return images, np.asarray(labels, np.int32), skipped


def _one_kind(path: Path, parts: list) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images as one array each part: grey if all of them are, else of three channels."""
    every = [image.shape for images, _ in parts for image in images]
    if len({shape[:2] for shape in every}) > 1:
        raise ValueError(f"{path}: the images differ in size from part to part; give size.")
    channels = max((shape[-1] for shape in every), default=1)

    def wide(image: np.ndarray) -> np.ndarray:
        return np.repeat(image, channels // image.shape[-1], axis=-1)

    return [(np.stack([wide(image) for image in images]), y) for images, y in parts]
