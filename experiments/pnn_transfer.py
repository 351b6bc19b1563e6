"""What a first column is worth to the next task: PNN and the four baselines of its paper.

    python experiments/pnn_transfer.py     # ten minutes of processor time

A column learns a source task, then a network learns a target task from 100 examples. Its transfer
score is the area under its learning curve on the target over that of one column from scratch, with
the same seed and examples. The paper's tasks are games; here they are MNIST and Fashion-MNIST.

The pairs of a source and a target were fixed before any of their scores was seen, by what they have
in common: the kind of image (near), its format alone (far), or the statistics of single pixels
alone (control: early layers have nothing to give).

Validation examples choose, the same for every network and from one grid. For the source: learning
rate and epoch, by accuracy. For the target: the learning rate of the transfer score by the area
under the validation curve; learning rate and epoch of the accuracy by validation accuracy. Means
over the seeds decide, but for the source's epoch, which is each seed's own. The test examples
choose nothing.

AFS and APS tell on which of its two columns each layer of the target's network draws.
Source: Rusu et al. (2016), Sec. 3 and 4.
"""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxcl
from jaxcl import analysis, data, masks, metrics, models, replicas, study, train
from jaxcl.report.text import markdown, plus_minus

RATES = (0.003, 0.01, 0.03, 0.1)  # of SGD with momentum 0.9
SOURCE_EXAMPLES, SOURCE_EPOCHS, SOURCE_BATCH = 5000, 5, 32
EXAMPLES, EPOCHS, BATCH = 100, 30, 10  # of the target
EVERY = 2  # epochs between two points of a learning curve
HELD_OUT = 500  # validation examples, and as many test examples
PROBED = 250  # test examples for AFS and APS
OUT = Path(__file__).parent / "results" / "pnn_transfer"


def pairs() -> dict[str, tuple[models.Model, data.Benchmark, int]]:
    """For each pair: the column, the source and the target, and the number of seeds."""
    mnist, fashion = data.mnist(flat=False), data.fashion_mnist(flat=False)
    far = mnist._replace(tasks=fashion.tasks + mnist.tasks)
    mlp = models.mlp(784, (100, 100, 100), 10)
    conv = models.alexnet((20, 20, 1), 10, widths=(8, 16, 32, 64, 64), dropout=[0.0] * 5)
    return {
        "near": (mlp, data.split(mnist, 2), 10),
        "far": (mlp, far, 10),
        "control": (mlp, data.permuted(mnist, 2), 10),
        "far, convolutional": (conv, cropped(far), 5),
    }


def cropped(benchmark: data.Benchmark) -> data.Benchmark:
    """The central 20 x 20 pixels."""

    def inner(part):
        return data.Split(part.x[:, 4:24, 4:24], part.y)

    def crop(task):
        parts = inner(task.train), inner(task.val), inner(task.test)
        return data.Task(*parts, task.classes)

    return benchmark._replace(tasks=tuple(map(crop, benchmark.tasks)), shape=(20, 20, 1))


def networks(column: models.Model) -> dict[str, tuple]:
    """Each competitor: method, network, and its start from fresh and from source parameters."""
    tuned, progressive = jaxcl.finetune(), jaxcl.pnn(column, 2, alpha=1.0)
    head_only = tuned._replace(
        trainable=lambda theta, state, task: masks.by_path(theta, [("^head/", True), ("", False)])
    )

    def new_head(fresh, source):
        return source | {"head": fresh["head"]}

    return {
        "1: one column from scratch": (tuned, column, lambda fresh, source: fresh),
        "2: pretrained, new head": (head_only, column, new_head),
        "3: pretrained, fine-tuned": (tuned, column, new_head),
        "4: two columns, first random": (*progressive, lambda fresh, source: fresh),
        "PNN: two columns": (*progressive, lambda fresh, source: source),
    }


def setup(method, network, benchmark: data.Benchmark, rate, batch: int) -> train.Setup:
    """What is the same for all."""
    classes = jnp.array([task.classes for task in benchmark.tasks])
    optimizer = optax.sgd(rate, momentum=0.9)
    return train.Setup(method, network, optimizer, data.normalize(benchmark), classes, batch)


def learn_source(column: models.Model, benchmark: data.Benchmark, seeds: int):
    """One column for each seed, at the rate and the epoch of the best validation accuracy."""
    task = benchmark.tasks[0]
    some = data.Split(task.train.x[:SOURCE_EXAMPLES], task.train.y[:SOURCE_EXAMPLES])
    alone = benchmark._replace(tasks=(task._replace(train=some),))

    def recipe(settings):
        chosen = setup(jaxcl.finetune(), column, alone, settings["rate"], SOURCE_BATCH)
        return chosen._replace(select="accuracy")

    rates = {"rate": np.repeat(RATES, seeds)}
    numbers = list(range(seeds)) * len(RATES)
    built = study.build(recipe, alone, numbers, epochs=SOURCE_EPOCHS, settings=rates)
    *_, end = study.run(built, evaluate_on="val")
    assert isinstance(end, study.TaskEnd)
    accuracy = end.accuracy.reshape(len(RATES), seeds)
    best = int(accuracy.mean(1).argmax())
    theta = replicas.fetch(end.learners.theta, built.layout)
    rows = slice(best * seeds, (best + 1) * seeds)
    return jax.tree.map(lambda leaf: leaf[rows], theta), RATES[best], accuracy[best]


def learn_target(competitor: tuple, column, benchmark: data.Benchmark, sources, seeds: int):
    """Curves [validation and test, rates, seeds, points], and the networks after the last epoch."""
    method, network, begin = competitor
    task = benchmark.tasks[1]

    def learn(replica, source, examples, *held_out):
        seed, rate = replica
        chosen = setup(method, network, benchmark, rate, BATCH)
        key, fresh_key, rows_key = jax.random.split(jax.random.key(seed), 3)
        fresh, _ = column.init(fresh_key)
        learner = train.start(chosen, key, 2, params=begin(fresh, source))
        learner = train.begin_task(chosen, train.end_task(chosen, learner, 0), 1)
        rows = jax.random.permutation(rows_key, examples.y.size)[:EXAMPLES]
        few = train.Data(examples.x[rows], examples.y[rows], jnp.int32(EXAMPLES))
        features = train.frozen_features(chosen, learner, few, 1) if network.frozen else None

        def accuracies(learner):
            wide = chosen._replace(batch=HELD_OUT)
            return jnp.stack([train.evaluate(wide, learner, part, 1).accuracy for part in held_out])

        def epochs(learner, point):
            def epoch(i, learner):
                return train.epoch(chosen, learner, few, 1, i, features=features)[0]

            first = point * EVERY
            learner = jax.lax.fori_loop(first, first + EVERY, epoch, learner)
            return learner, accuracies(learner)

        before = accuracies(learner)
        learner, after = jax.lax.scan(epochs, learner, jnp.arange(EPOCHS // EVERY))
        curves = jnp.concatenate([before[None], after]).T
        return curves, train.network(chosen, learner, 1)

    where = replicas.layout(len(RATES) * seeds, masks.size_bytes(sources) // seeds)
    numbers = np.tile(np.arange(seeds, dtype=np.uint32), len(RATES))
    grid = replicas.place((numbers, np.repeat(RATES, seeds).astype(np.float32)), where)
    repeated = jax.tree.map(lambda leaf: np.concatenate([leaf] * len(RATES)), sources)
    held_out = [train.examples(p.x[:HELD_OUT], p.y[:HELD_OUT]) for p in (task.val, task.test)]
    shared = replicas.replicate((train.examples(*task.train), *held_out), where)
    found = replicas.spread(learn, where)(grid, replicas.place(repeated, where), *shared)
    curves, ends = jax.tree.map(
        lambda leaf: leaf.reshape(len(RATES), seeds, *leaf.shape[1:]), replicas.fetch(found, where)
    )
    return np.moveaxis(curves, 2, 0), ends


def probe(column: models.Model, benchmark: data.Benchmark, ends) -> dict[str, np.ndarray]:
    """AFS and APS of each layer and column, [seeds, layers, columns]."""
    task, prepare = benchmark.tasks[1], data.normalize(benchmark)
    x, y = (jnp.asarray(values[:PROBED]) for values in task.test)

    def both(end, _, x, y):
        params, statistics = end
        seen = column, params, statistics, prepare(x)
        key, classes = jax.random.key(0), task.classes
        fisher = analysis.afs(*seen, classes=classes)
        noise = analysis.aps(*seen, y, key=key, classes=classes, draws=2, steps=10)
        return {"AFS": fisher.layers, "APS": noise.layers}

    where = replicas.layout(len(jax.tree.leaves(ends)[0]), masks.size_bytes(ends))
    shared = replicas.replicate((x, y), where)
    found = replicas.spread(both, where)(replicas.place(ends, where), (), *shared)
    return replicas.fetch(found, where)


def compare(column: models.Model, benchmark: data.Benchmark, seeds: int) -> dict[str, dict]:
    """Trains every competitor, and chooses by validation examples."""
    sources, rate, accuracy = learn_source(column, benchmark, seeds)
    print(f"  source: rate {rate}, validation accuracy {100 * accuracy.mean():.1f} %", flush=True)
    results = {}
    for name, competitor in networks(column).items():
        (validation, test), ends = learn_target(competitor, column, benchmark, sources, seeds)
        means = validation.mean(1)
        rate = int(np.trapezoid(means).argmax())
        best, point = np.unravel_index(means.argmax(), means.shape)
        results[name] = {
            "validation": means,
            "rate": RATES[rate],
            "curve": test[rate],
            "best_rate": RATES[best],
            "best_epoch": int(point * EVERY),
            "accuracy": test[best, :, point],
        }
        if competitor[1].frozen:
            chosen = jax.tree.map(lambda leaf, rate=rate: leaf[rate], ends)
            results[name] |= probe(column, benchmark, chosen)
    return results


def cells(r: dict, scratch: dict) -> tuple[str, str, str]:
    """Transfer score; accuracy; what was chosen."""
    score = metrics.confidence_interval(analysis.transfer_score(r["curve"], scratch["curve"]))
    return (
        plus_minus(score, 0),
        plus_minus(metrics.confidence_interval(r["accuracy"])),
        f"{r['rate']:g}; {r['best_rate']:g}, {r['best_epoch']}",
    )


def main() -> None:
    """Trains, prints the tables, and writes them with the numbers and the plots."""
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    results = {}
    for pair, (column, benchmark, seeds) in pairs().items():
        print(pair, flush=True)
        results[pair] = compare(column, benchmark, seeds)
        *_, random, progressive = results[pair].values()
        shown = {"PNN": progressive, "random": random}
        panels = {f"{k}, {n}": r[k].mean(0) for n, r in shown.items() for k in ("AFS", "APS")}
        name = pair.replace(", ", "_")
        analysis.plot(panels, OUT, name, columns=["source", "target"])
    titles = (
        "Transfer score, %: mean and 95 % interval over 10 seeds, over 5 if convolutional",
        "Accuracy on the target's test examples, %",
        f"Chosen by validation, of rates {RATES} and up to {EPOCHS} epochs: the transfer score's "
        "rate; the accuracy's rate and epochs",
    )
    page = ["# Transfer to a target of 100 examples"]
    for i, title in enumerate(titles):
        rows = []
        for name in next(iter(results.values())):
            found = (cells(pair[name], next(iter(pair.values()))) for pair in results.values())
            rows.append([name, *(cell[i] for cell in found)])
        page += [f"{title}:", markdown(["network", *results], rows)]
    text = "\n\n".join(page) + "\n"
    print(text)
    (OUT / "table.md").write_text(text, encoding="utf-8")
    numbers = {"device": jax.devices()[0].device_kind, "pairs": results}
    text = json.dumps(numbers, default=lambda array: np.round(array, 4).tolist())
    (OUT / "results.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
