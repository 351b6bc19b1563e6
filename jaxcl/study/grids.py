"""Grids of settings: values that are listed, spaced evenly, or drawn from a range."""

import itertools
import math
import random
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SEED = 0  # of all draws: the same words give the same settings
SCALES = ("lin", "log")
MOST = 1_000_000  # values of a range, and settings of a grid


@dataclass(frozen=True)
class Range:
    """Numbers to be drawn: evenly ("lin"), or so that their logarithms are even ("log").

    Attributes:
        scale: "lin" or "log".
        low: the least.
        high: the greatest.
    """

    scale: str
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.scale}:{self.low}:{self.high}"

    def at(self, share: float) -> float:
        """The number that lies so far along the range, to four digits; the ends are exact."""
        if share in (0, 1):
            return self.high if share else self.low
        if self.scale == "log":
            value = math.exp(math.log(self.low) + share * math.log(self.high / self.low))
        else:
            value = self.low + share * (self.high - self.low)
        return min(max(float(f"{value:.4g}"), self.low), self.high)


Values = tuple[float, ...] | Range


def read(text: str) -> Values:
    """Values in words.

    Args:
        text: numbers, "0.01,0.1"; a range with a count, "log:1e-3:1e-1:7"; or one to draw from,
            "lin:0:1".

    Raises:
        ValueError: for other words.

    >>> read("0.01,0.1"), read("log:0.01:1:3"), read("lin:0:1")
    ((0.01, 0.1), (0.01, 0.1, 1.0), Range(scale='lin', low=0.0, high=1.0))
    """
    scale, colon, rest = text.partition(":")
    parts = rest.split(":")
    try:
        if not colon:
            return tuple(map(float, text.split(",")))
        if scale in SCALES and len(parts) in (2, 3):
            found = _range(scale, float(parts[0]), float(parts[1]))
            return found if len(parts) == 2 else spaced(found, _count(parts[2]))
    except ValueError as error:
        if str(error).startswith("needs"):
            raise
    raise ValueError(
        f"takes numbers, as in 0.01,0.1, or a range by itself, as in log:1e-3:1e-1:7 or lin:0:1, "
        f"got {text!r}."
    )


def _range(scale: str, low: float, high: float) -> Range:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"needs a range from low to high, got {low:g} and {high:g}.")
    if scale == "log" and low <= 0:
        raise ValueError(f"needs a logarithmic range that begins above 0, got {low:g}.")
    return Range(scale, low, high)


def _count(text: str) -> int:
    count = int(text)
    if not 2 <= count <= MOST:
        raise ValueError(f"needs a range of 2 to {MOST:,} values, got {count}.")
    return count


def spaced(values: Range, count: int) -> tuple[float, ...]:
    """So many numbers, from the range's one end to the other."""
    return tuple(values.at(i / (count - 1)) for i in range(count))


def settings(
    grid: Mapping[str, Values | Sequence[float]], samples: int | None = None
) -> list[dict[str, float]]:
    """The settings of a grid, each a value for every option.

    Args:
        grid: the values of each option.
        samples: how many settings; None for every combination. Where an option has a range, each
            setting is drawn by itself; else they are that many of all combinations, in order.

    Raises:
        ValueError: if there is nothing to choose from, a range comes without `samples`, or the
            settings are more than a million.

    >>> settings({"a": (1.0, 2.0), "b": (3.0, 4.0)})[:2]
    [{'a': 1.0, 'b': 3.0}, {'a': 1.0, 'b': 4.0}]
    >>> len(settings({"a": Range("log", 0.01, 1.0), "b": (3.0, 4.0)}, samples=5))
    5
    """
    for name, values in grid.items():
        if isinstance(values, Range) and samples is None:
            raise ValueError(f"{name} is a range without a count; say how many samples to draw.")
        if not isinstance(values, Range) and not values:
            raise ValueError(f"{name} has no value to choose from.")
    drawn = any(isinstance(values, Range) for values in grid.values())
    if drawn and samples is not None:
        columns = [_drawn(name, values, samples) for name, values in grid.items()]
        return [dict(zip(grid, row)) for row in zip(*columns)]
    listed = {name: tuple(values) for name, values in grid.items()}  # pyright: ignore
    count = math.prod(map(len, listed.values()))
    if min(count, samples or count) > MOST:
        raise ValueError(f"a grid of {count:,} settings is too large; take fewer values.")
    if samples is None or samples >= count:
        return [dict(zip(listed, row)) for row in itertools.product(*listed.values())]
    shape = [len(values) for values in listed.values()]
    chosen = sorted(random.Random(SEED).sample(range(count), samples))
    return [
        {name: values[i] for (name, values), i in zip(listed.items(), np.unravel_index(n, shape))}
        for n in chosen
    ]


def _drawn(name: str, values: Values | Sequence[float], samples: int) -> list[float]:
    """An option's numbers; neither other options nor more samples change them."""
    shares = np.random.default_rng([SEED, zlib.crc32(name.encode())]).random(samples)
    if isinstance(values, Range):
        return [values.at(float(share)) for share in shares]
    return [values[int(share * len(values))] for share in shares]
