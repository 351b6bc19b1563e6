"""The files of a study: its numbers, its tables, its plots."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxcl.core.checks import load_extra
from jaxcl.report import along, paired, text
from jaxcl.report.export import to_csv
from jaxcl.report.results import Results, as_results, counting, to_json
from jaxcl.report.tables import markdown, usage, within_markdown
from jaxcl.report.wording import sentence

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(results: Results | Mapping[str, Any]) -> "dict[str, Figure]":
    """Draws the study, as figures by name.

    Seeds that diverged are left out, as in the table. `accuracy` shows each task as the sequence
    goes on, `matrix` the accuracy matrices, `capacity` what is used after each task, if some method
    has a capacity, `curves` what was recorded after each epoch, and `during` what was measured
    within the tasks.

    Args:
        results: the results of a study, or what `results.json` holds.

    Raises:
        ImportError: if matplotlib is not installed.

    >>> mine = {"accuracy": [[[0.9, 0.1], [0.8, 0.9]]], "parameters": 10, "extra_bytes": 0}
    >>> mine |= {"seconds": 1.5, "compilations": 1}
    >>> study = {"benchmark": "digits", "tasks": 2, "seeds": [0], "methods": {"mine": mine}}
    >>> list(draw(study))
    ['accuracy', 'matrix']
    """
    load_extra("matplotlib")
    from jaxcl.report import figures

    methods = as_results(results).methods
    shown = {name: method.shown for name, method in methods.items()}
    kept = {name: counting(method) for name, method in methods.items()}
    accuracy = {name: method.accuracy[kept[name]] for name, method in methods.items()}
    used = {
        name: method.measures["capacity"][kept[name]] if "capacity" in method.measures else None
        for name, method in methods.items()
    }
    drawn = {
        "accuracy": figures.accuracy(accuracy, shown),
        "matrix": figures.matrix(accuracy, shown),
    }
    if any(values is not None for values in used.values()):
        drawn["capacity"] = figures.capacity(used, shown)
    curves = {name: method.curves for name, method in methods.items() if method.curves}
    if curves:
        drawn["curves"] = figures.curves(curves, shown)
    within = {name: m.during[kept[name]] for name, m in methods.items() if m.during is not None}
    if within:
        distance = str(as_results(results).settings.get("evaluate_every", ""))
        drawn["during"] = along.figure(within, shown, distance)
    return drawn


def plots(results: Results | Mapping[str, Any], folder: str | Path) -> list[Path]:
    """Draws the study: each plot as SVG and as PNG, the same bytes for the same results.

    Args:
        results: the results of a study, or what `results.json` holds.
        folder: where the files go; it is made if need be.

    Returns:
        The paths written.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    drawn = draw(results)
    from jaxcl.report import figures

    paths = [figures.save(figure, folder, name) for name, figure in drawn.items()]
    return [path for both in paths for path in both]


def write(results: Results | Mapping[str, Any], folder: str | Path) -> list[Path]:
    """Writes `results.json`, `table.md` (the sentence and the tables), `curves.csv` and the plots.

    Text files are written whole or not at all, so a reader never sees half of one.

    Args:
        results: the results of a study.
        folder: where the files go; it is made if need be.

    Returns:
        The paths written.
    """
    folder, results = Path(folder), as_results(results)
    folder.mkdir(parents=True, exist_ok=True)
    title = f"# {text.escaped(results.benchmark)}"
    parts = [title, text.escaped(sentence(results)), markdown(results)]
    parts += [within_markdown(results), paired.markdown(results), usage(results)]
    parts += [_search(folder)]
    page = "\n\n".join(part.strip() for part in parts if part) + "\n"
    files = {"results.json": json.dumps(to_json(results), indent=1) + "\n", "table.md": page}
    if any(method.curves for method in results.methods.values()):
        files["curves.csv"] = to_csv(results, "curves")
    paths = [text.write_whole(folder / name, content) for name, content in files.items()]
    return paths + plots(results, folder)


def _search(folder: Path) -> str:
    """What a search chose before the comparison; "" if there was none, or it cannot be read."""
    from jaxcl.report import searches  # which needs what trains

    try:
        content = json.loads((folder / "search.json").read_text(encoding="utf-8"))
        return f"## The search\n\n{searches.summary(content)}"
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return ""
