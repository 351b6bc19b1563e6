"""What a network's inputs are: as they are stored, and as the network sees them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxcl.core.checks import check_count, check_number
from jaxcl.data.benchmark import MAX_TASKS, Benchmark, Split, Task
from jaxcl.data.sequences import reorder

MOST_AXES = 8


class Inputs(NamedTuple):
    """What is to be known of a benchmark once it is learned, without its examples.

    Attributes:
        shape: of one input.
        dtype: in which it is stored.
        mean: what the network subtracts from x / scale.
        std: what it then divides by.
        scale: what it divides by first.
        classes: of each task.
        permutation: the seed of the tasks' own orders of pixels; None if they have none.
        names: for each task the names of its classes, as the set has them; () if it has none.
        targets: the network gives numbers, of which each task has as many as it has classes.
    """

    shape: tuple[int, ...]
    dtype: str
    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]
    scale: float
    classes: tuple[int, ...]
    permutation: int | None = None
    names: tuple[tuple[str, ...], ...] = ()
    targets: bool = False

    def stored(self, images: Any) -> np.ndarray:
        """Examples [N, ...] in the form in which they are stored.

        Raises:
            ValueError: for arrays of another shape, or values that are not of the stored type.
        """
        try:
            images, dtype = np.asarray(images), np.dtype(self.dtype)
        except ValueError as error:  # rows of different lengths
            raise ValueError(f"expected one array of images: {error}") from error
        size = int(np.prod(self.shape))
        alike = images.shape[1:] == self.shape
        flat = len(self.shape) == 1 or images.ndim == 2 or images.ndim == len(self.shape)
        if images.ndim < 2 or not (alike or (flat and images[:1].size == size)):
            raise ValueError(
                f"expected images [N, {', '.join(map(str, self.shape))}], got shape {images.shape}."
            )
        if images.dtype.kind in "OSUMm":
            raise ValueError(f"expected images of numbers, got {images.dtype}.")
        images = images.reshape(len(images), *self.shape)
        if images.dtype == dtype == np.uint8 or not len(images):
            return images.astype(dtype, copy=False)
        if dtype.kind in "iu":
            limits = np.iinfo(dtype if dtype.itemsize < 4 else np.int32)  # which tokens fit
            whole = images.dtype.kind in "iu"
            if not whole or images.min() < limits.min or images.max() > limits.max:
                raise ValueError(
                    f"expected images as they are stored, {dtype} (the network divides by "
                    f"{self.scale:g} itself), got {images.dtype} from {images.min():g} to "
                    f"{images.max():g}."
                )
        elif images.dtype.kind not in "iuf":
            raise ValueError(f"expected images of numbers, got {images.dtype}.")
        elif not np.isfinite(images).all():
            raise ValueError("the images hold NaN or infinite values.")
        return images.astype(dtype, copy=False)

    def arrange(self, images: np.ndarray, task: int) -> np.ndarray:
        """Stored examples in the order of pixels of a task."""
        return images if self.permutation is None else reorder(images, self.permutation, task)

    def benchmark(self, name: str) -> Benchmark:
        """The benchmark without its examples: all that a setup is made of."""
        nothing = Split(np.zeros((0, *self.shape), self.dtype), np.zeros(0, np.int32))
        tasks = tuple(Task(nothing, nothing, nothing, count) for count in self.classes)
        numbers = {"mean": self.mean, "std": self.std, "scale": self.scale}
        return Benchmark(name, tasks, shape=self.shape, permutation=self.permutation, **numbers)


def of(benchmark: Benchmark) -> Inputs:
    """What a benchmark's inputs are."""
    tasks = benchmark.tasks
    return Inputs(
        shape=tuple(benchmark.shape),
        dtype=tasks[0].train.x.dtype.name,
        mean=benchmark.mean,
        std=benchmark.std,
        scale=benchmark.scale,
        classes=tuple(int(task.classes) for task in tasks),
        permutation=benchmark.permutation,
        names=tuple(task.names for task in tasks) if all(task.names for task in tasks) else (),
        targets=benchmark.regression,
    )


def plain(inputs: Inputs) -> dict[str, Any]:
    """What `read` reads, for JSON."""

    def number(value):
        return [float(v) for v in value] if np.ndim(value) else float(value)

    numbers = {name: number(getattr(inputs, name)) for name in ("mean", "std", "scale")}
    names = [list(names) for names in inputs.names]
    lists = {"shape": list(inputs.shape), "classes": list(inputs.classes), "names": names}
    return {**inputs._asdict(), **numbers, **lists}


def read(given: Any) -> Inputs:
    """Inputs from what `plain` gives, checked.

    Raises:
        ValueError: for anything else; the sentence names the entry.
    """
    if not isinstance(given, Mapping) or given.keys() != set(Inputs._fields):
        raise ValueError(f"inputs must have the entries {', '.join(Inputs._fields)}.")
    shape, classes, dtype = given["shape"], given["classes"], given["dtype"]
    for name, counts, most in (("shape", shape, MOST_AXES), ("classes", classes, MAX_TASKS)):
        if not isinstance(counts, list) or not 1 <= len(counts) <= most:
            raise ValueError(f"inputs: {name} must be a list of 1 to {most} numbers.")
        for count in counts:
            check_count(f"inputs: {name}", count, 2**31 - 1)
    if np.prod(np.asarray(shape, float)) > 2**31 - 1:
        raise ValueError(f"inputs: shape {shape} has more entries than an array can have.")
    if dtype not in ("uint8", "float32", "int8", "int16", "int32", "int64", "uint16", "uint32"):
        raise ValueError(f"inputs: dtype must be that of images or tokens, got {dtype!r}.")
    for name in ("mean", "std", "scale"):
        value = given[name]
        numbers = value if isinstance(value, list) else [value]
        if not all(isinstance(n, (int, float)) for n in numbers) or not numbers:
            raise ValueError(f"inputs: {name} must be a number or a list of them, got {value!r}.")
        check_number(f"inputs: {name}", numbers, **({} if name == "mean" else {"above": 0}))
        if isinstance(value, list) and len(value) != shape[-1]:
            raise ValueError(f"inputs: {name} has {len(value)} numbers for {shape[-1]} channels.")
    seed = given["permutation"]
    if seed is not None and (not isinstance(seed, int) or seed < 0):
        raise ValueError(f"inputs: permutation must be a seed or null, got {seed!r}.")

    names, targets = _names(given["names"], classes), given["targets"]
    if not isinstance(targets, bool):
        raise ValueError(f"inputs: targets must be true or false, got {targets!r}.")

    def number(value):
        return tuple(value) if isinstance(value, list) else value

    return Inputs(
        tuple(shape), dtype, number(given["mean"]), number(given["std"]), float(given["scale"]),
        tuple(classes), seed, names, targets,
    )  # fmt: skip


def _names(given: Any, classes: list[int]) -> tuple[tuple[str, ...], ...]:
    def fits(names, count):
        return (
            isinstance(names, list)
            and len(names) == count
            and all(isinstance(name, str) for name in names)
        )

    each = isinstance(given, list) and len(given) in (0, len(classes))
    if not each or not all(map(fits, given, classes)):
        raise ValueError("inputs: names must have, for each task, a name for each of its classes.")
    return tuple(tuple(names) for names in given)
