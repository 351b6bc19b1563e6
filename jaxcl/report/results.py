"""The results of a study: typed, read from JSON and turned into it, and summed up."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxcl.methods import REGISTRY
from jaxcl.methods.spec import Spec
from jaxcl.report import during, metrics
from jaxcl.report.metrics import Interval

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure
    from pandas import DataFrame
    from rich.table import Table

    from jaxcl.report.paired import Pair

RARE = ("during", "inferred")  # fields that are written where there is something
AT_CHANCE = 0.1  # of the way from chance to perfect, below which a method has learned nothing


class Shown(NamedTuple):
    """How a method appears in tables, plots and sentences; see the Spec's fields.

    >>> Shown("Mine", "my method", "#3f8f9e").role
    'method'
    """

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
        curves: after each epoch of each task, by name: `loss` and `accuracy` of the training, and
            `validation_loss` or `validation_accuracy` where epochs are judged by it;
            [seeds, tasks, epochs], nan where a seed has not trained, or no longer.
        during: accuracy within each task's training, at points of which the first is before it, on
            every task so far, [seeds, tasks, points, tasks]; nan where it was not measured. None
            if that was not asked for; the setting `evaluate_every` is the points' distance.
        inferred: the rule by which the task was inferred, of a method that was told it in training
            and is measured without; None where the method trained as it is measured.

    >>> accuracy = np.array([[[0.9, np.nan], [0.8, 0.9]]])  # [seeds, tasks, tasks]
    >>> mine = MethodResults(accuracy, {}, 10, 0, 1.5, 1, [None], Shown("Mine", "mine"))
    >>> mine.accuracy[0, 1]
    array([0.8, 0.9])
    """

    accuracy: np.ndarray
    measures: Mapping[str, np.ndarray]
    parameters: int
    extra_bytes: int
    seconds: float
    compilations: int
    diverged: Sequence[tuple[int, int] | None]
    shown: Shown
    curves: Mapping[str, np.ndarray] = {}
    during: np.ndarray | None = None
    inferred: str | None = None


class Results(NamedTuple):
    """What a study found.

    Attributes:
        benchmark: the sequence's name.
        tasks: number of tasks.
        seeds: one for each replica.
        settings: all settings of the run.
        methods: by name.
        chance: mean accuracy of guessing; None if it is not known.

    In a notebook it shows itself as the sentence and the table.

    >>> accuracy = np.array([[[0.9, np.nan], [0.8, 0.9]]])  # [seeds, tasks, tasks]
    >>> mine = MethodResults(accuracy, {}, 10, 0, 1.5, 1, [None], Shown("Mine", "mine"))
    >>> results = Results("digits", 2, [0], {}, {"mine": mine})
    >>> print(results.sentence())
    On one seed, mine forgets 10.0 points on average and ends at 85.0% accuracy.
    """

    benchmark: str
    tasks: int
    seeds: Sequence[int]
    settings: Mapping[str, Any]
    methods: Mapping[str, MethodResults]
    chance: float | None = None

    @staticmethod
    def load(path: "str | Path") -> "Results":
        """The results in a run's folder, or in a `results.json`; see `report.read`."""
        from jaxcl.report.reading import read

        return read(path)

    def save(self, folder: "str | Path") -> "list[Path]":
        """Writes `results.json`, tables and plots into a folder; see `report.write`."""
        from jaxcl.report.write import write

        return write(self, folder)

    def sentence(self) -> str:
        """What was found, in words; see `report.sentence`."""
        from jaxcl.report.wording import sentence

        return sentence(self)

    def table(self) -> "Table":
        """The table as rich shows it in a terminal; see `report.table`."""
        from jaxcl.report.tables import table

        return table(self)

    def plots(self) -> "dict[str, Figure]":
        """The plots as matplotlib's figures, by name; see `report.draw`."""
        from jaxcl.report.write import draw

        return draw(self)

    def pairs(self, measure: str = "accuracy") -> "list[Pair]":
        """Each two methods compared over the same seeds; see `report.pairs`."""
        from jaxcl.report.paired import pairs

        return pairs(self, measure)

    def to_pandas(self, what: str = "table") -> "DataFrame":
        """A data frame; see `report.records` for what there is."""
        from jaxcl.report.export import to_pandas

        return to_pandas(self, what)

    def to_csv(self, what: str = "table") -> str:
        """Text in CSV; see `report.records` for what there is."""
        from jaxcl.report.export import to_csv

        return to_csv(self, what)

    def to_latex(self) -> str:
        """The table in LaTeX, for the package booktabs; see `report.to_latex`."""
        from jaxcl.report.export import to_latex

        return to_latex(self)

    def _repr_html_(self) -> str:
        from jaxcl.report.html import summary_html

        return summary_html(self)


class Row(NamedTuple):
    """One method of the table, over the seeds that did not diverge; fractions in [0, 1].

    Attributes:
        method: its name.
        accuracy: mean over the tasks at the end.
        forgetting: None for a reference that sees no sequence, and where the end alone is known.
        backward_transfer: likewise.
        parameters: number of the network's parameters.
        extra_bytes: memory beyond that of plain fine-tuning.
        capacity: share used after the last task; None for a method without one.
        seconds: time spent.
        diverged: number of seeds whose training diverged; the intervals leave them out.
        keeps_all: in no seed does any task's accuracy ever change once it is trained.
        at_chance: what it ends at is no better than guessing.
        unlearned: number of tasks whose accuracy is no better once they are trained.
        closed: number of tasks, over all seeds, of which a layer uses no unit.
        shown: how the method appears.
        anytime_accuracy: mean over the points within all tasks; None if that was not measured.
        learning_curve_area: likewise.
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
    unlearned: int
    closed: int
    shown: Shown
    anytime_accuracy: Interval | None = None
    learning_curve_area: Interval | None = None


def shown_of(method: str | Spec) -> Shown:
    """How a method appears; one that is not in the registry is called by its name.

    >>> shown_of("joint").words, shown_of("mine").label
    ('joint training', 'mine')
    """
    spec = next((s for s in REGISTRY if s.name == method), method)
    if isinstance(spec, str):
        return Shown(spec, spec)
    return Shown(spec.label, spec.words or spec.label, spec.color, spec.role, spec.divides)


def shown_in(found: Iterable[Results]) -> dict[str, Shown]:
    """How each method of several results appears: as where it is told what it was trained with."""
    shown: dict[str, Shown] = {}
    for results in found:
        for name, method in results.methods.items():
            if name not in shown or method.inferred is None:
                shown[name] = method.shown
    return shown


def as_results(results: Results | Mapping[str, Any]) -> Results:
    """Results from what `results.json` holds, checked; Results as they are.

    Raises:
        ValueError: if there is no method, or an array does not fit the tasks and seeds.
    """
    if isinstance(results, Results):
        return results
    from jaxcl.report.reading import from_json  # which needs the types above

    return from_json(results)


def summary(results: Results | Mapping[str, Any]) -> list[Row]:
    """Numbers of the table, a row for each method in the order of the results.

    Args:
        results: the results of a study, or what `results.json` holds.

    Raises:
        ValueError: if there is no method, or an array does not fit the tasks and seeds.

    >>> mine = {"accuracy": [[[0.9, 0.1], [0.8, 0.9]]], "parameters": 10, "extra_bytes": 0}
    >>> mine |= {"seconds": 1.5, "compilations": 1}
    >>> study = {"benchmark": "digits", "tasks": 2, "seeds": [0], "methods": {"mine": mine}}
    >>> [row] = summary(study)
    >>> round(row.accuracy.mean, 3), round(row.forgetting.mean, 3)
    (0.85, 0.1)
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
    in_order = method.shown.role != "upper" and not _end_alone(accuracy)
    forgetting = metrics.forgetting(accuracy)
    ends = interval(metrics.average_accuracy(accuracy))
    worst = -1.0
    if chance is not None and chance < 1:  # with tasks of one class there is nothing to guess
        worst = chance + AT_CHANCE * (1 - chance)
    learned = np.diagonal(accuracy, axis1=1, axis2=2).mean(axis=0)
    fewest = method.measures.get("fewest_units", np.ones(1))
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
        keeps_all=in_order and _keeps_all(accuracy),
        at_chance=bool(ends.mean <= worst),
        unlearned=int(np.sum(learned <= worst)),
        closed=int(np.sum(fewest == 0)),
        shown=method.shown,
        **_within(method, kept),
    )


def _end_alone(accuracy: np.ndarray) -> bool:
    """Whether the last row of [seeds, tasks, tasks] is known, and the diagonal is not."""
    ends, own = accuracy[:, -1], np.diagonal(accuracy, axis1=1, axis2=2)
    return bool(np.isfinite(ends).all() and np.isnan(own[:, :-1]).any())


def _within(method: MethodResults, kept: np.ndarray) -> dict[str, Interval]:
    """What was measured while tasks were trained."""
    if method.during is None:
        return {}
    return {name: interval(of(method.during[kept])) for name, of in during.MEASURES.items()}


def _keeps_all(accuracy: np.ndarray) -> bool:
    """Whether each column of [seeds, tasks, tasks] is constant from the diagonal down, exactly."""
    own = np.diagonal(accuracy, axis1=1, axis2=2)[:, None]
    return bool(np.all((accuracy == own)[:, np.tri(accuracy.shape[-1], dtype=bool)]))


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
            **{k: v for k, v in method._asdict().items() if k not in RARE or v is not None},
            **({} if method.during is None else during.summed_up(method.during)),
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
