"""The settings that a benchmark starts with are those that the recorded search chose."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxcl import recipes
from jaxcl.methods import find

RESULTS = Path(__file__).parents[2] / "experiments" / "results" / "defaults"
SEARCHES = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
CASES = [(benchmark, method) for benchmark, found in SEARCHES.items() for method in found]


@pytest.mark.parametrize(("benchmark", "method"), CASES)
def test_presets_are_the_best_that_was_found_on_validation_data(benchmark, method):
    shared, spec = recipes.defaults(benchmark), find(method)
    rows = [r for r in SEARCHES[benchmark][method] if r["epochs"] == shared.epochs]
    assert rows, f"nothing was tried with {shared.epochs} epochs"
    best = max(rows, key=lambda row: np.mean(row["validation"]))
    used = {**vars(shared), **vars(spec.options()), **spec.presets.get(benchmark, {})}
    tried = best.keys() - {"validation"}
    assert {name: used[name] for name in tried} == {name: best[name] for name in tried}
