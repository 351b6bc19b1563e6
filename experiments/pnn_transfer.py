"""What a first column is worth to the next task: PNN and the four baselines of its paper.

    python experiments/pnn_transfer.py                 # five minutes on a laptop
    python experiments/pnn_transfer.py --examples 400  # more of the target to learn from

A network learns a source task, then a target task from few examples. Its transfer score is the area
under its learning curve on the target over that of one column from scratch. The paper's tasks are
games; here they are scikit-learn's digits, 8 x 8 images. AFS and APS tell on which of the two
columns each layer of the target's network draws. Source: Rusu et al. (2016), Sec. 3 and 4.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.table import Table

import jaxcl
from jaxcl import analysis, data, metrics, models, train


@dataclass(frozen=True)
class Settings:
    """Everything that is chosen; the same for all networks.

    Attributes:
        seeds: trained side by side.
        hidden: widths of a column's hidden layers.
        examples: of the target, to train on; of the source there are all.
        source_epochs: on the source.
        epochs: on the target; after each of them the test accuracy is taken.
        rate: learning rate of SGD with momentum 0.9.
        batch: examples in a step.
        out: folder of the results.
    """

    seeds: int = 10
    hidden: tuple[int, ...] = (64, 64, 64)
    examples: int = 50
    source_epochs: int = 30
    epochs: int = 30
    rate: float = 0.01
    batch: int = 16
    out: Path = Path(__file__).parent / "results" / "pnn_transfer"


def targets() -> dict[str, data.Benchmark]:
    """Pairs of a source, the ten digits or the first five, and a target."""
    digits = data.digits()
    (task,) = digits.tasks
    parity = data.Task(*(part._replace(y=part.y % 2) for part in task[:3]), classes=2)
    return {
        "odd or even": digits._replace(tasks=(task, parity)),
        "other digits": data.split(digits, 2),
        "permuted pixels": data.permuted(digits, 2),
    }


def networks(model: models.Model, settings: Settings) -> dict[str, tuple]:
    """Each competitor's method, network, and epochs on the source."""
    tuned, first = jaxcl.finetune(), settings.source_epochs
    head_only = tuned._replace(trainable=lambda theta, state, task: task == 0)
    progressive = jaxcl.pnn(model, 2)
    return {
        "1: one column from scratch": (*jaxcl.pnn(model, 2, None), 0),
        "2: pretrained, new head": (jaxcl.multihead(head_only, 2), model, first),
        "3: pretrained, fine-tuned": (jaxcl.multihead(tuned, 2), model, first),
        "4: two columns, first random": (*progressive, 0),
        "PNN, alpha from 1": (*progressive, first),
        "PNN, alpha from 0.1": (*jaxcl.pnn(model, 2, alpha=0.1), first),
    }


def compare(benchmark: data.Benchmark, settings: Settings) -> dict[str, dict]:
    """Each network's accuracies on the target, [seeds, epochs + 1]; AFS and APS with laterals."""
    classes = [task.classes for task in benchmark.tasks]
    model = models.mlp(64, settings.hidden, max(classes))
    parts = [*(task.train for task in benchmark.tasks), benchmark.tasks[1].test]
    source, target, test = (jax.device_put(train.examples(*part)) for part in parts)
    target = target._replace(count=jnp.minimum(settings.examples, target.count))

    def learn(key, setup, first):
        """One seed: source, then target."""
        learner = train.begin_task(setup, train.start(setup, key, 2), 0)
        learner = jax.lax.fori_loop(
            0, first, lambda i, learner: train.epoch(setup, learner, source, 0, i)[0], learner
        )
        learner = train.begin_task(setup, train.end_task(setup, learner, 0), 1)

        def epoch(learner, i):
            learner, _ = train.epoch(setup, learner, target, 1, i)
            return learner, train.evaluate(setup, learner, test, 1).accuracy

        before = train.evaluate(setup, learner, test, 1).accuracy
        learner, after = jax.lax.scan(epoch, learner, jnp.arange(settings.epochs))
        results = {"curve": jnp.append(before, after)}
        if setup.model.frozen is not None:  # there are laterals
            seen = model, *train.network(setup, learner, 1), setup.prepare(test.x)
            results["AFS"] = analysis.afs(*seen, classes=classes[1]).layers
            results["APS"] = analysis.aps(*seen, test.y, key=key, classes=classes[1]).layers
        return results

    results = {}
    keys = jax.vmap(jax.random.key)(jnp.arange(settings.seeds))
    optimizer, prepare = optax.sgd(settings.rate, momentum=0.9), data.normalize(benchmark)
    for name, (method, network, first) in networks(model, settings).items():
        options = {"classes": jnp.array(classes), "batch": settings.batch}
        setup = train.Setup(method, network, optimizer, prepare, **options)
        run = jax.jit(jax.vmap(lambda key, s=setup, n=first: learn(key, s, n)))
        results[name] = jax.tree.map(np.asarray, run(keys))
    return results


def main(settings: Settings) -> None:
    """Trains, prints the table, and writes it with all numbers and the plots."""
    results = {target: compare(pair, settings) for target, pair in targets().items()}
    rows = [[name] for name in next(iter(results.values()))]
    for target, found in results.items():
        scratch, _, _, random, progressive, _ = found.values()
        shown = {"PNN": progressive, "random": random}
        panels = {f"{k}, {n}": r[k].mean(0) for n, r in shown.items() for k in ("AFS", "APS")}
        analysis.plot(panels, settings.out, target.replace(" ", "_"), columns=["source", "target"])
        for row, result in zip(rows, found.values(), strict=True):
            score = 100 * analysis.transfer_score(result["curve"], scratch["curve"].mean(0))
            row.append("{:.0f} ± {:.0f}".format(*metrics.confidence_interval(score)))
    note = f"Transfer score in %: mean and 95% interval over {settings.seeds} seeds."
    table = Table("network", *results, caption=note)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    lines = [["network", *results], [":--"] + ["--:"] * len(results), *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    (settings.out / "table.md").write_text(f"{text}\n\n{note}\n", encoding="utf-8")
    numbers = {"settings": dataclasses.asdict(settings) | {"out": None}, "targets": results}
    text = json.dumps(numbers, default=lambda array: array.round(4).tolist())
    (settings.out / "results.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Settings))
