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

METHODS = ("finetune", "joint", "pnn", "hat", "packnet")
SEEDS = range(4)
ROOMY = recipes.Options(hidden=(100, 100), epochs=10)
CROWDED = recipes.Options(hidden=(16, 16), epochs=10)
HERE = Path(__file__).parent


def train(method: str, benchmark: data.Benchmark, options: recipes.Options) -> dict:
    """Accuracy matrices, capacity, stored bytes and the inference time of the last task."""
    before, after = recipes.epochs_of(method, options)
    recipe = recipes.recipe(method, benchmark, options)
    built = study.build(recipe, benchmark, SEEDS, epochs=before, retrain_epochs=after)
    accuracy, capacity, learners = [], [], None
    for event in study.run(built):
        if isinstance(event, study.TaskEnd):
            accuracy.append(event.accuracy)
            capacity.append(event.capacity)
            learners = event.learners
    one = jax.tree.map(lambda leaf: leaf[0], learners)
    parameters, extra_bytes = recipes.cost(method, benchmark, one, options)
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
        "capacity": np.stack(capacity, 1),
        "parameters": parameters,
        "extra_bytes": extra_bytes,
        "theta_bytes": masks.size_bytes(one.theta),
        "microseconds": times,
    }


def interval(values: np.ndarray) -> str:
    """Mean and 95 % interval over seeds, in percent."""
    mean, half = metrics.confidence_interval(values)
    return f"{100 * mean:.1f} ± {100 * half:.1f}"


def forgetting(accuracy: np.ndarray) -> np.ndarray:
    """Of each seed; a task counts from the end of its own training on."""
    learned = np.tri(accuracy.shape[-1], dtype=bool)
    return metrics.forgetting(np.where(learned, accuracy, np.nan))


def main() -> None:
    """Trains everything and writes the page."""
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    roomy_tasks, crowded_tasks = data.permuted_digits(10), data.permuted_digits(20)
    roomy = {method: train(method, roomy_tasks, ROOMY) for method in METHODS}
    crowded = {method: train(method, crowded_tasks, CROWDED) for method in METHODS[2:]}
    page = (HERE / "comparison.template.md").read_text()
    rows = []
    for method, r in roomy.items():
        times = " / ".join(f"{value:.2f}" for value in r["microseconds"].values())
        rows.append(
            f"| {method} | {interval(metrics.average_accuracy(r['accuracy']))} "
            f"| {interval(forgetting(r['accuracy']))} | {r['parameters']:,} "
            f"| {r['extra_bytes']:,} | {times} |"
        )
    shares = [
        f"| {method} | "
        + " | ".join(f"{100 * r['capacity'].mean(0)[t]:.0f}" for t in (0, 1, 2, 4, 6, 9))
        + " |"
        for method, r in roomy.items()
        if method in ("hat", "packnet")
    ]
    full = []
    for method, r in crowded.items():
        learned = np.diagonal(r["accuracy"], axis1=1, axis2=2).mean(0)
        full.append(
            f"| {method} | "
            + " | ".join(f"{100 * learned[t]:.1f}" for t in (0, 4, 9, 14, 19))
            + f" | {100 * r['capacity'].mean(0)[9]:.0f} / {100 * r['capacity'].mean(0)[19]:.0f} "
            + f"| {interval(forgetting(r['accuracy']))} |"
        )
    for name, lines in (("ROOMY", rows), ("SHARES", shares), ("CROWDED", full)):
        page = page.replace(f"@{name}@", "\n".join(lines))
    (HERE / "comparison.md").write_text(page)
    numbers = {"roomy": roomy, "crowded": crowded, "device": jax.devices()[0].device_kind}
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "comparison.json").write_text(
        json.dumps(numbers, default=lambda array: array.tolist()) + "\n"
    )
    print(page)


if __name__ == "__main__":
    main()
