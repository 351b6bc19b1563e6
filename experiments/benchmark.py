"""How fast training is: methods, networks and replicas, next to the device's own matrix product.

    python experiments/benchmark.py                      # everything, on whatever device there is
    python experiments/benchmark.py --parts rates peers  # some of it
    python experiments/benchmark.py --networks mlp400 --replicas 1 4 --rounds 10

Whatever is compared takes turns within one run: each round times the matrix product and an epoch of
every contender, and the ratios are formed round by round, so that a machine whose speed drifts
still gives the same ratios. One task's training is timed, with the program that learns all of them.
"""

import dataclasses
import functools
import importlib
import itertools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

import end_to_end
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.extend.core import jaxprs_in_params
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from jaxcl import data, masks, recipes, study, train
from jaxcl.methods import find
from jaxcl.report import figures
from jaxcl.study import compiled, lowering, topology

METHODS = ("finetune", "packnet", "hat", "pnn")
FAMILIES = ("finetune", "ewc", "si", "mas", "lwf", "er", "agem", "der", "derpp")
NETWORKS = {
    "mlp400": recipes.Options(hidden=(400, 400)),
    "mlp2000": recipes.Options(hidden=(2000, 2000)),
    "alexnet": recipes.Options(network="alexnet"),
    "resnet18": recipes.Options(network="resnet18"),
}
IMAGES = {"alexnet": 8, "resnet18": 3}  # networks of images, and steps of an epoch beside PyTorch
KERNEL_SEEDS = (1, 64)
# XLA may split a small product into several that are summed up; or never.
KERNEL_PRODUCTS = {
    "as XLA splits them": None,
    "whole": {"xla_gpu_experimental_force_split_k": 1},
}
GPU_WHEELS = ("jax-cuda13-plugin", "jax-cuda13-pjrt")
TASKS = 5
TURN_GFLOP = 600  # that an epoch has about; at least 5 steps, and at most 200
CONSOLE = Console(width=120)


Part = Literal[
    "rates", "families", "memory", "growth", "startup", "peers", "prune", "convolutions", "study",
    "kernels",
]  # fmt: skip


@dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
        parts: rates: steps a second, and what a method adds to fine-tuning; families: the same for
            regularization and replay; memory: of the training program; growth: time to the end of a
            sequence; startup: from the start of the command to its first epoch; peers: side by side
            with PyTorch and Avalanche, on MNIST; prune: the smallest half of some weights, beside
            numpy's partition and a sort; convolutions: the networks of images beside PyTorch's, and
            beside a loop without the engine; study: whole studies on split MNIST, from the start to
            the table, beside Avalanche's; kernels: what a training step launches on an H100, as the
            GPU compiler says, without a GPU; takes wheels of their own, and is not among those that
            run by default.
        networks: which networks.
        methods: which methods.
        replicas: how many seeds at once.
        growth_tasks: lengths of the sequences.
        studies: which whole studies.
        rounds: rounds of the alternation.
        cores: CPU devices; by default one for each core.
        chunk: replicas that run side by side in a device; by default the library's choice.
        precision: type of the networks' arithmetic.
        data_dir: folder of tensorflow-datasets, which holds MNIST, for the peers.
        out: where to write the JSON; by default experiments/results/benchmark-<device>.json.
    """

    parts: tuple[Part, ...] = tuple(part for part in get_args(Part) if part != "kernels")
    networks: tuple[Literal["mlp400", "mlp2000", "alexnet", "resnet18"], ...] = (
        "mlp400", "mlp2000", "alexnet",
    )  # fmt: skip
    methods: tuple[str, ...] = METHODS
    replicas: tuple[int, ...] = (1, 2, 4, 16, 64)
    growth_tasks: tuple[int, ...] = (5, 10, 20, 50)
    studies: tuple[str, ...] = tuple(end_to_end.STUDIES)
    rounds: int = 5
    cores: int | None = None
    chunk: int | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    data_dir: Path | None = None
    out: Path | None = None


@dataclass
class Contender:
    """Something that trains an epoch when it is its turn."""

    name: str
    run: Callable[[], int]  # trains an epoch; returns the number of seed-steps
    gflop: float = float("nan")  # that a seed-step needs
    first_seconds: float = float("nan")  # compilation and the first epoch
    accuracy: Callable[[], float] = lambda: float("nan")  # on the test set, once all is over
    rates: list[float] = dataclasses.field(default_factory=list)  # seed-steps a second, by round
    shares: list[float] = dataclasses.field(default_factory=list)  # of the matrix product's rate
    gbyte: float = 0.0  # that a seed-step moves at least: see `contender`
    chunk_bytes: int = 0  # parameters that run side by side in a device
    floors: list[float] = dataclasses.field(default_factory=list)  # time over the floor, by round


def main(config: Config) -> None:
    """Measures, prints tables and writes the numbers."""
    if config.parts == ("kernels",):
        jax.config.update("jax_platforms", "cpu")  # else the wheels look for a GPU here
    if "kernels" in config.parts:
        try:
            topology.h100()
        except ImportError as error:
            raise SystemExit(f"benchmark.py --parts kernels: {error}") from error
    cores = config.cores or os.cpu_count()
    if jax.config.jax_num_cpu_devices < 0:
        jax.config.update("jax_num_cpu_devices", cores)
    device = jax.devices()[0]
    kind = device.device_kind.replace(" ", "-").lower()
    out = config.out or Path(__file__).parent / "results" / f"benchmark-{kind}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(out.read_text()) if out.exists() else {}  # other parts stay
    results |= {
        "device": device.device_kind,
        "devices": jax.device_count(),
        "jax": jax.__version__,
        "python": platform.python_version(),
    }
    for part in config.parts:
        rows = whole_studies(config) if part == "study" else globals()[part](config)
        if part in ("rates", "families", "memory", "peers"):  # rows of other networks stay as well
            kept = [r for r in results.get(part, []) if r["network"] not in config.networks]
            rows = kept + rows
        elif part == "growth":  # and those of other methods and lengths
            new = {(r["method"], r["tasks"]) for r in rows}
            kept = [r for r in results.get(part, []) if (r["method"], r["tasks"]) not in new]
            rows = kept + rows
        results[part] = rows
        out.write_text(json.dumps(results, indent=1) + "\n")
    if "growth" in results:
        figure = growth_figure(results["growth"])
        figures.save(figure, out.parent, f"{out.stem}-growth")
    CONSOLE.print(f"The numbers are in {out}.")


def rates(config: Config) -> list[dict]:
    """Seed-steps a second of each method, and its share of the matrix product's rate."""
    rows = []
    for network, count in itertools.product(config.networks, config.replicas):
        group = []
        for method in config.methods:
            if too_large := misfit(method, network, count):
                CONSOLE.print(f"{network}, {method} x{count} is left out: {too_large}")
            else:
                group.append(contender(method, network, count, config))
        product = alternate(group, config.rounds)
        rows += [row(c, group[0], count, network) for c in group]
        show(
            f"{network}, {count} replicas; matrix product {product:.0f} GFLOP/s",
            rows[-len(group) :],
        )
    return rows


def families(config: Config) -> list[dict]:
    """`rates` of regularization and replay, one seed and four, on the small network."""
    networks = tuple(name for name in config.networks if name == "mlp400")
    return rates(dataclasses.replace(config, methods=FAMILIES, networks=networks, replicas=(1, 4)))


def peers(config: Config) -> list[dict]:
    """Side by side with PyTorch's loops and with Avalanche, on MNIST, in the same process."""
    library = importlib.import_module("peers")
    rows, reasons = [], library.available()
    for name, reason in reasons.items():
        CONSOLE.print(f"{name}: {reason or 'runs here'}")
    mnist = data.mnist(data_dir=config.data_dir)
    (task,) = mnist.tasks
    task = task._replace(train=data.Split(*(part[: 64 * 200] for part in task.train)))
    mnist = mnist._replace(tasks=(task,))
    x, test_x = ((s.x / mnist.scale - mnist.mean) / mnist.std for s in (task.train, task.test))
    for network in [n for n in config.networks if n.startswith("mlp")]:
        problem = library.Problem(x, task.train.y, NETWORKS[network].hidden, 10)
        for method in [m for m in ("finetune", "packnet", "hat") if reasons["torch"] is None]:
            loops = {
                f"PyTorch {method}{', compiled' if compile else ''}": loop
                for compile in (False, True)
                if (loop := torch_loop(library, method, problem._replace(compile=compile)))
            }
            theirs = [
                Contender(
                    name, loop.run_epoch,
                    accuracy=lambda loop=loop: loop.accuracy(test_x, task.test.y),
                )
                for name, loop in loops.items()
            ]  # fmt: skip
            ours = [contender(method, network, n, config, mnist) for n in config.replicas if n < 16]
            alternate([*theirs, *ours], config.rounds)
            best = max(theirs, key=lambda one: statistics.median(one.rates))
            rows += [
                row(one, best, 1, network) | {"accuracy": one.accuracy()} for one in theirs + ours
            ]
            title = f"{network}: {method} against plain PyTorch loops"
            show(title, rows[-len(theirs) - len(ours) :])
    if reasons["avalanche"] is None and "mlp400" in config.networks:
        problems = [library.Problem(x[:6400], task.train.y[:6400], (400, 400), 10)] * TASKS
        tests = [(test_x, task.test.y)] * TASKS
        for name in library.STRATEGIES:
            method = {"naive": "finetune", "replay": "er"}.get(name, name)
            ours = contender(method, "mlp400", 4, config, turns=2 * config.rounds)
            alternate([ours], config.rounds)
            columns = [
                steps / seconds
                for steps, seconds, _ in library.avalanche_strategy(
                    name, problems, tests, epochs=2 if name == "packnet" else 1
                )
            ]
            alternate([ours], config.rounds)
            ratios = [rate / columns[-1] for rate in ours.rates]
            rows.append({
                "name": f"Avalanche {name}", "network": "mlp400", "steps_per_second": columns,
                "ours": ours.name, "ours_per_second": statistics.median(ours.rates),
                "ratio": statistics.median(ratios), "ratio_range": [min(ratios), max(ratios)],
            })  # fmt: skip
            CONSOLE.print(
                f"Avalanche {name}: {', '.join(f'{c:.0f}' for c in columns)} steps/s on tasks 1 to "
                f"{TASKS}; {ours.name} on task {TASKS}, before and after it: "
                f"{statistics.median(ours.rates):.0f}, {statistics.median(ratios):.1f} times as "
                f"many ({min(ratios):.1f} to {max(ratios):.1f})"
            )
    return rows


def torch_loop(library: Any, method: str, problem: Any) -> Any | None:
    """A loop of PyTorch that has trained an epoch, as each of ours has when it is ready."""
    try:
        loop = getattr(library, f"torch_{method}")(problem)
        loop.run_epoch()
    except Exception as error:  # torch.compile needs a C++ compiler, and much else
        if not problem.compile:
            raise
        CONSOLE.print(f"torch.compile does not work here: {type(error).__name__}")
        return None
    return loop


def limits(method: str, tasks: int) -> list[int]:
    """The numbers of tasks that a method's programs have room for."""
    return list(find(method).task_limits(tasks))


def growth(config: Config) -> list[dict]:
    """Seconds to the end of sequences of tasks, compilation included.

    PNN also with one program for all columns, and with one for each column.
    """
    rows = []
    for tasks in config.growth_tasks:
        kinds = [(method, limits(method, tasks)) for method in config.methods]
        if "pnn" in config.methods and tasks <= 20:
            kinds.append(("pnn", [tasks]))
            kinds.append(("pnn", list(range(2, tasks + 1))))
        for method, rooms in kinds:
            begin, ends = time.perf_counter(), []
            count = jax.device_count()
            studies = [
                build(method, "mlp400", count, config, sequence("mlp400", room, 100), epochs=1)
                for room in rooms
            ]
            for event in study.run(studies):
                if isinstance(event, study.TaskEnd):
                    ends.append(time.perf_counter() - begin)
            rows.append({
                "method": method, "tasks": tasks, "rooms": rooms, "seconds": ends,
                "epoch_programs": study.compilations(studies),
            })  # fmt: skip
            CONSOLE.print(
                f"{method}, {tasks} tasks, {len(rooms)} programs: {ends[-1]:.1f} s, "
                f"first task {ends[0]:.1f} s"
            )
    return rows


@figures.style()
def growth_figure(rows: list[dict]) -> Figure:
    """Seconds to the end of each task of the longest sequence of each kind."""
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    longest = {}
    for one in rows:
        kind = one["method"]
        if kind == "pnn":
            doubles = one["rooms"] == limits("pnn", one["tasks"])
            other = "one program" if len(one["rooms"]) == 1 else "one program a column"
            kind = f"pnn, {'room doubles' if doubles else other}"
        longest[kind] = one["seconds"]
    for kind, seconds in longest.items():
        axes.plot(range(1, len(seconds) + 1), seconds, label=kind)
    axes.set_xlabel("tasks learned")
    axes.set_ylabel("seconds, compilation included")
    axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=8)
    return figure


def memory(config: Config) -> list[dict]:
    """Bytes of the training program on a device: arguments, results and temporaries."""
    rows = []
    for network, count in itertools.product(config.networks, config.replicas):
        plain = None
        for method in config.methods:
            built = build(method, network, count, config, sequence(network, TASKS, 5), epochs=1)
            used = study.program_bytes(built)
            used -= masks.size_bytes(train.examples(*built.benchmark.tasks[0].train))
            plain = plain or used
            rows.append({
                "network": network, "method": method, "replicas": count, "bytes": used,
                "ratio": used / plain,
            })  # fmt: skip
            CONSOLE.print(
                f"{network} {method} x{count}: {used / 1e6:.1f} MB a device, "
                f"{used / plain:.2f} times {config.methods[0]}"
            )
    return rows


STARTUP = """
import os, sys, time
from jaxcl import study
from jaxcl.cli import main as cli
run = study.run
def first_epoch(*args, **kwargs):
    next(run(*args, **kwargs))
    print(time.time() - float(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)
study.run = first_epoch
cli.main(["compare", "--out", sys.argv[2]])
"""


def startup(config: Config) -> dict:
    """Seconds from the start of `jaxcl compare` to the end of its first epoch."""
    found = {"cold": [], "warm": []}
    for _ in range(config.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for kind in found:  # the second start finds the programs that the first compiled
                words = [sys.executable, "-c", STARTUP, str(time.time()), f"{folder}/{kind}"]
                environment = os.environ | {"XDG_CACHE_HOME": folder}
                done = subprocess.run(words, env=environment, capture_output=True, check=True)
                found[kind].append(float(done.stdout))
    for kind, seconds in found.items():
        CONSOLE.print(f"start to first epoch, {kind} cache: {statistics.median(seconds):.1f} s")
    return found


def whole_studies(config: Config) -> list[dict]:
    """Seconds of whole studies, beside Avalanche where it can run."""
    reasons = importlib.import_module("peers").available()
    can = not any(reasons.values())
    if not can:
        CONSOLE.print(
            "; ".join(f"{name}: {reason or 'runs here'}" for name, reason in reasons.items())
        )
    return end_to_end.rows(end_to_end.study(config.rounds, config.studies, can))


def prune(config: Config) -> list[dict]:
    """Seconds to mark the smaller half of float32 weights, beside numpy's partition and a sort."""
    rows = []
    for size in (10**6, 10**7):
        weights = np.random.default_rng(0).standard_normal((size // 1000, 1000), np.float32)
        on_device, by_sort = jnp.asarray(weights), jax.jit(_by_sort)
        exact, original = (
            jax.jit(functools.partial(masks.smallest_fraction, fraction=0.5, ties=ties))
            for ties in ("exact", "original")
        )
        ways = {
            "numpy's partition": lambda w=weights: _by_partition(w),
            "a sort": lambda w=on_device, f=by_sort: f(w),
            "smallest_fraction, original ties": lambda w=on_device, f=original: f(w),
            "smallest_fraction": lambda w=on_device, f=exact: f(w),
        }
        marked = {name: np.asarray(way()) for name, way in ways.items()}  # compiles
        np.testing.assert_array_equal(marked["smallest_fraction"], marked["a sort"])
        seconds = {name: [] for name in ways}
        for _, (name, way) in itertools.product(range(config.rounds), ways.items()):
            begin = time.perf_counter()
            jax.block_until_ready(way())
            seconds[name].append(time.perf_counter() - begin)
        for name, own in seconds.items():
            ratios = [a / b for a, b in zip(own, seconds["numpy's partition"])]
            median, ratio = statistics.median(own), statistics.median(ratios)
            rows.append({
                "name": name, "weights": size, "seconds": median, "ratio": ratio,
                "ratio_range": [min(ratios), max(ratios)],
            })  # fmt: skip
            CONSOLE.print(
                f"{size:,} weights, {name}: {median:.4f} s, {ratio:.2f} times numpy's partition "
                f"({min(ratios):.2f} to {max(ratios):.2f})"
            )
    return rows


def convolutions(config: Config) -> list[dict]:
    """Steps a second of the networks of images: PyTorch's, a bare loop's, and the engine's."""
    library = importlib.import_module("peers")
    rows, seeds = [], [count for count in config.replicas if count in (1, 4)]
    for network, steps in IMAGES.items():
        benchmark = sequence(network, TASKS, steps)
        x, y = benchmark.tasks[0].train
        group = [bare_loop(network, benchmark, config)]
        if library.available()["torch"] is None:
            x = (x / benchmark.scale - benchmark.mean) / benchmark.std
            theirs = library.torch_convolutions(network, x, y)
            theirs.run_epoch()
            group.insert(0, Contender("PyTorch", theirs.run_epoch))
        group += [contender("finetune", network, count, config, benchmark) for count in seeds]
        for one in group:
            one.gbyte = 0.0  # the floor leaves out activations
        product = alternate(group, config.rounds)
        rows += [row(one, group[0], 1, network) for one in group]
        show(f"{network}; matrix product {product:.0f} GFLOP/s", rows[-len(group) :])
    return rows


def kernels(config: Config) -> dict:
    """Kernels of one training step on an H100, counted in the program that XLA compiles for it."""
    rows = []
    for method, count in itertools.product(config.methods, KERNEL_SEEDS):
        benchmark = sequence("mlp400", TASKS, 100)
        built = recipes.studies(
            method, benchmark, options("mlp400"), range(count), devices=topology.h100()
        )[-1]
        (program,) = lowering.lower(built, ["epoch"]).values()
        for products, choice in KERNEL_PRODUCTS.items():
            found = compiled.kernels(program.compile(choice).as_text())
            rows.append({"method": method, "seeds": count, "products": products} | dict(found))
    table = Table(title="kernels of a step of 784-400-400 on an H100", title_justify="left")
    heads = ("method", "seeds", "products", "kernels", "of them products", "copies")
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i in (0, 2) else "right")
    for r in rows:
        total = sum(r.get(kind, 0) for kind in ("product", "copy", "other"))
        loop = " and a loop" if "loop" in r else ""
        counts = (f"{total}{loop}", str(r["product"]), str(r.get("copy", 0)))
        table.add_row(r["method"], str(r["seeds"]), r["products"], *counts)
    CONSOLE.print(table)
    wheels = {name: metadata.version(name) for name in GPU_WHEELS}
    CONSOLE.print(", ".join(f"{name} {version}" for name, version in wheels.items()))
    return {"wheels": wheels, "rows": rows}


def bare_loop(network: str, benchmark: data.Benchmark, config: Config) -> Contender:
    """An epoch of plain SGD on the same network, with nothing around it."""
    model = recipes.recipe("finetune", benchmark, options(network, config.precision))({}).model
    x, y = map(jnp.asarray, benchmark.tasks[0].train)
    steps = x.shape[0] // 64
    epochs = itertools.count()

    @jax.jit
    def epoch(params, statistics, x, y, key):
        order = jax.random.permutation(key, x.shape[0])

        def step(i, both):
            rows = jax.lax.dynamic_slice_in_dim(order, 64 * i, 64)
            images = (x[rows] / benchmark.scale - benchmark.mean) / benchmark.std

            def loss(params, statistics):
                logits, new = model.apply(
                    params, statistics, images, train=True, key=jax.random.fold_in(key, i)
                )
                right = jnp.take_along_axis(logits, y[rows][:, None], 1)[:, 0]
                return jnp.mean(jax.nn.logsumexp(logits, -1) - right), new

            gradient, new = jax.grad(loss, has_aux=True)(*both)
            return jax.tree.map(lambda p, g: p - 0.05 * g, both[0], gradient), new

        return jax.lax.fori_loop(0, steps, step, (params, statistics))

    state = [model.init(jax.random.key(0))]

    def run() -> int:
        state[0] = epoch(*state[0], x, y, jax.random.key(next(epochs)))
        jax.block_until_ready(state[0])
        return steps

    run()
    return Contender("bare loop", run, gflop_of("finetune", network, benchmark))


def _by_partition(weights: np.ndarray) -> np.ndarray:
    magnitude = np.abs(weights)
    cut = magnitude.size // 2 - 1
    return magnitude <= np.partition(magnitude, cut, axis=None)[cut]


def _by_sort(weights: jax.Array) -> jax.Array:
    order = jnp.argsort(jnp.abs(weights).ravel(), stable=True)
    ranks = jnp.zeros(order.size, int).at[order].set(jnp.arange(order.size))
    return (ranks < order.size // 2).reshape(weights.shape)


def options(network: str, precision: str = "float32") -> recipes.Options:
    """Plain SGD and batches of 64 for every network."""
    return dataclasses.replace(
        NETWORKS[network], optimizer="sgd", learning_rate=0.05, batch=64, precision=precision
    )


def build(method, network, count, config, benchmark, epochs) -> study.Study:
    """A study of `count` seeds."""
    recipe = recipes.recipe(method, benchmark, options(network, config.precision))
    return study.build(recipe, benchmark, range(count), epochs=epochs, chunk=config.chunk)


@functools.cache
def sequence(network: str, tasks: int, steps: int) -> data.Benchmark:
    """Random bytes in the form of a benchmark, for all tasks: content does not change the speed."""
    shape = (32, 32, 3) if network in IMAGES else (784,)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (64 * steps, *shape), dtype=np.uint8)
    y = rng.integers(0, 10, 64 * steps).astype(np.int32)
    held_out = data.Split(x[:256], y[:256])
    task = data.Task(data.Split(x, y), held_out, held_out, 10)
    return data.Benchmark("random", (task,) * tasks, 0.5, 0.25, shape, 255.0)


def contender(method, network, count, config, benchmark=None, turns=None) -> Contender:
    """One method on the last task of a benchmark, compiled and ready to train an epoch a turn."""
    begin = time.perf_counter()
    benchmark = benchmark or sequence(network, TASKS, steps_of(method, network, count))
    built = build(method, network, count, config, benchmark, epochs=1 + (turns or config.rounds))
    events = study.run(built, first=len(benchmark.tasks) - 1)
    next(events)
    seconds = time.perf_counter() - begin
    steps = -(-benchmark.tasks[-1].train.y.size // 64)

    def run() -> int:
        next(events)
        return steps * built.layout.padded

    def accuracy() -> float:
        return float(next(events).accuracy[:, -1].mean())

    setup = built.recipe({})
    tasks = len(benchmark.tasks)
    theta = jax.eval_shape(lambda: train.start(setup, jax.random.key(0), tasks)).theta
    size = masks.size_bytes(theta)
    # Parameters are read forward and backward, the gradient is written and read, and the update
    # reads and writes the parameters: six times their bytes.
    return Contender(
        f"{method} x{count}", run, gflop_of(method, network, benchmark), seconds, accuracy,
        gbyte=6 * size / 1e9, chunk_bytes=size * built.layout.chunk,
    )  # fmt: skip


def steps_of(method: str, network: str, count: int) -> int:
    """Steps of an epoch, such that a turn takes about as long for every contender."""
    one = gflop_of(method, network, sequence(network, TASKS, 1))
    return int(np.clip(TURN_GFLOP / one / count, 5, 200))


def misfit(method: str, network: str, count: int) -> str | None:
    """Why a contender cannot run here, if it cannot: the state of its replicas is too large."""
    recipe = recipes.recipe(method, sequence(network, TASKS, 1), options(network))
    one = jax.eval_shape(lambda: train.start(recipe({}), jax.random.key(0), TASKS))
    size, limit = 3 * count * masks.size_bytes(one._replace(key=())), 0
    for device in jax.devices():
        limit += (device.memory_stats() or {}).get("bytes_limit", 0)
    limit = limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"about {size / 1e9:.0f} of {limit / 1e9:.0f} GB" if size > limit else None


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
            if one.gbyte:
                floor = one.gflop / product + one.gbyte / stream(one.chunk_bytes)
                one.floors.append(1 / (rate * floor))
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


def stream(size: int, times: int = 5) -> float:
    """GB/s at which parameters of `size` bytes a device are updated, on all devices at once."""
    update = jax.jit(lambda p, g: p - 0.05 * g, donate_argnums=0)
    params, gradients = (
        [jax.device_put(jnp.ones(size // 4), device) for device in jax.devices()] for _ in range(2)
    )
    params = jax.block_until_ready([update(p, g) for p, g in zip(params, gradients)])  # compiles
    begin = time.perf_counter()
    for _ in range(times):
        params = jax.block_until_ready([update(p, g) for p, g in zip(params, gradients)])
    return 3 * size * len(params) * times / (time.perf_counter() - begin) / 1e9


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
        "time_over_floor": statistics.median(one.floors) if one.floors else float("nan"),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "against": reference.name,
        "first_seconds": one.first_seconds,
    }


def show(title: str, rows: list[dict]) -> None:
    """Prints rows as a table."""
    table = Table(title=title, title_justify="left")
    heads = (
        "",
        "seed-steps/s",
        "GFLOP/s",
        "of matrix product",
        "time / floor",
        "ratio",
        "range",
        "start, s",
        "accuracy",
    )
    for head in heads:
        table.add_column(head, justify="left" if not head else "right")
    for r in rows:
        table.add_row(
            r["name"],
            f"{r['steps_per_second']:.0f}",
            f"{r['gflop_per_second']:.0f}",
            f"{100 * r['share_of_matrix_product']:.0f} %",
            f"{r['time_over_floor']:.2f}",
            f"{r['ratio']:.2f}",
            "{:.2f} to {:.2f}".format(*r["ratio_range"]),
            f"{r['first_seconds']:.1f}",
            f"{100 * r['accuracy']:.2f} %" if "accuracy" in r else "",
        )
    CONSOLE.print(table)


def gflop_of(method: str, network: str, benchmark: data.Benchmark) -> float:
    """Matrix products and convolutions of one seed-step, in GFLOP; stored features are free."""
    return _gflop(method, network, len(benchmark.tasks), benchmark.shape)


@functools.cache
def _gflop(method: str, network: str, tasks: int, shape: tuple[int, ...]) -> float:
    setup = recipes.recipe(method, sequence(network, tasks, 1), options(network))({})

    def loss(theta, state, statistics, x, features):
        params = setup.method.view(theta, state, tasks - 1, 0.5)
        first = jax.tree.map(lambda rows: rows[0], statistics)
        extra = {} if features is None else {"features": features}
        key = jax.random.key(0)
        return setup.model.apply(params, first, x, train=True, key=key, **extra)[0].sum()

    x = jnp.zeros((setup.batch, *shape))
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
        inner = [flop(inner) for inner in jaxprs_in_params(eqn.params)]
        total += max(inner) if eqn.primitive.name == "cond" else sum(inner)
        if eqn.primitive.name not in ("dot_general", "conv_general_dilated"):
            continue
        out = math.prod(eqn.outvars[0].aval.shape)
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            total += 2 * out * math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
        else:
            kernel = eqn.invars[1].aval.shape
            channels = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * out * math.prod(kernel) / channels
    return total


if __name__ == "__main__":
    main(tyro.cli(Config))
