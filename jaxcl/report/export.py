"""Results for other programs: rows of plain values, CSV, data frames and LaTeX."""

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxcl.core.checks import check_choice, install, load_extra
from jaxcl.report import text
from jaxcl.report.during import MEASURES
from jaxcl.report.metrics import Interval
from jaxcl.report.paired import best, pairs
from jaxcl.report.results import Results, Row, as_results, summary

if TYPE_CHECKING:
    from pandas import DataFrame


def records(results: Results | Mapping[str, Any], what: str = "table") -> list[dict[str, Any]]:
    """Rows of plain values, each with the same names.

    Args:
        results: the results of a study, or what `results.json` holds.
        what: "table", a row for each method, fractions and half widths of their 95% intervals;
            "accuracy", a row for each method, seed, task trained on and task tested on, counted
            from 1; "measures", a row for each number of a method's own; "curves", a row for each
            number of each epoch; "during", a row for each accuracy at a point within a task's
            training, where point 0 is before it; or "pairs", a row for each two methods.

    Raises:
        ValueError: for something else, or results that do not fit together.

    >>> mine = {"accuracy": [[[0.9, 0.1], [0.8, 0.9]]], "parameters": 10, "extra_bytes": 0}
    >>> mine |= {"seconds": 1.5, "compilations": 1}
    >>> study = {"benchmark": "digits", "tasks": 2, "seeds": [0], "methods": {"mine": mine}}
    >>> records(study, "accuracy")[-1]
    {'method': 'mine', 'seed': 0, 'trained': 2, 'tested': 2, 'accuracy': 0.9}
    """
    check_choice("what", what, tuple(_RECORDS))
    return _RECORDS[what](as_results(results))


def _table(results: Results) -> list[dict[str, Any]]:
    rows = summary(results)
    within = tuple(MEASURES) if any(row.anytime_accuracy for row in rows) else ()
    return [_row(row, within) for row in rows]


def _row(row: Row, within: Sequence[str]) -> dict[str, Any]:
    nothing = Interval(None, None)
    found: dict[str, Any] = {"method": row.method, "label": row.shown.label}
    for name in ("accuracy", "forgetting", "backward_transfer", "capacity", *within):
        mean, half = getattr(row, name) or nothing
        found |= {name: mean, f"{name}_half_width": half}
    for name in ("parameters", "extra_bytes", "seconds", "diverged"):
        found[name] = getattr(row, name)
    return found


def _accuracy(results: Results) -> list[dict[str, Any]]:
    return [
        {"method": name, "seed": seed, "trained": t + 1, "tested": k + 1, "accuracy": float(value)}
        for name, method in results.methods.items()
        for seed, matrix in zip(results.seeds, method.accuracy)
        for (t, k), value in np.ndenumerate(matrix)
        if np.isfinite(value)
    ]


def _measures(results: Results) -> list[dict[str, Any]]:
    return [
        {"method": name, "seed": seed, "measure": measure, "task": at[0] + 1, "other": other}
        | {"value": float(one[*at])}
        for name, method in results.methods.items()
        for measure, values in method.measures.items()
        for seed, one in zip(results.seeds, values)
        for at in np.argwhere(np.isfinite(one)).tolist()
        for other in [at[1] + 1 if len(at) > 1 else None]
    ]


def _curves(results: Results) -> list[dict[str, Any]]:
    return [
        {"method": name, "seed": seed, "task": at[0] + 1, "epoch": at[1] + 1, "curve": curve}
        | {"value": float(one[*at])}
        for name, method in results.methods.items()
        for curve, values in method.curves.items()
        for seed, one in zip(results.seeds, values)
        for at in np.argwhere(np.isfinite(one)).tolist()
    ]


def _during(results: Results) -> list[dict[str, Any]]:
    return [
        {"method": name, "seed": seed, "training": t + 1, "point": p, "tested": k + 1}
        | {"accuracy": float(one[t, p, k])}
        for name, method in results.methods.items()
        if method.during is not None
        for seed, one in zip(results.seeds, method.during)
        for t, p, k in np.argwhere(np.isfinite(one)).tolist()
    ]


def _pairs(results: Results) -> list[dict[str, Any]]:
    return [
        {"first": pair.first, "second": pair.second, "difference": pair.difference.mean}
        | {"half_width": pair.difference.half_width, "seeds": pair.seeds}
        | {"p": pair.p, "p_holm": pair.adjusted}
        for pair in pairs(results)
    ]


_RECORDS: dict[str, Callable[[Results], list[dict[str, Any]]]] = {
    "table": _table,
    "accuracy": _accuracy,
    "measures": _measures,
    "curves": _curves,
    "during": _during,
    "pairs": _pairs,
}


def to_csv(results: Results | Mapping[str, Any], what: str = "table") -> str:
    """The same rows as text in CSV, with a header; what is not known is empty.

    Raises:
        ValueError: as `records` does.

    >>> mine = {"accuracy": [[[0.9, 0.1], [0.8, 0.9]]], "parameters": 10, "extra_bytes": 0}
    >>> mine |= {"seconds": 1.5, "compilations": 1}
    >>> study = {"benchmark": "digits", "tasks": 2, "seeds": [0], "methods": {"mine": mine}}
    >>> print(to_csv(study, "accuracy").splitlines()[-1])
    mine,0,2,2,0.9
    """
    rows = records(results, what)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: _cell(v) for k, v in row.items()} for row in rows)
    return out.getvalue()


def _cell(value: Any) -> Any:
    unknown = value is None or (isinstance(value, float) and not np.isfinite(value))
    return "" if unknown else value


def to_pandas(results: Results | Mapping[str, Any], what: str = "table") -> "DataFrame":
    """The same rows as a data frame.

    Raises:
        ValueError: as `records` does.
        ImportError: if pandas is not installed.

    >>> mine = {"accuracy": [[[0.9, 0.1], [0.8, 0.9]]], "parameters": 10, "extra_bytes": 0}
    >>> mine |= {"seconds": 1.5, "compilations": 1}
    >>> study = {"benchmark": "digits", "tasks": 2, "seeds": [0], "methods": {"mine": mine}}
    >>> to_pandas(study, "accuracy").shape
    (4, 5)
    """
    pandas = load_extra("pandas", install("report"))
    return pandas.DataFrame.from_records(records(results, what))


def to_latex(results: Results | Mapping[str, Any]) -> str:
    """The table in LaTeX, for the package booktabs.

    In bold: the best accuracy and the least forgetting, and those whose paired difference from it
    has a 95% interval that contains zero. References that see all tasks at once take no part.

    >>> mine = {"accuracy": [[[0.9, 0.1], [0.8, 0.9]]], "parameters": 10, "extra_bytes": 0}
    >>> mine |= {"seconds": 1.5, "compilations": 1}
    >>> study = {"benchmark": "digits", "tasks": 2, "seeds": [0], "methods": {"mine": mine}}
    >>> to_latex(study).count("toprule")
    1
    """
    results = as_results(results)
    top = {measure: best(results, measure) for measure in ("accuracy", "forgetting")}
    capacity = any(row.capacity for row in summary(results))
    lines = [
        r"\begin{tabular}{lrrr" + ("r" if capacity else "") + "}",
        r"\toprule",
        r"Method & Accuracy (\%) & Forgetting (points) & Parameters"
        + (r" & Capacity (\%)" if capacity else "")
        + r" \\",
        r"\midrule",
    ]
    for row in summary(results):
        cells = [latex(row.shown.label + ("*" if row.diverged else ""))]
        cells += [_interval(row.accuracy, row.method in top["accuracy"])]
        cells += [_interval(row.forgetting, row.forgetting and row.method in top["forgetting"])]
        cells += [f"{row.parameters:,}".replace(",", r"\,")]
        cells += [_interval(row.capacity, False)] if capacity else []
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _interval(value: Interval | None, bold: Any) -> str:
    if value is None:
        return "--"
    said = text.plus_minus(value).replace(" ± ", r" \pm ")
    return rf"$\mathbf{{{said}}}$" if bold else f"${said}$"


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def latex(words: str) -> str:
    """Text in which LaTeX sees no command.

    >>> print(latex("50 % of a_b"))
    50 \\% of a\\_b
    """
    return re.sub(r"[\\~^&%$#_{}]", lambda found: _LATEX[found[0]], words)
