"""The results of a study: typed, read from JSON and turned into it, and summed up."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxcl.methods import REGISTRY
from jaxcl.methods.spec import Spec
from jaxcl.report import metrics
from jaxcl.report.metrics import Interval

AT_CHANCE = 0.1  # of the way from chance to perfect, below which a method has learned nothing


class Shown(NamedTuple):
    """How a method appears in tables, plots and sentences; see the Spec's fields."""

    label: str
    words: str
    color: str | None = None
    role: str = "method"
    divides: bool = False


class MethodResults(NamedTuple):
    """What a study found of one method.

    Attributes:
        accuracy: test accuracy in [0, 1] on task k after training on task t, [seeds, tasks, tasks];
            nan where it was not measured, or has no network.
        measures: the method's own numbers, by name: [seeds, tasks], one after each task, or
            [seeds, tasks, tasks], at the end.
        parameters: number of the network's parameters once all tasks are learned.
        extra_bytes: memory beyond that of plain fine-tuning.
        seconds: time spent.
        compilations: of the training step.
        diverged: for each seed the task and the epoch, counted from 1, after which its training was
            not finite any more; None for those that are well.
        shown: how it appears.
    """

    accuracy: np.ndarray
    measures: Mapping[str, np.ndarray]
    parameters: int
    extra_bytes: int
    seconds: float
    compilations: int
    diverged: Sequence[tuple[int, int] | None]
    shown: Shown


class Results(NamedTuple):
    """What a study found.

    Attributes:
        benchmark: the sequence's name.
        tasks: number of tasks.
        seeds: one for each replica.
        settings: all settings of the run.
        methods: by name.
        chance: mean accuracy of guessing; None if it is not known.
    """

    benchmark: str
    tasks: int
    seeds: Sequence[int]
    settings: Mapping[str, Any]
    methods: Mapping[str, MethodResults]
    chance: float | None = None


class Row(NamedTuple):
    """One method of the table, over the seeds that did not diverge; fractions in [0, 1].

    Attributes:
        method: its name.
        accuracy: mean over the tasks at the end.
        forgetting: None for a reference that sees no sequence.
        backward_transfer: likewise.
        parameters: number of the network's parameters.
        extra_bytes: memory beyond that of plain fine-tuning.
        capacity: share used after the last task; None for a method without one.
        seconds: time spent.
        diverged: number of seeds whose training diverged; the intervals leave them out.
        keeps_all: no seed forgets anything, exactly.
        at_chance: what it ends at is no better than guessing.
        shown: how the method appears.
    """

    method: str
    accuracy: Interval
    forgetting: Interval | None
    backward_transfer: Interval | None
    parameters: int
    extra_bytes: int
    capacity: Interval | None
    seconds: float
    diverged: int
    keeps_all: bool
    at_chance: bool
    shown: Shown


def shown_of(method: str | Spec) -> Shown:
    """How a method appears; one that is not in the registry is called by its name.

    >>> shown_of("joint").words, shown_of("mine").label
    ('joint training', 'mine')
    """
    spec = next((s for s in REGISTRY if s.name == method), method)
    if isinstance(spec, str):
        return Shown(spec, spec)
    return Shown(spec.label, spec.words or spec.label, spec.color, spec.role, spec.divides)


def as_results(results: Results | Mapping[str, Any]) -> Results:
    """Results from what `results.json` holds, checked; Results as they are.

    Raises:
        ValueError: if there is no method, or an array does not fit the tasks and seeds.
    """
    if isinstance(results, Results):
        return results
    if not results["methods"]:
        raise ValueError("results must hold at least one method.")
    seeds, tasks = len(results["seeds"]), results["tasks"]
    methods = {
        name: _read(name, method, seeds, tasks) for name, method in results["methods"].items()
    }
    return Results(
        results["benchmark"], tasks, list(results["seeds"]), results["settings"], methods,
        results.get("chance"),
    )  # fmt: skip


def _read(name: str, method: Mapping[str, Any], seeds: int, tasks: int) -> MethodResults:
    def array(key, values, *shapes):
        values = np.asarray(values, dtype=np.float64)
        if values.shape not in shapes:
            raise ValueError(
                f"methods/{name}/{key} must have shape {shapes[0]} for {seeds} seeds and {tasks} "
                f"tasks, but has {values.shape}."
            )
        return values

    each, square = (seeds, tasks), (seeds, tasks, tasks)
    given = dict(method.get("measures") or {})
    if method.get("capacity") is not None:
        given["capacity"] = method["capacity"]
    measures = {key: array(key, values, each, square) for key, values in given.items()}
    return MethodResults(
        array("accuracy", method["accuracy"], square),
        measures,
        int(method["parameters"]),
        int(method["extra_bytes"]),
        float(method["seconds"]),
        int(method["compilations"]),
        [tuple(at) if at else None for at in method.get("diverged") or [None] * seeds],
        Shown(**method["shown"]) if "shown" in method else shown_of(name),
    )


def summary(results: Results | Mapping[str, Any]) -> list[Row]:
    """Numbers of the table, a row for each method in the order of the results.

    Args:
        results: the results of a study, or what `results.json` holds.

    Raises:
        ValueError: if there is no method, or an array does not fit the tasks and seeds.
    """
    results = as_results(results)
    return [_row(name, method, results.chance) for name, method in results.methods.items()]


def counting(method: MethodResults) -> np.ndarray:
    """The seeds of which means are taken, bool [seeds]: those that did not diverge, if any."""
    well = np.array([at is None for at in method.diverged])
    return well if well.any() else ~well


def _row(name: str, method: MethodResults, chance: float | None) -> Row:
    kept = counting(method)
    accuracy = method.accuracy[kept]
    capacity = method.measures.get("capacity")
    in_order = method.shown.role != "upper"
    forgetting = metrics.forgetting(accuracy)
    ends = interval(metrics.average_accuracy(accuracy))
    worst = None if chance is None else chance + AT_CHANCE * (1 - chance)
    return Row(
        name,
        accuracy=ends,
        forgetting=interval(forgetting) if in_order else None,
        backward_transfer=interval(metrics.backward_transfer(accuracy)) if in_order else None,
        parameters=method.parameters,
        extra_bytes=method.extra_bytes,
        capacity=None if capacity is None else interval(capacity[kept][:, -1]),
        seconds=method.seconds,
        diverged=sum(at is not None for at in method.diverged),
        keeps_all=in_order and bool(np.all(forgetting == 0)),
        at_chance=worst is not None and bool(ends.mean <= worst),
        shown=method.shown,
    )


def interval(values: np.ndarray) -> Interval:
    """Mean and 95% interval over the seeds."""
    return Interval(*map(float, metrics.confidence_interval(values)))


def to_json(results: Results) -> dict[str, Any]:
    """What `results.json` holds: beside the measures also what follows from them."""
    methods = {}
    for name, method in results.methods.items():
        capacity, overlap = (method.measures.get(key) for key in ("capacity", "overlap"))
        own = None if overlap is None else np.diagonal(overlap, axis1=1, axis2=2)
        methods[name] = {
            "accuracy": method.accuracy,
            "capacity": capacity,
            "free": None if capacity is None else _free(method, capacity),
            "reuse": None if overlap is None else metrics.reuse(overlap),
            "compression": own,
            **method._asdict(),
            "shown": method.shown._asdict(),
        }
    return plain({**results._asdict(), "methods": methods})


def _free(method: MethodResults, capacity: np.ndarray) -> np.ndarray | None:
    return metrics.free(capacity) if method.shown.divides else None


def plain(value: Any) -> Any:
    """The same for JSON: arrays as lists, nan as None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
