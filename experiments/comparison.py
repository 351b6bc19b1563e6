"""PNN, HAT and PackNet, compared in numbers where the literature compares them in words.

    python experiments/comparison.py

Ten tasks of permuted digits on a network of 64-100-100-10, then twenty on one of 64-16-16-10, which
is too small for them. Writes experiments/comparison.md and results/comparison.json.
"""

import json
import os
import statistics
import time
from pathlib import Path

import jax
import numpy as np

from jaxcl import data, masks, metrics, recipes, study
from jaxcl.report.text import markdown, percent, plus_minus

METHODS = ("finetune", "joint", "pnn", "hat", "packnet")
SEEDS = range(4)
ROOMY = recipes.Options(hidden=(100, 100), epochs=10)
CROWDED = recipes.Options(hidden=(16, 16), epochs=10)
HERE = Path(__file__).parent


def train(method: str, benchmark: data.Benchmark, options: recipes.Options) -> dict:
    """Accuracy matrices, capacity, stored bytes and the inference time of the last task."""
    choice = recipes.choose(method, options)
    before, after = recipes.epochs_of(choice, benchmark)
    recipe = recipes.recipe(choice, benchmark)
    built = study.build(recipe, benchmark, SEEDS, epochs=before, retrain_epochs=after)
    accuracy, capacity, learners = [], [], None
    for event in study.run(built):
        if isinstance(event, study.TaskEnd):
            accuracy.append(event.accuracy)
            capacity.append(np.nan if event.capacity is None else event.capacity)
            learners = event.learners
    one = jax.tree.map(lambda leaf: leaf[0], learners)
    parameters, extra_bytes = recipes.cost(choice, benchmark, one)
    setup = recipe({})
    x = setup.prepare(benchmark.tasks[0].test.x[:256])

    @jax.jit
    def infer(params, x):
        row = jax.tree.map(lambda rows: rows[0], one.statistics)
        return setup.model.apply(params, row, x)[0]

    times = {}
    for task in (0, len(benchmark.tasks) // 2, len(benchmark.tasks) - 1):
        params = jax.jit(setup.method.view)(one.theta, one.state, task)
        infer(params, x).block_until_ready()
        samples = []
        for _ in range(50):
            begin = time.perf_counter()
            infer(params, x).block_until_ready()
            samples.append(time.perf_counter() - begin)
        times[task + 1] = 1e6 * statistics.median(samples) / len(x)
    return {
        "accuracy": np.stack(accuracy, 1),
        "capacity": np.stack([np.broadcast_to(c, len(SEEDS)) for c in capacity], 1),
        "parameters": parameters,
        "extra_bytes": extra_bytes,
        "theta_bytes": masks.size_bytes(one.theta),
        "microseconds": times,
    }


def page(roomy: dict[str, dict], crowded: dict[str, dict]) -> str:
    """The template with its tables."""
    interval = metrics.confidence_interval
    header = ["method", "accuracy, %", "forgetting, points", "parameters", "extra bytes"]
    protection = [[*header, "inference, µs"]]
    for method, r in roomy.items():
        protection.append([
            method,
            plus_minus(interval(metrics.average_accuracy(r["accuracy"]))),
            plus_minus(interval(metrics.forgetting(r["accuracy"]))),
            f"{r['parameters']:,}",
            f"{r['extra_bytes']:,}",
            " / ".join(f"{value:.2f}" for value in r["microseconds"].values()),
        ])  # fmt: skip
    tasks = (1, 2, 3, 5, 7, 10)
    shares = [["method", *tasks]]
    for method in ("hat", "packnet"):
        used = roomy[method]["capacity"].mean(0)
        shares.append([method, *(percent(used[task - 1], 0) for task in tasks)])
    tasks = (1, 5, 10, 15, 20)
    header = ["method", "task 1", *tasks[1:], "in use after 10 / 20, %", "forgetting, points"]
    full = [header]
    for method, r in crowded.items():
        learned = np.diagonal(r["accuracy"], axis1=1, axis2=2).mean(0)
        used = r["capacity"].mean(0)
        full.append([
            method,
            *(percent(learned[task - 1]) for task in tasks),
            f"{percent(used[9], 0)} / {percent(used[19], 0)}",
            plus_minus(interval(metrics.forgetting(r["accuracy"]))),
        ])  # fmt: skip
    text = (HERE / "comparison.template.md").read_text()
    for name, (head, *rows) in (("ROOMY", protection), ("SHARES", shares), ("CROWDED", full)):
        text = text.replace(f"@{name}@", markdown(head, rows))
    return text


def main() -> None:
    """Trains everything and writes the page."""
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    roomy_tasks, crowded_tasks = data.permuted_digits(10), data.permuted_digits(20)
    roomy = {method: train(method, roomy_tasks, ROOMY) for method in METHODS}
    crowded = {method: train(method, crowded_tasks, CROWDED) for method in METHODS[2:]}
    text = page(roomy, crowded)
    (HERE / "comparison.md").write_text(text)
    numbers = {"roomy": roomy, "crowded": crowded, "device": jax.devices()[0].device_kind}
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "comparison.json").write_text(
        json.dumps(numbers, default=lambda array: array.tolist()) + "\n"
    )
    print(text)


if __name__ == "__main__":
    main()
