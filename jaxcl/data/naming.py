"""Benchmarks by name: SEQUENCE_SET, with options behind it; and the name that makes one again.

    split_mnist                     permuted_digits,tasks=4
    split_npz:mine.npz,tasks=5      split_mnist,classes=0-1/2-4/5-9
    mixture_mnist,fashion_mnist     subsets_tfds:cifar10,cifar100,order=3

A name is one word of a command line, and holds all that decides on the arrays but the place where
the sets lie.
"""

import difflib
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxcl.core.checks import check_count, check_number, nearest
from jaxcl.data.benchmark import MAX_TASKS, Benchmark, are_tokens
from jaxcl.data.images import flattened, resized
from jaxcl.data.sequences import SEQUENCES, Kind, normalized
from jaxcl.data.sources import EIGHT, SETS, Set

# The sequences that the field publishes with, of sets that come by name.
BENCHMARKS = (
    "split_digits", "permuted_digits", "split_mnist5k", "permuted_mnist5k", "split_mnist",
    "permuted_mnist", "rotated_mnist", "split_fashion_mnist", "permuted_fashion_mnist",
    "split_cifar100", "alphabets_omniglot", "mixture_eight",
)  # fmt: skip
MAX_LABEL = 99_999  # more classes than any set has


class Name(NamedTuple):
    """A name, taken apart.

    Attributes:
        base: without its options.
        sequence: a key of `SEQUENCES`.
        sets: a key of `SETS` each, and what stands behind its colon.
        options: by name.
    """

    base: str
    sequence: str
    sets: tuple[tuple[str, str], ...]
    options: dict[str, Any]


def parse(name: str) -> Name:
    """Takes a name apart.

    Raises:
        ValueError: for an unknown sequence, set or option, or a value that it cannot have.

    >>> parse("split_digits,tasks=2").options
    {'tasks': 2}
    """
    sequence, _, rest = str(name).partition("_")
    if sequence not in SEQUENCES or not rest:
        raise ValueError(_unknown(name))
    parts, sets, options = rest.split(","), [], {}
    for part in parts:
        key, equals, value = part.partition("=")
        if equals and (key in _READERS or ":" not in key):
            if key in options:
                raise ValueError(f"{name}: {key} is given twice.")
            options[key] = _option(name, key, value)
        elif options:
            raise ValueError(f"{name}: {part!r} is no option; the sets stand before the options.")
        else:
            sets.append(part)
    sets = EIGHT if sets == ["eight"] else sets
    kind = SEQUENCES[sequence]
    if len(sets) > 1 and not kind.several:
        raise ValueError(f"{name}: {sequence} takes one set, got {len(sets)}.")
    known = tuple(_set(name, one, leave_out=sets is EIGHT) for one in sets)
    return Name(
        f"{sequence}_{','.join(parts[: len(parts) - len(options)])}", sequence, known, options
    )


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(str(name), BENCHMARKS, n=3, cutoff=0.0)
    return (
        f"unknown benchmark {name!r}; the nearest names are {', '.join(near)}. A name is "
        f"SEQUENCE_SET: of {', '.join(SEQUENCES)} and {', '.join(map(_spelled, SETS))}."
    )


def _spelled(name: str) -> str:
    return f"{name}:{SETS[name].argument}" if SETS[name].argument else name


def _set(name: str, word: str, leave_out: bool = False) -> tuple[str, str]:
    own, _, argument = word.partition(":")
    if leave_out and own not in SETS:
        return "", word
    if own not in SETS:
        raise ValueError(_unknown(name))
    if bool(argument) != bool(SETS[own].argument):
        raise ValueError(f"{name}: expected {_spelled(own)}, got {word!r}.")
    return own, argument


def _classes(text: str) -> tuple[tuple[int, ...], ...]:
    """Lists of labels, such as 0-1/2+4/5-9, none of them above MAX_LABEL."""

    def labels(part: str) -> range:
        low, _, high = part.partition("-")
        if int(high or low) > MAX_LABEL:
            raise ValueError
        return range(int(low), int(high or low) + 1)

    return tuple(
        tuple(label for part in share.split("+") for label in labels(part))
        for share in text.split("/")
    )


def _yes(text: str) -> bool:
    return {"yes": True, "no": False}[text]


_READERS: dict[str, Callable[[str], Any]] = {
    "tasks": int, "seed": int, "order": int, "classes": _classes, "validation": float,
    "normalize": str, "size": int, "flat": _yes, "skip_corrupt": _yes,
    "stream": _yes, "augment": _yes,
}  # fmt: skip
_WANTED = {
    int: "a whole number", float: "a number", _yes: "yes or no",
    _classes: f"labels up to {MAX_LABEL:,}, such as 0-1/2+4/5-9",
}  # fmt: skip


def _option(name: str, key: str, value: str) -> Any:
    if key not in _READERS:
        raise ValueError(
            f"{name}: there is no option {key!r}{nearest(key, _READERS)}; the options are "
            f"{', '.join(_READERS)}."
        )
    try:
        return _READERS[key](value)
    except (ValueError, KeyError):
        wanted = _WANTED.get(_READERS[key], "another value")
        raise ValueError(f"{name}: {key} must be {wanted}, got {value!r}.") from None


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return "/".join("+".join(map(str, share)) for share in value)
    return str(value)


def load(
    name: str,
    *,
    tasks: int | None = None,
    data_dir: str | os.PathLike | None = None,
    seed: int | None = None,
    flat: bool | None = None,
    classes: Sequence[Sequence[int]] | None = None,
    **options: Any,
) -> Benchmark:
    """Makes the sequence of that name.

    Args:
        name: SEQUENCE_SET, such as those in `BENCHMARKS`; any of `SEQUENCES` and of `SETS`. Options
            may stand behind it, as in "split_mnist,tasks=2"; they are those below.
        tasks: number of tasks; None for the usual one.
        data_dir: folder of tensorflow-datasets; None for TFDS_DATA_DIR, else ~/tensorflow_datasets.
            (Digits, mnist5k and files of your own need none.)
        seed: for the division into train, val and test, and for permutations and angles; 0 by
            default.
        flat: True for vectors, False for images; None for the usual one.
        classes: the labels of each task of `split`, in a name 0-1/2+4/5-9.
        **options: `order`, the seed that shuffles classes, groups or sets; `validation`, the share
            of the training examples that is held out where the set does not say; `size`, the pixels
            along a side to which images are resized; `normalize`, by the "first" task's mean and
            deviation or by "each" task's own; `skip_corrupt`, to leave out images of a folder that
            cannot be read.

    Returns:
        The benchmark, whose `identifier` is a name that makes it again.

    Raises:
        ValueError: unknown name, an impossible number of tasks, an option that the benchmark does
            not have, or a data set that is not prepared.
        ImportError: a package is missing that has the set, or reads it.

    >>> load("split_digits", order=1).identifier
    'split_digits,tasks=5,seed=0,order=1'
    """
    words = parse(name)
    if classes is not None:
        classes = tuple(map(tuple, classes))
    given = {"tasks": tasks, "seed": seed, "flat": flat, "classes": classes, **options}
    chosen = _merged(name, words.options, {k: v for k, v in given.items() if v is not None})
    kind, known = SEQUENCES[words.sequence], [SETS[own] for own, _ in words.sets if own]
    _check(name, kind, known, chosen)
    seed = chosen.setdefault("seed", 0)
    bases, left_out = _read(words, chosen, data_dir)
    if "size" in chosen:
        bases = [resized(base, chosen["size"]) for base in bases]
    number = chosen.get("tasks") or (known[0].repeats if kind.repeats else None)
    own = {key: chosen[key] for key in kind.options if key in chosen}
    made = kind.make(bases if kind.several else bases[0], number, **own)
    made = _as_usual(made, known, chosen)
    chosen["tasks"] = len(made.tasks)
    rest = "".join(f",{key}={_written(chosen[key])}" for key in _READERS if key in chosen)
    return made._replace(identifier=words.base + rest, left_out=(*made.left_out, *left_out))


def _as_usual(made: Benchmark, sets: list[Set], chosen: dict[str, Any]) -> Benchmark:
    """Normalized and flat, where it is asked for or usual."""
    by = chosen.get("normalize", "first" if any(one.normalize for one in sets) else None)
    if by is not None and not are_tokens(made.tasks[0].train.x.dtype):
        made = normalized(made, by)
    return flattened(made) if chosen.get("flat", all(one.flat for one in sets)) else made


def _merged(name: str, said: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The options of the name and those beside it."""
    for key, value in given.items():
        if key not in _READERS:
            raise ValueError(f"{name}: there is no option {key!r}{nearest(key, _READERS)}.")
        if said.get(key, value) != value:
            raise ValueError(f"{name} says {key}={_written(said[key])}, but {value} is asked for.")
    return {**said, **given}


def _check(name: str, kind: Kind, sets: list[Set], chosen: dict[str, Any]) -> None:
    """Raises ValueError for what can be seen to be wrong before any data is read."""
    if chosen.get("tasks") is not None:
        check_count(f"{name}: tasks", chosen["tasks"], MAX_TASKS)
    if "validation" in chosen:
        check_number(f"{name}: validation", chosen["validation"], above=0, most=0.9)
    for key in ("seed", "order"):
        check_number(f"{name}: {key}", chosen.get(key, 0), least=0)
    flat = all(one.flat for one in sets)
    if chosen.get("flat") and not flat:
        raise ValueError(f"{name} has images only: flat cannot be True.")
    takes = {"tasks", "seed", "flat", "normalize", *kind.options}
    takes |= {option for one in sets for option in one.options} | {"size"}
    for key in chosen:
        if key not in takes:
            raise ValueError(f"{name}: {key} has no effect on it.")


def _read(
    words: Name, chosen: dict[str, Any], data_dir: str | os.PathLike | None
) -> tuple[list[Benchmark], list[str]]:
    """The sets; and those of the eight that are not at hand."""
    values, bases, left_out = {**chosen, "data_dir": data_dir}, [], []
    eight = words.base.endswith("_eight")
    for own, argument in words.sets:
        one = SETS.get(own)
        if one is None:
            left_out.append(argument)
            continue
        options = {key: values[key] for key in one.options if values.get(key) is not None}
        place = (argument,) if argument else ()
        try:
            base = one.read(*place, seed=chosen["seed"], **one.vectors, **options)
        except ValueError as error:
            if not (eight and "is not prepared" in str(error)):
                raise
            left_out.append(argument or own)
            continue
        bases.append(base)
    if not bases:
        raise ValueError(f"{words.base}: none of its sets is prepared: {', '.join(left_out)}.")
    return bases, left_out
