"""Images that are read while a network trains, by Grain, for what does not fit the device."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcl.core.checks import load_extra
from jaxcl.data.images import open_image, resize

SHARE = (0.25, 1.0)  # of an image's area that a crop has
EXTRA = 'pip install "jaxcl[stream]"'


@dataclasses.dataclass(frozen=True)
class Images:
    """Images in files, in the place of an array [N, size, size, channels] of bytes.

    It has an array's shape and type; an index gives the images of these rows, unread, and
    `np.asarray` reads them.

    Attributes:
        files: one for each image.
        size: pixels along a side, to which every image is resized.
        channels: 1 or 3.
        augment: in training, give a random part of each image, resized, and turn half of them
            around. `np.asarray` never does.
    """

    files: tuple[Path, ...]
    size: int
    channels: int
    augment: bool = False
    dtype = np.dtype(np.uint8)
    ndim = 4

    def __len__(self) -> int:
        return len(self.files)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.files), self.size, self.size, self.channels)

    def __getitem__(self, rows: Any) -> "Images":
        chosen = np.arange(len(self.files))[rows]
        return dataclasses.replace(self, files=tuple(self.files[i] for i in chosen))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        images = [resize(self._open(file), self.size) for file in self.files]
        found = np.stack(images) if images else np.zeros(self.shape, np.uint8)
        return found if dtype is None else found.astype(dtype)

    def described(self) -> np.ndarray:
        """What tells these images from others without reading them: names, sizes and times."""
        stats = [(os.fspath(file), *_stamp(file)) for file in self.files]
        return np.frombuffer(repr((self.size, self.channels, stats)).encode(), np.uint8)

    def batches(
        self,
        order: Sequence[int] | np.ndarray,
        batch: int,
        *,
        seed: int,
        first: int = 0,
        step: int = 1,
    ) -> Iterator[np.ndarray]:
        """Batches in an order, read ahead by threads.

        Args:
            order: rows, a multiple of `batch`; it is not shuffled.
            batch: images in each.
            seed: for crops and flips, which depend on it and on the place in the order.
            first: the batch to begin with: the whole state of the iterator.
            step: from one batch to the next; more than 1 gives the share of one of several readers.

        Yields:
            [batch, size, size, channels] of bytes.

        Raises:
            ValueError: if an image cannot be read; it names the file.
            ImportError: if grain is missing.
        """
        grain: Any = load_extra("grain", EXTRA)
        records = grain.MapDataset.source(np.asarray(order)).seed(seed)
        records = records.random_map(self._training_image).batch(batch)
        threads = os.cpu_count() or 1
        ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        return iter(records[first::step].to_iter_dataset(ahead))

    def _training_image(self, row: int, rng: np.random.Generator) -> np.ndarray:
        image = self._open(self.files[row])
        if self.augment:
            image = resize(random_part(image, rng), self.size)
            return image[:, ::-1] if rng.integers(2) else image
        return resize(image, self.size)

    def _open(self, file: Path) -> np.ndarray:
        image = open_image(file)
        if image.shape[-1] == self.channels:
            return image
        if self.channels == 3:
            return np.repeat(image, 3, axis=-1)
        raise ValueError(f"the image {file} is colored, where the first one is grey.")


def random_part(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random part of an image [H, W, C], of SHARE of its area and 3/4 to 4/3 as wide as high."""
    height, width = image.shape[:2]
    area = height * width * rng.uniform(*SHARE)
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    rows = min(height, max(1, round(np.sqrt(area / ratio))))
    columns = min(width, max(1, round(np.sqrt(area * ratio))))
    top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
    return image[top : top + rows, left : left + columns]


def _stamp(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns
