"""One comparison in several scenarios, side by side: a table and a plot."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from jaxcl.core.checks import load_extra
from jaxcl.report import text
from jaxcl.report.results import Results, Row, shown_in, summary
from jaxcl.report.tables import divergences, intervals
from jaxcl.report.text import plus_minus

if TYPE_CHECKING:
    from rich.table import Table

_NONE = ["-", "-"]
INFERRED = "†"


def rows(found: Mapping[str, Results]) -> dict[str, dict[str, Row]]:
    """The rows of all tables, by method and scenario."""
    made: dict[str, dict[str, Row]] = {}
    for scenario, results in found.items():
        for row in summary(results):
            made.setdefault(row.method, {})[scenario] = row
    return made


def scenarios_markdown(found: Mapping[str, Results]) -> str:
    """The table in Markdown: accuracy and forgetting of each method in each scenario.

    >>> from jaxcl.report.results import as_results
    >>> mine = {"accuracy": [[[0.9]]], "parameters": 10, "extra_bytes": 0}
    >>> mine |= {"seconds": 1.5, "compilations": 1}
    >>> study = {"benchmark": "digits", "tasks": 1, "seeds": [0], "methods": {"mine": mine}}
    >>> one = as_results(study)
    >>> print(scenarios_markdown({"task": one, "class": one}).splitlines()[0])
    | method | task accuracy (%) | task forgetting | class accuracy (%) | class forgetting |
    """
    header, lines = _cells(found)
    return f"{text.markdown(header, lines)}\n\n{text.escaped(note(found))}\n"


def scenarios_table(found: Mapping[str, Results]) -> "Table":
    """The table for the terminal.

    Raises:
        ImportError: if rich is not installed.

    >>> from jaxcl.report.results import as_results
    >>> mine = {"accuracy": [[[0.9]]], "parameters": 10, "extra_bytes": 0}
    >>> mine |= {"seconds": 1.5, "compilations": 1}
    >>> study = {"benchmark": "digits", "tasks": 1, "seeds": [0], "methods": {"mine": mine}}
    >>> one = as_results(study)
    >>> scenarios_table({"task": one, "class": one}).row_count
    1
    """
    load_extra("rich")
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    header, lines = _cells(found)
    title, caption = Text(next(iter(found.values())).benchmark), Text(note(found))
    out = Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=0)
    for i, name in enumerate(header):
        out.add_column(name.replace(" ", "\n", 1), justify="right" if i else "left")
    for line in lines:
        out.add_row(*(Text(cell.replace(" ± ", "±")) for cell in line))
    return out


def write_scenarios(found: Mapping[str, Results], folder: str | Path) -> list[Path]:
    """Writes `table.md` and the plot `scenarios` beside the folders of the scenarios.

    Args:
        found: the results by scenario.
        folder: where the files go; it is made if need be.

    Returns:
        The paths written.
    """
    load_extra("matplotlib")
    from jaxcl.report import figures

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    title = f"# {text.escaped(next(iter(found.values())).benchmark)}"
    said = [f"{name}: {text.escaped(results.sentence())}" for name, results in found.items()]
    page = "\n\n".join([title, scenarios_markdown(found).strip(), *said]) + "\n"
    path = text.write_whole(folder / "table.md", page)
    return [path, *figures.save(figures.scenarios(found), folder, "scenarios")]


def _cells(found: Mapping[str, Results]) -> tuple[list[str], list[list[str]]]:
    header = ["method"]
    for name in found:
        header += [f"{name} accuracy (%)", f"{name} forgetting"]
    lines, shown = [], shown_in(found.values())
    for method, each in rows(found).items():
        cells = [shown[method].label]
        for name, results in found.items():
            row = each.get(name)
            if row is None:
                cells += _NONE
                continue
            cells += [plus_minus(row.accuracy) + marks(row, results), plus_minus(row.forgetting)]
        lines.append(cells)
    return header, lines


def marks(row: Row, results: Results) -> str:
    """What stands behind an accuracy, as the note says."""
    inferred = INFERRED if results.methods[row.method].inferred else ""
    return inferred + ("*" if row.diverged else "")


def note(found: Mapping[str, Results]) -> str:
    """What the intervals are, which seeds they leave out, and what guessing gives."""
    first = next(iter(found.values()))
    said = [intervals(len(first.seeds))]
    for name, results in found.items():
        said += [f"{name}: {line}" for line in divergences(results)]
    levels = [
        f"{text.percent(results.chance)}% ({name})"
        for name, results in found.items()
        if results.chance is not None
    ]
    said += [f"Guessing gives {text.listed(levels)}."] if levels else []
    rules = [one.inferred for r in found.values() for one in r.methods.values() if one.inferred]
    if rules:
        words = f"{INFERRED} Trained told the task, which is then inferred from the input"
        said += [f"{words} ({text.listed([*dict.fromkeys(rules)])})."]
    if any(len(each) < len(found) for each in rows(found).values()):
        said += ["A method without numbers in a scenario was not trained in it."]
    return " ".join(said)
