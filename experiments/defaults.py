"""The search behind the built-in benchmarks' settings: every method by validation accuracy.

    python experiments/defaults.py permuted_digits --methods hat,packnet

Trains every setting of a method's grid and some seeds, in one program for each number of epochs,
and writes results/defaults/<benchmark>.json with all that was tried, and <benchmark>.md with the
best of each method. The test sets are not looked at.
"""

import argparse
import itertools
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxcl import data, metrics, recipes, study
from jaxcl.report.text import markdown, plus_minus

GRIDS = {
    "finetune": {},
    "joint": {},
    "independent": {},
    "pnn": {"alpha": (0.1, 1.0)},
    "hat": {"s_max": (50, 100, 200, 400), "c": (0.25, 0.75, 1.5)},
    "packnet": {"retrain_scale": (0.1, 1.0)},
    "ewc": {"strength": (1, 10, 100, 1000)},
    "si": {"strength": (0.1, 1, 10, 100)},
    "mas": {"strength": (0.01, 0.1, 1, 10)},
    "lwf": {"strength": (0.3, 1, 3)},
    "er": {},
    "agem": {},
    "der": {"alpha": (0.1, 0.3, 1.0)},
    "derpp": {"alpha": (0.1, 0.3), "beta": (0.5, 1.0)},
}

SMALL_GRIDS = {"finetune": {}, "packnet": {}, "hat": {"s_max": (100, 400), "c": (0.25, 0.75)}}


class Search(NamedTuple):
    """What is tried on a benchmark."""

    epochs: tuple[int, ...]
    rates: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2)
    seeds: int = 3
    grids: Mapping[str, Mapping[str, tuple[float, ...]]] = GRIDS


SEARCHES = {
    "split_digits": Search((10, 30)),
    "permuted_digits": Search((10, 20, 30)),
    "permuted_mnist": Search((2,), (0.005, 0.02, 0.05), 1, SMALL_GRIDS),
}
RESULTS = Path(__file__).parent / "results" / "defaults"


def search(method: str, benchmark: data.Benchmark, epochs: int) -> list[dict]:
    """Every setting of a method's grid, with its validation accuracy at the end by seed."""
    asked = SEARCHES[benchmark.name]
    grid = {"learning_rate": asked.rates, **asked.grids[method]}
    settings = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    choice = recipes.choose(method, recipes.defaults(benchmark.name), epochs=epochs)
    columns = {name: np.repeat([s[name] for s in settings], asked.seeds) for name in grid}
    studies = recipes.studies(
        choice, benchmark, seeds=list(range(asked.seeds)) * len(settings), settings=columns
    )
    tasks = len(benchmark.tasks)
    accuracy = np.full((len(settings) * asked.seeds, tasks, tasks), np.nan)
    finite = None
    for event in study.run(studies, evaluate_on="val"):
        if isinstance(event, study.TaskEnd):
            accuracy[:, event.task], finite = event.accuracy, event.finite
    final = np.where(finite, metrics.average_accuracy(accuracy), np.nan).reshape(-1, asked.seeds)
    return [
        {"epochs": epochs, **setting, "validation": [round(float(v), 5) for v in row]}
        for setting, row in zip(settings, final)
    ]


def best(rows: list[dict]) -> dict:
    """The setting with the highest mean; one with a diverged seed is none."""
    return max(rows, key=lambda row: np.nan_to_num(np.mean(row["validation"]), nan=-1))


def table(found: dict[str, list[dict]]) -> str:
    """The best setting of each method, for each number of epochs."""
    lines = []
    for method, rows in found.items():
        for epochs in sorted({row["epochs"] for row in rows}):
            row = best([row for row in rows if row["epochs"] == epochs])
            chosen = ", ".join(
                f"{k} {v:g}" for k, v in row.items() if k not in ("epochs", "validation")
            )
            accuracy = plus_minus(metrics.confidence_interval(row["validation"]))
            lines.append([method, str(epochs), chosen, accuracy])
    return markdown(["method", "epochs", "best setting", "validation accuracy (%)"], lines, left=3)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("benchmark", choices=SEARCHES)
    words.add_argument("--methods")
    asked = words.parse_args()
    benchmark = data.load(asked.benchmark)
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{asked.benchmark}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    methods = asked.methods.split(",") if asked.methods else SEARCHES[asked.benchmark].grids
    for method in methods:
        begin = time.perf_counter()
        found[method] = [
            row
            for epochs in SEARCHES[asked.benchmark].epochs
            for row in search(method, benchmark, epochs)
        ]
        found = {name: found[name] for name in GRIDS if name in found}
        path.write_text(json.dumps(found, indent=1) + "\n")
        path.with_suffix(".md").write_text(table(found) + "\n")
        print(f"{method}: {best(found[method])}, {time.perf_counter() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
