"""Searches: many settings of one method, of which validation data choose the best."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxcl.data.benchmark import Benchmark
from jaxcl.report import metrics
from jaxcl.report.results import plain
from jaxcl.report.text import listed, markdown, plus_minus
from jaxcl.study import comparison, grids
from jaxcl.study.comparison import Record
from jaxcl.study.events import Event
from jaxcl.study.grids import Values
from jaxcl.study.recipes import Choice


class Search(NamedTuple):
    """What a search of one method found.

    Attributes:
        swept: the values of each setting that has several.
        settings: what was tried, each a value for every setting.
        validation: accuracy at the end on the validation sets, [settings, seeds]; nan for a seed
            that diverged.
        forgetting: likewise.
        capacity: share of the network that is used at the end, [settings, seeds], or None.
        best: the row with the highest mean of `validation` among those with no diverged seed; None
            if there is none.
        test: the best row's accuracy on the test sets, [seeds], where it was measured.
    """

    swept: Mapping[str, Values]
    settings: list[dict[str, float]]
    validation: np.ndarray
    forgetting: np.ndarray
    capacity: np.ndarray | None
    best: int | None
    test: np.ndarray | None = None

    @property
    def winner(self) -> dict[str, float]:
        """The best setting; {} if each of them diverged."""
        return {} if self.best is None else self.settings[self.best]


def search(
    choice: Choice,
    benchmark: Benchmark,
    grid: Mapping[str, Values],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    samples: int | None = None,
    watch: Callable[[Event], None] = lambda event: None,
    **layout: Any,
) -> Search:
    """Trains every setting of a grid side by side; the test sets are not looked at.

    Args:
        choice: the method with its options, from `recipes.choose`.
        benchmark: the sequence of tasks.
        grid: the values of each option that is searched; see `study.grids`.
        seeds: with which every setting is trained.
        samples: how many settings are tried; None for all combinations.
        watch: called with each event of the training.
        **layout: what else `study.build` takes: devices, chunk, devices_per_replica, reproducible.

    Raises:
        ValueError: before any training, for a grid or a setting that cannot be.
    """
    settings = grids.settings(grid, samples)
    numbers, columns = replicas_of(settings, seeds)
    run = comparison.begin(choice, benchmark, numbers, settings=columns, **layout)
    record = run.record
    for event, known in comparison.advance(run, evaluate_on="val"):
        record = known
        watch(event)
    return found(record, grid, settings)


def replicas_of(
    settings: Sequence[Mapping[str, float]], seeds: Sequence[int]
) -> tuple[list[int], dict[str, np.ndarray]]:
    """Each setting with each seed: the seeds of all replicas, and their settings."""
    columns = {
        name: np.repeat([setting[name] for setting in settings], len(seeds)) for name in settings[0]
    }
    return [int(seed) for seed in seeds] * len(settings), columns


def found(record: Record, swept: Mapping[str, Values], settings: list[dict[str, float]]) -> Search:
    """Chooses by the accuracy that a record has, which is that on the validation sets."""
    accuracy = np.where(record.diverged[:, :1, None] > 0, np.nan, record.accuracy)

    def rows(values: Any) -> np.ndarray:
        return np.asarray(values, float).reshape(len(settings), -1)

    validation = rows(metrics.average_accuracy(accuracy))
    means, capacity = validation.mean(axis=1), record.measures.get("capacity")
    return Search(
        swept=swept,
        settings=settings,
        validation=validation,
        forgetting=rows(metrics.forgetting(accuracy)),
        capacity=None if capacity is None else rows(capacity[:, -1]),
        best=int(np.nanargmax(means)) if np.isfinite(means).any() else None,
    )


def to_json(search: Search) -> dict[str, Any]:
    """All numbers of a search."""
    measured = [(name, getattr(search, name)) for name in ("validation", "forgetting", "capacity")]
    measured = [(name, values) for name, values in measured if values is not None]
    swept = {k: str(v) if isinstance(v, grids.Range) else v for k, v in search.swept.items()}
    return plain(
        {
            "swept": swept,
            "combinations": [
                {**setting, **{name: values[i] for name, values in measured}}
                for i, setting in enumerate(search.settings)
            ],
            "best": search.best,
            "test": None if search.best is None else search.test,
        }
    )


def cells(search: Search) -> list[list[str]]:
    """The table: its header, and a line for each setting; the best is marked."""
    lines = [[*search.swept, "accuracy (%)", "forgetting (points)"]]
    numbers = [search.validation, search.forgetting]
    if search.capacity is not None:
        lines[0].append("capacity (%)")
        numbers.append(search.capacity)
    for i, setting in enumerate(search.settings):
        line = [*map(number, setting.values()), *(percent(values[i]) for values in numbers)]
        lines.append([f"* {line[0]}", *line[1:]] if i == search.best else line)
    return lines


def sentence(search: Search) -> str:
    """What was chosen, in words."""
    count = len(search.settings)
    if search.best is None:
        return f"Training diverged with some seed in each of {count} settings."
    said = (
        f"The best of {count} settings is {said_of(search.winner)}: "
        f"{percent(search.validation[search.best])}% on the validation sets, by which it was chosen"
    )
    said += "." if search.test is None else f", and {percent(search.test)}% on the test sets."
    failed = [
        said_of(setting)
        for setting, rows in zip(search.settings, search.validation)
        if np.isnan(rows).any()
    ]
    return said + (f" Training diverged with {listed(failed)}." if failed else "")


def summary(content: Mapping[str, Any]) -> str:
    """What was chosen for each method, as a table in Markdown.

    Args:
        content: what `search.json` holds: for each of its methods `to_json` of its search, or None
            where there was nothing to search.
    """
    lines = []
    for name, one in content["methods"].items():
        if one is None or one["best"] is None:
            lines.append([name, "as given" if one is None else "all diverged", "-", "-"])
            continue
        best = one["combinations"][one["best"]]
        chosen = said_of({key: best[key] for key in one["swept"]})
        validation = percent(np.asarray(best["validation"], float))
        lines.append([name, chosen, str(len(one["combinations"])), validation])
    header = ["method", "chosen setting", "settings tried", "validation accuracy (%)"]
    return markdown(header, lines, left=2)


def said_of(setting: Mapping[str, float]) -> str:
    """A setting in words.

    >>> said_of({"a": 0.5, "b": 100.0})
    'a = 0.5, b = 100'
    """
    return ", ".join(f"{name} = {number(value)}" for name, value in setting.items())


def percent(values: np.ndarray) -> str:
    """Mean and interval over the seeds."""
    return plus_minus(metrics.confidence_interval(values))


def number(value: float) -> str:
    """A setting's value."""
    return f"{value:g}"
