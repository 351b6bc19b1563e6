"""Sequences of tasks, made from sets of one task each."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxcl.core.checks import check_choice, check_count
from jaxcl.data.benchmark import MAX_TASKS, Benchmark, Split, Task, check, is_streamed
from jaxcl.data.images import alike

SEEN = 1000  # streamed images by which all are normalized


def split(
    benchmark: Benchmark,
    tasks: int | None = None,
    *,
    order: int | None = None,
    classes: Sequence[Sequence[int]] | None = None,
) -> Benchmark:
    """Splits a one-task benchmark by class: each task has a share, labelled from 0 again.

    Args:
        benchmark: of one task.
        tasks: number of tasks, which share the classes equally; None for the most up to ten.
        order: seed that shuffles the classes before they are shared out; None leaves them in order.
        classes: the labels of each task, which may be more or fewer from task to task and may leave
            some out, in the place of `tasks` and `order`.

    Raises:
        ValueError: for classes that cannot be shared equally, or that are listed twice.

    >>> from jaxcl.data import from_arrays
    >>> base = from_arrays("mine", [(np.ones((30, 2)), np.arange(30) % 6)])
    >>> [task.names for task in split(base, classes=[[5, 0], [1, 2, 3]]).tasks]
    [('5', '0'), ('1', '2', '3')]
    """
    base, where = only_task(benchmark), f"split {benchmark.name}"
    if benchmark.regression:
        raise ValueError(f"{where}: there are no classes, as the labels are floats.")
    if classes is not None:
        if tasks not in (None, len(classes)) or order is not None:
            raise ValueError(f"{where}: give classes, or tasks and order, not both.")
        shares = [list(share) for share in classes]
        _check_listed(where, shares, base.classes)
    else:
        size = base.classes // _number(where, tasks, base.classes)
        labels = _shuffled(list(range(base.classes)), order)
        shares = [labels[first : first + size] for first in range(0, base.classes, size)]
    return _of_classes(f"split_{benchmark.name}", benchmark, shares)


def permuted(benchmark: Benchmark, tasks: int, seed: int = 0) -> Benchmark:
    """Repeats a one-task benchmark, each time with the pixels in another fixed order.

    The first task keeps the order. Channels (the last axis of an image) stay together. Task t does
    not depend on how many tasks there are. Every further task holds its own copy of the data.

    >>> from jaxcl.data import from_arrays
    >>> base = from_arrays("mine", [(np.arange(40).reshape(10, 4) % 4.0, np.arange(10) % 2)])
    >>> [task.train.x[0].tolist() for task in permuted(base, 3).tasks]
    [[0.0, 1.0, 2.0, 3.0], [3.0, 0.0, 2.0, 1.0], [2.0, 1.0, 0.0, 3.0]]
    """
    check_count(f"{benchmark.name}: tasks", tasks, MAX_TASKS)
    if len(benchmark.shape) == 1 and np.ndim(benchmark.mean) + np.ndim(benchmark.std) > 0:
        raise ValueError(f"{benchmark.name}: mean and std of a pixel do not fit permuted pixels.")
    name, later = f"permuted_{benchmark.name}", list(range(1, tasks))
    made = _repeated(name, benchmark, lambda x, task: reorder(x, seed, task), later)
    return made._replace(permutation=seed)


def reorder(x: np.ndarray, seed: int, task: int) -> np.ndarray:
    """Inputs [N, ...] with their pixels in the order of one task of `permuted`."""
    if task == 0:
        return x
    pixels = int(np.prod(x.shape[1:-1] or x.shape[1:]))
    order = np.random.default_rng([seed, task]).permutation(pixels)
    return np.take(x.reshape(len(x), pixels, -1), order, axis=1).reshape(x.shape)


def rotated(benchmark: Benchmark, tasks: int, seed: int = 0) -> Benchmark:
    """Repeats a one-task benchmark of images, each time turned by another fixed angle.

    The first task is as it is; the others' angles are drawn from 0 to 180 degrees. Task t does not
    depend on how many tasks there are. What comes into the image from outside is 0.

    Raises:
        ValueError: if the examples are no images [H, W, C].

    >>> from jaxcl.data import from_arrays
    >>> x, y = np.ones((10, 4, 4, 1), np.float32), np.arange(10) % 2
    >>> [len(task.train.x) for task in rotated(from_arrays("mine", [(x, y)]), 3).tasks]
    [6, 6, 6]

    Source: Lopez-Paz and Ranzato (2017), section 5.1.
    """
    from scipy import ndimage

    check_count(f"{benchmark.name}: tasks", tasks, MAX_TASKS)
    if len(benchmark.shape) != 3:
        raise ValueError(f"{benchmark.name}: only images [H, W, C] turn, got {benchmark.shape}.")

    def turn(x: np.ndarray, angle: float) -> np.ndarray:
        return ndimage.rotate(x, angle, axes=(2, 1), reshape=False, order=1, prefilter=False)

    angles = [np.random.default_rng([seed, task]).uniform(0, 180) for task in range(1, tasks)]
    return _repeated(f"rotated_{benchmark.name}", benchmark, turn, angles)


def subsets(
    benchmarks: Sequence[Benchmark], tasks: int | None = None, *, order: int | None = 0
) -> Benchmark:
    """Splits each of several sets by class, into as many tasks, and mixes the tasks.

    Args:
        benchmarks: of one task each; images of one shape.
        tasks: number of all tasks, a multiple of the number of sets; None for five of each set.
        order: seed that shuffles the tasks; None leaves them set by set.

    >>> from jaxcl.data import from_arrays
    >>> x, y = np.ones((30, 4, 4, 1), np.uint8), np.arange(30) % 4
    >>> sets = [from_arrays(name, [(x, y)]) for name in ("one", "two")]
    >>> [task.classes for task in subsets(sets, 4).tasks]
    [2, 2, 2, 2]

    Source: the ten tasks of CIFAR-10 and CIFAR-100 of Serra et al. (2018), section 4.2.
    """
    name = f"subsets_{'+'.join(one.name for one in benchmarks)}"
    number = 5 * len(benchmarks) if tasks is None else tasks
    check_count(f"{name}: tasks", number, MAX_TASKS)
    if number % len(benchmarks):
        raise ValueError(
            f"{name}: tasks must be a multiple of its {len(benchmarks)} sets, got {number}."
        )
    each = number // len(benchmarks)
    parts = [split(one, each)._replace(name=one.name) for one in alike(name, benchmarks)]
    return _joined(name, parts, order)


def alphabets(
    benchmark: Benchmark, tasks: int | None = None, *, order: int | None = None
) -> Benchmark:
    """Splits a one-task benchmark by the groups that its classes' names begin with.

    Args:
        benchmark: of one task, whose classes are called GROUP/NAME, as the characters of Omniglot
            and the folders of a folder of folders are.
        tasks: number of groups, of which there may be more; None for all.
        order: seed that shuffles the groups; None leaves them in order.

    Raises:
        ValueError: if the names have no groups, or fewer than `tasks`.

    >>> from jaxcl.data import from_arrays
    >>> base = from_arrays("mine", [(np.ones((40, 2), np.float32), np.arange(40) % 4)])
    >>> names = ("Greek/alpha", "Greek/beta", "Latin/a", "Latin/b")
    >>> base = base._replace(tasks=(base.tasks[0]._replace(names=names),))
    >>> [task.names for task in alphabets(base).tasks]
    [('Greek/alpha', 'Greek/beta'), ('Latin/a', 'Latin/b')]
    """
    base, where = only_task(benchmark), f"alphabets {benchmark.name}"
    groups: dict[str, list[int]] = {}
    for label, name in enumerate(names_of(base)):
        groups.setdefault(name.rpartition("/")[0], []).append(label)
    if "" in groups:
        raise ValueError(f"{where}: the classes have no groups; it takes names like GROUP/CLASS.")
    shares = [groups[name] for name in _shuffled(sorted(groups), order)]
    number = len(shares) if tasks is None else tasks
    check_count(f"{where}: tasks", number, min(MAX_TASKS, len(shares)))
    return _of_classes(f"alphabets_{benchmark.name}", benchmark, shares[:number])


def mixture(
    benchmarks: Sequence[Benchmark], tasks: int | None = None, *, order: int | None = None
) -> Benchmark:
    """One set after the other, each a task, as images of one shape.

    Args:
        benchmarks: of one task each. Grey images among colored ones get three equal channels.
        tasks: number of sets that are taken, the first after shuffling; None for all.
        order: seed that shuffles the sets; None leaves them in order.

    Raises:
        ValueError: for images of different sizes, which `images.resized` brings to one.

    >>> from jaxcl.data import from_arrays
    >>> y = np.arange(10) % 2
    >>> grey = from_arrays("grey", [(np.ones((10, 4, 4, 1), np.uint8), y)])
    >>> colored = from_arrays("colored", [(np.ones((10, 4, 4, 3), np.uint8), y)])
    >>> mixture([grey, colored]).shape
    (4, 4, 3)

    Source: the eight sets of Serra et al. (2018), section 4.1, where they are at hand.
    """
    name = f"mixture_{'+'.join(one.name for one in benchmarks)}"
    number = len(benchmarks) if tasks is None else tasks
    check_count(f"{name}: tasks", number, min(MAX_TASKS, len(benchmarks)))
    joined = _joined(name, alike(name, benchmarks), order)
    return joined._replace(tasks=joined.tasks[:number])


def chained(benchmarks: Sequence[Benchmark]) -> Benchmark:
    """The tasks of several sequences, one after the other; the first one's normalization is all's.

    Raises:
        ValueError: for inputs of different shapes, types or scales, or tasks with orders of pixels
            of their own, which a chain does not know.

    >>> from jaxcl.data import from_arrays
    >>> x, y = np.ones((30, 2)), np.arange(30) % 3
    >>> len(chained([from_arrays("one", [(x, y)]), from_arrays("two", [(x, y)] * 2)]).tasks)
    3
    """
    first, *others = benchmarks
    if not others:
        return first
    for one in benchmarks:
        if one.permutation is not None:
            raise ValueError(f"{one.name}: permuted tasks and others make no sequence together.")
        for what, there in _stored(first).items():
            here = _stored(one)[what]
            if here != there:
                raise ValueError(
                    f"{one.name}: its inputs have {what} {here}, those of {first.name} {there}."
                )
    joined = first._replace(
        name=";".join(one.name for one in benchmarks),
        tasks=tuple(task for one in benchmarks for task in one.tasks),
        provenance=tuple(source for one in benchmarks for source in one.provenance),
        identifier=";".join(one.identifier for one in benchmarks),
        left_out=tuple(dict.fromkeys(what for one in benchmarks for what in one.left_out)),
    )
    return check(joined)


def _stored(benchmark: Benchmark) -> dict[str, Any]:
    dtype = benchmark.tasks[0].train.x.dtype
    return {"shape": tuple(benchmark.shape), "type": str(dtype), "scale": benchmark.scale}


def normalized(benchmark: Benchmark, by: Literal["first", "each"] = "first") -> Benchmark:
    """A benchmark whose inputs have mean 0 and standard deviation 1 on training examples.

    Args:
        benchmark: the sequence; of images [H, W, C] each channel is normalized, else all together.
        by: the first task's numbers serve all tasks, and the inputs keep their type; or "each" has
            its own, and the inputs become float32, which take four times the memory of bytes.

    >>> from jaxcl.data import from_arrays
    >>> x = np.arange(20, dtype=np.uint8).reshape(10, 2)
    >>> base = from_arrays("mine", [(x, np.arange(10) % 2)])
    >>> round(normalized(base).mean * 255, 1)
    7.5
    """
    check_choice(f"{benchmark.name}: normalize", by, ("first", "each"))

    if by == "each" and is_streamed(benchmark.tasks[0].train.x):
        raise ValueError(f"{benchmark.name}: streamed images are normalized by the first task.")

    def measured(task: Task) -> tuple[Any, Any]:
        x = task.train.x
        if is_streamed(x):  # a sample, from all classes
            x = np.asarray(x[:: max(1, len(x) // SEEN)])
        x = x / np.float32(benchmark.scale)
        axes = (0, 1, 2) if x.ndim == 4 and x.shape[-1] > 1 else None
        mean, std = x.mean(axes, dtype=np.float64), x.std(axes, dtype=np.float64)
        std = np.where(std > 0, std, 1.0)  # a channel that is constant
        number = float if axes is None else lambda values: tuple(map(float, values))
        return number(mean), number(std)

    if by == "first":
        mean, std = measured(benchmark.tasks[0])
        return benchmark._replace(mean=mean, std=std)
    tasks = []
    for task in benchmark.tasks:
        mean, std = (np.float32(value) for value in measured(task))
        x = [(part.x / np.float32(benchmark.scale) - mean) / std for part in task[:3]]
        train, val, test = (part._replace(x=new) for part, new in zip(task[:3], x))
        tasks.append(task._replace(train=train, val=val, test=test))
    return check(benchmark._replace(tasks=tuple(tasks), mean=0.0, std=1.0, scale=1.0))


class Kind(NamedTuple):
    """A kind of sequence: the function, and what `load` may give it.

    Attributes:
        make: `(set, tasks, **options)`, or of a list of sets.
        options: those that it takes besides `tasks`.
        several: it takes several sets.
        repeats: every task has all examples, so that the usual number of tasks is the set's.
        images: it takes images only.
    """

    make: Callable[..., Benchmark]
    options: tuple[str, ...] = ("order",)
    several: bool = False
    repeats: bool = False
    images: bool = False


SEQUENCES: dict[str, Kind] = {
    "split": Kind(split, ("order", "classes")),
    "permuted": Kind(permuted, ("seed",), repeats=True),
    "rotated": Kind(rotated, ("seed",), repeats=True, images=True),
    "alphabets": Kind(alphabets),
    "subsets": Kind(subsets, several=True, images=True),
    "mixture": Kind(mixture, several=True, images=True),
}


def only_task(benchmark: Benchmark) -> Task:
    if len(benchmark.tasks) != 1:
        raise ValueError(f"{benchmark.name}: expected one task, got {len(benchmark.tasks)}.")
    return benchmark.tasks[0]


def names_of(task: Task) -> tuple[str, ...]:
    """The names of a task's classes; their numbers where they have none."""
    return task.names or tuple(map(str, range(task.classes)))


def _shuffled(items: Any, order: int | None) -> Any:
    if order is None:
        return items
    return [items[i] for i in np.random.default_rng(order).permutation(len(items))]


def _number(where: str, tasks: int | None, classes: int) -> int:
    """The number of tasks that share the classes equally, two or more each."""
    counts = [n for n in range(1, classes // 2 + 1) if classes % n == 0]
    if tasks is None:
        tasks = max([n for n in counts if n <= 10], default=1)
    check_count(f"{where}: tasks", tasks, MAX_TASKS)
    if tasks not in counts:
        raise ValueError(
            f"{where}: tasks must share its {classes} classes equally, two or more each, so be one "
            f"of {counts}, got {tasks}; or list the classes of each task."
        )
    return tasks


def _check_listed(where: str, shares: Sequence[Sequence[int]], classes: int) -> None:
    check_count(f"{where}: tasks", len(shares), MAX_TASKS)
    first: dict[int, int] = {}
    for task, share in enumerate(shares):
        if not share:
            raise ValueError(f"{where}: task {task} has no class.")
        for label in share:
            if not isinstance(label, (int, np.integer)) or not 0 <= label < classes:
                raise ValueError(
                    f"{where}: task {task} lists the class {label!r}; they are 0 to {classes - 1}."
                )
            if label in first:
                tasks = (
                    f"tasks {first[label]} and {task}" if first[label] != task else f"task {task}"
                )
                raise ValueError(f"{where}: the class {label} is listed twice, in {tasks}.")
            first[int(label)] = task


def _of_classes(name: str, benchmark: Benchmark, shares: Sequence[Sequence[int]]) -> Benchmark:
    """A task of each share of the classes."""
    base = only_task(benchmark)
    names, made = names_of(base), []
    for task, share in enumerate(shares):
        new = np.full(base.classes, -1, np.int32)
        new[np.asarray(share)] = np.arange(len(share))
        parts = []
        for what, part in zip(("training", "validation", "test"), base[:3]):
            rows = new[part.y] >= 0
            if not rows.any():
                raise ValueError(f"{name}, task {task} has no {what} examples.")
            parts.append(Split(part.x[rows], new[part.y[rows]]))
        train, val, test = parts
        own = tuple(names[label] for label in share)
        made.append(Task(train, val, test, len(share), own))
    return check(benchmark._replace(name=name, tasks=tuple(made)))


def _repeated(name: str, benchmark: Benchmark, change: Callable, by: Sequence) -> Benchmark:
    """The one task, and after it that task changed by each of several."""
    base = only_task(benchmark)
    if is_streamed(base.train.x):
        raise ValueError(f"{name}: streamed images cannot be changed from task to task.")
    made = [base]
    for how in by:
        train, val, test = (part._replace(x=change(part.x, how)) for part in base[:3])
        made.append(base._replace(train=train, val=val, test=test))
    return check(benchmark._replace(name=name, tasks=tuple(made)))


def _joined(name: str, benchmarks: Sequence[Benchmark], order: int | None) -> Benchmark:
    """The tasks of several benchmarks, alike in shape and scale, shuffled by a seed."""
    tasks = [
        task._replace(names=tuple(f"{one.name}: {label}" for label in names_of(task)))
        for one in benchmarks
        for task in one.tasks
    ]
    joined = benchmarks[0]._replace(
        name=name,
        tasks=tuple(_shuffled(tasks, order)),
        provenance=tuple(source for one in benchmarks for source in one.provenance),
        left_out=tuple(dict.fromkeys(what for one in benchmarks for what in one.left_out)),
    )
    return normalized(check(joined))
