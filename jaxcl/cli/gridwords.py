"""Grids as words of the command: "0.01,0.1", "log:1e-3:1e-1:7", and ranges to draw from."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from jaxcl.cli.options import flag
from jaxcl.methods.spec import Spec, check_options
from jaxcl.study import grids
from jaxcl.study.grids import Range, Values
from jaxcl.study.recipes import Options


def take(args: Sequence[str], names: Collection[str]) -> tuple[list[str], dict[str, Values]]:
    """Words in which one number stands for each grid; and the grids, as the last words say them.

    Args:
        args: the words.
        names: options that can have several values, with underscores; also as METHOD.OPTION.

    Raises:
        ValueError: naming the option, for what is no grid.
    """
    rest, found, words = [], {}, iter(args)
    for word in words:
        option, equals, value = word.partition("=")
        name = option.removeprefix("--").replace("-", "_")
        if not option.startswith("--") or name not in names:
            rest.append(word)
            continue
        if not equals:
            value = next(words, None)
        if value in (None, "None", "none"):
            found.pop(name, None)
            rest += [option, *([] if value is None else [value])]
            continue
        try:
            found[name] = grids.read(str(value))
        except ValueError as error:
            raise ValueError(f"--{name.replace('_', '-')} {error}") from None
        rest += [option, repr(first(found[name]))]
    return rest, found


def first(values: Values) -> float:
    """A value that stands for all."""
    return values.low if isinstance(values, Range) else values[0]


def ends(values: Values) -> tuple[float, ...]:
    """The values that are there at least, by which all can be checked."""
    return (values.low, values.high) if isinstance(values, Range) else values


def several(grid: Mapping[str, Values]) -> dict[str, Values]:
    """The options that have more than one value."""
    return {k: v for k, v in grid.items() if isinstance(v, Range) or len(v) > 1}


def check(spec: Spec, grid: Mapping[str, Values], samples: int | None) -> None:
    """Raises ValueError, naming the option, for a grid that cannot be."""
    for name, values in grid.items():
        kind = next(k for k in (spec.options, Options) if name in _names(k))
        check_options(kind, {name: ends(values)}, flag)
        if isinstance(values, Range) and samples is None:
            raise ValueError(
                f"{flag(name)} is a range without a count; give a count, as in {values}:7, or "
                f"--samples."
            )
        if not isinstance(values, Range) and len(set(values)) < len(values):
            raise ValueError(f"{flag(name)} repeats a value: {','.join(map(str, values))}.")


def check_samples(samples: int | None) -> None:
    """Raises ValueError for a number of samples that cannot be."""
    if samples is not None and not 1 <= samples <= grids.MOST:
        raise ValueError(f"--samples must be from 1 to {grids.MOST:,}, got {samples}.")


def _names(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]
