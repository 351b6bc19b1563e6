"""What an unfinished run has measured so far, read from its checkpoints, for a web page."""

import contextlib
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxcl.core.checks import check_count
from jaxcl.report import html, metrics, text
from jaxcl.report.html import scroll
from jaxcl.report.reading import numbers
from jaxcl.report.results import Shown, interval, shown_of
from jaxcl.report.runs import Run, seeds_of
from jaxcl.report.tables import intervals
from jaxcl.study import checkpoint

LEAVES = ("cursor/task", "accuracy", "diverged")


class SoFar(NamedTuple):
    """What one method has measured, over its finished tasks.

    Attributes:
        shown: how it appears.
        accuracy: on task k after training on task t, [seeds, finished tasks, finished tasks].
        diverged: the seeds whose training is not finite any more, bool [seeds].
        older: a newer checkpoint cannot be read.
    """

    shown: Shown
    accuracy: np.ndarray
    diverged: np.ndarray
    older: bool = False


def read_so_far(run: Run) -> dict[str, SoFar]:
    """What the newest readable checkpoints of a run hold; methods without one are left out.

    Raises:
        ValueError: if the run's settings have no number of tasks, or no seeds.
    """
    check_count("tasks", run.settings.get("tasks"), 1 << 20)
    seeds, tasks = len(seeds_of(run.settings)), run.settings["tasks"]
    found = {}
    for name in run.done:
        for readable in (False, True):  # an older one, if the newest is damaged
            newest = checkpoint.latest(run.folder / "checkpoints" / name, readable=readable)
            with contextlib.suppress(ValueError):
                so_far = newest and _read(name, newest[1], seeds, tasks)
                if so_far:
                    found[name] = so_far._replace(older=readable)
                break
    return found


def _read(name: str, path: Path, seeds: int, tasks: int) -> SoFar | None:
    held = checkpoint.arrays(path, LEAVES)
    if held.keys() != {*LEAVES}:
        raise ValueError(f"the checkpoint in {path} does not say what was measured.")
    done = int(held["cursor/task"])
    accuracy = numbers("accuracy", held["accuracy"], ((seeds, tasks, tasks),), "[seeds, tasks]", 1)
    if not 0 < done <= tasks:
        return None
    diverged = np.asarray(held["diverged"])[:, 0] > 0
    return SoFar(shown_of(name), accuracy[:, :done, :done], diverged)


def section(run: Run) -> str:
    """What a page says of an unfinished run."""
    found, seeds, tasks = read_so_far(run), seeds_of(run.settings), run.settings["tasks"]
    header = ["Method", "Tasks learned", "Accuracy on them (%)", "Forgetting (points)"]
    rows = [_mean(name, found.get(name), done, tasks) for name, done in run.done.items()]
    parts = [
        f'<p class="alert"><strong>This run is not finished: {escape(run.name)}.</strong> '
        "Its results are written when the last method has learned the last task. To go on, run its "
        "command with --resume.</p>",
        scroll(html.grid(header, rows, "plain")),
        f"<p><small>{escape(_note(run, found))}</small></p>",
    ]
    if found:
        parts += ["<h3>Each seed, after the tasks learned so far</h3>", _each(found, seeds, tasks)]
    return "\n".join(parts)


def _note(run: Run, found: Mapping[str, SoFar]) -> str:
    """What the numbers are, or why there are none."""
    begun = [name for name, done in run.done.items() if done]
    lost = [shown_of(name).label for name in begun if name not in found]
    said = []
    if found:
        said += ["Unfinished: test accuracy after the tasks learned so far, from checkpoints."]
        said += [intervals(len(seeds_of(run.settings)))]
        if any(one.diverged.any() for one in found.values()):
            said += ["* Seeds that diverged are left out."]
    elif not lost:
        said += ["No method has learned its first task yet, so there are no numbers to show."]
    older = [one.shown.label for one in found.values() if one.older]
    if older:
        said += [
            f"The newest checkpoints of {text.listed(older)} cannot be read; the numbers are those "
            f"of the ones before."
        ]
    if lost:
        said += [
            f"The checkpoints of {text.listed(lost)} cannot be read, so their numbers are missing."
        ]
    return " ".join(said)


def _mean(name: str, one: SoFar | None, done: int, tasks: int) -> list[str]:
    """A row for a method: means over the seeds that did not diverge."""
    if one is None:
        cells = [html.number(done, f"{done} of {tasks}"), html.interval(None), html.interval(None)]
        return [html.head(shown_of(name).label), *cells]
    kept = one.accuracy if one.diverged.all() else one.accuracy[~one.diverged]
    forgets = one.shown.role != "upper" and kept.shape[1] > 1
    return [
        html.head(one.shown.label + ("*" if one.diverged.any() else "")),
        _done(one, tasks),
        html.interval(interval(metrics.average_accuracy(kept))),
        html.interval(interval(metrics.forgetting(kept)) if forgets else None),
    ]


def _each(found: Mapping[str, SoFar], seeds: list[int], tasks: int) -> str:
    """A row for each method and seed."""
    most = max(one.accuracy.shape[1] for one in found.values())
    header = ["Method", "Seed", "Tasks learned", "Mean (%)"]
    header += [f"Task {k + 1} (%)" for k in range(most)]
    rows = []
    for one in found.values():
        for seed, matrix, diverged in zip(seeds, one.accuracy, one.diverged):
            said = f"{seed} (diverged)" if diverged else str(seed)
            last = [matrix[-1].mean(), *matrix[-1], *[np.nan] * (most - len(matrix))]
            cells = [html.number(seed, said), _done(one, tasks), *map(_percent, last)]
            rows.append([html.head(one.shown.label), *cells])
    return scroll(html.grid(header, rows, "plain"), tall=True)


def _done(one: SoFar, tasks: int) -> str:
    done = one.accuracy.shape[1]
    return html.number(done, f"{done} of {tasks}")


def _percent(value: float) -> str:
    known = np.isfinite(value)
    return html.number(value if known else None, text.percent(value) if known else "-")
