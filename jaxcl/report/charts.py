"""The charts of a web page, as specifications for Vega-Lite and the rows that they draw.

Every chart reads one of the page's data sets by its name. The signals `hidden` (labels that are
switched off) and those of a chart's own controls are set by the page's script.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxcl.report import metrics
from jaxcl.report.colors import colors, labels
from jaxcl.report.results import MethodResults, Results, counting

Rows = list[dict[str, Any]]

VISIBLE = {"filter": "indexof(hidden, datum.method) < 0"}
UNTRAINED = "datum.task > datum.after"
PERCENT = {"format": ".1f"}
CELLS = {"scheme": "yellowgreenblue"}


class Chart(NamedTuple):
    """One drawing.

    Attributes:
        name: its element's.
        title: what it shows.
        words: how it is read, and for those who do not see it.
        spec: for Vega-Lite, without data.
        controls: for each signal that can be chosen, its values and what they are called.
        scenario: of whose rows it is, on a page of several; part of its element's name.
    """

    name: str
    title: str
    words: str
    spec: dict[str, Any]
    controls: Mapping[str, list[tuple[Any, str]]] = {}
    scenario: str = ""


def datasets(results: Results) -> dict[str, Rows]:
    """The rows that the charts draw, by name. Accuracies are in percent."""
    shown = {name: method.shown for name, method in results.methods.items()}
    called = labels(shown)
    every = {called[name]: method for name, method in results.methods.items()}
    found: dict[str, Rows] = {name: [] for name in ("means", "ends", "cells", "used", "epochs")}
    for label, method in every.items():
        found["means"] += _means(label, method)
        found["ends"] += _ends(label, method, results)
        found["cells"] += _cells(label, method, results)
        found["used"] += _used(label, method)
        found["epochs"] += _epochs(label, method)
    return {name: rows for name, rows in found.items() if rows}


def _curves(matrix: np.ndarray):
    """(task, after, accuracy) of a matrix [tasks, tasks]; task 0 is the mean of those so far."""
    for t in range(len(matrix)):
        yield 0, t, matrix[t, : t + 1].mean()
        yield from ((k + 1, t, matrix[t, k]) for k in range(t + 1))


def _means(label: str, method: MethodResults) -> Rows:
    """Accuracy after each task, mean and interval over the seeds: of all tasks so far, and of each.

    The page's script makes the like for single seeds, the data set "sequence".
    """
    kept = method.accuracy[counting(method)]
    found = []
    for at in zip(*map(_curves, kept)):
        mean, half = metrics.confidence_interval(np.array([value for *_, value in at]))
        if np.isfinite(mean):
            half = half if np.isfinite(half) else 0
            low, high = _percent(mean - half), _percent(min(mean + half, 1))
            k, t, _ = at[0]
            row = {"method": label, "task": k, "after": t + 1, "accuracy": _percent(mean)}
            found.append({**row, "low": low, "high": high})
    return found


ENDS = {
    "accuracy": metrics.average_accuracy,
    "forgetting": metrics.forgetting,
    "backward transfer": metrics.backward_transfer,
    "learning accuracy": metrics.learning_accuracy,
}


def _ends(label: str, method: MethodResults, results: Results) -> Rows:
    """What sums up each seed. Forward transfer is there where it was measured."""
    of = dict(ENDS)
    if results.chance is not None:
        of["forward transfer"] = lambda accuracy: metrics.forward_transfer(accuracy, results.chance)
    if method.shown.role == "upper":  # sees no sequence
        of = {"accuracy": ENDS["accuracy"]}
    return [
        {"method": label, "seed": seed, "measure": name, "value": _percent(value)}
        for name, function in of.items()
        for seed, value in zip(results.seeds, function(method.accuracy))
        if np.isfinite(value)
    ]


def _cells(label: str, method: MethodResults, results: Results) -> Rows:
    return [
        {"method": label, "seed": seed, "after": t + 1, "task": k + 1, "accuracy": _percent(value)}
        for seed, matrix in zip(results.seeds, method.accuracy)
        for (t, k), value in np.ndenumerate(matrix)
        if np.isfinite(value)
    ]


def _used(label: str, method: MethodResults) -> Rows:
    capacity = method.measures.get("capacity")
    if capacity is None:
        return []
    mean, half = metrics.confidence_interval(capacity[counting(method)])
    return [
        {"method": label, "after": t + 1, "used": _percent(m), "low": _percent(max(m - h, 0))}
        | {"high": _percent(min(m + h, 1))}
        for t, (m, h) in enumerate(zip(mean, np.nan_to_num(half)))
        if np.isfinite(m)
    ]


def _epochs(label: str, method: MethodResults) -> Rows:
    """The curves, means over the seeds that are still training; `at` counts tasks."""
    found = []
    for curve, values in method.curves.items():
        kept = values[counting(method)]
        count = np.isfinite(kept).sum(axis=0)
        sums = np.nansum(kept, axis=0)
        for task, epoch in np.argwhere(count > 0).tolist():
            mean = float(sums[task, epoch] / count[task, epoch])
            row = {"method": label, "curve": curve, "task": task + 1, "epoch": epoch + 1}
            at = round(task + (epoch + 1) / values.shape[2], 4)
            found.append({**row, "at": at, "value": float(f"{mean:.5g}")})
    return found


def _percent(value: Any) -> float:
    return round(100 * float(value), 4)


# The drawings


def charts(results: Results) -> list[Chart]:
    """The charts of a study: those for which it holds something."""
    shown = {name: method.shown for name, method in results.methods.items()}
    called, colored = labels(shown), colors(shown)
    color = {
        "field": "method",
        "type": "nominal",
        "scale": {"domain": [*called.values()], "range": [colored[name] for name in called]},
        "legend": None,
    }
    tasks, rows = results.tasks, datasets(results)
    found = [_accuracy(color, tasks)]
    found += [_matrix(label, i, results) for i, label in enumerate(called.values())]
    measured: dict[str, set[str]] = {}
    for row in rows["ends"]:
        measured.setdefault(row["measure"], set()).add(row["method"])
    measured.pop("accuracy", None)
    found += [_points(name, color, len(having)) for name, having in measured.items()]
    found += [_capacity(color, tasks)] if "used" in rows else []
    found += [_training(color, tasks, rows["epochs"])] if "epochs" in rows else []
    return found


def _accuracy(color: dict, tasks: int) -> Chart:
    many = len(color["scale"]["domain"]) > 6
    x = _after(tasks)
    y = _value("accuracy", "test accuracy (%)", zero=False, nice=True)
    where = [{"filter": "datum.task === task"}, VISIBLE]
    tooltip = [_tip("method"), _tip("seed"), _tip("after", "after task")]
    tooltip.append(_tip("accuracy", "accuracy (%)", **PERCENT))
    means = {"data": {"name": "means"}, "transform": where}
    band = {
        "mark": {"type": "area", "opacity": 0.05 if many else 0.15},
        "encoding": _between("test accuracy (%)"),
    }
    line = {"mark": {"type": "line", "strokeWidth": 2}}
    dot = {
        "mark": {"type": "point", "filled": True, "size": 40},
        "encoding": {"tooltip": [t for t in tooltip if t["field"] != "seed"]},
    }
    seeds = {
        "data": {"name": "sequence"},
        "transform": where,
        "mark": {"type": "point", "filled": True, "size": 18, "opacity": 0.25 if many else 0.45},
        "encoding": {"tooltip": tooltip},
    }
    spec = {
        "params": [{"name": "task", "value": 0}, {"name": "hidden", "value": []}],
        "height": 320,
        "encoding": {"x": x, "y": y, "color": color},
        "layer": [{**means, **band}, {**means, **line}, seeds, {**means, **dot}],
    }
    choices = [(0, "all tasks so far"), *((k, f"task {k}") for k in range(1, tasks + 1))]
    words = (
        "Lines are means over the seeds, bands their 95% intervals, pale points single seeds. "
        "Choose one task to see what is left of it."
    )
    return Chart("sequence", "Accuracy over the sequence", words, spec, {"task": choices})


def _matrix(label: str, i: int, results: Results) -> Chart:
    axis = {"labelAngle": 0, "values": _ticks(results.tasks)}
    place = {"type": "ordinal", "axis": axis}
    value = {"field": "accuracy", "type": "quantitative"}
    lowest = min(90.0, *(100 * float(np.nanmin(_seen(m))) for m in results.methods.values()))
    scale = {**CELLS, "domain": [max(0.0, lowest), 100]}
    tooltip = [_tip("after", "after task"), _tip("task", "on task")]
    tooltip += [_tip("accuracy", "accuracy (%)", **PERCENT)]
    cells = {
        "mark": {"type": "rect", "stroke": "transparent", "strokeWidth": 1},
        "encoding": {
            "color": {**value, "scale": scale, "legend": None},
            "opacity": {"condition": {"test": UNTRAINED, "value": 0.15}, "value": 1},
            "tooltip": tooltip,
        },
    }  # fmt: skip
    bright = f"datum.accuracy > {(max(0.0, lowest) + 100) / 2} && datum.task <= datum.after"
    written = {
        "mark": {"type": "text", "fontSize": 9 if results.tasks <= 6 else 7},
        "encoding": {
            "text": {**value, "format": ".0f"},
            "color": {
                "condition": [
                    {"test": bright, "value": "#ffffff"},
                    {"test": "datum.task <= datum.after", "value": "#222222"},
                ],
                "value": "currentColor",
            },
            "opacity": {"condition": {"test": UNTRAINED, "value": 0.5}, "value": 1},
        },
    }  # fmt: skip
    spec = {
        "data": {"name": "cells"},
        "params": [{"name": "seed", "value": -1}],
        "transform": [
            {"filter": {"field": "method", "equal": label}},
            {"filter": "seed < 0 || datum.seed === seed"},
            {
                "aggregate": [{"op": "mean", "field": "accuracy", "as": "accuracy"}],
                "groupby": ["after", "task"],
            },
        ],
        "height": 150,
        "encoding": {
            "x": {"field": "task", "title": "on task", **place},
            "y": {"field": "after", "title": "after task", **place},
        },
        "layer": [cells, written] if results.tasks <= 10 else [cells],
    }
    seeds = [(-1, "mean of the seeds"), *((seed, f"seed {seed}") for seed in results.seeds)]
    words = f"Test accuracy of {label} on each task (across) after training on each task (down)."
    return Chart(f"matrix{i}", label, words, spec, {"seed": seeds})


def _seen(method: MethodResults) -> np.ndarray:
    accuracy = method.accuracy
    return np.where(np.tri(accuracy.shape[-1], dtype=bool), accuracy, 1.0)


_MEANINGS = {
    "forgetting": "Mean drop of the earlier tasks from their best accuracy to the end, in points: "
    "lower is better.",
    "backward transfer": "What training on later tasks changes in earlier ones, in points: below "
    "zero it harms them.",
    "forward transfer": "What earlier tasks give to one that is not trained yet, above guessing, "
    "in points. Left out where a method has no network for a task before it is trained.",
    "learning accuracy": "Mean accuracy on each task just after training on it, in percent.",
}


def _points(measure: str, color: dict, count: int) -> Chart:
    y = {"field": "method", "type": "nominal", "title": None, "sort": color["scale"]["domain"]}
    points = measure != "learning accuracy"
    x = _value("value", "points" if points else "percent", zero=points, nice=True)
    tooltip = [_tip("method"), _tip("seed"), _tip("value", measure, format=".2f")]
    ticks = {
        "mark": {"type": "point", "filled": True, "size": 36, "opacity": 0.6},
        "encoding": {"x": x, "color": color, "tooltip": tooltip},
    }
    mean = {"mark": {"type": "tick", "thickness": 2.5, "size": 16}}
    mean["encoding"] = {"x": {**x, "aggregate": "mean"}, "color": color}
    spec = {
        "data": {"name": "ends"},
        "params": [{"name": "hidden", "value": []}],
        "transform": [{"filter": {"field": "measure", "equal": measure}}, VISIBLE],
        "height": 24 * count,
        "encoding": {"y": y},
        "layer": [ticks, mean],
    }
    words = f"{_MEANINGS[measure]} A point is a seed, a bar the mean."
    return Chart(measure.replace(" ", "-"), measure.capitalize(), words, spec)


def _capacity(color: dict, tasks: int) -> Chart:
    y = _value("used", "capacity used (%)", domain=[0, 100])
    tooltip = [_tip("method"), _tip("after", "after task"), _tip("used", "used (%)", **PERCENT)]
    spec = {
        "data": {"name": "used"},
        "params": [{"name": "hidden", "value": []}],
        "transform": [VISIBLE],
        "height": 260,
        "encoding": {"x": _after(tasks), "y": y, "color": color},
        "layer": [
            {"mark": {"type": "area", "opacity": 0.15}, "encoding": _between("capacity used (%)")},
            {"mark": {"type": "line", "strokeWidth": 2}},
            {
                "mark": {"type": "point", "filled": True, "size": 40},
                "encoding": {"tooltip": tooltip},
            },
        ],
    }
    words = "The share of its weights that a method has given away after each task."
    return Chart("capacity", "Capacity in use", words, spec)


def _training(color: dict, tasks: int, rows: Rows) -> Chart:
    kinds = list(dict.fromkeys(row["curve"] for row in rows))
    axis = {"values": list(range(tasks + 1)), "format": "d"}
    x = {"field": "at", "type": "quantitative", "title": "tasks trained", "axis": axis}
    tooltip = [_tip(name) for name in ("method", "task", "epoch")]
    tooltip.append(_tip("value", "mean", format=".4g"))
    spec = {
        "data": {"name": "epochs"},
        "params": [{"name": "curve", "value": kinds[0]}, {"name": "hidden", "value": []}],
        "transform": [{"filter": "datum.curve === curve"}, VISIBLE],
        "height": 280,
        "encoding": {
            "x": x,
            "y": _value("value", "mean over the seeds", zero=False, nice=True),
            "color": color,
            "detail": {"field": "task"},
        },
        "layer": [
            {"mark": {"type": "line", "strokeWidth": 1.5}},
            {
                "mark": {"type": "point", "filled": True, "size": 14},
                "encoding": {"tooltip": tooltip},
            },
        ],
    }
    words = "What was recorded after each epoch of each task, means over the seeds."
    choices = [(kind, kind.replace("_", " ")) for kind in kinds]
    return Chart("curves", "Training", words, spec, {"curve": choices})


def _after(tasks: int) -> dict[str, Any]:
    axis = {"values": _ticks(tasks), "format": "d", "grid": False}
    scale = {"domain": [1, max(tasks, 2)], "nice": False, "padding": 8}
    return {
        "field": "after", "type": "quantitative", "title": "after training on task",
        "axis": axis, "scale": scale,
    }  # fmt: skip


def _value(field: str, title: str, **scale: Any) -> dict[str, Any]:
    return {"field": field, "type": "quantitative", "title": title, "scale": scale}


def _between(title: str) -> dict[str, Any]:
    value = {"type": "quantitative", "title": title}
    return {"y": {"field": "low", **value}, "y2": {"field": "high"}, "tooltip": {"value": None}}


def _ticks(tasks: int) -> list[int]:
    step = 1 if tasks <= 10 else math.ceil(tasks / 8)
    return sorted({1, *range(step, tasks + 1, step)})


def _tip(field: str, title: str = "", **more: Any) -> dict[str, Any]:
    return {"field": field, "title": title or field, **more}
