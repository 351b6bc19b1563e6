"""`jaxcl infer`: how well the networks of a run do without being told the task."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import tyro

from jaxcl.cli import terminal
from jaxcl.cli.folder import hold
from jaxcl.cli.options import Run as Data
from jaxcl.cli.parsing import parse_plainly
from jaxcl.cli.session import load as load_data
from jaxcl.cli.streams import standard_output
from jaxcl.core.checks import check_count
from jaxcl.data.benchmark import Benchmark
from jaxcl.inference import inputs
from jaxcl.inference.measuring import Measured, cost, measure, unknown
from jaxcl.inference.runs import Run, Trained, load
from jaxcl.inference.tasks import RULES, Rule
from jaxcl.report import figures
from jaxcl.report.metrics import Interval, confidence_interval
from jaxcl.report.results import plain, shown_of
from jaxcl.report.text import plus_minus, write_whole

if TYPE_CHECKING:
    from rich.table import Table

HEADER = ("method", "rule", "told (%)", "inferred (%)", "class (%)", "task (%)")
HEADER += ("cost (us)", "told (us)")


@dataclasses.dataclass(frozen=True)
class Infer:
    """Measure the networks of a run told the task, and inferring it from the input alone.

    For methods that isolate tasks. Shown are the accuracy told the task; inferring it, with the
    task and the class right; with the class right, whichever task it is taken from; the share of
    tasks that are told rightly; and the time of an example. Written are inferred.json and a plot of
    what each task's examples are taken for.

    Attributes:
        run: folder of a run, such as runs/permuted_digits.
        rule: by what the task is chosen: the lowest entropy, the highest maximum softmax, the
            highest energy, or the gradient of the entropy.
        batch: so many examples, one after the other, are known to be of one task.
        calibrate: fit temperature and offsets on the validation examples.
        most: most examples of a task.
        data_dir: folder of tensorflow-datasets.
    """

    run: tyro.conf.Positional[Path]
    rule: Literal["all", "entropy", "softmax", "energy", "gradient"] = "all"
    batch: int | None = None
    calibrate: bool = True
    most: int = 1000
    data_dir: Path | None = None


class Found(NamedTuple):
    """What one method does by one rule.

    Attributes:
        seeds: what each seed does; nan where its training diverged.
        told: seconds an example of the network that is told the task.
        cost: likewise of the one that infers it.
    """

    seeds: list[Measured]
    told: float
    cost: float


def run(args: Sequence[str]) -> None:
    """Runs the command.

    Raises:
        ValueError: for a run without methods that isolate tasks, or of which tasks were forgotten.
    """
    command = parse_plainly(Infer, "infer", args)
    check_count("--most", command.most)
    if command.batch is not None:
        check_count("--batch", command.batch)
    one = load(command.run)
    if not isinstance(one, Run):
        raise ValueError(f"{command.run} holds a learner, not a run; see jaxcl.infer.")
    isolating = [name for name in one.methods if one[name].setup()[0].method.isolates]
    if not isolating:
        raise ValueError(f"{command.run} has no method that isolates tasks.")
    if any(one.forgotten.get(name) for name in isolating):
        raise ValueError(f"{command.run}: tasks were forgotten, whose examples nothing tells.")
    benchmark = _data(one, command)
    isolating = [name for name in isolating if one[name].diverged.keys() != {*one.seeds}]
    if not isolating:
        raise ValueError(
            f"{command.run}: every seed's training diverged, of all that isolate tasks."
        )
    rules: Sequence[Rule] = RULES if command.rule == "all" else (command.rule,)
    found = {name: _of_method(one[name], benchmark, rules, command) for name in isolating}
    out, _ = terminal.consoles()
    with hold(command.run):
        paths = _write(command, found)
    with standard_output():
        out.print(_table(found))
        terminal.conclude(out, command.run, paths)


def _data(one: Run, command: Infer) -> Benchmark:
    """The examples that the networks were trained for."""
    name, options = one.methods[0], one.settings
    asked = Data(options["benchmark"], options["tasks"], data_dir=command.data_dir)
    benchmark = load_data(asked, one[name].choice().shared)
    if inputs.of(benchmark) != one.inputs:
        raise ValueError(f"{asked.benchmark} is not what {command.run} was trained on.")
    return benchmark


def _of_method(
    trained: Trained, benchmark: Benchmark, rules: Sequence[Rule], command: Infer
) -> dict[str, Found]:
    """By rule; without those that the method's views do not allow."""
    tasks = benchmark.tasks[: trained.tasks]
    tests = [(task.test.x[: command.most], task.test.y[: command.most]) for task in tasks]
    held_out = [task.val.x[: command.most] for task in tasks]
    seeds = [seed for seed in trained.run.seeds if seed not in trained.diverged]
    found = {}
    for rule in rules:
        of_seeds = []
        try:
            for seed in seeds:
                network = trained.seed(seed)._replace(rule=rule)
                network = network.calibrated(held_out, rule) if command.calibrate else network
                of_seeds.append(measure(network, tests, command.batch))
        except ValueError:
            if rule != "gradient":
                raise
            continue  # the views cannot be mixed
        network, nothing = trained.seed(seeds[0]), unknown(of_seeds[0])
        of_seeds = [of_seeds.pop(0) if s in seeds else nothing for s in trained.run.seeds]
        found[rule] = Found(of_seeds, cost(network, tests[0][0]), cost(network, tests[0][0], rule))
    return found


def _write(command: Infer, found: dict[str, dict[str, Found]]) -> list[Path]:
    """The numbers, and what is taken for what by the rule that tells most tasks."""

    def best(rules: dict[str, Found]) -> np.ndarray:
        each = [np.stack([one.confusion for one in of_rule.seeds]) for of_rule in rules.values()]
        each = [shares[np.isfinite(shares).all((1, 2))] for shares in each]
        return max(each, key=lambda shares: np.trace(shares, axis1=1, axis2=2).mean())

    numbers: dict[str, Any] = {
        name: {
            rule: {
                "told_seconds": of_rule.told,
                "seconds": of_rule.cost,
                **{
                    field: [getattr(one, field) for one in of_rule.seeds]
                    for field in Measured._fields
                },
            }
            for rule, of_rule in rules.items()
        }
        for name, rules in found.items()
    }
    said = {"batch": command.batch, "calibrated": command.calibrate, "methods": numbers}
    figure = figures.confusion({name: best(rules) for name, rules in found.items()})
    path = write_whole(command.run / "inferred.json", json.dumps(plain(said), indent=1) + "\n")
    return [path, *figures.save(figure, command.run, "confusion")]


def _table(found: dict[str, dict[str, Found]]) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, padding=0)
    for i, name in enumerate(HEADER):
        table.add_column(name.replace(" ", "\n", 1), justify="right" if i > 1 else "left")
    for name, rules in found.items():
        for rule, of_rule in rules.items():
            cells = [shown_of(name).label, rule]
            for field in ("told", "inferred", "classes", "tasks"):
                means = np.array([getattr(one, field).mean() for one in of_rule.seeds])
                means = means[np.isfinite(means)]  # without the seeds that diverged
                interval = Interval(*map(float, confidence_interval(means)))
                cells.append(plus_minus(interval).replace(" ± ", "±"))
            cells += [f"{1e6 * seconds:.1f}" for seconds in (of_rule.cost, of_rule.told)]
            table.add_row(*map(Text, cells))
    return table
