"""What a comparison finds while it trains, for the tools that show such numbers.

Steps count those of the training over all tasks so far. All seeds are summed up as their mean: of
those that are still training, and finite.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxcl.core.checks import install, load_extra
from jaxcl.report.log_tensorboard import open_tensorboard
from jaxcl.report.log_wandb import open_wandb
from jaxcl.study.events import EpochEnd, Event, TaskEnd
from jaxcl.study.lengths import lengths, steps_of
from jaxcl.study.points import Evaluated
from jaxcl.study.record import MethodRun


class Writer(Protocol):
    """One method's numbers in one tool."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Takes numbers by name."""
        ...

    def close(self) -> None:
        """Ends it; all is written then."""
        ...


class Tool(NamedTuple):
    """A tool that shows numbers.

    Attributes:
        module: the package that writes for it.
        extra: of jaxcl, which brings that package.
        open: makes a writer, of the package, the run's folder, a method's name, the run's settings
            and the step at which it begins.
    """

    module: str
    extra: str
    open: Callable[[Any, Path, str, Mapping[str, Any], int], Writer]


LOGGERS: dict[str, Tool] = {
    "tensorboard": Tool("tensorboardX", "tensorboard", open_tensorboard),
    "wandb": Tool("wandb", "wandb", open_wandb),
}


def packages(names: Sequence[str]) -> dict[str, ModuleType]:
    """The packages of the tools.

    Raises:
        ImportError: if one is not installed; it says how to install it.
    """
    return {n: load_extra(LOGGERS[n].module, install(LOGGERS[n].extra)) for n in names}


@contextlib.contextmanager
def logged(
    names: Sequence[str], run: MethodRun, folder: Path, settings: Mapping[str, Any]
) -> Iterator[Callable[[Event], None]]:
    """Writers for a method's training, which end with the `with` statement.

    Args:
        names: of the tools.
        run: the method, where its training begins or goes on.
        folder: of the whole run.
        settings: likewise.

    Yields:
        A function that takes each event.
    """
    starts, per_epoch = _starts(run)
    cursor, method = run.record.cursor, run.choice.spec.name
    first = starts[int(cursor.task)] if int(cursor.task) < run.tasks else starts[-1]
    with contextlib.ExitStack() as stack:
        writers = []
        if run.done < run.tasks:  # else there is nothing to come
            for name, package in packages(names).items():
                writer = LOGGERS[name].open(package, folder, method, settings, first)
                stack.callback(writer.close)
                writers.append(writer)

        def watch(event: Event) -> None:
            found = numbers(event)
            if found:
                step = _step(event, starts, per_epoch, run)
                for writer in writers:
                    writer.write(step, found)

        yield watch


def numbers(event: Event) -> dict[str, float]:
    """What an event says, by name; means over the seeds that are still training, and finite."""
    if isinstance(event, EpochEnd):
        values = {f"training/{k}": np.asarray(v) for k, v in event.metrics._asdict().items()}
        if event.validation is not None:
            values["validation"] = np.asarray(event.validation)
        return _means({name: value[event.running] for name, value in values.items()})
    if isinstance(event, Evaluated):
        return _accuracies("within", event.accuracy, event.task)
    if isinstance(event, TaskEnd):
        own = {f"measures/{k}": v for k, v in event.measures.items() if np.ndim(v) == 1}
        return _accuracies("test", event.accuracy, event.task) | _means(own)
    return {}


def _accuracies(group: str, accuracy: np.ndarray, task: int) -> dict[str, float]:
    """A row of the accuracy matrix, [replicas, tasks]; and its mean over the tasks so far."""
    each = {f"{group}/task_{k + 1}": column for k, column in enumerate(accuracy.T)}
    return _means({**each, f"{group}/mean": accuracy[:, : task + 1].mean(axis=1)})


def _means(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    kept = {name: value[np.isfinite(value)] for name, value in values.items()}
    return {name: float(value.mean()) for name, value in kept.items() if value.size}


def _starts(run: MethodRun) -> tuple[list[int], list[int]]:
    """The steps before each task and after the last one; and those of an epoch of each."""
    study, setup = run.studies[-1], run.studies[-1].setup
    per_epoch = [steps_of(study, setup, task) for task in range(run.tasks)]
    each = [sum(lengths(study, task, count)) * count for task, count in enumerate(per_epoch)]
    return [0, *np.cumsum(each).tolist()], per_epoch


def _step(event: Event, starts: Sequence[int], per_epoch: Sequence[int], run: MethodRun) -> int:
    """Where an event stands; epochs that are cut short count as whole ones."""
    if isinstance(event, TaskEnd):
        return starts[event.task + 1]
    if isinstance(event, Evaluated):
        every = run.evaluate_every
        distance = every and (every.steps or (every.epochs or 0) * per_epoch[event.task])
        return starts[event.task] + event.point * (distance or 0)
    return starts[event.task] + event.epoch * per_epoch[event.task]
