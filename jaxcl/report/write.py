"""Tables, one sentence and plots of a study.

All is computed from one JSON-like dict, the *results*:

    {"benchmark": str, "tasks": T, "seeds": [int, ...], "settings": {...},
     "methods": {name: {"accuracy": [S][T][T], "capacity": [S][T] or None, "parameters": int,
                        "extra_bytes": int, "seconds": float, "compilations": int,
                        "free": [S][T], "reuse": [S][T][T], "compression": [S][T]}}}

`accuracy[s][t][k]` is the test accuracy in [0, 1] on task `k` after training on task `t`; None or
nan above the diagonal where it was not measured. `joint` is the reference that trains on all tasks
together: it has no forgetting. The last three may be None or absent: the share of the weights that
is free when a task begins, the share of task i's weights that task j uses, `[S][i][j]`, and the
share of all weights that a task uses by itself. Intervals are 95% Student t intervals over the
seeds.

Tables need rich, plots need matplotlib. Both come with `pip install "jaxcl[experiments]"` and are
loaded when used.
"""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from jaxcl.core.checks import load_extra
from jaxcl.report import text

if TYPE_CHECKING:
    pass
from jaxcl.report.results import Row, arrays_of, summary
from jaxcl.report.tables import markdown, table, usage
from jaxcl.report.wording import sentence

__all__ = ["Row", "markdown", "plots", "sentence", "summary", "table", "usage", "write"]


def plots(results: dict, folder: str | Path) -> list[Path]:
    """Draws the study: each plot as SVG and as PNG, the same bytes for the same results.

    `accuracy` shows each task as the sequence goes on, `matrix` the accuracy matrices, and
    `capacity` what is used after each task, if some method has a capacity.

    Args:
        results: the results of a study.
        folder: where the files go; it is made if need be.

    Returns:
        The paths written.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    load_extra("matplotlib")
    from jaxcl.report import figures

    arrays = arrays_of(results)
    accuracy = {name: values for name, (values, _) in arrays.items()}
    used = {name: values for name, (_, values) in arrays.items()}
    drawn = {"accuracy": figures.accuracy(accuracy), "matrix": figures.matrix(accuracy)}
    if any(values is not None for values in used.values()):
        drawn["capacity"] = figures.capacity(used)
    paths = [figures.save(figure, folder, name) for name, figure in drawn.items()]
    return [path for both in paths for path in both]


def write(results: dict, folder: str | Path) -> list[Path]:
    """Writes `results.json`, `table.md` (the sentence and the tables) and the plots.

    Text files are written whole or not at all, so a reader never sees half of one.

    Args:
        results: the results of a study.
        folder: where the files go; it is made if need be.

    Returns:
        The paths written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f"# {results['benchmark']}", sentence(results), markdown(results), usage(results)]
    page = "\n\n".join(part.strip() for part in parts if part) + "\n"
    files = {"results.json": json.dumps(_plain(results), indent=1) + "\n", "table.md": page}
    paths = [text.write_whole(folder / name, content) for name, content in files.items()]
    return paths + plots(results, folder)


# Words and numbers


# Reading the results


def _plain(value):
    """The same for JSON: arrays as lists, nan as None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
