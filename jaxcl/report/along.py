"""Accuracies that were measured within the tasks, drawn: as a figure, and for the web page."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxcl.report.charts import PERCENT, VISIBLE, Chart
from jaxcl.report.colors import colors, labels
from jaxcl.report.results import MethodResults, Results, Shown, counting

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def course(during: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """The points of all tasks one after the other, means over the seeds that have them.

    Args:
        during: [seeds, tasks, points, tasks].

    Returns:
        How many points were before, [points]; accuracies [points, tasks]; where each task starts.
        The last point of a task and point 0 of the next one are at the same place.

    >>> places, values, starts = course(np.array([[[[0.1, np.nan], [0.9, np.nan]],
    ...                                            [[0.9, 0.2], [0.8, 0.7]]]]))
    >>> places.tolist(), values[:, 0].tolist(), starts
    ([0, 1, 1, 2], [0.1, 0.9, 0.9, 0.8], [0, 1])
    """
    known = np.isfinite(during)
    count = known.sum(axis=0)
    sums = np.where(known, during, 0).sum(axis=0)
    means = np.divide(sums, count, out=np.full(sums.shape, np.nan), where=count > 0)
    places, rows, starts = [], [], [0]
    for task in means:
        there = np.flatnonzero(np.isfinite(task).any(axis=-1))
        places += [starts[-1] + p for p in there]
        rows += [task[p] for p in there]
        starts.append(starts[-1] + int(there.max(initial=0)))
    return np.array(places), np.array(rows).reshape(-1, during.shape[-1]), starts[:-1]


def figure(
    methods: Mapping[str, np.ndarray], shown: Mapping[str, Shown] | None = None, distance: str = ""
) -> "Figure":
    """Each task's accuracy along the training of all of them, a panel for each method.

    Args:
        methods: accuracies [seeds, tasks, points, tasks] in [0, 1], nan where there is nothing.
        shown: how the methods appear.
        distance: of the points, in words.
    """
    import matplotlib

    from jaxcl.report import figures

    tasks = next(iter(methods.values())).shape[1]
    width = min(4, max(1.56, 7.8 / len(methods)))
    with figures.style():
        drawn, axes = figures.panels(list(methods), shown, width, height=1.75)
        shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.74, tasks))
        for name, ax in axes.items():
            x, means, starts = course(methods[name])
            for k, shade in enumerate(shades):
                ax.plot(x, 100 * means[:, k], color=shade, lw=1.1)
            for start in starts[1:]:
                ax.axvline(start, color="#dddddd", lw=0.6, zorder=0)
            end = max(1, x.max(initial=0))
            ax.set(xlim=(0, end), ylim=(0, 102))
            middles = (np.array(starts) + np.array([*starts[1:], end])) / 2
            step = 1 if tasks <= 10 else math.ceil(tasks / 4)
            ax.set_xticks(middles[::step], [str(k + 1) for k in range(0, tasks, step)])
            ax.tick_params(axis="x", length=0, labelbottom=True)
        every = f", evaluated every {figures.escaped(distance)}" if distance else ""
        return figures.name_axes(drawn, f"while training on task{every}", "test accuracy (%)")


# For the web page


def datasets(results: Results) -> dict[str, list[dict[str, Any]]]:
    """The rows that the chart draws: of each task so far, and as task 0 the mean of all of them."""
    called = labels({name: method.shown for name, method in results.methods.items()})
    rows = [row for name, method in results.methods.items() for row in _rows(called[name], method)]
    return {"points": rows} if rows else {}


def _rows(label: str, method: MethodResults) -> list[dict[str, Any]]:
    if method.during is None:
        return []
    found = []
    places, means, _ = course(method.during[counting(method)])
    for at, row in zip(places.tolist(), means):
        training = int(np.isfinite(row).sum())
        each = {0: row[:training].mean(), **{k + 1: row[k] for k in range(training)}}
        found += [
            {"method": label, "at": at, "training": training, "task": k}
            | {"accuracy": round(100 * float(value), 4)}
            for k, value in each.items()
        ]
    return found


def charts(results: Results) -> list[Chart]:
    """The chart, if something was measured within tasks."""
    if not datasets(results):
        return []
    shown = {name: method.shown for name, method in results.methods.items()}
    called, colored = labels(shown), colors(shown)
    scale = {"domain": [*called.values()], "range": [colored[name] for name in called]}
    tooltip = [{"field": name, "title": name} for name in ("method", "training", "at")]
    tooltip += [{"field": "accuracy", "title": "accuracy (%)", **PERCENT}]
    distance = str(results.settings.get("evaluate_every", ""))
    spec = {
        "data": {"name": "points"},
        "params": [{"name": "task", "value": 0}, {"name": "hidden", "value": []}],
        "transform": [{"filter": "datum.task === task"}, VISIBLE],
        "height": 280,
        "encoding": {
            "x": {"field": "at", "type": "quantitative", "title": "points of all tasks"},
            "y": {
                "field": "accuracy", "type": "quantitative", "title": "accuracy (%)",
                "scale": {"zero": False, "nice": True},
            },
            "color": {"field": "method", "type": "nominal", "scale": scale, "legend": None},
            "detail": {"field": "training"},
        },
        "layer": [
            {"mark": {"type": "line", "strokeWidth": 1.5}},
            {
                "mark": {"type": "point", "filled": True, "size": 14},
                "encoding": {"tooltip": tooltip},
            },
        ],
    }  # fmt: skip
    choices = [(0, "all tasks so far"), *((k, f"task {k}") for k in range(1, results.tasks + 1))]
    words = (
        f"Accuracy while tasks are trained, evaluated every {distance}; means over the seeds. A "
        f"line ends with its task."
    )
    return [Chart("within", "Within the tasks", words, spec, {"task": choices})]
