"""The sets that come by name, and the usual sequences of them."""

import difflib
import os
from collections.abc import Callable

import numpy as np

from jaxcl.core.checks import check_count, load_extra
from jaxcl.data import tfds
from jaxcl.data.benchmark import (
    MAX_TASKS,
    Benchmark,
    _stratify,
    from_arrays,
)
from jaxcl.data.sequences import permuted, split


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


def _prepared(name, mean, std, data_dir, seed, flat) -> Benchmark:
    """One task from a set that tensorflow-datasets has prepared."""
    x, y, x_test, y_test = tfds.read(name, data_dir)
    if flat:
        x, x_test = x.reshape(len(x), -1), x_test.reshape(len(x_test), -1)
    val, train = _stratify(f"{name}, train", y, (0.1,), seed)
    task = (x[train], y[train]), (x[val], y[val]), (x_test, y_test)
    return from_arrays(name, [task], mean=mean, std=std)
