"""`jaxcl report`: runs as one web page, a file that can be sent and opened anywhere."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from jaxcl.cli import terminal
from jaxcl.cli.parsing import parse_plainly
from jaxcl.cli.streams import standard_output
from jaxcl.report.runs import open_run
from jaxcl.report.text import size, write_whole
from jaxcl.report.webpage import page


@dataclasses.dataclass(frozen=True)
class Report:
    """Write one or several runs as a web page: one file that needs no network.

    Attributes:
        runs: folders of runs, such as runs/permuted_digits. Several become one comparison.
        output: the file.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("report.html")


def run(args: Sequence[str]) -> None:
    """Runs the command.

    Raises:
        ValueError: if a folder holds no comparison, or the runs do not fit together.
        ImportError: if the extra is not installed.
    """
    command = parse_plainly(Report, "report", args)
    if not command.runs:
        raise ValueError(
            'there is nothing to report; give a folder, as in "jaxcl report runs/NAME".'
        )
    if command.output.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--output must end in .html, got {str(command.output)!r}.")
    content = page([open_run(folder) for folder in command.runs])
    write_whole(command.output, content)
    out, _ = terminal.consoles()
    with standard_output():
        out.print(f"Written to {command.output} ({size(len(content.encode()))})", soft_wrap=True)
