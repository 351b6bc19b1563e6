"""The plots of studies, of sweeps and of sensitivities, all in one style. Needs matplotlib.

Each function gives a figure, and `save` writes it. A user's style changes neither, and is left as
it is.
"""

import contextlib
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from jaxcl.report import metrics
from jaxcl.report.colors import colors as colors_of
from jaxcl.report.results import Results, Shown, shown_in, shown_of, summary
from jaxcl.report.text import plus_minus, write_whole

MOST_PIXELS = 2**16 - 1  # along a side of a PNG that matplotlib draws

_PLAIN = "#444444"
_SHADES = ListedColormap(matplotlib.colormaps["YlGnBu"](np.linspace(0.02, 0.72, 256)))
_STYLE: dict[Any, Any] = {
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
_CENTERED = {"ha": "center", "va": "center_baseline"}


@contextlib.contextmanager
def style():
    """The style of all plots, for a `with` statement or as a decorator."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


@style()
def save(figure: Figure, folder: str | Path, name: str) -> list[Path]:
    """Writes a figure as SVG and as PNG, the same bytes for the same figure.

    Args:
        figure: the figure.
        folder: where the files go; it is made if need be.
        name: of the files.

    Returns:
        The paths of the SVG and of the PNG.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    svg, png = folder / f"{name}.svg", folder / f"{name}.png"
    dpi = min(200, MOST_PIXELS / max(figure.get_size_inches()))
    layout = figure.get_layout_engine()
    for path, metadata in ((svg, {"Date": None}), (png, None)):
        drawn = io.BytesIO()
        figure.savefig(drawn, format=path.suffix[1:], dpi=dpi, metadata=metadata)
        figure.set_layout_engine("none")  # the second is laid out as the first
        write_whole(path, drawn.getvalue())
    figure.set_layout_engine(layout)
    return [svg, png]


@style()
def accuracy(methods: Mapping[str, np.ndarray], shown: Mapping[str, Shown] | None = None) -> Figure:
    """Each task's accuracy as the sequence goes on, a panel for each method.

    Args:
        methods: accuracy matrices [seeds, tasks, tasks] in [0, 1].
    """
    tasks = next(iter(methods.values())).shape[-1]
    width = min(4, max(1.56, 7.8 / len(methods)))
    figure, axes = panels(list(methods), shown, width, height=1.75, share=True)
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.74, tasks))
    seen, few, lowest = np.tri(tasks, dtype=bool), tasks <= 10, 100.0
    for name, ax in axes.items():
        values = 100 * methods[name]
        mean, half = metrics.confidence_interval(values)
        lowest = np.fmin(lowest, np.fmin.reduce(values[:, seen], axis=None))
        for k, color in enumerate(colors):  # the line of a task begins at its number
            x, y, band = np.arange(k, tasks) + 1, mean[k:, k], half[k:, k]
            _band(ax, x, y, band, color=color, alpha=0.2 if few else 0.06)
            ax.plot(x, y, color=color, lw=1.3)
            dot = {"ms": 8.5 if few else 4, "mec": "white", "mew": 0.6, "clip_on": False}
            ax.plot(x[:1], y[:1], "o", color=color, zorder=3 + k, **dot)
            if few and np.isfinite(y[0]):
                size = 6.5 if k < 9 else 5.5
                number = {"fontsize": size, "weight": "bold", "zorder": 3 + k, "color": "white"}
                ax.text(1 + k, y[0], str(1 + k), **number, **_CENTERED)
        final = metrics.confidence_interval(metrics.average_accuracy(methods[name]))
        ax.set_title(plus_minus(final), loc="right", fontsize=7.5, color="#666666")
        _ticks(ax.xaxis, tasks)
    bottom = max(10 * math.floor(lowest / 10 - 0.1), 0)
    next(iter(axes.values())).set_ylim(bottom, 100 + 0.04 * (100 - bottom))
    return name_axes(figure, "after training on task", "test accuracy (%)")


@style()
def matrix(methods: Mapping[str, np.ndarray], shown: Mapping[str, Shown] | None = None) -> Figure:
    """The accuracy matrices, a panel for each method.

    Args:
        methods: accuracy matrices [seeds, tasks, tasks] in [0, 1].
    """
    means = {name: 100 * values.mean(axis=0) for name, values in methods.items()}
    seen = np.tri(next(iter(means.values())).shape[-1], dtype=bool)
    lowest = np.fmin(90, np.fmin.reduce([mean[seen] for mean in means.values()], axis=None))
    figure = _matrices(means, shown, seen, lowest)
    return name_axes(figure, "test accuracy (%) on task", "after training on task")


@style()
def confusion(
    methods: Mapping[str, np.ndarray], shown: Mapping[str, Shown] | None = None
) -> Figure:
    """What the examples of each task are taken for, a panel for each method.

    Args:
        methods: [seeds, tasks, tasks], shares in [0, 1] of the examples of one task, in rows.
    """
    means = {name: 100 * values.mean(axis=0) for name, values in methods.items()}
    everything = np.ones(next(iter(means.values())).shape, bool)
    figure = _matrices(means, shown, everything, 0)
    return name_axes(figure, "taken for task (%)", "examples of task")


def _matrices(means: Mapping[str, np.ndarray], shown, seen: np.ndarray, lowest: float) -> Figure:
    """A square of numbers [tasks, tasks] for each method, colored where it is `seen`."""
    tasks = len(seen)
    numbers = tasks <= 10
    size = 1.55 if tasks <= 6 else 2.5 if len(means) <= 6 else 1.9
    figure, axes = panels(list(means), shown, width=size, height=size)
    cells: Any = None
    for name, ax in axes.items():
        colored, written = np.where(seen, means[name], np.nan), means[name] if numbers else None
        cells = _cells(ax, colored, written, lowest, 100, fontsize=min(7, 26 * size / tasks))
        ax.set(aspect="equal", ylim=(tasks, 0))
        _ticks(ax.xaxis, tasks, start=0.5)
        _ticks(ax.yaxis, tasks, start=0.5)
    if not numbers:
        figure.colorbar(cells, ax=list(axes.values()), shrink=0.7).outline.set_visible(False)
    return figure


@style()
def capacity(
    methods: Mapping[str, np.ndarray | None], shown: Mapping[str, Shown] | None = None
) -> Figure:
    """What is used after each task, a line for each method that has a capacity.

    Args:
        methods: shares in use [seeds, tasks] in [0, 1], or None.
    """
    used = {name: 100 * values for name, values in methods.items() if values is not None}
    tasks = next(iter(used.values())).shape[-1]
    figure = Figure(figsize=(5, 2.8), layout="constrained")
    ax, x, ends = figure.subplots(), np.arange(tasks) + 1, {}
    colors = _colors(methods, shown)
    for name, values in used.items():
        (mean, half), color = metrics.confidence_interval(values), colors[name]
        _band(ax, x, mean, half, color=color, alpha=0.2)
        ax.plot(x, mean, "o-", color=color, lw=1.5, ms=3.5, clip_on=False)
        ends[name] = mean[-1]
    for name, height in _spread(ends, least=7).items():
        place = {"xytext": (8, 0), "textcoords": "offset points", "va": "center"}
        words = {"color": colors[name], "weight": "bold", "annotation_clip": False}
        ax.annotate(escaped(_shown(name, shown).label), (tasks, height), **place, **words)
    ax.set_ylim(0, 100)
    _ticks(ax.xaxis, tasks)
    return name_axes(figure, "after training on task", "capacity used (%)")


@style()
def curves(
    methods: Mapping[str, Mapping[str, np.ndarray]], shown: Mapping[str, Shown] | None = None
) -> Figure:
    """What was recorded after each epoch, task after task, a panel for each kind of curve.

    Args:
        methods: for each method its curves by name, [seeds, tasks, epochs], nan where there is
            nothing.
    """
    kinds = list(dict.fromkeys(kind for one in methods.values() for kind in one))
    tasks = next(iter(next(iter(methods.values())).values())).shape[1]
    figure = Figure(figsize=(8, 0.6 + 1.9 * len(kinds)), layout="constrained")
    grid, colors = (
        figure.subplots(len(kinds), squeeze=False, sharex=True)[:, 0],
        _colors(methods, shown),
    )
    for ax, kind in zip(grid, kinds):
        for name, values in ((name, one[kind]) for name, one in methods.items() if kind in one):
            with warnings.catch_warnings():  # of epochs that no seed has
                warnings.simplefilter("ignore", RuntimeWarning)
                mean = np.nanmean(values, axis=0)
            for task, line in enumerate(mean):
                x = task + np.arange(1, len(line) + 1) / len(line)
                label = escaped(_shown(name, shown).label) if task == 0 else None
                ax.plot(x, line, color=colors[name], lw=1.2, label=label)
        ax.set_title(kind.replace("_", " "), color=_PLAIN)
        ax.set_xlim(0, tasks)
        for task in range(1, tasks):
            ax.axvline(task, color="#dddddd", lw=0.6, zorder=0)
    _ticks(grid[-1].xaxis, tasks, start=0.5)
    grid[-1].tick_params(axis="x", length=0)
    grid[-1].set_xlabel("epochs of task", color=_PLAIN)
    handles = grid[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right upper", frameon=False)
    return figure


def _spread(heights: Mapping[str, float], least: float) -> dict[str, float]:
    """Heights that are moved apart until each keeps its distance from the next."""
    names = sorted(heights, key=lambda name: heights[name])
    places = np.array([heights[name] for name in names], np.float64)
    for _ in range(200):
        missing = np.maximum(least - np.diff(places), 0) / 2
        places[1:] += missing
        places[:-1] -= missing
    return dict(zip(names, places))


@style()
def scenarios(found: Mapping[str, Results]) -> Figure:
    """Accuracy at the end, a line for each method and a mark for each scenario.

    Args:
        found: the results by scenario; a method need not be in each.
    """
    shown = shown_in(found.values())
    places = {name: -i for i, name in enumerate(shown)}
    figure = Figure(figsize=(6, 0.9 + 0.28 * len(places)), layout="constrained")
    ax, marks = figure.subplots(), "osD"
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.74, len(found)))
    for k, (scenario, results) in enumerate(found.items()):
        for row in summary(results):
            mean, half = 100 * row.accuracy.mean, 100 * np.nan_to_num(row.accuracy.half_width)
            half, y = np.minimum(half, [[mean], [100 - mean]]), places[row.method]
            hollow = {} if results.methods[row.method].inferred is None else {"mfc": "white"}
            look = {"color": shades[k], "ms": 5, "lw": 0, "elinewidth": 1.3, **hollow}
            ax.errorbar([mean], [y], xerr=half, fmt=marks[k % 3], **look)
        ax.plot([], [], marks[k % 3], color=shades[k], ms=5, label=scenario)
        if results.chance is not None:
            ax.axvline(100 * results.chance, color=shades[k], lw=0.8, ls=":")
    ax.set_yticks(list(places.values()), [escaped(one.label) for one in shown.values()])
    ax.set(xlim=(0, 102), xlabel="test accuracy at the end (%)")
    ax.grid(axis="y", color="#eeeeee")
    ax.set_axisbelow(True)
    inferred = any(one.inferred for r in found.values() for one in r.methods.values())
    title = f"dotted: guessing{'; hollow: the task is inferred' if inferred else ''}"
    figure.legend(loc="outside upper left", ncols=3, frameon=False, title=title)
    return figure


@style()
def shares(
    panels: Mapping[str, np.ndarray], layers: Sequence[str], columns: Sequence[str]
) -> Figure:
    """Shares [layers, columns] in [0, 1], a panel for each title; the first layer is lowest."""
    rows, width = len(layers), len(columns)
    size = (len(panels) * max(1.4, 0.75 * width) + 0.7, 0.45 * rows + 0.9)
    figure = Figure(figsize=size, layout="compressed")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for ax, (title, values) in zip(axes, panels.items(), strict=True):
        _cells(ax, 100 * values, 100 * values, 0, 100)
        ax.set_title(escaped(title), weight="bold", color=_PLAIN)
        ax.set_xticks(np.arange(width) + 0.5, map(escaped, columns))
        ax.set_yticks(np.arange(rows) + 0.5, map(escaped, layers))
    return name_axes(figure, "share of each column (%)", "hidden layer")


@style()
def heat_map(
    values: np.ndarray, rows: Sequence[str], columns: Sequence[str], names: tuple[str, str]
) -> Figure:
    """Accuracy for each pair of settings, the highest in bold.

    Args:
        values: accuracy [rows, columns] in [0, 1]; nan leaves a cell empty.
        rows: what each row stands for; the first is highest.
        columns: what each column stands for.
        names: of what differs down the rows, "" for nothing, and across the columns.
    """
    height, width = values.shape
    size = (1.6 + 0.8 * width, 1.1 + 0.5 * height)
    figure = Figure(figsize=size, layout="constrained")
    ax, shown = figure.subplots(), 100 * values
    known = shown[np.isfinite(shown)]
    low, high = (known.min(), known.max()) if known.size else (0, 100)
    _cells(ax, shown, shown, low, high, digits=1, fontsize=9)
    if known.size:  # only what is finite has a text
        ax.texts[int(np.argmax(known))].set_fontweight("bold")
    ax.set(ylim=(height, 0), xlabel=escaped(names[1]), ylabel=escaped(names[0]))
    ax.set_title("validation accuracy (%)")
    ax.set_xticks(np.arange(width) + 0.5, map(escaped, columns))
    rows = rows if names[0] else []
    ax.set_yticks(np.arange(len(rows)) + 0.5, map(escaped, rows))
    return figure


def panels(names: list[str], shown, width: float, height: float, share: bool = False):
    """One panel of this size (inches) for each method, no wider than a README: {name: axes}."""
    colors, labels = _colors(names, shown), [_shown(name, shown).label for name in names]
    rows = math.ceil(len(names) / (8 // width))
    columns = math.ceil(len(names) / rows)
    size = (columns * width + 0.5, rows * height + 0.6)
    figure = Figure(figsize=size, layout="constrained" if share else "compressed")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share)
    for i, ax in enumerate(grid.flat):
        if i >= len(names):
            ax.remove()
            continue
        room = 60 * width - (46 if share else 0)  # points, beside the number on the right
        fitting = max(5, min(9, room / (0.66 * len(labels[i]))))
        label = _shortened(labels[i], int(room / (0.66 * fitting)))
        look = {"weight": "bold", "fontsize": fitting}
        ax.set_title(escaped(label), color=colors[names[i]], **look)
        if share and width < 2:
            ax.tick_params(labelsize=7)
        ax.tick_params(labelbottom=i + columns >= len(names), labelleft=i % columns == 0)
    return figure, dict(zip(names, grid.flat, strict=False))


def _band(ax, x, mean, half, **look) -> None:
    """The interval around a line, in percent, which ends at 100."""
    ax.fill_between(x, mean - half, np.minimum(mean + half, 100), lw=0, **look)


def _cells(ax, shown, written, low: float, high: float, digits: int = 0, fontsize: float = 7):
    """A cell for each value [rows, columns], colored if `shown`, and with its number if `written`.

    Returns:
        The colored cells.
    """
    edge = 0 if written is None else 1.0
    scale = {"cmap": _SHADES, "vmin": low, "vmax": high}
    cells = ax.pcolormesh(shown, edgecolors="white", linewidth=edge, **scale)
    for (i, k), value in np.ndenumerate([] if written is None else written):
        color = "#b5b5b5"  # pale: without a colored cell
        if np.isfinite(shown[i, k]):
            color = "white" if cells.norm(value) > 0.8 else "#222222"
        if np.isfinite(value):
            text = f"{value:.{digits}f}"
            ax.text(k + 0.5, i + 0.5, text, color=color, fontsize=fontsize, **_CENTERED)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, labelsize=7.5)
    return cells


def name_axes(figure: Figure, x: str, y: str) -> Figure:
    figure.supxlabel(x, fontsize=9, color="#444444")
    figure.supylabel(y, fontsize=9, color="#444444")
    return figure


def _ticks(axis, tasks: int, start: float = 1) -> None:
    step = 1 if tasks <= 10 else math.ceil(tasks / 4)
    shown = np.unique([1, *range(step, tasks + 1, step)])
    axis.set_ticks(shown - 1 + start, shown)


def _shown(name: str, shown: Mapping[str, Shown] | None) -> Shown:
    return (shown or {}).get(name) or shown_of(name)


def _colors(names, shown: Mapping[str, Shown] | None) -> dict[str, str]:
    return colors_of({name: _shown(name, shown) for name in names})


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}\N{HORIZONTAL ELLIPSIS}"


def escaped(text: str) -> str:
    """Text in which matplotlib sees no formula."""
    return text.replace("$", "\\$")
