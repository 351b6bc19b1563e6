"""Sequences of classification tasks: arrays in, arrays out.

A one-task `Benchmark` (`digits`, `mnist`, `fashion_mnist`, `cifar100`, or your own arrays through
`from_arrays`) becomes a sequence by `split` (each task gets its own classes) or `permuted` (each
task shuffles the pixels in its own way); `load` makes the usual sequences by name. Inputs keep the
integers in which they are stored; `normalize` gives the function that turns bytes into floats, for
the device. Integers of any other type than uint8 are tokens, which nothing normalizes. All is
numpy, and the same arguments always give the same arrays.
"""

import difflib
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl import _tfds
from jaxcl._checks import check_count, load_extra

MAX_TASKS = 254  # a task's number must fit one byte, of which two values are taken
_PARTS = ("train", "val", "test")


class Split(NamedTuple):
    """Examples: `x` [N, ...] uint8, float32 or tokens, and their labels `y` [N] int32."""

    x: np.ndarray
    y: np.ndarray


class Task(NamedTuple):
    """One task; its labels are 0 .. classes - 1."""

    train: Split
    val: Split
    test: Split
    classes: int


class Benchmark(NamedTuple):
    """A sequence of tasks whose inputs have one shape; a network sees (x / scale - mean) / std, or
    tokens as they are: then mean is 0, and std and scale are 1."""

    name: str
    tasks: tuple[Task, ...]
    mean: float | tuple[float, ...]  # of x / scale: one number, or one for each channel
    std: float | tuple[float, ...]
    shape: tuple[int, ...]  # of one x
    scale: float


def normalize(benchmark: Benchmark) -> Callable[[jax.Array], jax.Array]:
    """Returns the pure function x [B, ...] -> float32 [B, ...], (x / scale - mean) / std.

    Of tokens, integers of another type than uint8, it changes neither the values nor the type.
    """
    constants = benchmark.mean, benchmark.std, benchmark.scale
    constants = [np.asarray(value, np.float32) for value in constants]

    def apply(x: jax.Array) -> jax.Array:
        if _are_tokens(x.dtype):
            return jnp.asarray(x)
        mean, std, scale = (v.reshape((1,) * (x.ndim - v.ndim) + v.shape) for v in constants)
        return (jnp.asarray(x, jnp.float32) / scale - mean) / std

    return apply


def from_arrays(
    name: str,
    tasks: Sequence,
    *,
    classes: int | None = None,
    mean: float | tuple[float, ...] = 0.0,
    std: float | tuple[float, ...] = 1.0,
    scale: float | None = None,
    seed: int = 0,
) -> Benchmark:
    """Makes a benchmark of your own arrays.

    Args:
        name: what reports call it.
        tasks: for each task either the pair (x, y), which is divided 60/20/20 class by class, or
            three such pairs (train, val, test). x [N, ...] uint8, floating point, or tokens, which
            are integers of any other type; y [N] integers from 0 within the task.
        classes: how many classes a task has; None counts them in each task's training labels.
        mean: mean of x / scale; one number, or one for each entry of x's last axis. Tokens are
            never normalized: leave mean, std and scale out.
        std: standard deviation of x / scale, likewise.
        scale: what x is divided by; None means 255 for uint8 and 1 otherwise.
        seed: for the division of pairs.

    Returns:
        The benchmark, checked.

    Raises:
        ValueError: an array is not as said above; the sentence names the task and the split.

    >>> x, y = np.arange(12, dtype=np.uint8).reshape(6, 2), [0, 0, 0, 1, 1, 1]
    >>> from_arrays("mine", [(x, y)]).tasks[0].train.x.shape
    (2, 2)
    """
    made = []
    for index, task in enumerate(tasks):
        where = f"{name}, task {index}"
        if len(task) == 2:
            x, y = _examples(f"{where}, data", task)
            test, val, train = _stratify(f"{where}, data", y, (0.2, 0.2), seed)
            task = [(x[rows], y[rows]) for rows in (train, val, test)]
        if len(task) != 3:
            raise ValueError(
                f"{where}: expected (x, y) or (train, val, test), got {len(task)} items."
            )
        pairs = zip(_PARTS, task, strict=True)
        train, val, test = (_examples(f"{where}, {part}", pair) for part, pair in pairs)
        count = int(train.y.max()) + 1 if classes is None else classes
        made.append(Task(train, val, test, count))
    first = made[0].train.x if made else np.zeros(0)
    if scale is None:
        scale = 255.0 if first.dtype == np.uint8 else 1.0
    return check(Benchmark(name, tuple(made), mean, std, first.shape[1:], scale))


def check(benchmark: Benchmark) -> Benchmark:
    """Checks all of a benchmark; returns it with float inputs as float32 and labels as int32.

    Bytes and tokens keep their type.

    Raises:
        ValueError: a number of tasks, an array or a normalization that cannot be used, in one
            sentence that names the task and the split; or tokens with a normalization.
    """
    name, shape = benchmark.name, tuple(benchmark.shape)
    check_count(f"{name}: tasks", len(benchmark.tasks), MAX_TASKS)
    for field in ("mean", "std", "scale"):
        value = np.asarray(getattr(benchmark, field), np.float64)
        low = -np.inf if field == "mean" else 0.0
        if value.shape not in ((), shape[-1:]) or not np.all((low < value) & (value < np.inf)):
            raise ValueError(
                f"{name}: {field} must be one finite number, or one for each channel of {shape}"
                f"{'' if field == 'mean' else ', above zero'}, got {getattr(benchmark, field)}."
            )
    tasks, dtype = [], None
    for index, task in enumerate(benchmark.tasks):
        splits = []
        for part, pair in zip(_PARTS, task[:3], strict=True):
            where = f"{name}, task {index}, {part}"
            x, y = _examples(where, pair)
            dtype = x.dtype if dtype is None else dtype
            if y.max() >= task.classes:
                raise ValueError(f"{where}: label {y.max()} in a task of {task.classes} classes.")
            if x.shape[1:] != shape:
                raise ValueError(f"{where}: x has shape {x.shape[1:]}, expected {shape}.")
            if x.dtype != dtype:
                raise ValueError(f"{where}: x is {x.dtype}, but {dtype} in the first task.")
            splits.append(Split(x, y))
        train, val, test = splits
        tasks.append(Task(train, val, test, task.classes))
    neutral = {"mean": 0.0, "std": 1.0, "scale": 1.0} if _are_tokens(dtype) else {}
    for field, value in neutral.items():
        if np.any(np.asarray(getattr(benchmark, field)) != value):
            raise ValueError(
                f"{name}: x is {dtype}, so holds tokens, which are not normalized: {field} must be "
                f"{value:g}, got {getattr(benchmark, field)}. Give images as uint8 or as floats."
            )
    return benchmark._replace(tasks=tuple(tasks), shape=shape)


def split(benchmark: Benchmark, tasks: int) -> Benchmark:
    """Splits a one-task benchmark by class: task t has the t-th share, labelled from 0 again."""
    base = _only_task(benchmark)
    counts = [n for n in range(1, base.classes // 2 + 1) if base.classes % n == 0]
    check_count(f"{benchmark.name}: tasks", tasks, MAX_TASKS)
    if tasks not in counts:
        raise ValueError(
            f"split {benchmark.name}: tasks must share its {base.classes} classes equally, two or "
            f"more each, so be one of {counts}, got {tasks}."
        )
    size = base.classes // tasks

    def share(part: Split, task: int) -> Split:
        rows = part.y // size == task
        return Split(part.x[rows], part.y[rows] % size)

    made = []
    for task in range(tasks):
        train, val, test = (share(part, task) for part in base[:3])
        made.append(Task(train, val, test, size))
    return check(benchmark._replace(name=f"split_{benchmark.name}", tasks=tuple(made)))


def permuted(benchmark: Benchmark, tasks: int, seed: int = 0) -> Benchmark:
    """Repeats a one-task benchmark, each time with the pixels in another fixed order.

    The first task keeps the order. Channels (the last axis of an image) stay together. Task t does
    not depend on how many tasks there are. Every further task holds its own copy of the data.
    """
    base = _only_task(benchmark)
    check_count(f"{benchmark.name}: tasks", tasks, MAX_TASKS)
    pixels = int(np.prod(benchmark.shape[:-1] or benchmark.shape))
    if len(benchmark.shape) == 1 and np.ndim(benchmark.mean) + np.ndim(benchmark.std) > 0:
        raise ValueError(f"{benchmark.name}: mean and std of a pixel do not fit permuted pixels.")

    def reorder(part: Split, order: np.ndarray) -> Split:
        x = part.x.reshape(len(part.x), pixels, -1)
        return Split(np.take(x, order, axis=1).reshape(part.x.shape), part.y)

    made = [base]
    for task in range(1, tasks):
        order = np.random.default_rng([seed, task]).permutation(pixels)
        train, val, test = (reorder(part, order) for part in base[:3])
        made.append(Task(train, val, test, base.classes))
    return check(benchmark._replace(name=f"permuted_{benchmark.name}", tasks=tuple(made)))


def digits(*, seed: int = 0, flat: bool = True) -> Benchmark:
    """scikit-learn's 1,797 digits, 0 to 16, [64] or [8, 8, 1]; train/val/test 60/20/20."""
    images, y = load_extra("sklearn.datasets").load_digits(return_X_y=True)
    x = images.astype(np.uint8).reshape(len(y), *((64,) if flat else (8, 8, 1)))
    return from_arrays("digits", [(x, y)], mean=0.3053, std=0.3760, scale=16.0, seed=seed)


def mnist(*, data_dir: str | None = None, seed: int = 0, flat: bool = True) -> Benchmark:
    """MNIST, [784] or [28, 28, 1]; a tenth of the official training set is for validation."""
    return _prepared("mnist", 0.1307, 0.3081, data_dir, seed, flat)


def fashion_mnist(*, data_dir: str | None = None, seed: int = 0, flat: bool = True) -> Benchmark:
    """Fashion-MNIST, in the form of `mnist`."""
    return _prepared("fashion_mnist", 0.2860, 0.3530, data_dir, seed, flat)


def cifar100(*, data_dir: str | None = None, seed: int = 0) -> Benchmark:
    """CIFAR-100, [32, 32, 3]; a tenth of the official training set is for validation."""
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    return _prepared("cifar100", mean, std, data_dir, seed, flat=False)


def split_digits(tasks: int = 5, **options) -> Benchmark:
    """`digits` split by class, two classes a task by default; its options."""
    return split(digits(**options), tasks)


def permuted_digits(tasks: int = 6, *, seed: int = 0, **options) -> Benchmark:
    """`digits` with permuted pixels; its options."""
    return permuted(digits(seed=seed, **options), tasks, seed)


def split_mnist(tasks: int = 5, **options) -> Benchmark:
    """`mnist` split by class, two classes a task by default; its options."""
    return split(mnist(**options), tasks)


def permuted_mnist(tasks: int = 10, *, seed: int = 0, **options) -> Benchmark:
    """`mnist` with permuted pixels; its options."""
    return permuted(mnist(seed=seed, **options), tasks, seed)


def split_fashion_mnist(tasks: int = 5, **options) -> Benchmark:
    """`fashion_mnist` split by class, two classes a task by default; its options."""
    return split(fashion_mnist(**options), tasks)


def permuted_fashion_mnist(tasks: int = 10, *, seed: int = 0, **options) -> Benchmark:
    """`fashion_mnist` with permuted pixels; its options."""
    return permuted(fashion_mnist(seed=seed, **options), tasks, seed)


def split_cifar100(tasks: int = 10, **options) -> Benchmark:
    """`cifar100` split by class, ten classes a task by default; its options."""
    return split(cifar100(**options), tasks)


BENCHMARKS: dict[str, Callable[..., Benchmark]] = {
    "split_digits": split_digits,
    "permuted_digits": permuted_digits,
    "split_mnist": split_mnist,
    "permuted_mnist": permuted_mnist,
    "split_fashion_mnist": split_fashion_mnist,
    "permuted_fashion_mnist": permuted_fashion_mnist,
    "split_cifar100": split_cifar100,
}


def load(
    name: str,
    *,
    tasks: int | None = None,
    data_dir: str | os.PathLike | None = None,
    seed: int = 0,
    flat: bool | None = None,
) -> Benchmark:
    """Makes the sequence of that name.

    Args:
        name: a key of `BENCHMARKS`.
        tasks: number of tasks; None for the usual one.
        data_dir: folder of tensorflow-datasets; None for TFDS_DATA_DIR, else ~/tensorflow_datasets.
            (The digits need none.)
        seed: for the division into train, val and test and for the permutations.
        flat: True for vectors, False for images; None for the usual one.

    Raises:
        ValueError: unknown name, an impossible number of tasks, an option that the benchmark does
            not have, or a data set that is not prepared.
        ImportError: tensorflow-datasets or scikit-learn is missing.
    """
    if name not in BENCHMARKS:
        near = difflib.get_close_matches(str(name), BENCHMARKS, n=3, cutoff=0.0)
        raise ValueError(f"unknown benchmark {name!r}; the nearest names are {', '.join(near)}.")
    if tasks is not None:
        check_count(f"{name}: tasks", tasks, MAX_TASKS)  # before any data is read
    if name.endswith("cifar100") and flat:
        raise ValueError(f"{name} has images only: flat cannot be True.")
    options = {"tasks": tasks, "seed": seed}
    if not name.endswith("digits"):
        options["data_dir"] = data_dir
    if not name.endswith("cifar100"):
        options["flat"] = flat
    return BENCHMARKS[name](**{key: value for key, value in options.items() if value is not None})


def _only_task(benchmark: Benchmark) -> Task:
    if len(benchmark.tasks) != 1:
        raise ValueError(f"{benchmark.name}: expected one task, got {len(benchmark.tasks)}.")
    return benchmark.tasks[0]


def _examples(where: str, pair: Sequence) -> Split:
    """Checks one split's arrays, whatever the others are."""
    try:
        x, y = pair
        x, y = np.asarray(x), np.asarray(y)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: expected a pair of arrays (x, y): {error}.") from error
    if x.dtype.kind not in "iu" and not jnp.issubdtype(x.dtype, np.floating):
        raise ValueError(
            f"{where}: x must be integers (uint8 for images, others for tokens) or floating point, "
            f"got {x.dtype}."
        )
    if y.dtype.kind not in "iu":
        raise ValueError(f"{where}: labels must be integers, got {y.dtype}.")
    if x.ndim < 2 or y.ndim != 1 or len(x) != len(y):
        raise ValueError(f"{where}: expected x [N, ...] and y [N], got {x.shape} and {y.shape}.")
    if x.size == 0:
        raise ValueError(f"{where}: x is empty, its shape is {x.shape}.")
    if _are_tokens(x.dtype):
        low, high = int(x.min()), int(x.max())
        if low < np.iinfo(np.int32).min or high > np.iinfo(np.int32).max:
            raise ValueError(f"{where}: tokens must fit int32, got {low} to {high}.")
    elif x.dtype != np.uint8:
        with np.errstate(over="ignore"):
            x = x.astype(np.float32, copy=False)
        if not np.isfinite(x).all():
            raise ValueError(f"{where}: x holds NaN or infinite values (as float32).")
    if y.min() < 0 or y.max() > np.iinfo(np.int32).max:
        raise ValueError(f"{where}: labels must count from 0, got {y.min()} to {y.max()}.")
    return Split(x, y.astype(np.int32, copy=False))


def _are_tokens(dtype: Any) -> bool:
    return np.dtype(dtype).kind in "iu" and dtype != np.uint8


def _stratify(where: str, y: np.ndarray, fractions: Sequence[float], seed: int) -> list[np.ndarray]:
    """Rows for each held-out fraction, then the rest; every class is in each of them."""
    rng = np.random.default_rng(seed)
    parts = [[] for _ in (*fractions, "rest")]
    for label in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == label))
        sizes = [max(1, round(fraction * len(rows))) for fraction in fractions]
        if sum(sizes) >= len(rows):
            raise ValueError(
                f"{where}: class {label} has {len(rows)} examples, too few for {len(parts)} parts."
            )
        for part, chosen in zip(parts, np.split(rows, np.cumsum(sizes)), strict=True):
            part.append(chosen)
    return [np.sort(np.concatenate(part)) for part in parts]


def _prepared(name, mean, std, data_dir, seed, flat) -> Benchmark:
    """One task from a set that tensorflow-datasets has prepared."""
    x, y, x_test, y_test = _tfds.read(name, data_dir)
    if flat:
        x, x_test = x.reshape(len(x), -1), x_test.reshape(len(x_test), -1)
    val, train = _stratify(f"{name}, train", y, (0.1,), seed)
    task = (x[train], y[train]), (x[val], y[val]), (x_test, y_test)
    return from_arrays(name, [task], mean=mean, std=std)
