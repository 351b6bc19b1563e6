"""Sequences of classification tasks: arrays in, arrays out.

A one-task `Benchmark` (`digits`, `mnist`, `fashion_mnist`, `cifar100`, or your own arrays through
`from_arrays`) becomes a sequence by `split` (each task gets its own classes) or `permuted` (each
task shuffles the pixels in its own way); `load` makes the usual sequences by name. Inputs keep the
integers in which they are stored; `normalize` gives the function that turns them into floats, for
the device. All is numpy, and the same arguments always give the same arrays.

It imports `core` alone; `study`, `report` and `cli` may import it.
"""

from jaxcl.data.benchmark import MAX_TASKS, Benchmark, Split, Task, check, from_arrays, normalize
from jaxcl.data.sequences import permuted, split
from jaxcl.data.sources import (
    BENCHMARKS,
    cifar100,
    digits,
    fashion_mnist,
    load,
    mnist,
    permuted_digits,
    permuted_fashion_mnist,
    permuted_mnist,
    split_cifar100,
    split_digits,
    split_fashion_mnist,
    split_mnist,
)

__all__ = [
    "BENCHMARKS",
    "MAX_TASKS",
    "Benchmark",
    "Split",
    "Task",
    "check",
    "cifar100",
    "digits",
    "fashion_mnist",
    "from_arrays",
    "load",
    "mnist",
    "normalize",
    "permuted",
    "permuted_digits",
    "permuted_fashion_mnist",
    "permuted_mnist",
    "split",
    "split_cifar100",
    "split_digits",
    "split_fashion_mnist",
    "split_mnist",
]
