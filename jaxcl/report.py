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

import importlib
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from . import metrics
from .metrics import Interval

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Row", "markdown", "plots", "sentence", "summary", "table", "usage", "write"]

_LABELS = {"finetune": "Fine-tuning", "joint": "Joint"}
_LABELS |= {"hat": "HAT", "packnet": "PackNet", "pnn": "PNN"}
_WORDS = {"finetune": "fine-tuning", "joint": "joint training"}  # inside a sentence
_HEADER = ("method", "accuracy (%)", "forgetting (points)", "BWT (points)", "parameters")
_HEADER += ("extra memory", "capacity (%)", "time (s)")
_COLORS = {"finetune": "#8c8c8c", "joint": "#262626"}
_COLORS |= {"hat": "#d1550b", "packnet": "#00876a", "pnn": "#0b66ad"}
_SPARE_COLORS = ("#b5528f", "#c99700", "#6a5bb0", "#4aa3d8", "#8a5a2b")
_STYLE = {
    "svg.hashsalt": "jaxcl",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999999",
    "axes.linewidth": 0.6,
    "xtick.color": "#999999",
    "ytick.color": "#999999",
    "xtick.labelcolor": "#444444",
    "ytick.labelcolor": "#444444",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}


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
    cells = [[cell.replace("|", "\\|") for cell in _cells(row)] for row in summary(results)]
    rule = [":--"] + ["--:"] * (len(_HEADER) - 1)
    lines = [f"| {' | '.join(line)} |" for line in (_HEADER, rule, *cells)]
    return "\n".join([*lines, "", _note(results)]) + "\n"


def usage(results: dict) -> str:
    """What each task finds free, and what it uses of its predecessors, as tables in Markdown.

    Empty if no method has `free` or `reuse`. The numbers are percent, means over the seeds.
    """
    numbers = range(1, results["tasks"] + 1)
    methods, parts = results["methods"], []
    free = {name: method["free"] for name, method in methods.items() if method.get("free")}
    if free:
        means = {_label(name): np.mean(values, axis=0) for name, values in free.items()}
        parts += ["## Weights that are free when a task begins (%)"]
        parts += [_grid(["method", *numbers], means)]
    for name, method in methods.items():
        if not method.get("reuse"):
            continue
        shared = np.where(
            np.tri(results["tasks"], k=-1).T, np.mean(method["reuse"], axis=0), np.nan
        )
        own = np.mean(method["compression"], axis=0)
        means = {f"task {i}": [own[i - 1], *shared[i - 1, 1:]] for i in numbers}
        parts += [f"## {_label(name)}: weights that a task uses (% of all), and those that a later"]
        parts[-1] += " task uses too (% of them)"
        parts += [_grid(["", "uses", *(f"in task {j}" for j in numbers[1:])], means)]
    return "\n\n".join(parts) + "\n" if parts else ""


def _grid(header: list, rows: dict) -> str:
    """A table in Markdown: percentages by row, nothing for nan."""
    lines = [list(map(str, header)), [":--"] + ["--:"] * (len(header) - 1)]
    for name, values in rows.items():
        lines.append([name, *("" if np.isnan(v) else _number(v) for v in values)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table(results: dict) -> "Table":
    """The table for the terminal.

    Raises:
        ImportError: if rich is not installed.
    """
    rich = _extra("rich.table")
    box = _extra("rich.box").SIMPLE_HEAD
    out = rich.Table(title=results["benchmark"], caption=_note(results), box=box, padding=0)
    for i, name in enumerate(_HEADER):  # short enough for 80 columns
        out.add_column(name.replace(" ", "\n", 1), justify="right" if i else "left")
    for row in summary(results):
        out.add_row(*(_extra("rich.text").Text(c.replace(" ± ", "±")) for c in _cells(row)))
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
        parts.append(f"joint training ends at {_number(joint.accuracy.mean)}%{accuracy}")
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
    matplotlib = _extra("matplotlib")
    folder, paths = Path(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's style does not change the plots
        matplotlib.rcParams.update(_STYLE)
        for draw in (_accuracy, _matrix, _capacity):
            figure = draw(results)
            for kind in ("svg", "png") if figure else ():
                paths.append(folder / f"{draw.__name__.strip('_')}.{kind}")
                metadata = {"Date": None} if kind == "svg" else None
                figure.savefig(paths[-1], dpi=200, metadata=metadata)
    return paths


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
    text = "\n\n".join(part.strip() for part in parts if part) + "\n"
    files = {"results.json": json.dumps(_plain(results), indent=1) + "\n", "table.md": text}
    for name, content in files.items():
        part = folder / f"{name}.part"
        part.write_text(content, encoding="utf-8")
        os.replace(part, folder / name)
    return [*(folder / name for name in files), *plots(results, folder)]


# Plots


def _accuracy(results: dict):
    arrays, tasks = _arrays(results), results["tasks"]
    width = min(4, max(1.56, 7.8 / len(arrays)))
    figure, axes = _panels(list(arrays), width, height=1.75, share=True)
    colors = _extra("matplotlib").colormaps["viridis"](np.linspace(0, 0.74, tasks))
    seen, few, lowest = np.tri(tasks, dtype=bool), tasks <= 10, 100.0
    for name, ax in axes.items():
        values = 100 * arrays[name][0]
        mean, half = metrics.confidence_interval(values)
        lowest = min(lowest, values[:, seen].min())
        for k, color in enumerate(colors):  # the line of a task begins at its number
            x, y, band = np.arange(k, tasks) + 1, mean[k:, k], half[k:, k]
            top, alpha = np.minimum(y + band, 100), 0.2 if few else 0.06
            ax.fill_between(x, y - band, top, color=color, alpha=alpha, lw=0)
            ax.plot(x, y, color=color, lw=1.3)
            style = {"ms": 8.5 if few else 4, "mec": "white", "mew": 0.6, "clip_on": False}
            ax.plot(x[:1], y[:1], "o", color=color, zorder=3 + k, **style)
            if few and np.isfinite(y[0]):
                style = {"fontsize": 6.5 if k < 9 else 5.5, "weight": "bold", "zorder": 3 + k}
                style |= {"ha": "center", "va": "center_baseline", "color": "white"}
                ax.text(1 + k, y[0], str(1 + k), **style)
        final = _plus_minus(_interval(metrics.average_accuracy(arrays[name][0])))
        ax.set_title(final, loc="right", fontsize=7.5, color="#666666")
        _ticks(ax.xaxis, tasks)
    bottom = max(10 * math.floor(lowest / 10 - 0.1), 0)
    next(iter(axes.values())).set_ylim(bottom, 100 + 0.04 * (100 - bottom))
    return _name_axes(figure, "after training on task", "test accuracy (%)")


def _matrix(results: dict):
    arrays, tasks = _arrays(results), results["tasks"]
    means = {name: 100 * accuracy.mean(axis=0) for name, (accuracy, _) in arrays.items()}
    seen, numbers = np.tri(tasks, dtype=bool), tasks <= 10
    shades = _extra("matplotlib").colormaps["YlGnBu"](np.linspace(0.02, 0.72, 256))
    shades = _extra("matplotlib.colors").ListedColormap(shades)
    lowest = min(90, *(mean[seen].min() for mean in means.values()))
    scale = {"cmap": shades, "vmin": lowest, "vmax": 100}
    size, cells = 1.55 if tasks <= 6 else 2.5, None
    figure, axes = _panels(list(arrays), width=size, height=size)
    for name, ax in axes.items():
        shown = np.where(seen, means[name], np.nan)
        cells = ax.pcolormesh(shown, edgecolors="white", linewidth=1.0 if numbers else 0, **scale)
        for t, k in np.argwhere(np.isfinite(means[name])) if numbers else ():
            value, color = means[name][t, k], "#b5b5b5"  # pale: not trained yet
            if seen[t, k]:
                color = "white" if cells.norm(value) > 0.8 else "#222222"
            style = {"color": color, "fontsize": min(7, 65 / tasks)}
            style |= {"ha": "center", "va": "center_baseline"}
            ax.text(k + 0.5, t + 0.5, f"{value:.0f}", **style)
        ax.set(aspect="equal", ylim=(tasks, 0))
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0, labelsize=7.5)
        _ticks(ax.xaxis, tasks, start=0.5)
        _ticks(ax.yaxis, tasks, start=0.5)
    if not numbers:
        figure.colorbar(cells, ax=list(axes.values()), shrink=0.7).outline.set_visible(False)
    return _name_axes(figure, "test accuracy (%) on task", "after training on task")


def _capacity(results: dict):
    arrays, tasks = _arrays(results), results["tasks"]
    arrays = {name: 100 * used for name, (_, used) in arrays.items() if used is not None}
    if not arrays:
        return None
    figure = _extra("matplotlib.figure").Figure(figsize=(5, 2.8), layout="constrained")
    ax, x, ends = figure.subplots(), np.arange(tasks) + 1, {}
    for name, used in arrays.items():
        (mean, half), color = metrics.confidence_interval(used), _color(name, results["methods"])
        top = np.minimum(mean + half, 100)
        ax.fill_between(x, mean - half, top, color=color, alpha=0.2, lw=0)
        ax.plot(x, mean, "o-", color=color, lw=1.5, ms=3.5, clip_on=False)
        ends[name] = mean[-1]
    height = -np.inf
    for name in sorted(
        ends, key=lambda name: ends[name]
    ):  # labels keep a distance of 7 points of capacity
        height = max(ends[name], height + 7)
        place = {"xytext": (8, 0), "textcoords": "offset points", "va": "center"}
        style = {
            "color": _color(name, results["methods"]),
            "weight": "bold",
            "annotation_clip": False,
        }
        ax.annotate(_label(name), (tasks, height), **place, **style)
    ax.set_ylim(0, 100)
    _ticks(ax.xaxis, tasks)
    return _name_axes(figure, "after training on task", "capacity used (%)")


def _panels(names: list[str], width: float, height: float, share: bool = False):
    """One panel of this size (inches) for each method, no wider than a README: {name: axes}."""
    rows = math.ceil(len(names) / (8 // width))
    columns = math.ceil(len(names) / rows)
    size = (columns * width + 0.5, rows * height + 0.6)
    layout = "constrained" if share else "compressed"
    figure = _extra("matplotlib.figure").Figure(figsize=size, layout=layout)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share)
    for i, ax in enumerate(grid.flat):
        if i >= len(names):
            ax.remove()
            continue
        ax.set_title(_label(names[i]), color=_color(names[i], names), weight="bold")
        ax.tick_params(labelbottom=i + columns >= len(names), labelleft=i % columns == 0)
    return figure, dict(zip(names, grid.flat, strict=False))


def _name_axes(figure, x: str, y: str):
    figure.supxlabel(x, fontsize=9, color="#444444")
    figure.supylabel(y, fontsize=9, color="#444444")
    return figure


def _ticks(axis, tasks: int, start: float = 1) -> None:
    step = 1 if tasks <= 10 else math.ceil(tasks / 4)
    shown = np.unique([1, *range(step, tasks + 1, step)])
    axis.set_ticks(shown - 1 + start, shown)


def _color(name: str, names) -> str:
    """A method keeps its color in every plot; a name we do not know takes a spare one."""
    spare = [other for other in names if other not in _COLORS]
    return _COLORS.get(name) or _SPARE_COLORS[spare.index(name) % len(_SPARE_COLORS)]


# Words and numbers


def _clause(group: list[Row], joint: Row | None, several: bool, first: bool) -> str:
    """What one or more methods forget, and where they end."""
    s, text = "" if len(group) > 1 else "s", _names(group)
    if several:
        points = [_number(row.forgetting.mean) for row in group if row.forgetting]
        nothing = points and not first and set(points) == {"0.0"}
        amount = "nothing" if nothing else _list(points)
        text += f" forget{s} {amount}" + (" points on average" if first else "")
        text += " (below zero: old tasks improved)" if any("-" in p for p in points) else ""
        text += " and"
    at = joint.accuracy.mean if joint else math.inf
    gap = max(abs(row.accuracy.mean - at) for row in group)
    if gap <= 0.02:
        at, gap = _number(at), math.ceil(round(1000 * gap, 6)) / 10  # rounded up: stays true
        return text + f" end{s} within {gap:.1f} points of joint training ({at}%)"
    numbers = _list([_number(row.accuracy.mean) for row in group])
    return text + f" end{s} at {numbers}%" + (" accuracy" if first else "")


def _cells(row: Row) -> list[str]:
    percent = [row.accuracy, row.forgetting, row.backward_transfer]
    cells = [_label(row.method), *map(_plus_minus, percent), f"{row.parameters:,}"]
    cells += [_bytes(row.extra_bytes), _plus_minus(row.capacity)]
    return [*cells, f"{row.seconds:,.{0 if row.seconds >= 100 else 1}f}"]


def _note(results: dict) -> str:
    seeds = len(results["seeds"])
    if seeds == 1:
        return "One seed, so no intervals."
    return f"Mean and half width of the 95% interval (Student t) over {seeds} seeds."


def _plus_minus(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    spread = f" ± {_number(interval.half_width)}" if np.isfinite(interval.half_width) else ""
    return _number(interval.mean) + spread


def _number(fraction: float) -> str:
    """In percent, to one decimal, never -0.0."""
    return f"{round(100 * float(fraction), 1) + 0.0:.1f}"


def _bytes(count: int) -> str:
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(count) >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count} B"


def _label(name: str) -> str:
    return _LABELS.get(name, name)


def _names(rows: list[Row]) -> str:
    return _list([_WORDS.get(row.method, _label(row.method)) for row in rows])


def _list(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


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


def _extra(module: str):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f'jaxcl.report needs {module.split(".")[0]}, which comes with the extra "experiments": '
            'pip install "jaxcl[experiments]"'
        ) from error
