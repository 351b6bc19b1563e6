"""What a benchmark asks of a setup: its loss and metric, its order, what is done to its images."""

from collections.abc import Callable
from functools import partial

import numpy as np

from jaxcl.data.benchmark import Benchmark, is_streamed
from jaxcl.methods import Built
from jaxcl.train.augmentation import crop_and_flip
from jaxcl.train.losses import accuracy, cross_entropy, explained, squared_error


def judged_by(benchmark: Benchmark) -> tuple[Callable, Callable]:
    """The loss and the metric of a benchmark: its own, or those of classes or of targets."""
    loss, metric = cross_entropy, accuracy
    if benchmark.regression:
        y = np.concatenate([task.train.y for task in benchmark.tasks])
        variance = y.var(axis=0)
        loss, metric = squared_error, explained(np.where(variance > 0, variance, 1.0))
    return benchmark.loss or loss, benchmark.metric or metric


def check_targets(name: str, built: Built) -> None:
    """Raises ValueError for a method whose definition speaks of classes."""
    method = built.method
    if method.online is not None or method.consolidate is not None or method.auxiliary is not None:
        raise ValueError(f"{name} is defined for classes; it cannot be trained on targets.")


def check_order(benchmark: Benchmark, order: str) -> None:
    """Raises ValueError for examples that are streamed, where each seed has an order of its own."""
    if order != "one" and any(is_streamed(task.train.x) for task in benchmark.tasks):
        raise ValueError(
            f"{benchmark.name}: what is streamed has one order for all seeds; choose order one."
        )


def augmentation(benchmark: Benchmark, kind: str) -> Callable | None:
    """What is done on the device to images in training: nothing, "crop", "crop_flip".

    Raises:
        ValueError: if the examples are no images.
    """
    if kind == "none":
        return None
    if len(benchmark.shape) != 3:
        raise ValueError(
            f"{benchmark.name}: only images [H, W, C] can be augmented, got {benchmark.shape}."
        )
    return partial(crop_and_flip, flip=kind == "crop_flip")
