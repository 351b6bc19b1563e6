"""The search behind the built-in benchmarks' settings: every method by validation accuracy.

    python experiments/defaults.py permuted_digits --methods hat,packnet

Trains every setting of a method's grid, as its Spec has it, with some seeds, in one program for
each number of epochs, and writes results/defaults/<benchmark>.json with all that was tried, and
<benchmark>.md with the best of each method. The test sets are not looked at. `jaxcl compare --tune`
is the same search for one number of epochs.
"""

import argparse
import json
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxcl import data, recipes
from jaxcl.report import searches
from jaxcl.report.text import markdown


class Asked(NamedTuple):
    """What is tried on a benchmark; None for `rates` takes the usual ones, and all methods."""

    epochs: tuple[int, ...]
    seeds: int = 3
    rates: tuple[float, ...] | None = None
    methods: tuple[str, ...] = (
        *("finetune", "joint", "independent", "pnn", "hat", "packnet", "ewc", "si", "mas"),
        *("lwf", "er", "agem", "der", "derpp"),
    )


DEFAULT = ("finetune", "joint", "pnn", "hat", "packnet")  # those of `jaxcl compare`
SEARCHES = {
    "split_digits": Asked((10, 30)),
    "permuted_digits": Asked((10, 20, 30)),
    "permuted_mnist": Asked((2,), 1, (0.005, 0.02, 0.05), ("finetune", "packnet", "hat")),
    "split_mnist5k": Asked((10,), methods=DEFAULT),
}
RESULTS = Path(__file__).parent / "results" / "defaults"


def search(method: str, benchmark: data.Benchmark, epochs: int) -> list[dict]:
    """Every setting of a method's grid, with its validation accuracy at the end by seed."""
    asked = SEARCHES[benchmark.name]
    choice = recipes.choose(method, recipes.defaults(benchmark.name), epochs=epochs)
    grid = recipes.tuning(choice) | ({"learning_rate": asked.rates} if asked.rates else {})
    found = searches.search(choice, benchmark, grid, seeds=range(asked.seeds))
    return [
        {"epochs": epochs, **setting, "validation": [round(float(v), 5) for v in row]}
        for setting, row in zip(found.settings, found.validation)
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
            chosen = {k: v for k, v in row.items() if k not in ("epochs", "validation")}
            said = searches.said_of(chosen).replace(" = ", " ")
            lines.append([method, str(epochs), said, searches.percent(row["validation"])])
    return markdown(["method", "epochs", "best setting", "validation accuracy (%)"], lines, left=3)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("benchmark", choices=SEARCHES)
    words.add_argument("--methods")
    asked = words.parse_args()
    benchmark, usual = data.load(asked.benchmark), SEARCHES[asked.benchmark]
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{asked.benchmark}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for method in asked.methods.split(",") if asked.methods else usual.methods:
        begin = time.perf_counter()
        found[method] = [
            row for epochs in usual.epochs for row in search(method, benchmark, epochs)
        ]
        found = {name: found[name] for name in usual.methods if name in found}
        path.write_text(json.dumps(found, indent=1) + "\n")
        path.with_suffix(".md").write_text(table(found) + "\n")
        print(f"{method}: {best(found[method])}, {time.perf_counter() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
