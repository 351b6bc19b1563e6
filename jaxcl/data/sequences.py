"""Sequences of tasks, made from a set of one."""

import numpy as np

from jaxcl.core.checks import check_count
from jaxcl.data.benchmark import MAX_TASKS, Benchmark, Split, Task, check


def split(benchmark: Benchmark, tasks: int) -> Benchmark:
    """Splits a one-task benchmark by class: task t has the t-th share, labelled from 0 again."""
    base = only_task(benchmark)
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
    base = only_task(benchmark)
    check_count(f"{benchmark.name}: tasks", tasks, MAX_TASKS)
    if len(benchmark.shape) == 1 and np.ndim(benchmark.mean) + np.ndim(benchmark.std) > 0:
        raise ValueError(f"{benchmark.name}: mean and std of a pixel do not fit permuted pixels.")
    made = [base]
    for task in range(1, tasks):
        train, val, test = (Split(reorder(part.x, seed, task), part.y) for part in base[:3])
        made.append(Task(train, val, test, base.classes))
    name = f"permuted_{benchmark.name}"
    return check(benchmark._replace(name=name, tasks=tuple(made), permutation=seed))


def reorder(x: np.ndarray, seed: int, task: int) -> np.ndarray:
    """Inputs [N, ...] with their pixels in the order of one task of `permuted`."""
    if task == 0:
        return x
    pixels = int(np.prod(x.shape[1:-1] or x.shape[1:]))
    order = np.random.default_rng([seed, task]).permutation(pixels)
    return np.take(x.reshape(len(x), pixels, -1), order, axis=1).reshape(x.shape)


def only_task(benchmark: Benchmark) -> Task:
    if len(benchmark.tasks) != 1:
        raise ValueError(f"{benchmark.name}: expected one task, got {len(benchmark.tasks)}.")
    return benchmark.tasks[0]
