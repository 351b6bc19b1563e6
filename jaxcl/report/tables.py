"""Tables of a study, for the terminal and in Markdown."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxcl.core.checks import load_extra
from jaxcl.report import metrics, text
from jaxcl.report.results import Results, Row, as_results, summary
from jaxcl.report.text import percent, plus_minus

if TYPE_CHECKING:
    from rich.table import Table

_HEADER = ("method", "accuracy (%)", "forgetting (points)", "BWT (points)", "parameters")
_HEADER += ("extra memory", "capacity (%)", "time (s)")


def markdown(results: Results | Mapping[str, Any]) -> str:
    """The table in Markdown, with a line that says what the intervals are."""
    rows = [_cells(row) for row in summary(results)]
    return f"{text.markdown(_HEADER, rows)}\n\n{text.escaped(note(results))}\n"


def usage(results: Results | Mapping[str, Any]) -> str:
    """What each task finds free, and what it uses of its predecessors, as tables in Markdown.

    Empty if no method divides a network. The numbers are percent, means over the seeds.
    """
    results, parts = as_results(results), []
    numbers, methods = range(1, results.tasks + 1), results.methods.values()
    free = {
        method.shown.label: np.mean(metrics.free(method.measures["capacity"]), axis=0)
        for method in methods
        if method.shown.divides and "capacity" in method.measures
    }
    if free:
        parts += ["## Weights that are free when a task begins (%)"]
        parts += [_percents(["method", *numbers], free)]
    for method in methods:
        overlap = method.measures.get("overlap")
        if overlap is None or np.isnan(overlap).any():
            continue
        later = np.tri(results.tasks, k=-1, dtype=bool).T
        shared = np.where(later, np.mean(metrics.reuse(overlap), axis=0), np.nan)
        own = np.mean(np.diagonal(overlap, axis1=1, axis2=2), axis=0)
        means = {f"task {i}": [own[i - 1], *shared[i - 1, 1:]] for i in numbers}
        parts += [
            f"## {text.escaped(method.shown.label)}: weights that a task uses (% of all), and those"
            " that a later task uses too (% of them)"
        ]
        parts += [_percents(["", "uses", *(f"in task {j}" for j in numbers[1:])], means)]
    return "\n\n".join(parts) + "\n" if parts else ""


def _percents(header: list, rows: dict) -> str:
    """A table in Markdown: percentages by row, nothing for nan."""
    cells = (
        [name, *("" if np.isnan(v) else percent(v) for v in row)] for name, row in rows.items()
    )
    return text.markdown(header, cells)


def table(results: Results | Mapping[str, Any]) -> "Table":
    """The table for the terminal.

    Raises:
        ImportError: if rich is not installed.
    """
    load_extra("rich")
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    results = as_results(results)
    out = Table(
        title=Text(results.benchmark), caption=Text(note(results)), box=SIMPLE_HEAD, padding=0
    )
    for i, name in enumerate(_HEADER):  # short enough for 80 columns
        out.add_column(name.replace(" ", "\n", 1), justify="right" if i else "left")
    for row in summary(results):
        out.add_row(*(Text(cell.replace(" ± ", "±")) for cell in _cells(row)))
    return out


def _cells(row: Row) -> list[str]:
    mark = "*" if row.diverged else ""
    intervals = [row.accuracy, row.forgetting, row.backward_transfer]
    cells = [row.shown.label + mark, *map(plus_minus, intervals), f"{row.parameters:,}"]
    cells += [text.size(row.extra_bytes), plus_minus(row.capacity)]
    return [*cells, f"{row.seconds:,.{0 if row.seconds >= 100 else 1}f}"]


def note(results: Results | Mapping[str, Any]) -> str:
    """What the intervals are, and which seeds they leave out."""
    results = as_results(results)
    return " ".join([intervals(results), *divergences(results)])


def intervals(results: Results) -> str:
    """What the intervals are."""
    seeds = len(results.seeds)
    if seeds == 1:
        return "One seed, so no intervals."
    return f"Mean and half width of the 95% interval (Student t) over {seeds} seeds."


def divergences(results: Results) -> list[str]:
    """For each method whose training diverged: which seeds, in which task and epoch."""
    said = []
    for method in results.methods.values():
        found = [
            f"seed {seed} in task {at[0]}, epoch {at[1]}"
            for seed, at in zip(results.seeds, method.diverged)
            if at
        ]
        if found:
            left = "" if len(found) == len(results.seeds) else "; the intervals leave it out"
            left = left.replace("it", "them") if len(found) > 1 else left
            said.append(f"* {method.shown.label} diverged: {text.listed(found[:4])}{left}.")
    return said
