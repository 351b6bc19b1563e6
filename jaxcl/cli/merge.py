"""`jaxcl merge`: parts of one study, with other seeds or other methods, in one folder."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import tyro

from jaxcl import report
from jaxcl.cli import terminal
from jaxcl.cli.folder import hold
from jaxcl.cli.options import check_name
from jaxcl.cli.parsing import parse_plainly
from jaxcl.cli.plot import finished
from jaxcl.cli.streams import standard_output
from jaxcl.report import joining
from jaxcl.report.results import plain
from jaxcl.report.runs import Run, open_run
from jaxcl.report.text import write_whole


@dataclasses.dataclass(frozen=True)
class Merge:
    """Join finished runs of the same settings into one, with more seeds or more methods.

    Attributes:
        runs: folders of runs, such as runs/one runs/two.
        out: folder of all runs.
        name: folder of the new run within it; None takes the first run's name and "_merged".
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    out: Path = Path("runs")
    name: str | None = None


def run(args: Sequence[str]) -> None:
    """Runs the command.

    Raises:
        ValueError: if the runs do not fit together, or the new folder is there already.
    """
    command = parse_plainly(Merge, "merge", args)
    check_name(command.name)
    found = {str(folder): open_run(folder) for folder in command.runs}
    if len(found) < 2:
        raise ValueError('give two runs or more, as in "jaxcl merge runs/ONE runs/TWO".')
    merged = joining.merge({folder: finished(one) for folder, one in found.items()})
    first = next(iter(found.values()))
    folder = command.out / (command.name or f"{first.name}_merged")
    if folder.exists():
        raise ValueError(f"{folder} exists; choose another --name.")
    with hold(folder):
        write_whole(folder / "settings.json", _settings(found, merged, args))
        paths = report.write(merged, folder)
    out, err = terminal.consoles()
    for note in _notes(found):
        err.print(note, soft_wrap=True)
    with standard_output():
        out.print(report.table(merged))
        out.print(report.sentence(merged))
        terminal.conclude(out, folder, [folder / "settings.json", *paths])


def _settings(found: dict[str, Run], merged: report.Results, args: Sequence[str]) -> str:
    import shlex

    first = next(iter(found.values()))
    content = {
        "command": shlex.join(["jaxcl", "merge", *args]),
        "settings": merged.settings,
        "versions": first.versions,
        "devices": list(dict.fromkeys(d for one in found.values() for d in one.devices)),
        "merged": [
            one._asdict() | {"results": None, "inferred": None, "folder": str(one.folder)}
            for one in found.values()
        ],
    }
    return json.dumps(plain(content), indent=1) + "\n"


def _notes(found: dict[str, Run]) -> list[str]:
    """What may make the parts differ though their settings are the same."""
    (folder, first), *others = found.items()
    return [
        f"note: {folder} and {other} were made by different versions: {first.versions} and "
        f"{one.versions}"
        for other, one in others
        if one.versions != first.versions
    ]
