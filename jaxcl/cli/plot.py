"""`jaxcl plot`: the plots and tables of finished runs once more, without training."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import tyro

from jaxcl import report
from jaxcl.cli import terminal
from jaxcl.cli.folder import hold
from jaxcl.cli.parsing import parse_plainly
from jaxcl.cli.streams import standard_output
from jaxcl.report.results import Results
from jaxcl.report.runs import Run, open_run


@dataclasses.dataclass(frozen=True)
class Plot:
    """Draw the plots and write the tables of finished runs again, without training.

    Attributes:
        runs: folders of runs, such as runs/permuted_digits.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]


def run(args: Sequence[str]) -> None:
    """Runs the command.

    Raises:
        ValueError: if a folder holds no finished comparison; nothing is written then.
    """
    command = parse_plainly(Plot, "plot", args)
    if not command.runs:
        raise ValueError('there is nothing to plot; give a folder, as in "jaxcl plot runs/NAME".')
    found = {folder: finished(open_run(folder)) for folder in command.runs}
    out, _ = terminal.consoles()
    for folder, results in found.items():
        with hold(folder):
            paths = report.write(results, folder)[1:]
        with standard_output():
            terminal.conclude(out, folder, paths)


def finished(found: Run) -> Results:
    """The results of a run.

    Raises:
        ValueError: if it is not finished.
    """
    if found.results is None:
        raise ValueError(
            f"the run {found.name} is not finished; its command with --resume goes on: "
            f"{found.command}"
        )
    return found.results
