"""`jaxcl show`: the results of a run once more, for readers and for other programs."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro

from jaxcl import report
from jaxcl.cli import terminal
from jaxcl.cli.parsing import parse_plainly
from jaxcl.cli.plot import finished
from jaxcl.cli.streams import standard_output
from jaxcl.report.results import to_json
from jaxcl.report.runs import open_run


@dataclasses.dataclass(frozen=True)
class Show:
    """Print the results of a finished run.

    Attributes:
        run: its folder, such as runs/permuted_digits.
        format: for the terminal, as Markdown, CSV, LaTeX, or all numbers as JSON.
    """

    run: tyro.conf.Positional[Path]
    format: Literal["table", "md", "csv", "latex", "json"] = "table"


def run(args: Sequence[str]) -> None:
    """Runs the command.

    Raises:
        ValueError: if the folder holds no finished comparison.
    """
    command = parse_plainly(Show, "show", args)
    results = finished(open_run(command.run))
    out, _ = terminal.consoles()
    with standard_output():
        if command.format == "table":
            out.print(report.table(results))
            out.print(report.sentence(results))
            return
        texts = {
            "md": report.markdown,
            "csv": report.to_csv,
            "latex": report.to_latex,
            "json": lambda results: json.dumps(to_json(results), indent=1) + "\n",
        }
        print(texts[command.format](results), end="")
