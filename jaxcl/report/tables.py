"""Tables of a study, for the terminal and in Markdown."""

from typing import TYPE_CHECKING

import numpy as np

from jaxcl.core.checks import load_extra
from jaxcl.report import text
from jaxcl.report.text import label, percent, plus_minus

if TYPE_CHECKING:
    from rich.table import Table
from jaxcl.report.results import Row, summary

_HEADER = ("method", "accuracy (%)", "forgetting (points)", "BWT (points)", "parameters")


_HEADER += ("extra memory", "capacity (%)", "time (s)")


def markdown(results: dict) -> str:
    """The table in Markdown, with a line that says what the intervals are."""
    rows = [_cells(row) for row in summary(results)]
    return f"{text.markdown(_HEADER, rows)}\n\n{note(results)}\n"


def usage(results: dict) -> str:
    """What each task finds free, and what it uses of its predecessors, as tables in Markdown.

    Empty if no method has `free` or `reuse`. The numbers are percent, means over the seeds.
    """
    numbers = range(1, results["tasks"] + 1)
    methods, parts = results["methods"], []
    free = {name: method["free"] for name, method in methods.items() if method.get("free")}
    if free:
        means = {label(name): np.mean(values, axis=0) for name, values in free.items()}
        parts += ["## Weights that are free when a task begins (%)"]
        parts += [_percents(["method", *numbers], means)]
    for name, method in methods.items():
        if not method.get("reuse"):
            continue
        later = np.tri(results["tasks"], k=-1, dtype=bool).T
        shared = np.where(later, np.mean(method["reuse"], axis=0), np.nan)
        own = np.mean(method["compression"], axis=0)
        means = {f"task {i}": [own[i - 1], *shared[i - 1, 1:]] for i in numbers}
        parts += [f"## {label(name)}: weights that a task uses (% of all), and those that a later"]
        parts[-1] += " task uses too (% of them)"
        parts += [_percents(["", "uses", *(f"in task {j}" for j in numbers[1:])], means)]
    return "\n\n".join(parts) + "\n" if parts else ""


def _percents(header: list, rows: dict) -> str:
    """A table in Markdown: percentages by row, nothing for nan."""
    cells = (
        [name, *("" if np.isnan(v) else percent(v) for v in row)] for name, row in rows.items()
    )
    return text.markdown(header, cells)


def table(results: dict) -> "Table":
    """The table for the terminal.

    Raises:
        ImportError: if rich is not installed.
    """
    load_extra("rich")
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    out = Table(title=results["benchmark"], caption=note(results), box=SIMPLE_HEAD, padding=0)
    for i, name in enumerate(_HEADER):  # short enough for 80 columns
        out.add_column(name.replace(" ", "\n", 1), justify="right" if i else "left")
    for row in summary(results):
        out.add_row(*(Text(cell.replace(" ± ", "±")) for cell in _cells(row)))
    return out


def _cells(row: Row) -> list[str]:
    intervals = [row.accuracy, row.forgetting, row.backward_transfer]
    cells = [label(row.method), *map(plus_minus, intervals), f"{row.parameters:,}"]
    cells += [text.size(row.extra_bytes), plus_minus(row.capacity)]
    return [*cells, f"{row.seconds:,.{0 if row.seconds >= 100 else 1}f}"]


def note(results: dict) -> str:
    seeds = len(results["seeds"])
    if seeds == 1:
        return "One seed, so no intervals."
    return f"Mean and half width of the 95% interval (Student t) over {seeds} seeds."
