"""Names, numbers, tables and files of text, as reports and experiments write them."""

import contextlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from jaxcl.report.metrics import Interval


def percent(fraction: float, digits: int = 1) -> str:
    """A fraction in percent, never -0.0.

    >>> percent(0.1234), percent(-0.0001)
    ('12.3', '0.0')
    """
    return f"{round(100 * float(fraction), digits) + 0.0:.{digits}f}"


def plus_minus(interval: Interval | None, digits: int = 1) -> str:
    """Mean and half width of a fraction, in percent; the mean alone for one seed, "-" for none.

    >>> plus_minus(Interval(0.7, 0.166)), plus_minus(Interval(0.7, float("nan"))), plus_minus(None)
    ('70.0 ± 16.6', '70.0', '-')
    """
    if interval is None:
        return "-"
    mean, half_width = (percent(value, digits) for value in interval)
    return f"{mean} ± {half_width}" if np.isfinite(interval.half_width) else mean


def signed(interval: Interval) -> str:
    """A difference of fractions in percentage points, with its sign.

    >>> signed(Interval(0.7, 0.166)), signed(Interval(-0.02, float("nan"))), signed(Interval(0, 0))
    ('+70.0 ± 16.6', '-2.0', '0.0 ± 0.0')
    """
    said = plus_minus(interval)
    return f"+{said}" if round(interval.mean, 3) > 0 else said


def p_value(p: float) -> str:
    """A probability; "-" for one that is not known.

    >>> p_value(0.03456), p_value(1e-9), p_value(float("nan"))
    ('0.035', '< 0.001', '-')
    """
    if np.isnan(p):
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def size(count: int) -> str:
    """A number of bytes.

    >>> size(2048), size(500)
    ('2.0 kB', '500 B')
    """
    for unit_bytes, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(count) >= unit_bytes:
            return f"{count / unit_bytes:,.1f} {unit}"
    return f"{count} B"


def counted(count: int, noun: str) -> str:
    """A number of things.

    >>> counted(1, "seed"), counted(5, "seed")
    ('1 seed', '5 seeds')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def listed(words: Sequence[str]) -> str:
    """Words in a sentence.

    >>> listed(["one", "two", "three"])
    'one, two and three'
    """
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def markdown(header: Sequence, rows: Iterable[Sequence], left: int = 1) -> str:
    """A table in Markdown, whose first columns are aligned to the left and all others to the right.

    >>> print(markdown(["method", "%"], [["a|b", 90]]))
    | method | % |
    | :-- | --: |
    | a\\|b | 90 |
    """
    cells = [[escaped(str(cell)) for cell in row] for row in (header, *rows)]
    cells.insert(1, [":--"] * left + ["--:"] * (len(header) - left))
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def escaped(text: str) -> str:
    """Text for Markdown, on one line: nothing in it is taken for markup.

    >>> print(escaped("a|b <i> $x$"))
    a\\|b &lt;i&gt; \\$x\\$
    """
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_|$\[\]])", r"\\\1", text)


def write_whole(path: Path, content: str | bytes) -> Path:
    """Writes a file whole or not at all, so that nobody sees half of one; its path.

    Raises:
        OSError: if it cannot be written; its `filename` is the path.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(content if isinstance(content, bytes) else content.encode())
        os.replace(part, path)
    except OSError as error:  # a full disk does not say which file it has no room for
        with contextlib.suppress(OSError):
            part.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error
    return path
