"""Scenarios in which nobody tells the task, for methods that are told it when they train.

They train once, in the part "task" of a comparison. For each other scenario that is asked for,
their networks are measured with the task inferred from the input, and join what trained there.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcl.cli import processes
from jaxcl.cli.options import Compare
from jaxcl.cli.scenarios import inferred_in
from jaxcl.data.benchmark import Benchmark
from jaxcl.inference.measuring import Measured, after_each, unknown
from jaxcl.inference.runs import Trained, load
from jaxcl.inference.tasks import Rule
from jaxcl.report.results import MethodResults, Results, plain, summary
from jaxcl.report.text import write_whole
from jaxcl.study import recipes
from jaxcl.study.comparison import Stopped

RULE: Rule = "entropy"
HELD_OUT = 1000  # validation examples for the calibration, of all tasks together
SHARE = "task_inferred"  # the measure: the share of examples whose task is told rightly
OF_SCENARIO = {"class": "inferred", "domain": "classes"}  # the field of `Measured` that counts


def check(command: Compare, benchmark: Benchmark) -> None:
    """Raises ValueError for a benchmark whose tasks cannot be inferred where they would be."""
    for scenario in command.scenarios:
        names = [choice.spec.name for choice in inferred_in(command, scenario)]
        if not names:
            continue
        if benchmark.regression:
            raise ValueError(
                f"{benchmark.name}: {names[0]} has to be told the task, and it is inferred from "
                f"classes, not from targets; leave out the scenario {scenario!r}, or the method."
            )
        recipes.check_scenario(scenario, benchmark)


def join(
    command: Compare,
    found: dict[str, Results],
    folder: Path,
    benchmark: Benchmark,
    stop: Callable[[], bool],
    tell: Callable[[str], Any],
) -> dict[str, Results]:
    """The results of all scenarios, once their methods are trained, with those that are inferred.

    What `jaxcl infer` writes is written for each part that has some.

    Args:
        command: what is asked for.
        found: the results of what was trained, by scenario.
        folder: that of the comparison, whose part "task" holds the networks.
        benchmark: the sequence of tasks.
        stop: whether to stop, asked before each method.
        tell: takes a line for the terminal.

    Raises:
        ValueError: for a part of which tasks were forgotten.
        Stopped: if asked to.
    """
    wanted = {name: inferred_in(command, name) for name in found}
    if not any(wanted.values()):
        return found
    told, measured = found["task"], {}
    one = load(folder / "task", methods=[choice.spec for choice in command.choices])
    if one.forgotten:
        raise ValueError(f"{one.folder}: tasks were forgotten, whose examples nothing tells.")
    for name in dict.fromkeys(c.spec.name for chosen in wanted.values() for c in chosen):
        if stop() and not processes.several():
            raise Stopped
        start = time.perf_counter()
        measured[name] = _measured(one[name], told, benchmark)
        tell(f"{name}: measured with the task inferred, {time.perf_counter() - start:.1f} s")
    joined = {}
    for scenario, results in found.items():
        names = [choice.spec.name for choice in wanted[scenario]]
        all_here = dict(results.methods) | {
            name: _as_results(told.methods[name], measured[name], scenario) for name in names
        }
        order = [choice.spec.name for choice in command.choices if choice.spec.name in all_here]
        joined[scenario] = results._replace(methods={name: all_here[name] for name in order})
        if names and processes.is_main():
            _write(folder / scenario, {name: measured[name] for name in names})
    return joined


def _measured(trained: Trained, told: Results, benchmark: Benchmark) -> list[list[Measured] | None]:
    """For each seed what `after_each` gives; the end alone where earlier networks have changed.

    A seed that diverged has none.
    """
    tests = [task.test for task in benchmark.tasks]
    each = max(1, HELD_OUT // len(tests))
    held_out = [task.val.x[:each] for task in benchmark.tasks]
    method = told.methods[trained.spec.name]
    row = next(row for row in summary(told) if row.method == trained.spec.name)
    kept = row.keeps_all and trained.setup()[0].method.isolates
    found: list[list[Measured] | None] = []
    for seed, at in zip(told.seeds, method.diverged):
        if at:
            found.append(None)
            continue
        network = trained.seed(seed)._replace(rule=RULE)
        found.append(after_each(network, held_out, tests)[0 if kept else -1 :])
    return found


def _as_results(
    told: MethodResults, measured: Sequence[list[Measured] | None], scenario: str
) -> MethodResults:
    """A method whose accuracy is that with the task inferred; nan where that is not measured."""
    accuracy, share = np.full(told.accuracy.shape, np.nan), np.full(told.accuracy.shape[:2], np.nan)
    for i, of_seed in enumerate(measured):
        for one in of_seed or ():
            count = len(one.told)
            accuracy[i, count - 1, :count] = getattr(one, OF_SCENARIO[scenario])
            share[i, count - 1] = one.tasks.mean()
    label, words = (f"{said} (inferred)" for said in (told.shown.label, told.shown.words))
    return told._replace(
        accuracy=accuracy,
        measures={**told.measures, SHARE: share},
        shown=told.shown._replace(label=label, words=words),
        curves={},
        during=None,
        inferred=RULE,
    )


def _write(folder: Path, measured: dict[str, list[list[Measured] | None]]) -> None:
    """The numbers of the end, as `jaxcl infer` writes them, and what is taken for what."""
    from jaxcl.report import figures

    found = {name: [one[-1] for one in seeds if one] for name, seeds in measured.items()}
    if not any(found.values()):
        return
    some = next(filter(None, found.values()))[0]
    ends = {
        name: [one[-1] if one else unknown(some) for one in seeds]
        for name, seeds in measured.items()
    }
    numbers = {
        name: {RULE: {field: [getattr(one, field) for one in seeds] for field in Measured._fields}}
        for name, seeds in ends.items()
    }
    figure = figures.confusion(
        {name: np.stack([one.confusion for one in seeds]) for name, seeds in found.items() if seeds}
    )
    said = {"batch": None, "calibrated": True, "methods": numbers}
    write_whole(folder / "inferred.json", json.dumps(plain(said), indent=1) + "\n")
    figures.save(figure, folder, "confusion")
