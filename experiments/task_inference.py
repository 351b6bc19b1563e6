"""How well the task is told from an example alone, by every method that isolates, and at what cost.

    python experiments/task_inference.py                              # split and permuted digits
    python experiments/task_inference.py --benchmarks split_mnist     # from tensorflow-datasets

A run of `jaxcl compare` with the methods' usual settings is made, or taken where it stands. Of each
network the accuracy told the task, the accuracy inferring it (task and class are right; of permuted
tasks, which have the same classes, the class), and the share of tasks that are told rightly are
measured on test examples: for each rule as it is, calibrated on validation examples, and calibrated
with ten examples at a time that are known to be of one task. Cost is the time of an example in a
batch of 256, beside that of the network that is told the task.
"""

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

import jaxcl
from jaxcl import data
from jaxcl.cli import main as cli
from jaxcl.inference.measuring import cost, measure
from jaxcl.inference.predictor import Predictor
from jaxcl.inference.tasks import RULES
from jaxcl.methods import REGISTRY
from jaxcl.report.metrics import confidence_interval
from jaxcl.report.results import Interval, plain
from jaxcl.report.text import markdown, percent, plus_minus

METHODS = "packnet,hat,pnn,independent,cpg,expandnet"


@dataclass(frozen=True)
class Settings:
    """Everything that is chosen.

    Attributes:
        benchmarks: the sequences.
        methods: that isolate tasks.
        seeds: number of seeds.
        most: test examples of each task.
        calibration: validation examples of each task.
        note: what is to be said of the machine.
        runs: folder of the runs.
        out: folder of the results.
    """

    benchmarks: tuple[str, ...] = ("split_digits", "permuted_digits")
    methods: str = METHODS
    seeds: int = 3
    most: int = 500
    calibration: int = 200
    note: str = ""
    runs: Path = Path("runs")
    out: Path = Path(__file__).parent / "results" / "task_inference"


def trained(settings: Settings, benchmark: str) -> Any:
    """The run, which is made if it is not there."""
    folder = settings.runs / f"isolating_{benchmark}"
    if not (folder / "results.json").exists():
        cli.main(
            ["compare", "--methods", settings.methods, "--benchmark", benchmark, "--seeds"]
            + [str(settings.seeds), "--out", str(settings.runs), "--name", folder.name]
            + ["--resume"] * folder.exists()
        )
    return jaxcl.load(folder)


def costs(network: Predictor, x: np.ndarray) -> dict[str, float]:
    """Microseconds an example, in a batch: told the task, and by each rule."""
    found = {"told": 1e6 * cost(network, x)}
    for rule in RULES:
        try:
            found[rule] = 1e6 * cost(network, x, rule)
        except ValueError:  # views that cannot be mixed
            found[rule] = float("nan")
    return found


def measured(network: Predictor, benchmark: Any, settings: Settings) -> dict[str, dict]:
    """For each rule: as it is, calibrated, and calibrated by tens."""
    tests = [(t.test.x[: settings.most], t.test.y[: settings.most]) for t in benchmark.tasks]
    held_out = [task.val.x[: settings.calibration] for task in benchmark.tasks]
    found = {}
    for rule in RULES:
        try:
            fitted = network.calibrated(held_out, rule)
            ways = {
                "plain": measure(network._replace(rule=rule), tests),
                "calibrated": measure(fitted, tests),
                "by tens": measure(fitted, tests, batch=10),
            }
        except ValueError:  # views that cannot be mixed
            continue
        found[rule] = {
            way: {**result._asdict(), "tasks": result.tasks} for way, result in ways.items()
        } | {"temperature": fitted.calibration.temperature}
    return found


def table(benchmark: str, found: dict[str, Any], permuted: bool) -> str:
    """The measurements of one benchmark."""
    header = ("method", "rule", "told (%)", "inferred (%)", "calibrated (%)", "by tens (%)")
    header += ("task told (%)", "calibrated (%)", "by tens (%)", "cost (µs)", "told (µs)")
    right = "classes" if permuted else "inferred"
    rows = []
    labels = {spec.name: spec.label for spec in REGISTRY}
    for method, of_seeds in found.items():
        for rule in RULES:
            if rule not in of_seeds[0]["rules"]:
                rows.append([labels[method], rule, *["-"] * 9])
                continue

            def interval(way, name, of_seeds=of_seeds, rule=rule):
                means = [np.mean(one["rules"][rule][way][name]) for one in of_seeds]
                return plus_minus(Interval(*map(float, confidence_interval(np.array(means)))))

            ways = ("plain", "calibrated", "by tens")
            times = [np.median([one["costs"][name] for one in of_seeds]) for name in (rule, "told")]
            rows.append(
                [labels[method], rule, interval("plain", "told")]
                + [interval(way, right) for way in ways]
                + [interval(way, "tasks") for way in ways]
                + [f"{value:.1f}" for value in times]
            )
    return f"## {benchmark}\n\n{markdown(header, rows, left=2)}\n"


def confusion(found: dict[str, Any], rule: str = "entropy") -> str:
    """What each task's examples are taken for, mean over the seeds, calibrated."""
    parts = []
    for method, of_seeds in found.items():
        mean = np.mean([one["rules"][rule]["calibrated"]["confusion"] for one in of_seeds], 0)
        header = ("task", *(f"as {k}" for k in range(len(mean))))
        rows = [[i, *(percent(share, 0) for share in row)] for i, row in enumerate(mean)]
        parts.append(f"{method}, {rule}, calibrated (%):\n\n{markdown(header, rows)}\n")
    return "\n".join(parts)


def main(settings: Settings) -> None:
    """Trains, measures, and writes the table and the numbers."""
    settings.out.mkdir(parents=True, exist_ok=True)
    for benchmark in settings.benchmarks:
        run, begin = trained(settings, benchmark), time.perf_counter()
        sequence, found = data.load(benchmark), {}
        for method in run.methods:
            found[method] = []
            for seed in range(settings.seeds):
                network = run[method].seed(seed)
                rules = measured(network, sequence, settings)
                one = {"rules": rules, "costs": costs(network, sequence.tasks[0].test.x)}
                found[method].append(plain(one))
                seconds = time.perf_counter() - begin
                print(f"{benchmark}, {method}, seed {seed}: {seconds:.0f} s", flush=True)
        about = {"settings": plain(dataclasses.asdict(settings) | {"runs": "", "out": ""})}
        about |= {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
        content = json.dumps(rounded({**about, "found": found}))
        (settings.out / f"{benchmark}.json").write_text(content + "\n")
    write(settings.out)


def rounded(value: Any) -> Any:
    """The same with numbers of four digits."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


def write(out: Path) -> None:
    """The table of all that was measured."""
    parts = ["# The task inferred", (__doc__ or "").split("\n\n")[2].strip()]
    for path in sorted(out.glob("*.json")):
        content = json.loads(path.read_text())
        found, settings = content["found"], content["settings"]
        said = f"{settings['seeds']} seeds, at most {settings['most']} test and "
        said += f"{settings['calibration']} validation examples of each task. {settings['note']}"
        shown = table(path.stem, found, "permuted" in path.stem)
        parts += [shown.strip(), said.strip(), confusion(found).strip()]
    (out / "table.md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
