"""What a sequence of tasks is: its types, their checks, and what is known of where it comes from.

A `Benchmark` is a tuple of tasks, each with a training, a validation and a test split of arrays
[N, ...] and labels [N]. Inputs keep the integers in which they are stored: `normalize` gives the
function that turns bytes into floats, for the device; integers of any other type than uint8 are
tokens, which nothing normalizes.
"""

import hashlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.core.checks import check_count

MAX_TASKS = 254  # a task's number must fit one byte, of which two values are taken
_PARTS = ("train", "val", "test")


class Split(NamedTuple):
    """Examples: `x` [N, ...] uint8, float32 or tokens, and their labels `y` [N] int32; or, for
    regression, targets [N, D] float32.

    >>> Split(np.zeros((5, 2), np.uint8), np.zeros(5, np.int32)).x.shape
    (5, 2)
    """

    x: np.ndarray
    y: np.ndarray


class Task(NamedTuple):
    """One task; its labels are 0 .. classes - 1, which the set that they are from calls `names`.

    For regression `classes` is D, the number of outputs.

    >>> x, y = np.arange(24, dtype=np.uint8).reshape(12, 2), np.arange(12) % 2
    >>> [task] = from_arrays("mine", [(x, y)]).tasks
    >>> task.classes, len(task.train.y), len(task.test.y)
    (2, 8, 2)
    """

    train: Split
    val: Split
    test: Split
    classes: int
    names: tuple[str, ...] = ()


class Provenance(NamedTuple):
    """Where examples are from.

    Attributes:
        set: the name of the set.
        version: of the set; "" where it has none.
        sizes: number of examples for training, for validation and for testing.
        checksum: of the decoded arrays, before they are divided: SHA-256, 16 of its digits.
    """

    set: str
    version: str
    sizes: tuple[int, int, int]
    checksum: str


class Benchmark(NamedTuple):
    """A sequence of tasks whose inputs have one shape; a network sees (x / scale - mean) / std, or
    tokens as they are: then mean is 0, and std and scale are 1.

    `provenance` says where the examples are from, `identifier` is what makes `load` give the same
    benchmark again ("" where it is made otherwise), and `left_out` names what is missing of it.
    `loss` and `metric` are those of `train.Setup`; None for the usual ones, of classes or targets.

    >>> x, y = np.arange(24, dtype=np.uint8).reshape(12, 2), np.arange(12) % 2
    >>> benchmark = from_arrays("mine", [(x, y), (x + 1, y)])
    >>> len(benchmark.tasks), benchmark.shape, benchmark.scale
    (2, (2,), 255.0)
    """

    name: str
    tasks: tuple[Task, ...]
    mean: float | tuple[float, ...]  # of x / scale: one number, or one for each channel
    std: float | tuple[float, ...]
    shape: tuple[int, ...]  # of one x
    scale: float
    provenance: tuple[Provenance, ...] = ()
    identifier: str = ""
    left_out: tuple[str, ...] = ()
    permutation: int | None = None  # the seed of the tasks' own orders of pixels, of `permuted`
    loss: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    metric: Callable[[jax.Array, jax.Array], jax.Array] | None = None

    @property
    def regression(self) -> bool:
        """Whether its labels are targets, not classes."""
        return self.tasks[0].train.y.ndim == 2


def checksum(arrays: Sequence[np.ndarray]) -> str:
    """The checksum of arrays, their shapes and types: SHA-256, 16 of its digits."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(_bytes(array))
    return digest.hexdigest()[:16]


def about(benchmark: Benchmark) -> dict[str, Any]:
    """What settings and results say of the data: identifier, provenance and what is left out.

    >>> x, y = np.arange(12, dtype=np.uint8).reshape(6, 2), [0, 0, 0, 1, 1, 1]
    >>> [one["set"] for one in about(from_arrays("mine", [(x, y)]))["sets"]]
    ['mine']
    """
    return {
        "identifier": benchmark.identifier,
        "sets": [one._asdict() for one in benchmark.provenance],
        "left_out": list(benchmark.left_out),
    }


def normalize(benchmark: Benchmark) -> Callable[[jax.Array], jax.Array]:
    """Returns the pure function x [B, ...] -> float32 [B, ...], (x / scale - mean) / std.

    Of tokens, integers of another type than uint8, it changes neither the values nor the type.

    >>> x = np.array([[0, 255]] * 6, np.uint8)
    >>> base = from_arrays("mine", [(x, [0, 0, 0, 1, 1, 1])], mean=0.5, std=0.5)
    >>> print(normalize(base)(jnp.asarray(x[:2])))
    [[-1.  1.]
     [-1.  1.]]
    """
    constants = benchmark.mean, benchmark.std, benchmark.scale
    constants = [np.asarray(value, np.float32) for value in constants]

    def apply(x: jax.Array) -> jax.Array:
        if are_tokens(x.dtype):
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
    loss: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    metric: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> Benchmark:
    """Makes a benchmark of your own arrays.

    Args:
        name: what reports call it.
        tasks: for each task either the pair (x, y), which is divided 60/20/20 class by class, or
            three such pairs (train, val, test). x [N, ...] uint8, floating point, or tokens, which
            are integers of any other type; y [N] integers from 0 within the task, or for regression
            floats, [N] or [N, D].
        classes: how many classes a task has; None counts them in each task's training labels.
        mean: mean of x / scale; one number, or one for each entry of x's last axis. Tokens are
            never normalized: leave mean, std and scale out.
        std: standard deviation of x / scale, likewise.
        scale: what x is divided by; None means 255 for uint8 and 1 otherwise.
        seed: for the division of pairs.
        loss: `(outputs [B, C], labels) -> [B]`, of each example; None for cross-entropy of classes,
            and for squared errors of targets.
        metric: likewise, what is reported as accuracy, the higher the better; None for accuracy,
            and for the share of the targets' variance that is explained.

    Returns:
        The benchmark, checked.

    Raises:
        ValueError: an array is not as said above; the sentence names the task and the split.

    >>> x, y = np.arange(12, dtype=np.uint8).reshape(6, 2), [0, 0, 0, 1, 1, 1]
    >>> from_arrays("mine", [(x, y)]).tasks[0].train.x.shape
    (2, 2)
    """
    made, given = [], []
    for index, task in enumerate(tasks):
        own, arrays = _task(f"{name}, task {index}", task, classes, seed)
        made.append(own)
        given += arrays
    first = made[0].train.x if made else np.zeros(0)
    if scale is None:
        scale = 255.0 if first.dtype == np.uint8 else 1.0
    whole = Benchmark(name, tuple(made), mean, std, first.shape[1:], scale)
    benchmark = check(whole._replace(loss=loss, metric=metric))
    return benchmark._replace(provenance=(provenance(benchmark, given),))


def _task(
    where: str, task: Sequence, classes: int | None, seed: int
) -> tuple[Task, list[np.ndarray]]:
    """A task of `from_arrays`, and the arrays that it was given."""
    if len(task) == 2:
        x, y = whole = _examples(f"{where}, data", task)
        test, val, train = _divide(f"{where}, data", y, seed)
        parts = [Split(x[rows], y[rows]) for rows in (train, val, test)]
        given = [*whole]
    elif len(task) == 3:
        pairs = zip(_PARTS, task, strict=True)
        parts = [_examples(f"{where}, {part}", pair) for part, pair in pairs]
        given = [array for part in parts for array in part]
    else:
        raise ValueError(f"{where}: expected (x, y) or (train, val, test), got {len(task)} items.")
    count = _count(parts[0].y) if classes is None else classes
    return Task(parts[0], parts[1], parts[2], count), given


def _count(y: np.ndarray) -> int:
    """The number of classes, or of targets."""
    return y.shape[1] if y.ndim == 2 else int(y.max()) + 1


def _divide(where: str, y: np.ndarray, seed: int) -> list[np.ndarray]:
    """Rows for testing, for validation and for training."""
    if y.ndim == 1:
        return stratify(where, y, (0.2, 0.2), seed)
    if len(y) < 3:
        raise ValueError(f"{where}: {len(y)} examples are too few for 3 parts.")
    rows, held = np.random.default_rng(seed).permutation(len(y)), max(1, round(0.2 * len(y)))
    return [np.sort(part) for part in np.split(rows, [held, 2 * held])]


def _bytes(array: Any) -> Any:
    """What a checksum reads; of examples that are streamed, what describes the files."""
    return np.ascontiguousarray(array.described() if is_streamed(array) else array).data


def provenance(benchmark: Benchmark, arrays: Sequence[np.ndarray], version: str = "") -> Provenance:
    """Where a benchmark is from, whose decoded arrays are these."""
    train, val, test = (
        sum(len(getattr(task, part).y) for task in benchmark.tasks) for part in _PARTS
    )
    return Provenance(benchmark.name, version, (train, val, test), checksum(arrays))


def check(benchmark: Benchmark) -> Benchmark:
    """Checks all of a benchmark; returns it with float inputs as float32 and labels as int32.

    Bytes and tokens keep their type.

    Raises:
        ValueError: a number of tasks, an array or a normalization that cannot be used, in one
            sentence that names the task and the split; or tokens with a normalization.

    >>> split = Split(np.zeros((2, 3), np.float32), np.array([0, 7]))
    >>> check(Benchmark("mine", (Task(split, split, split, 2),), 0.0, 1.0, (3,), 1.0))
    Traceback (most recent call last):
    ValueError: mine, task 0, train: label 7 in a task of 2 classes.
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
    tasks, dtype, first = [], None, None
    for index, task in enumerate(benchmark.tasks):
        splits = []
        for part, pair in zip(_PARTS, task[:3], strict=True):
            where = f"{name}, task {index}, {part}"
            x, y = _examples(where, pair)
            dtype = x.dtype if dtype is None else dtype
            first = y if first is None else first
            _check_labels(where, y, task.classes, first)
            if x.shape[1:] != shape:
                raise ValueError(f"{where}: x has shape {x.shape[1:]}, expected {shape}.")
            if x.dtype != dtype:
                raise ValueError(f"{where}: x is {x.dtype}, but {dtype} in the first task.")
            splits.append(Split(x, y))
        train, val, test = splits
        tasks.append(Task(train, val, test, task.classes, task.names))
    neutral = {"mean": 0.0, "std": 1.0, "scale": 1.0} if are_tokens(dtype) else {}
    for field, value in neutral.items():
        if np.any(np.asarray(getattr(benchmark, field)) != value):
            raise ValueError(
                f"{name}: x is {dtype}, so holds tokens, which are not normalized: {field} must be "
                f"{value:g}, got {getattr(benchmark, field)}. Give images as uint8 or as floats."
            )
    return benchmark._replace(tasks=tuple(tasks), shape=shape)


def fingerprint(benchmark: Benchmark) -> str:
    """A digest of all that a network sees of a benchmark, 64 hexadecimal digits.

    >>> x = np.zeros((6, 2), np.uint8)
    >>> first, other = (from_arrays("mine", [(x + i, [0, 0, 0, 1, 1, 1])]) for i in (0, 1))
    >>> fingerprint(first) == fingerprint(first), fingerprint(first) == fingerprint(other)
    (True, False)
    """
    digest = hashlib.sha256()
    constants = [np.asarray(v, np.float64).tolist() for v in (benchmark.mean, benchmark.std)]
    digest.update(repr((constants, float(benchmark.scale))).encode())
    for task in benchmark.tasks:
        digest.update(repr(task.classes).encode())
        for array in itertools.chain(*task[:3]):
            digest.update(repr((array.dtype.str, array.shape)).encode())
            digest.update(_bytes(array))
    return digest.hexdigest()


def _check_labels(where: str, y: np.ndarray, classes: int, first: np.ndarray) -> None:
    """Raises ValueError for labels that do not fit their task, or the benchmark's first."""
    if y.ndim != first.ndim:
        raise ValueError(f"{where}: integers and floats as labels do not mix in one benchmark.")
    if y.ndim == 2 and not y.shape[1] == classes == first.shape[1]:
        raise ValueError(f"{where}: {y.shape[1]} targets in a benchmark of {first.shape[1]}.")
    if y.ndim == 1 and y.max() >= classes:
        raise ValueError(f"{where}: label {y.max()} in a task of {classes} classes.")


def _examples(where: str, pair: Sequence) -> Split:
    """Checks one split's arrays, whatever the others are."""
    try:
        x, y = pair
        x, y = x if is_streamed(x) else np.asarray(x), np.asarray(y)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: expected a pair of arrays (x, y): {error}.") from error
    if x.dtype.kind not in "iu" and not jnp.issubdtype(x.dtype, np.floating):
        raise ValueError(
            f"{where}: x must be integers (uint8 for images, others for tokens) or floating point, "
            f"got {x.dtype}."
        )
    targets = jnp.issubdtype(y.dtype, np.floating)
    if y.dtype.kind not in "iu" and not targets:
        raise ValueError(
            f"{where}: labels must be integers, or floats for regression, got {y.dtype}."
        )
    if x.ndim < 2 or y.ndim not in ((1, 2) if targets else (1,)) or len(x) != len(y):
        raise ValueError(f"{where}: expected x [N, ...] and y [N], got {x.shape} and {y.shape}.")
    if 0 in x.shape:
        raise ValueError(f"{where}: x is empty, its shape is {x.shape}.")
    if are_tokens(x.dtype):
        low, high = int(x.min()), int(x.max())
        if low < np.iinfo(np.int32).min or high > np.iinfo(np.int32).max:
            raise ValueError(f"{where}: tokens must fit int32, got {low} to {high}.")
        x = x.astype(x.dtype.newbyteorder("="), copy=False)
    elif x.dtype != np.uint8:
        with np.errstate(over="ignore"):
            x = x.astype(np.float32, copy=False)
        if not np.isfinite(x).all():
            raise ValueError(f"{where}: x holds NaN or infinite values (as float32).")
    if targets:
        if not np.isfinite(y).all():
            raise ValueError(f"{where}: the targets hold NaN or infinite values.")
        return Split(x, y.astype(np.float32, copy=False).reshape(len(y), -1))
    if y.min() < 0 or y.max() > np.iinfo(np.int32).max:
        raise ValueError(f"{where}: labels must count from 0, got {y.min()} to {y.max()}.")
    return Split(x, y.astype(np.int32, copy=False))


def is_streamed(x: Any) -> bool:
    """Whether examples are read while a network trains: see `streaming.Images`."""
    return hasattr(x, "batches")


def are_tokens(dtype: Any) -> bool:
    """Whether values of this type are tokens: integers other than bytes."""
    return np.dtype(dtype).kind in "iu" and dtype != np.uint8


def stratify(where: str, y: np.ndarray, fractions: Sequence[float], seed: int) -> list[np.ndarray]:
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
