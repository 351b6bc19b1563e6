"""`jaxcl runs`: the runs of a folder, finished or not."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from jaxcl.cli import terminal
from jaxcl.cli.folder import LOCK
from jaxcl.cli.parsing import parse_plainly
from jaxcl.cli.streams import standard_output
from jaxcl.report import summary
from jaxcl.report.runs import open_run, record, seeds_of
from jaxcl.report.text import percent, size

if TYPE_CHECKING:
    from rich.table import Table

HEADER = ("run", "benchmark", "methods", "seeds", "state", "accuracy (%)", "time (s)", "size")
MOST_METHODS = 6  # that are named


@dataclasses.dataclass(frozen=True)
class Runs:
    """List runs: method, benchmark, seeds, state, accuracy, time, size.

    Attributes:
        folder: of all runs.
    """

    folder: tyro.conf.Positional[Path] = Path("runs")


def run(args: Sequence[str]) -> None:
    """Runs the command.

    Raises:
        ValueError: if there is no such folder, or no run in it.
    """
    folder = parse_plainly(Runs, "runs", args).folder
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}.")
    # A comparison in several scenarios has a folder for each.
    found = sorted(p.parent for deep in ("*", "*/*") for p in folder.glob(f"{deep}/settings.json"))
    if not found:
        raise ValueError(f"{folder} holds no runs of jaxcl.")
    out, _ = terminal.consoles()
    with standard_output():
        out.print(_table(str(folder), [row(folder, path) for path in found]))


def row(root: Path, folder: Path) -> list[str]:
    """What the list says of one run, a cell for each column."""
    try:
        settings = record(folder)["settings"]
        is_sweep = "methods" not in settings
        middle = _of_sweep(folder, settings) if is_sweep else _of_comparison(folder)
    except (ValueError, KeyError, TypeError, OSError) as error:
        middle = ["", "", "", " ".join(f"cannot be read: {error}".split()), "", ""]
    return [str(folder.relative_to(root)), *middle, size(_bytes(folder))]


def _of_comparison(folder: Path) -> list[str]:
    one = open_run(folder)
    settings, tasks = one.settings, one.settings["tasks"]
    names = list(map(str, one.results.methods if one.results else settings["methods"]))
    accuracy = seconds = "-"
    state = f"{min(one.done.values(), default=0)} of {tasks} tasks"
    if one.results is not None:
        rows = summary(one.results)
        low, high = (f(row.accuracy.mean for row in rows) for f in (min, max))
        accuracy = percent(low) if len(rows) == 1 else f"{percent(low)} to {percent(high)}"
        seconds, state = f"{sum(row.seconds for row in rows):,.0f}", "finished"
    elif (folder / LOCK).exists():
        state += ", at work or stopped"
    shown = names[:MOST_METHODS] + (["..."] if len(names) > MOST_METHODS else [])
    first = [str(settings["benchmark"]), ", ".join(shown), str(len(seeds_of(settings)))]
    return [*first, state, accuracy, seconds]


def _of_sweep(folder: Path, settings: dict) -> list[str]:
    state = "finished" if (folder / "results.json").exists() else "not finished"
    words = [settings["benchmark"], settings["method"], len(seeds_of(settings)), f"sweep, {state}"]
    return [*map(str, words), "-", "-"]


def _bytes(folder: Path) -> int:
    """What the files of a folder take; links are not followed."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_symlink())


def _table(title: str, rows: Sequence[Sequence[str]]) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    found = Table(title=Text(title), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, name in enumerate(HEADER):
        found.add_column(name, justify="left" if i in (0, 1, 2, 4) else "right", overflow="fold")
    for cells in rows:
        found.add_row(*map(Text, cells))
    return found
