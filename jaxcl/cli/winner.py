"""The best setting of a sweep: the command that compares it, and its networks as a run."""

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxcl.cli import processes
from jaxcl.cli.folder import record_settings
from jaxcl.cli.options import MOST_SEED, Compare, Run, Sweep, short_line
from jaxcl.cli.running import Place
from jaxcl.report.runs import digest
from jaxcl.report.searches import Search
from jaxcl.study import checkpoint, recipes
from jaxcl.study.comparison import Record

FOLDER = "best"


def rows(found: Search, seeds: int) -> slice:
    """The replicas of the best setting."""
    best = found.best or 0
    return slice(best * seeds, (best + 1) * seeds)


def command(sweep: Sweep, found: Search) -> str:
    """The comparison of the best setting with seeds that the sweep has not seen; or ""."""
    return "" if found.best is None else short_line(_compare(sweep, found), _usual(sweep))


def _compare(sweep: Sweep, found: Search) -> Compare:
    choice = recipes.with_settings(sweep.choice, found.winner)
    count, last = len(sweep.run.numbers), max(sweep.run.numbers)
    first = last + 1 if last + count <= MOST_SEED else 0
    given = {**vars(sweep.run), "seeds": (count,), "seed": first, "name": None}
    return Compare((sweep.method,), 0.05, Run(**given), choice.shared, (choice,))


def _usual(sweep: Sweep) -> Compare:
    """What `compare` takes where nothing is said."""
    from jaxcl.cli.parsing import parse

    words = ["compare", "--methods", sweep.method, "--benchmark", sweep.run.benchmark]
    usual = parse(words)
    assert isinstance(usual, Compare)
    return usual


def save(place: Place, sweep: Sweep, found: Search, record: Record, tests: np.ndarray) -> None:
    """Writes the best setting's networks as a run of its own, which `jaxcl.load` opens.

    Args:
        place: of the sweep.
        sweep: what was asked for.
        found: what it found.
        record: of all replicas at the end, learners included.
        tests: accuracy of the best setting's replicas on the test sets, [seeds, tasks]; what the
            sweep measured on validation sets is left out.
    """
    choice, folder = recipes.with_settings(sweep.choice, found.winner), place.folder / FOLDER
    name, seeds, settings = choice.spec.name, place.settings["seeds"], _settings(place, choice)
    with processes.agreement():
        if processes.is_main():
            shutil.rmtree(folder, ignore_errors=True)
    path = folder / "checkpoints" / name / f"task_{place.settings['tasks']}"
    accuracy = np.full((len(tests), len(tests[0]), len(tests[0])), np.nan, np.float32)
    accuracy[:, -1] = tests
    chosen = _taken(record, rows(found, len(tests)))._replace(accuracy=accuracy)
    checkpoint.save(path, chosen, {"settings": digest(settings), "data": place.origin.data})
    if processes.is_main():
        assert seeds == settings["seeds"]
        line = short_line(_compare(sweep, found), _usual(sweep))
        record_settings(folder, settings, place.origin, line)


def _settings(place: Place, choice: recipes.Choice) -> dict[str, Any]:
    """Those of a comparison with this method alone."""
    name = choice.spec.name
    shared = ("benchmark", "tasks", "seeds", "inputs", "data")
    settings = {key: place.settings[key] for key in shared}
    settings |= {"methods": [name], "options": {name: dict(vars(choice.own))}}
    return {**settings, **vars(choice.shared), "chosen_by": str(Path(place.folder).name)}


def _taken(record: Record, rows: slice) -> Record:
    """Some replicas of a record; their learners lie on every device."""
    learners = record.learners
    whole = NamedSharding(learners.key.sharding.mesh, PartitionSpec())
    take = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf[rows], tree), out_shardings=whole)
    numbers = {name: getattr(record, name) for name in ("measures", "curves", "diverged")}
    return record._replace(
        learners=take(learners), **jax.tree.map(lambda values: values[rows], numbers)
    )
