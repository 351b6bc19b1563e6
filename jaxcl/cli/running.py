"""A run in its folder: what `compare` and `sweep` do alike to begin, go on, save and stop."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxcl.cli import processes
from jaxcl.cli.folder import Origin, claim, hold, write_settings
from jaxcl.cli.options import Run
from jaxcl.cli.session import check_size, layout_options, sizes_that_exist
from jaxcl.core.trees import size_bytes
from jaxcl.data.benchmark import Benchmark
from jaxcl.report.runs import digest
from jaxcl.report.text import counted, listed, size
from jaxcl.study import comparison
from jaxcl.study.comparison import MethodRun, Record
from jaxcl.study.events import EpochEnd, Event, TaskEnd
from jaxcl.study.memory import limit_bytes
from jaxcl.study.pace import interval
from jaxcl.study.points import Every
from jaxcl.study.recipes import Choice
from jaxcl.study.replicas import Device

MUCH = 0.4  # of a device's memory, for the learners alone


class Refused(Exception):  # noqa: N818 - as `Stopped`
    """What was asked for cannot be done, as is seen only while the work goes on."""


class Place(NamedTuple):
    """A folder, and the run that is to be there; `beside` names what else may be in the folder."""

    folder: Path
    settings: dict[str, Any]
    origin: Origin
    run: Run
    beside: tuple[str, ...] = ()

    def claim(self) -> list[str]:
        """See `folder.claim`."""
        resume, override = self.run.resume, self.run.override
        return claim(
            self.folder, self.settings, self.origin,
            resume=resume, override=override, beside=self.beside,
        )  # fmt: skip


def begin(
    place: Place,
    choice: Choice,
    benchmark: Benchmark,
    seeds: Sequence[int],
    devices: Sequence[Device],
    settings: Mapping[str, Any] | None = None,
    evaluate_every: Every | None = None,
) -> MethodRun:
    """One method before its first task; `settings` are one value for each replica."""
    with sizes_that_exist():
        one = comparison.begin(
            choice, benchmark, seeds,
            folder=place.folder / "checkpoints" / choice.spec.name,
            about={"settings": digest(place.settings), "data": place.origin.data},
            settings=settings, evaluate_every=evaluate_every, **layout_options(place.run, devices),
        )  # fmt: skip
    check_size(one.studies, one.learner, choice)
    return one


def take(
    place: Place,
    command: Any,
    runs: Mapping[str, MethodRun],
    overridden: Sequence[str],
    held: ExitStack,
    finished: bool = False,
) -> dict[str, MethodRun]:
    """Takes the folder, and gives the methods as far as their checkpoints.

    Args:
        place: the folder and the run.
        command: what was asked for.
        runs: the methods before their first tasks.
        overridden: from `Place.claim`.
        held: keeps the folder until it is closed.
        finished: see `comparison.restore`.

    Raises:
        ValueError: as `claim` and `restore` do, and unless all processes do the same.
    """
    same = {**place.settings, **layout_options(place.run, None), "data": place.origin.data}
    processes.check_same(place.folder, same)
    with processes.agreement():
        if processes.is_main():
            held.enter_context(hold(place.folder))
            place.claim()  # by now another process may have been here
    with processes.agreement():
        restored = {n: comparison.restore(one, finished=finished) for n, one in runs.items()}
    with processes.agreement():
        if processes.is_main():
            write_settings(place.folder, place.settings, place.origin, command, overridden)
            for one in restored.values():
                comparison.make_room(one)
    return restored


def about(run: MethodRun) -> list[str]:
    """What the terminal says of a method beforehand."""
    name, about, said = run.choice.spec.name, run.choice.spec.about, []
    if about:
        said.append(f"{name}: {about(run.learner)}")
    layout = run.studies[-1].layout
    whole, limit = size_bytes(run.learner) * layout.per_device, limit_bytes(layout)
    if whole > MUCH * limit:
        said.append(
            f"warning: {name}: once all tasks are there, {counted(layout.per_device, 'learner')} "
            f"take {size(whole)} of the {size(limit)} that a device has, and training takes as "
            f"much again; choose a smaller network, fewer seeds"
            f"{run.choice.spec.smaller and f', or {run.choice.spec.smaller}'}"
        )
    if run.done and run.done < run.tasks:
        known = {n: v[:, run.done - 1] for n, v in run.record.measures.items() if v.ndim == 2}
        said += full(run, known, run.done)
    if run.found and run.passed_over:
        said.append(
            f"{name}: {run.passed_over.name} cannot be read and is passed over; it goes on after "
            f"{run.found.name}"
        )
    return said


def full(run: MethodRun, measures: Mapping[str, np.ndarray], done: int) -> list[str]:
    """What the terminal says where a method has nothing left for the task after `done` ones."""
    limit = run.choice.spec.limit
    if limit is None or done >= run.tasks:
        return []
    reached = np.asarray(limit.reached(measures, run.learner))
    if not reached.any():
        return []
    seeds = [str(run.studies[-1].seeds[i]) for i in np.flatnonzero(reached)]
    seeds = [*seeds[:4], f"{len(seeds) - 4} more"] if len(seeds) > 4 else seeds
    of = "" if reached.all() else f", seed{'s' if len(seeds) > 1 else ''} {listed(seeds)}"
    return [
        f"warning: {run.choice.spec.name}{of}: before task {done + 1}, {limit.words}; "
        f"{limit.advice}, and the tasks before it stay as they are"
    ]


def follow(
    run: MethodRun,
    options: Run,
    stop: Callable[[], bool],
    progress: Callable,
    tell: Callable[[str], Any],
    evaluate_on: Literal["val", "test"] = "test",
    watch: Callable[[Event], None] = lambda event: None,
) -> Iterator[tuple[TaskEnd, Record]]:
    """Trains one method to its end, shows how far it is, and yields after every task.

    Raises:
        FloatingPointError: with --debug-nans, at the first NaN.
    """
    tasks, known = run.tasks, run.record.diverged[:, 0] > 0
    progress(tasks=tasks, task=run.done, epoch=0, epochs=1)
    every = interval(options.save_every)
    course = comparison.advance(
        run, evaluate_on=evaluate_on, save_every=every, stop=stop, debug_nans=options.debug_nans
    )
    for event, record in _named(run.choice.spec.name, course):
        watch(event)
        new = (record.diverged[:, 0] > 0) & ~known
        if new.any():
            known = known | new
            tell(_diverged(run, record, new, ended=known.all()))
        if isinstance(event, EpochEnd):
            progress(tasks=tasks, task=event.task, epoch=event.epoch, epochs=event.epochs)
        elif isinstance(event, TaskEnd):
            yield event, record


def _named(name: str, course: Iterator) -> Iterator:
    """The same, where a NaN is said to be the method's."""
    try:
        yield from course
    except FloatingPointError as error:
        raise FloatingPointError(f"{name}, {error}") from None


def _diverged(run: MethodRun, record: Record, new: np.ndarray, ended: bool) -> str:
    """Which replicas diverged just now, and what becomes of the others."""
    study = run.studies[-1]
    names = [
        ", ".join([f"seed {study.seeds[i]}", *(f"{n} {v[i]:g}" for n, v in study.settings.items())])
        for i in np.flatnonzero(new)
    ]
    some = [*names[:4], *([f"{len(names) - 4} more"] if len(names) > 4 else [])]
    task, epoch = record.diverged[np.flatnonzero(new)[0]]
    rest = "it ends here" if ended else "they are left out, and the others go on"
    return (
        f"warning: {run.choice.spec.name}: training diverged in task {task}, epoch {epoch} with "
        f"{listed(some)}; {rest}"
    )
