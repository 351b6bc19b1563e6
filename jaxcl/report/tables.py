"""Tables of a study, for the terminal and in Markdown."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxcl.core.checks import load_extra
from jaxcl.report import metrics, presets, text
from jaxcl.report.results import Results, Row, as_results, summary
from jaxcl.report.text import percent, plus_minus

if TYPE_CHECKING:
    from rich.table import Table

_HEADER = ("method", "accuracy (%)", "forgetting (points)", "BWT (points)", "parameters")
_HEADER += ("extra memory", "capacity (%)", "time (s)")


def markdown(results: Results | Mapping[str, Any]) -> str:
    """The table in Markdown, with a line that says what the intervals are.

    >>> mine = {"accuracy": [[[0.9, 0.1], [0.8, 0.9]]], "parameters": 10, "extra_bytes": 0}
    >>> mine |= {"seconds": 1.5, "compilations": 1}
    >>> study = {"benchmark": "digits", "tasks": 2, "seeds": [0], "methods": {"mine": mine}}
    >>> page = markdown(study)
    >>> print(page.splitlines()[2])
    | mine | 85.0 | 10.0 | -10.0 | 10 | 0 B | - | 1.5 |
    """
    rows = [_cells(row) for row in summary(results)]
    return f"{text.markdown(_HEADER, rows)}\n\n{text.escaped(note(results))}\n"


class Ledger(NamedTuple):
    """Shares of the network by task, in percent, means over the seeds.

    Attributes:
        title: what they are of.
        header: of the columns, the first one's with it.
        rows: by name; nan where there is nothing to say.
    """

    title: str
    header: list[str]
    rows: dict[str, list[float]]


def ledgers(results: Results | Mapping[str, Any]) -> list[Ledger]:
    """What each task finds free, and what it uses of its predecessors, as tables of percents.

    There are none if no method divides a network.
    """
    results, found = as_results(results), []
    numbers = list(map(str, range(1, results.tasks + 1)))
    free = {
        method.shown.label: np.mean(metrics.free(method.measures["capacity"]), axis=0).tolist()
        for method in results.methods.values()
        if method.shown.divides and "capacity" in method.measures
    }
    if free:
        title = "Weights that are free when a task begins (%)"
        found.append(Ledger(title, ["method", *numbers], free))
    for method in results.methods.values():
        overlap = method.measures.get("overlap")
        if overlap is None or np.isnan(overlap).any():
            continue
        later = np.tri(results.tasks, k=-1, dtype=bool).T
        shared = np.where(later, np.mean(metrics.reuse(overlap), axis=0), np.nan)
        own = np.mean(np.diagonal(overlap, axis1=1, axis2=2), axis=0)
        rows = {f"task {n}": [own[i], *shared[i, 1:]] for i, n in enumerate(numbers)}
        title = (
            f"{method.shown.label}: weights that a task uses (% of all), and those that a later "
            f"task uses too (% of them)"
        )
        header = ["", "uses", *(f"in task {n}" for n in numbers[1:])]
        found.append(Ledger(title, header, rows))
    return found


def usage(results: Results | Mapping[str, Any]) -> str:
    """The ledgers in Markdown; empty if no method divides a network.

    >>> mine = {"accuracy": [[[0.9, 0.1], [0.8, 0.9]]], "parameters": 10, "extra_bytes": 0}
    >>> mine |= {"seconds": 1.5, "compilations": 1, "capacity": [[0.5, 0.75]]}
    >>> mine |= {"shown": {"label": "Mine", "words": "mine", "divides": True}}
    >>> study = {"benchmark": "digits", "tasks": 2, "seeds": [0], "methods": {"mine": mine}}
    >>> print(usage(study).splitlines()[-1])  # what is free as each task begins
    | Mine | 100.0 | 50.0 |
    """
    parts = []
    for title, header, rows in ledgers(results):
        cells = ([name, *map(share, row)] for name, row in rows.items())
        parts += [f"## {text.escaped(title)}", text.markdown(header, cells)]
    return "\n\n".join(parts) + "\n" if parts else ""


def share(value: float) -> str:
    """A percentage, nothing for nan."""
    return "" if np.isnan(value) else percent(value)


WITHIN = ("method", "anytime accuracy (%)", "learning-curve area (%)")


def within(results: Results | Mapping[str, Any]) -> tuple[Sequence[str], list[list[str]]]:
    """Anytime accuracy and learning-curve area: a header, and rows where they were measured."""
    rows = [
        [row.shown.label, plus_minus(row.anytime_accuracy), plus_minus(row.learning_curve_area)]
        for row in summary(results)
        if row.anytime_accuracy is not None
    ]
    return WITHIN, rows


def within_markdown(results: Results) -> str:
    """The same in Markdown; empty if nothing was measured within tasks."""
    header, rows = within(results)
    if not rows:
        return ""
    return f"## {text.escaped(_within_title(results))}\n\n{text.markdown(header, rows)}\n"


def within_table(results: Results | Mapping[str, Any]) -> "Table | None":
    """The same for the terminal; None if nothing was measured within tasks.

    Raises:
        ImportError: if rich is not installed.

    >>> mine = {"accuracy": [[[0.9]]], "parameters": 10, "extra_bytes": 0, "seconds": 1.5}
    >>> mine |= {"compilations": 1, "during": [[[[0.1], [0.7], [0.9]]]]}
    >>> study = {"benchmark": "digits", "tasks": 1, "seeds": [0], "methods": {"mine": mine}}
    >>> found = within_table(study)
    >>> [column.header for column in found.columns]
    ['method', 'anytime accuracy (%)', 'learning-curve area (%)']
    """
    results = as_results(results)
    header, rows = within(results)
    if not rows:
        return None
    load_extra("rich")
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    out = Table(title=Text(_within_title(results)), box=SIMPLE_HEAD, padding=0)
    for i, name in enumerate(header):
        out.add_column(name, justify="right" if i else "left")
    for cells in rows:
        out.add_row(*map(Text, cells))
    return out


def _within_title(results: Results) -> str:
    distance = results.settings.get("evaluate_every")
    return f"Within the tasks{f' (evaluated every {distance})' if distance else ''}"


def table(results: Results | Mapping[str, Any]) -> "Table":
    """The table for the terminal.

    Raises:
        ImportError: if rich is not installed.

    >>> mine = {"accuracy": [[[0.9, 0.1], [0.8, 0.9]]], "parameters": 10, "extra_bytes": 0}
    >>> mine |= {"seconds": 1.5, "compilations": 1}
    >>> study = {"benchmark": "digits", "tasks": 2, "seeds": [0], "methods": {"mine": mine}}
    >>> found = table(study)
    >>> found.row_count, str(found.caption)
    (1, 'One seed, so no intervals.')
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
    """What the intervals are, which seeds they leave out, and where the settings come from."""
    results = as_results(results)
    parts = [
        intervals(len(results.seeds)),
        *divergences(results),
        *exhausted(results),
        presets.said(results),
    ]
    return " ".join(filter(None, parts))


def intervals(seeds: int) -> str:
    """What the intervals over so many seeds are."""
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


def exhausted(results: Results) -> list[str]:
    """For each method that had no weight left for a task: the first such task, and how often."""
    said = []
    for method in results.methods.values():
        if not method.shown.divides or "capacity" not in method.measures:
            continue
        full = method.measures["capacity"][:, :-1] >= 1
        if full.any():
            task, seeds = int(np.argmax(full.any(axis=0))) + 2, int(full.any(axis=1).sum())
            said.append(
                f"{method.shown.label} had no free weight when task {task} began, with {seeds} of "
                f"{text.counted(len(results.seeds), 'seed')}."
            )
    return said
