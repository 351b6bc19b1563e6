"""Parts of web pages: the table and what goes with it. All text is escaped."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from jaxcl.report import text
from jaxcl.report.metrics import Interval
from jaxcl.report.paired import best
from jaxcl.report.results import Results, Row, as_results, summary
from jaxcl.report.tables import note
from jaxcl.report.wording import sentence


def summary_html(results: Results | Mapping[str, Any]) -> str:
    """The sentence, the table and what its intervals are, as HTML for a notebook."""
    results = as_results(results)
    return (
        f"<p>{escape(sentence(results))}</p>\n{table(results)}\n"
        f"<p><small>{escape(caption(results))}</small></p>"
    )


def caption(results: Results) -> str:
    """What the intervals are, and what is in bold."""
    tied = "" if len(results.seeds) == 1 else (
        ", and what cannot be told from it: the paired difference has a 95% interval that "
        "contains zero"
    )  # fmt: skip
    return f"{note(results)} In bold: the best{tied}."


def table(results: Results) -> str:
    """A row for each method; cells carry the numbers to sort by, and the best are marked."""
    top = {measure: best(results, measure) for measure in ("accuracy", "forgetting")}
    header = ["Method", "Accuracy (%)", "Forgetting (points)", "BWT (points)", "Parameters"]
    header += ["Extra memory", "Capacity used (%)", "Time (s)"]
    rows = [_row(row, top) for row in summary(results)]
    return grid(header, rows, kind="sortable")


def _row(row: Row, top: Mapping[str, set[str]]) -> list[str]:
    label = row.shown.label + ("*" if row.diverged else "")
    return [
        f'<th scope="row" data-value="{escape(label)}">{escape(label)}</th>',
        interval(row.accuracy, row.method in top["accuracy"]),
        interval(row.forgetting, row.method in top["forgetting"]),
        interval(row.backward_transfer),
        number(row.parameters, f"{row.parameters:,}"),
        number(row.extra_bytes, text.size(row.extra_bytes)),
        interval(row.capacity),
        number(row.seconds, f"{row.seconds:,.1f}"),
    ]


def interval(value: Interval | None, bold: bool = False, mark: str = "") -> str:
    """A cell with a mean and its half width, and the mark of a note."""
    if value is None or not np.isfinite(value.mean):
        return number(None, f"-{mark}")
    said = escape(text.plus_minus(value) + mark)
    cell = number(value.mean, f"<strong>{said}</strong>" if bold else said)
    return cell.replace("<td", '<td class="best"', 1) if bold else cell


def number(value: float | None, said: str) -> str:
    """A cell with what it says, and the number by which it is sorted."""
    return f'<td data-value="{"" if value is None else repr(float(value))}">{said}</td>'


def head(name: str) -> str:
    """The cell that names a row."""
    return f'<th scope="row">{escape(name)}</th>'


def scroll(table: str, tall: bool = False) -> str:
    """A table in a frame within which it scrolls."""
    return f'<div class="scroll{" tall" if tall else ""}" tabindex="0">{table}</div>'


def section(name: str, title: str, *parts: str) -> str:
    """A part of a page, with its heading."""
    return f'<section id="{name}"><h2>{escape(title)}</h2>\n' + "\n".join(parts) + "\n</section>"


def grid(header: Sequence[str], rows: Sequence[Sequence[str]], kind: str) -> str:
    """A table of ready cells."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "\n".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    return (
        f'<table class="{kind}">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n'
        f"</table>"
    )
