"""The results of a study, read and summed up."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxcl.report import metrics
from jaxcl.report.metrics import Interval

if TYPE_CHECKING:
    pass


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
    for name, (accuracy, capacity) in arrays_of(results).items():
        numbers, in_order = results["methods"][name], name != "joint"
        row = Row(
            name,
            accuracy=interval(metrics.average_accuracy(accuracy)),
            forgetting=interval(metrics.forgetting(accuracy)) if in_order else None,
            backward_transfer=interval(metrics.backward_transfer(accuracy)) if in_order else None,
            parameters=int(numbers["parameters"]),
            extra_bytes=int(numbers["extra_bytes"]),
            capacity=None if capacity is None else interval(capacity[:, -1]),
            seconds=float(numbers["seconds"]),
        )
        rows.append(row)
    return rows


def arrays_of(results: dict) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
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


def interval(values: np.ndarray) -> Interval:
    return Interval(*map(float, metrics.confidence_interval(values)))
