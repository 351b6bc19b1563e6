"""`jaxcl report`: runs as one web page, a file that can be sent and opened anywhere."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from jaxcl.cli import terminal
from jaxcl.cli.parsing import parse_plainly
from jaxcl.cli.streams import standard_output
from jaxcl.report.runs import open_parts, open_run
from jaxcl.report.text import size, write_whole
from jaxcl.report.webpage import page, scenarios_page


@dataclasses.dataclass(frozen=True)
class Report:
    """Write one or several runs as a web page: one file that needs no network.

    Attributes:
        runs: folders of runs, such as runs/permuted_digits. Several become one comparison. A run
            in several scenarios is one folder, whose page has them side by side.
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
    content = _content(command.runs)
    write_whole(command.output, content)
    out, _ = terminal.consoles()
    with standard_output():
        out.print(f"Written to {command.output} ({size(len(content.encode()))})", soft_wrap=True)


def _content(folders: Sequence[Path]) -> str:
    """The page of one or several runs, or of one run in several scenarios."""
    parts = {folder: open_parts(folder) for folder in folders}
    for folder, of_folder in parts.items():
        if of_folder and len(folders) > 1:
            names = ", ".join(str(folder / name) for name in of_folder)
            raise ValueError(
                f"{folder} is a run in several scenarios; report it alone, or give its parts: "
                f"{names}."
            )
        if of_folder:
            return scenarios_page(folder.resolve().name, of_folder)
    return page([open_run(folder) for folder in folders])
