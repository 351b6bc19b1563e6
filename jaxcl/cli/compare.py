"""`jaxcl compare`: trains method after method, keeps a checkpoint, and writes what came out."""

import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console

from jaxcl import data, report, study, train
from jaxcl.cli import processes
from jaxcl.cli.folder import claim, write_settings
from jaxcl.cli.terminal import bars, conclude, consoles, introduce, show
from jaxcl.core import masks
from jaxcl.core.checks import shorten
from jaxcl.core.trees import PyTree
from jaxcl.data.benchmark import Benchmark
from jaxcl.report import metrics
from jaxcl.report.text import percent
from jaxcl.study import checkpoint, recipes, replicas
from jaxcl.study.programs import Study
from jaxcl.study.replicas import Device

if TYPE_CHECKING:
    from jaxcl.cli.main import Compare, Run


UNSHARED = ("finetune", "joint")  # all tasks use the whole network: no capacity to speak of
DIVIDED = ("hat", "packnet")  # each task leaves less of one network to the next


class Record(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        learners: the state of all replicas, with a leading [padded] axis.
        accuracy: [replicas, tasks, tasks], nan where it is not measured yet.
        capacity: [replicas, tasks], likewise.
        overlap: share of the network that both of two tasks use, [replicas, tasks, tasks]; nan for
            methods that do not choose.
        seconds: time spent so far, a scalar.
        compilations: of the training step, an integer scalar.
    """

    learners: PyTree
    accuracy: PyTree
    capacity: PyTree
    overlap: PyTree
    seconds: PyTree
    compilations: PyTree


class Part(NamedTuple):
    """One method of a comparison: its study in stages, how far it is, what its network costs.

    `about` is what the terminal says of it beforehand.
    """

    stages: list[Study]
    done: int
    record: Record
    folder: Path
    parameters: int
    extra_bytes: int
    about: str


def prepare(command: "Compare", devices: Sequence[Device], cache: Path | None) -> Callable:
    """Checks everything that can go wrong; writes no more than the settings.

    Returns:
        A function that does the work.

    Raises:
        ValueError: for bad input, or a folder that holds another run.
    """
    run, options = command.run, command.training
    folder = run.out.expanduser() / (run.name or run.benchmark)
    with processes.agreement():
        benchmark = load(run, options)
        settings = {
            "benchmark": run.benchmark,
            "tasks": len(benchmark.tasks),
            "seeds": run.seeds,
            "methods": list(command.methods),
            **dataclasses.asdict(options),
        }
        claim(folder, settings, command.resume)
        parts = {
            method: _part(method, benchmark, command, devices, folder / "checkpoints" / method)
            for method in command.methods
        }
    processes.check_same(folder, {**settings, "split": run.split, "chunk": run.chunk})
    with processes.agreement():
        parts = {method: _restore(part) for method, part in parts.items()}
    if processes.leads():
        folder.mkdir(parents=True, exist_ok=True)
        write_settings(folder, settings, command, devices)
    return partial(_work, parts, benchmark, settings, command.warn_free, folder, cache)


def load(run: "Run", options: recipes.Options) -> Benchmark:
    """The benchmark, as images where the network needs them."""
    flat = False if options.network != "mlp" else None
    return data.load(run.benchmark, tasks=run.tasks, data_dir=run.data_dir, flat=flat)


def _part(method, benchmark, command, devices, folder) -> Part:
    """Builds one method's study."""
    run, options, tasks = command.run, command.training, len(benchmark.tasks)
    stages = recipes.stages(
        method, benchmark, options, range(run.seeds),
        devices=devices, chunk=run.chunk, split=run.split,
    )  # fmt: skip
    learner = _shapes(stages[-1])
    parameters, extra_bytes = recipes.cost(method, benchmark, learner, options)
    nothing = Record(
        learners=None,
        accuracy=np.full((run.seeds, tasks, tasks), np.nan, np.float32),
        capacity=np.full((run.seeds, tasks), np.nan, np.float32),
        overlap=np.full((run.seeds, tasks, tasks), np.nan, np.float32),
        seconds=np.zeros((), np.float32),
        compilations=np.zeros((), np.int32),
    )
    about = ""
    if method == "packnet":
        owner = learner.state.owner
        total = masks.summary(learner.theta, owner).splitlines()[-1]
        about = f"packnet: {total} ({shorten(sorted(owner))})"
    return Part(stages, 0, nothing, folder, parameters, extra_bytes, about)


def _shapes(stage: Study) -> PyTree:
    """The shapes of one learner."""
    settings = {name: value[0] for name, value in stage.settings.items()}
    tasks = len(stage.benchmark.tasks)
    return jax.eval_shape(
        lambda key: train.start(stage.recipe(settings), key, tasks), jax.random.key(0)
    )


def _restore(part: Part) -> Part:
    """A method as far as its latest checkpoint, spread over the devices that there are now."""
    found = checkpoint.latest(part.folder)
    if not found:
        return part
    done, path = found
    stage = next(one for one in part.stages if len(one.benchmark.tasks) >= done)
    where = stage.layout
    own = NamedSharding(where.mesh, PartitionSpec(replicas.AXIS))
    whole = NamedSharding(where.mesh, PartitionSpec())
    rows = checkpoint.shapes(path)["learners/key"].shape[0]
    sharding = own if rows == where.padded else whole
    learners = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape), leaf.dtype, sharding=sharding),
        _shapes(stage),
    )
    learners, *numbers = checkpoint.restore(path, part.record._replace(learners=learners))
    if done == part.record.accuracy.shape[1]:
        learners = None
    elif rows != where.padded:
        index = np.minimum(np.arange(where.padded), where.replicas - 1)
        take = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf[index], tree), out_shardings=own)
        learners = take(learners)
    return part._replace(done=done, record=Record(learners, *map(np.array, numbers)))


def _work(
    parts: dict[str, Part], benchmark: Benchmark, settings: dict, least_free: float, folder, cache
) -> None:
    """Trains what is not trained yet, shows the table and writes the results."""
    out, err = consoles()
    where = next(iter(parts.values())).stages[0].layout
    introduce(err, settings, where, cache)
    for about in filter(None, (part.about for part in parts.values())):
        err.print(about, soft_wrap=True)
    methods = {}
    with bars(err) as progress:
        rows = {
            method: progress.add_task(method, start=False, total=1, status="") for method in parts
        }
        for method, part in parts.items():
            warn = partial(_warn, err, method, least_free if method in DIVIDED else 0)
            record = _train(part, partial(show, progress, rows[method]), warn)
            result = f"accuracy {percent(metrics.average_accuracy(record.accuracy).mean())}%"
            progress.update(rows[method], status=result)
            if not err.is_terminal:
                err.print(f"{method}: {result}, {float(record.seconds):.1f} s")
            methods[method] = {
                "accuracy": record.accuracy.tolist(),
                "capacity": record.capacity.tolist() if method not in UNSHARED else None,
                "free": metrics.free(record.capacity).tolist() if method in DIVIDED else None,
                **_shared(record.overlap),
                "parameters": part.parameters,
                "extra_bytes": part.extra_bytes,
                "seconds": round(float(record.seconds), 2),
                "compilations": int(record.compilations),
            }
    results = {
        "benchmark": settings["benchmark"],
        "tasks": len(benchmark.tasks),
        "seeds": list(range(settings["seeds"])),
        "settings": settings,
        "methods": methods,
    }
    if not processes.leads():
        return
    paths = report.write(results, folder)
    out.print(report.table(results))
    out.print(report.sentence(results))
    conclude(out, folder, [folder / "settings.json", *paths])


def _shared(overlap: np.ndarray) -> dict:
    """What of each task's weights each later one uses, and the share that each uses by itself."""
    if np.isnan(overlap).any():
        return {"reuse": None, "compression": None}
    own = np.diagonal(overlap, axis1=1, axis2=2)
    return {"reuse": metrics.reuse(overlap).tolist(), "compression": own.tolist()}


def _train(part: Part, progress: Callable, warn: Callable) -> Record:
    """Trains one method to its end, with a checkpoint after each task."""
    start, (learners, *numbers) = time.perf_counter(), part.record
    accuracy, capacity, overlap, seconds, compilations = numbers
    tasks = accuracy.shape[1]
    progress(tasks=tasks, task=part.done, epoch=0, epochs=1)
    record = part.record
    if part.done == tasks:
        return record
    for event in study.run(part.stages, learners, part.done):
        if isinstance(event, study.EpochEnd):
            progress(tasks=tasks, task=event.task, epoch=event.epoch, epochs=event.epochs)
            continue
        accuracy[:, event.task], capacity[:, event.task] = event.accuracy, event.capacity
        overlap = overlap if event.overlap is None else event.overlap
        record = Record(
            event.learners, accuracy, capacity, overlap,
            np.asarray(seconds + time.perf_counter() - start, np.float32),
            np.asarray(max(compilations, study.compilations(part.stages)), np.int32),
        )  # fmt: skip
        path = part.folder / f"task_{event.task + 1}"
        checkpoint.save(path, record)
        if processes.leads():
            for old in set(part.folder.glob("task_*")) - {path}:
                shutil.rmtree(old)
        if event.task + 1 < tasks:
            warn(event.task + 1, 1 - event.capacity)
    return record._replace(learners=None)


def _warn(err: Console, method: str, least: float, task: int, free: np.ndarray) -> None:
    """Says so if a task begins with little of the network."""
    share = round(float(free.min()), 3)
    if share < least:
        seeds = f", in the fullest of {free.size} seeds" if free.size > 1 else ""
        err.print(
            f"warning: {method}, task {task + 1} begins with {percent(share)}% of the weights "
            f"free{seeds}",
            soft_wrap=True,
        )
