"""Sequences of classification tasks: arrays in, arrays out.

A set is a `Benchmark` of one task: `digits`, `mnist5k`, `mnist`, `fashion_mnist`, `cifar100`,
`omniglot`, any that tensorflow-datasets has `prepared`, your files through `npz` and `folder`, your
arrays through `from_arrays`. A function makes a sequence of it: `split` (each task gets its own
classes), `permuted` and `rotated` (each task changes all images in its own way), `alphabets`; or of
several, `subsets` and `mixture`. `load` does both by one name, such as "split_mnist,tasks=2".
Inputs keep the integers in which they are stored; `normalize` gives the function that turns them
into floats, for the device. All is numpy, and the same arguments always give the same arrays.

It imports `core` alone; `study`, `report` and `cli` may import it.
"""

from jaxcl.data.benchmark import (
    MAX_TASKS,
    Benchmark,
    Provenance,
    Split,
    Task,
    about,
    check,
    from_arrays,
    normalize,
)
from jaxcl.data.files import folder, npz
from jaxcl.data.images import resized
from jaxcl.data.naming import BENCHMARKS, load, parse
from jaxcl.data.sequences import (
    SEQUENCES,
    alphabets,
    chained,
    mixture,
    normalized,
    permuted,
    rotated,
    split,
    subsets,
)
from jaxcl.data.sources import (
    SETS,
    cifar100,
    digits,
    fashion_mnist,
    mnist,
    mnist5k,
    omniglot,
    permuted_digits,
    permuted_fashion_mnist,
    permuted_mnist,
    prepared,
    split_cifar100,
    split_digits,
    split_fashion_mnist,
    split_mnist,
)

__all__ = [
    "BENCHMARKS",
    "MAX_TASKS",
    "SEQUENCES",
    "SETS",
    "Benchmark",
    "Provenance",
    "Split",
    "Task",
    "about",
    "alphabets",
    "chained",
    "check",
    "cifar100",
    "digits",
    "fashion_mnist",
    "folder",
    "from_arrays",
    "load",
    "mixture",
    "mnist",
    "mnist5k",
    "normalize",
    "normalized",
    "npz",
    "omniglot",
    "parse",
    "permuted",
    "permuted_digits",
    "permuted_fashion_mnist",
    "permuted_mnist",
    "prepared",
    "resized",
    "rotated",
    "split",
    "split_cifar100",
    "split_digits",
    "split_fashion_mnist",
    "split_mnist",
    "subsets",
]
