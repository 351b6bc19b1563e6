"""How fast training is: methods, networks and replicas, next to the device's own matrix product.

    python experiments/benchmark.py                      # everything, on whatever device there is
    python experiments/benchmark.py --parts rates peers  # some of it
    python experiments/benchmark.py --networks mlp400 --replicas 1 4 --rounds 10

Whatever is compared takes turns within one run: each round times the matrix product and an epoch of
every contender, and the ratios are formed round by round, so that a machine whose speed drifts
still gives the same ratios. One task's training is timed, with the other tasks learned before it.
"""

import dataclasses
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.extend.core import jaxprs_in_params
from rich.console import Console
from rich.table import Table

from jaxcl import data, masks, recipes, study, train

METHODS = ("finetune", "packnet", "hat", "pnn")
NETWORKS = {
    "mlp400": recipes.Options(hidden=(400, 400)),
    "mlp2000": recipes.Options(hidden=(2000, 2000)),
    "alexnet": recipes.Options(network="alexnet"),
}
TASKS = 5
CONSOLE = Console(width=120)


@dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
        parts: rates: steps a second; memory: of the training program; growth: time to the end of a
            sequence; peers: side by side with PyTorch.
        networks: which networks.
        methods: which methods.
        replicas: how many seeds at once.
        growth_tasks: lengths of the sequences.
        steps: steps in a timed epoch.
        rounds: rounds of the alternation.
        cores: CPU devices; by default one for each core.
        chunk: replicas that run side by side in a device; by default the library's choice.
        precision: type of the networks' arithmetic.
        out: where to write the JSON; by default experiments/results/benchmark-<device>.json.
    """

    parts: tuple[Literal["rates", "memory", "growth", "peers"], ...] = (
        "rates", "memory", "growth", "peers",
    )  # fmt: skip
    networks: tuple[Literal["mlp400", "mlp2000", "alexnet"], ...] = tuple(NETWORKS)
    methods: tuple[Literal["finetune", "packnet", "hat", "pnn"], ...] = METHODS
    replicas: tuple[int, ...] = (1, 2, 4, 16, 64)
    growth_tasks: tuple[int, ...] = (5, 10, 20, 50)
    steps: int = 100
    rounds: int = 5
    cores: int | None = None
    chunk: int | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    out: Path | None = None


@dataclass
class Contender:
    """Something that trains an epoch when it is its turn."""

    name: str
    run: Callable[[], int]  # trains an epoch; returns the number of seed-steps
    gflop: float = float("nan")  # that a seed-step needs
    first_seconds: float = float("nan")  # compilation and the first epoch
    rates: list[float] = dataclasses.field(default_factory=list)  # seed-steps a second, by round
    shares: list[float] = dataclasses.field(default_factory=list)  # of the matrix product's rate


def main(config: Config) -> None:
    """Measures, prints tables and writes the numbers."""
    cores = config.cores or os.cpu_count()
    if jax.config.jax_num_cpu_devices < 0:
        jax.config.update("jax_num_cpu_devices", cores)
    device = jax.devices()[0]
    kind = device.device_kind.replace(" ", "-").lower()
    results = {
        "device": device.device_kind,
        "devices": jax.device_count(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "config": dataclasses.asdict(config) | {"out": None},
    }
    parts = {"rates": rates, "memory": memory, "growth": growth, "peers": peers}
    for part in config.parts:
        results[part] = parts[part](config)
    out = config.out or Path(__file__).parent / "results" / f"benchmark-{kind}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n")
    CONSOLE.print(f"The numbers are in {out}.")


def rates(config: Config) -> list[dict]:
    """Seed-steps a second of each method, and its share of the matrix product's rate."""
    rows = []
    for network in config.networks:
        for count in config.replicas:
            group = [contender(method, network, count, config) for method in config.methods]
            product = alternate(group, config.rounds)
            rows += [row(c, group[0], count, network) for c in group]
            show(
                f"{network}, {count} replicas; matrix product {product:.0f} GFLOP/s",
                rows[-len(group) :],
            )
    return rows


def peers(config: Config) -> list[dict]:
    """Side by side with PyTorch's loops and with Avalanche, in the same process."""
    import peers as torch_peers
    from peers import STRATEGIES, Problem, available, avalanche_strategy

    rows, reasons = [], available()
    for name, reason in reasons.items():
        CONSOLE.print(f"{name}: {reason or 'runs here'}")
    for network in [n for n in config.networks if n.startswith("mlp")]:
        task = sequence((784,), 1, 64 * config.steps).tasks[0].train
        problem = Problem((task.x / 255 - 0.5) / 0.25, task.y, NETWORKS[network].hidden, 10)
        for method in [m for m in config.methods if m != "pnn" and reasons["torch"] is None]:
            loop = getattr(torch_peers, f"torch_{method}")(problem)
            theirs = Contender(f"PyTorch {method}", loop.run_epoch)
            ours = [contender(method, network, count, config) for count in config.replicas]
            alternate([theirs, *ours], config.rounds)
            rows += [row(c, theirs, 1, network) for c in (theirs, *ours)]
            show(f"{network}: {method} against a plain PyTorch loop", rows[-1 - len(ours) :])
    if reasons["avalanche"] is None and "mlp400" in config.networks:
        splits = sequence((784,), TASKS, 64 * config.steps).tasks
        problems = [
            Problem((t.train.x / 255 - 0.5) / 0.25, t.train.y, (400, 400), 10) for t in splits
        ]
        ours = contender("pnn", "mlp400", 4, config)
        for name in STRATEGIES:
            epochs = 2 if name == "packnet" else 1
            tests = [(p.x[:64], p.y[:64]) for p in problems]
            columns = [
                steps / seconds
                for steps, seconds, _ in avalanche_strategy(name, problems, tests, epochs)
            ]
            alternate([ours], 1)
            rows.append({
                "name": f"Avalanche {name}", "network": "mlp400",
                "by_task": columns, "ours_pnn_x4": ours.rates[-1],
            })  # fmt: skip
            CONSOLE.print(
                f"Avalanche {name}: {', '.join(f'{c:.0f}' for c in columns)} steps/s on tasks 1 to "
                f"{TASKS}; beside it our PNN's column {TASKS}, 4 replicas: {ours.rates[-1]:.0f}"
            )
    return rows


def growth(config: Config) -> list[dict]:
    """Seconds to the end of sequences of tasks, compilation included; PNN also column by column."""
    rows = []
    for tasks in config.growth_tasks:
        for method in config.methods:
            begin, ends = time.perf_counter(), []
            built = build(method, "mlp400", jax.device_count(), config, tasks, epochs=1)
            for event in study.run(built):
                if isinstance(event, study.TaskEnd):
                    ends.append(time.perf_counter() - begin)
            rows.append({
                "method": method, "tasks": tasks, "seconds": ends,
                "epoch_programs": built.traces["epoch"],
            })  # fmt: skip
            CONSOLE.print(f"{method}, {tasks} tasks: {ends[-1]:.1f} s, first {ends[0]:.1f} s")
        if "pnn" in config.methods:
            begin, ends = time.perf_counter(), []
            for task in range(tasks):
                built = build("pnn", "mlp400", jax.device_count(), config, task + 1, epochs=1)
                for _ in study.run(built, first=task):
                    pass
                ends.append(time.perf_counter() - begin)
            rows.append({
                "method": "pnn, one program a column", "tasks": tasks, "seconds": ends,
                "epoch_programs": tasks,
            })  # fmt: skip
            CONSOLE.print(f"pnn, one program a column, {tasks} tasks: {ends[-1]:.1f} s")
    return rows


def memory(config: Config) -> list[dict]:
    """Bytes of the training program on a device: arguments, results and temporaries."""
    rows = []
    for network in config.networks:
        for method in config.methods:
            for count in config.replicas:
                built = build(method, network, count, config, TASKS, epochs=1)
                where, programs = built.layout, built.programs
                fixed = ({},)
                seeds = jax.ShapeDtypeStruct((where.padded,), np.uint32)
                learners = jax.eval_shape(programs["start"], seeds, fixed)
                examples = train.examples(*built.benchmark.tasks[0].train)
                number = jnp.int32(0)
                lowered = programs["epoch"].lower(
                    learners, (*fixed, None), examples, number, number, None
                )
                used = lowered.compile().memory_analysis()
                total = (
                    used.argument_size_in_bytes + used.output_size_in_bytes
                    + used.temp_size_in_bytes - used.alias_size_in_bytes
                    - masks.size_bytes(examples)
                )  # fmt: skip
                rows.append({
                    "network": network, "method": method, "replicas": count, "bytes": total
                })  # fmt: skip
                CONSOLE.print(f"{network} {method} x{count}: {total / 1e6:.1f} MB a device")
    return rows


def build(method, network, count, config, tasks, epochs) -> study.Study:
    """A study on random bytes in the form of a benchmark: content does not change the speed."""
    options = dataclasses.replace(
        NETWORKS[network], optimizer="sgd", learning_rate=0.05, batch=64, precision=config.precision
    )
    shape = (32, 32, 3) if network == "alexnet" else (784,)
    benchmark = sequence(shape, tasks, 64 * config.steps)
    recipe = recipes.recipe(method, benchmark, options)
    return study.build(recipe, benchmark, range(count), epochs=epochs, chunk=config.chunk)


def sequence(shape: tuple[int, ...], tasks: int, examples: int) -> data.Benchmark:
    """Random bytes and labels, the same for every task."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (examples, *shape), dtype=np.uint8)
    y = rng.integers(0, 10, examples).astype(np.int32)
    held_out = data.Split(x[:256], y[:256])
    task = data.Task(data.Split(x, y), held_out, held_out, 10)
    return data.Benchmark("random", (task,) * tasks, 0.5, 0.25, shape, 255.0)


def contender(method: str, network: str, count: int, config: Config) -> Contender:
    """One method on the last of `TASKS` tasks, compiled and ready to train an epoch a turn."""
    begin = time.perf_counter()
    built = build(method, network, count, config, TASKS, epochs=1 + 100 * config.rounds)
    epochs = study.run(built, first=TASKS - 1)
    next(epochs)
    seconds = time.perf_counter() - begin

    def run() -> int:
        next(epochs)
        return config.steps * built.layout.padded

    name = f"{method} x{count}"
    return Contender(name, run, gflop_of(built), seconds)


def alternate(contenders: list[Contender], rounds: int) -> float:
    """Lets the matrix product and all contenders take turns; the product's best GFLOP/s."""
    best = 0.0
    for _ in range(rounds):
        product = matrix_product()
        best = max(best, product)
        for one in contenders:
            begin = time.perf_counter()
            rate = one.run() / (time.perf_counter() - begin)
            one.rates.append(rate)
            one.shares.append(rate * one.gflop / product)
    return best


def matrix_product(size: int = 2048, times: int = 3) -> float:
    """GFLOP/s of float32 matrix products on all devices at once."""
    if size not in _PRODUCTS:
        operands = [jax.device_put(jnp.ones((size, size)), device) for device in jax.devices()]
        product = jax.jit(lambda a: a @ a)
        _PRODUCTS[size] = product, operands
        jax.block_until_ready([product(a) for a in operands])
    product, operands = _PRODUCTS[size]
    begin = time.perf_counter()
    for _ in range(times):
        jax.block_until_ready([product(a) for a in operands])
    return 2 * size**3 * times * len(operands) / (time.perf_counter() - begin) / 1e9


_PRODUCTS: dict = {}


def row(one: Contender, reference: Contender, count: int, network: str) -> dict:
    """A contender's medians over the rounds; the ratio is formed round by round."""
    ratios = [a / b for a, b in zip(one.rates, reference.rates)]
    return {
        "name": one.name,
        "network": network,
        "replicas": count,
        "steps_per_second": statistics.median(one.rates),
        "gflop_per_second": statistics.median(one.rates) * one.gflop,
        "share_of_matrix_product": statistics.median(one.shares),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "against": reference.name,
        "first_seconds": one.first_seconds,
    }


def show(title: str, rows: list[dict]) -> None:
    """Prints rows as a table."""
    table = Table(title=title, title_justify="left")
    heads = ("", "seed-steps/s", "GFLOP/s", "of matrix product", "ratio", "range", "start, s")
    for head in heads:
        table.add_column(head, justify="left" if not head else "right")
    for r in rows:
        table.add_row(
            r["name"],
            f"{r['steps_per_second']:.0f}",
            f"{r['gflop_per_second']:.0f}",
            f"{100 * r['share_of_matrix_product']:.0f} %",
            f"{r['ratio']:.2f}",
            "{:.2f} to {:.2f}".format(*r["ratio_range"]),
            f"{r['first_seconds']:.1f}",
        )
    CONSOLE.print(table)


def gflop_of(built: study.Study) -> float:
    """Matrix products and convolutions of one seed-step, in GFLOP; stored features are free."""
    setup = built.recipe({})

    def loss(theta, state, statistics, x, features):
        params = setup.method.view(theta, state, TASKS - 1, 0.5)
        first = jax.tree.map(lambda rows: rows[0], statistics)
        extra = {} if features is None else {"features": features}
        key = jax.random.key(0)
        return setup.model.apply(params, first, x, train=True, key=key, **extra)[0].sum()

    tasks, x = len(built.benchmark.tasks), jnp.zeros((setup.batch, *built.benchmark.shape))
    one = jax.eval_shape(lambda: train.start(setup, jax.random.key(0), tasks))
    features = None
    if setup.model.frozen is not None:
        params = jax.eval_shape(setup.method.view, one.theta, one.state, 0, 0.5)
        first = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape[1:], s.dtype), one.statistics)
        features = jax.eval_shape(setup.model.frozen, params, first, x)
    jaxpr = jax.make_jaxpr(jax.grad(loss))(one.theta, one.state, one.statistics, x, features)
    return flop(jaxpr.jaxpr) / 1e9


def flop(jaxpr: Any) -> float:
    """Operations of the matrix products and convolutions in a jaxpr without loops."""
    total = 0.0
    for eqn in jaxpr.eqns:
        total += sum(flop(inner) for inner in jaxprs_in_params(eqn.params))
        out = math.prod(eqn.outvars[0].aval.shape)
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            total += 2 * out * math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
        elif eqn.primitive.name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            total += (
                2 * out * math.prod(kernel) / kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
            )
    return total


if __name__ == "__main__":
    main(tyro.cli(Config))
