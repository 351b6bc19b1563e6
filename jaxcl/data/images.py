"""Images of one size and one number of channels."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcl.core.checks import check_count, load_extra
from jaxcl.data.benchmark import Benchmark, is_streamed

_WIDE = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # 16 bits of grey
_GREY = ("1", "L", "LA", *_WIDE)
LARGEST = 4096  # pixels along a side
JPEG_END = b"\xff\xd9"  # behind the last pixel; a file that was cut lacks it


def open_image(file: Path) -> np.ndarray:
    """An image of bytes, [H, W, 1] if it is grey, else [H, W, 3]; of 16 bits the upper ones.

    Raises:
        ValueError: if it cannot be read; it names the file.
    """
    pil: Any = load_extra("PIL.Image")
    try:
        with pil.open(file) as image:
            if image.mode == "F" or (image.mode, image.format) == ("I", "TIFF"):
                raise ValueError("a pixel has 32 bits, where 8 or 16 are expected")
            if image.mode in _WIDE:
                pixels = (np.asarray(image).astype(np.int32) // 257).astype(np.uint8)
            else:
                pixels = np.asarray(image.convert("L" if image.mode in _GREY else "RGB"))
    except Exception as error:  # pillow has many of its own
        raise ValueError(f"the image {file} cannot be read: {error}.") from error
    return pixels.reshape(*pixels.shape[:2], -1)


def channels_of(file: Path) -> int:
    """1 for a grey image, 3 for others; pixels are decoded only where nothing else tells damage.

    Raises:
        ValueError: if it cannot be read; it names the file.
    """
    pil: Any = load_extra("PIL.Image")
    try:
        with pil.open(file) as image:
            channels = 1 if image.mode in _GREY else 3
            if image.format == "PNG":
                image.verify()  # compares the checksums
                return channels
            if image.format == "JPEG" and _last(file, 2) == JPEG_END:
                return channels
    except Exception:  # pillow has many of its own
        pass  # which reading it tells in words
    return open_image(file).shape[-1]


def _last(file: Path, count: int) -> bytes:
    """The bytes at the end of a file."""
    with open(file, "rb") as content:
        content.seek(-count, os.SEEK_END)
        return content.read()


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """An image [H, W, C] of bytes at another size, [size, size, C], bilinear."""
    if image.shape[:2] == (size, size):
        return image
    pil: Any = load_extra("PIL.Image")
    grey = image.shape[-1] == 1
    small = pil.fromarray(image[..., 0] if grey else image).resize(
        (size, size), pil.Resampling.BILINEAR
    )
    return np.asarray(small).reshape(size, size, image.shape[-1])


def resized(benchmark: Benchmark, size: int) -> Benchmark:
    """A benchmark whose images [H, W, C] are size x size.

    Args:
        benchmark: of images of bytes.
        size: pixels along a side.

    Raises:
        ValueError: if the examples are no images of bytes.

    >>> from jaxcl.data import from_arrays
    >>> x = np.zeros((10, 8, 8, 1), np.uint8)
    >>> resized(from_arrays("mine", [(x, np.arange(10) % 2)]), 16).shape
    (16, 16, 1)
    """
    check_count(f"{benchmark.name}: size", size, LARGEST)
    if benchmark.shape[:2] == (size, size):
        return benchmark
    if not _are_images(benchmark):
        raise ValueError(
            f"{benchmark.name}: size is for images [H, W, C] of bytes, got {benchmark.shape}."
        )
    return _changed(benchmark, lambda x: np.stack([resize(image, size) for image in x]))


def alike(name: str, benchmarks: Sequence[Benchmark]) -> list[Benchmark]:
    """Benchmarks of images with one size, one scale and one number of channels.

    Raises:
        ValueError: for examples that are no images of bytes, or images of different sizes.
    """
    for one in benchmarks:
        if not _are_images(one):
            raise ValueError(f"{name}: {one.name} holds no images [H, W, C] of bytes.")
    if len({one.shape[:2] for one in benchmarks}) > 1:
        sizes = ", ".join(f"{one.name} {one.shape[0]} x {one.shape[1]}" for one in benchmarks)
        raise ValueError(f"{name}: the images differ in size ({sizes}); give size, in pixels.")
    channels = max(one.shape[-1] for one in benchmarks)
    made = []
    for one in benchmarks:
        if one.shape[-1] not in (1, channels):
            raise ValueError(f"{name}: {one.name} has {one.shape[-1]} channels, not {channels}.")
        factor = 255 / one.scale
        if factor != 1:
            one = _changed(one, lambda x, f=factor: np.round(x * f).astype(np.uint8))
            one = one._replace(scale=255.0)
        if one.shape[-1] != channels:
            one = _changed(one, lambda x: np.repeat(x, channels, axis=-1))
        made.append(one)
    return made


def flattened(benchmark: Benchmark) -> Benchmark:
    """A benchmark whose inputs are vectors."""
    if len(benchmark.shape) == 1:
        return benchmark
    if np.ndim(benchmark.mean) + np.ndim(benchmark.std) > 0:
        raise ValueError(f"{benchmark.name}: images of several channels cannot be flat.")
    return _changed(benchmark, lambda x: x.reshape(len(x), -1))


def _are_images(benchmark: Benchmark) -> bool:
    return len(benchmark.shape) == 3 and benchmark.tasks[0].train.x.dtype == np.uint8


def _changed(benchmark: Benchmark, change) -> Benchmark:
    """Each split's inputs changed."""
    if is_streamed(benchmark.tasks[0].train.x):
        raise ValueError(f"{benchmark.name}: streamed images cannot be changed, nor mixed.")
    tasks = []
    for task in benchmark.tasks:
        train, val, test = (part._replace(x=change(part.x)) for part in task[:3])
        tasks.append(task._replace(train=train, val=val, test=test))
    return benchmark._replace(tasks=tuple(tasks), shape=tasks[0].train.x.shape[1:])
