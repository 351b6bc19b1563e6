"""Tables, one sentence and plots of a study.

All is computed from one JSON-like dict, the *results*:

    {"benchmark": str, "tasks": T, "seeds": [int, ...], "settings": {...},
     "methods": {name: {"accuracy": [S][T][T], "capacity": [S][T] or None, "parameters": int,
                        "extra_bytes": int, "seconds": float, "compilations": int,
                        "free": [S][T], "reuse": [S][T][T], "compression": [S][T]}}}

`accuracy[s][t][k]` is the test accuracy in [0, 1] on task `k` after training on task `t`; None or
nan above the diagonal where it was not measured. `joint` is the reference that trains on all tasks
together: it has no forgetting. The last three may be None or absent: the share of the weights that
is free when a task begins, the share of task i's weights that task j uses, `[S][i][j]`, and the
share of all weights that a task uses by itself. Intervals are 95% Student t intervals over the
seeds.

Tables need rich, plots need matplotlib. Both come with `pip install "jaxcl[experiments]"` and are
loaded when used.
"""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxcl.core.checks import load_extra
from jaxcl.report import metrics, text
from jaxcl.report.metrics import Interval
from jaxcl.report.text import label, listed, percent, plus_minus

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Row", "markdown", "plots", "sentence", "summary", "table", "usage", "write"]

_WORDS = {"finetune": "fine-tuning", "joint": "joint training"}  # inside a sentence
_HEADER = ("method", "accuracy (%)", "forgetting (points)", "BWT (points)", "parameters")
_HEADER += ("extra memory", "capacity (%)", "time (s)")


class Row(NamedTuple):
    """One method of the table. Accuracies and capacity are fractions, over the seeds."""

    method: str
    accuracy: Interval  # mean over the tasks at the end
    forgetting: Interval | None  # None for joint training, which sees no sequence
    backward_transfer: Interval | None
    parameters: int
    extra_bytes: int
    capacity: Interval | None  # used after the last task; None for a method without one
    seconds: float


def summary(results: dict) -> list[Row]:
    """Numbers of the table, a row for each method in the order of the results.

    Args:
        results: the results of a study, as described at the top of this module.

    Raises:
        ValueError: if there is no method, or an array does not fit the tasks and seeds.
    """
    rows = []
    for name, (accuracy, capacity) in _arrays(results).items():
        numbers, in_order = results["methods"][name], name != "joint"
        row = Row(
            name,
            accuracy=_interval(metrics.average_accuracy(accuracy)),
            forgetting=_interval(metrics.forgetting(accuracy)) if in_order else None,
            backward_transfer=_interval(metrics.backward_transfer(accuracy)) if in_order else None,
            parameters=int(numbers["parameters"]),
            extra_bytes=int(numbers["extra_bytes"]),
            capacity=None if capacity is None else _interval(capacity[:, -1]),
            seconds=float(numbers["seconds"]),
        )
        rows.append(row)
    return rows


def markdown(results: dict) -> str:
    """The table in Markdown, with a line that says what the intervals are."""
    rows = [_cells(row) for row in summary(results)]
    return f"{text.markdown(_HEADER, rows)}\n\n{_note(results)}\n"


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

    out = Table(title=results["benchmark"], caption=_note(results), box=SIMPLE_HEAD, padding=0)
    for i, name in enumerate(_HEADER):  # short enough for 80 columns
        out.add_column(name.replace(" ", "\n", 1), justify="right" if i else "left")
    for row in summary(results):
        out.add_row(*(Text(cell.replace(" ± ", "±")) for cell in _cells(row)))
    return out


def sentence(results: dict) -> str:
    """What the table shows, said in one sentence from its numbers."""
    rows = {row.method: row for row in summary(results)}
    failed = [rows.pop(name) for name, row in list(rows.items()) if not _finite(row)]
    joint, base = rows.pop("joint", None), rows.pop("finetune", None)
    several, others = results["tasks"] > 1, list(rows.values())

    parts = []
    for group in filter(None, ([base] if base else [], others)):
        parts.append(_clause(group, joint, several, first=not parts))
    if joint and not any("joint training" in part for part in parts):
        accuracy = "" if parts else " accuracy"
        parts.append(f"joint training ends at {percent(joint.accuracy.mean)}%{accuracy}")
    close = [row for row in others if base and several and _overlap(row, base)]
    if close:
        verb = "intervals of {} overlap" if len(close) > 1 else "interval of {} overlaps"
        parts.append(f"in forgetting, the 95% {verb.format(_names(close))} that of fine-tuning")
    if failed:
        parts.append(f"{_names(failed)} {'have' if len(failed) > 1 else 'has'} no finite result")

    where = [] if len(results["seeds"]) > 1 else ["on one seed"]
    where += [] if several else ["with one task and so nothing to forget"]
    text = ", ".join([*where, "; ".join(parts)]) + "."
    ours = text.startswith(("on one", "with one", "fine-tuning", "joint training"))
    return text[0].upper() + text[1:] if ours else text


def plots(results: dict, folder: str | Path) -> list[Path]:
    """Draws the study: each plot as SVG and as PNG, the same bytes for the same results.

    `accuracy` shows each task as the sequence goes on, `matrix` the accuracy matrices, and
    `capacity` what is used after each task, if some method has a capacity.

    Args:
        results: the results of a study.
        folder: where the files go; it is made if need be.

    Returns:
        The paths written.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    load_extra("matplotlib")
    from jaxcl.report import figures

    arrays = _arrays(results)
    accuracy = {name: values for name, (values, _) in arrays.items()}
    used = {name: values for name, (_, values) in arrays.items()}
    drawn = {"accuracy": figures.accuracy(accuracy), "matrix": figures.matrix(accuracy)}
    if any(values is not None for values in used.values()):
        drawn["capacity"] = figures.capacity(used)
    paths = [figures.save(figure, folder, name) for name, figure in drawn.items()]
    return [path for both in paths for path in both]


def write(results: dict, folder: str | Path) -> list[Path]:
    """Writes `results.json`, `table.md` (the sentence and the tables) and the plots.

    Text files are written whole or not at all, so a reader never sees half of one.

    Args:
        results: the results of a study.
        folder: where the files go; it is made if need be.

    Returns:
        The paths written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f"# {results['benchmark']}", sentence(results), markdown(results), usage(results)]
    page = "\n\n".join(part.strip() for part in parts if part) + "\n"
    files = {"results.json": json.dumps(_plain(results), indent=1) + "\n", "table.md": page}
    paths = [text.write_whole(folder / name, content) for name, content in files.items()]
    return paths + plots(results, folder)


# Words and numbers


def _clause(group: list[Row], joint: Row | None, several: bool, first: bool) -> str:
    """What one or more methods forget, and where they end."""
    s, text = "" if len(group) > 1 else "s", _names(group)
    if several:
        points = [percent(row.forgetting.mean) for row in group if row.forgetting]
        nothing = points and not first and set(points) == {"0.0"}
        amount = "nothing" if nothing else listed(points)
        text += f" forget{s} {amount}" + (" points on average" if first else "")
        text += " (below zero: old tasks improved)" if any("-" in p for p in points) else ""
        text += " and"
    at = joint.accuracy.mean if joint else math.inf
    gap = max(abs(row.accuracy.mean - at) for row in group)
    if gap <= 0.02:
        at, gap = percent(at), math.ceil(round(1000 * gap, 6)) / 10  # rounded up: stays true
        return text + f" end{s} within {gap:.1f} points of joint training ({at}%)"
    numbers = listed([percent(row.accuracy.mean) for row in group])
    return text + f" end{s} at {numbers}%" + (" accuracy" if first else "")


def _cells(row: Row) -> list[str]:
    intervals = [row.accuracy, row.forgetting, row.backward_transfer]
    cells = [label(row.method), *map(plus_minus, intervals), f"{row.parameters:,}"]
    cells += [text.size(row.extra_bytes), plus_minus(row.capacity)]
    return [*cells, f"{row.seconds:,.{0 if row.seconds >= 100 else 1}f}"]


def _note(results: dict) -> str:
    seeds = len(results["seeds"])
    if seeds == 1:
        return "One seed, so no intervals."
    return f"Mean and half width of the 95% interval (Student t) over {seeds} seeds."


def _names(rows: list[Row]) -> str:
    return listed([_WORDS.get(row.method, label(row.method)) for row in rows])


def _finite(row: Row) -> bool:
    return bool(np.isfinite([row.accuracy.mean, (row.forgetting or row.accuracy).mean]).all())


def _overlap(row: Row, other: Row) -> bool:
    a, b = row.forgetting, other.forgetting
    if a is None or b is None:
        return False
    return bool(abs(a.mean - b.mean) <= a.half_width + b.half_width)  # False for one seed: nan


# Reading the results


def _arrays(results: dict) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """{method: (accuracy [S, T, T], capacity [S, T] or None)}, checked."""
    if not results["methods"]:
        raise ValueError("results must hold at least one method.")
    seeds, tasks = len(results["seeds"]), results["tasks"]

    def read(name, key, shape):
        values = np.asarray(results["methods"][name][key], dtype=np.float64)
        if values.shape != shape:
            raise ValueError(
                f"methods/{name}/{key} must have shape {shape} for {seeds} seeds and {tasks} "
                f"tasks, but has {values.shape}."
            )
        return values

    return {
        name: (
            read(name, "accuracy", (seeds, tasks, tasks)),
            read(name, "capacity", (seeds, tasks)) if method["capacity"] is not None else None,
        )
        for name, method in results["methods"].items()
    }


def _interval(values: np.ndarray) -> Interval:
    return Interval(*map(float, metrics.confidence_interval(values)))


def _plain(value):
    """The same for JSON: arrays as lists, nan as None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
