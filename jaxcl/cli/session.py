"""What `compare` and `sweep` do alike: data that they load, settings, sizes, their folder."""

import contextlib
import dataclasses
import math
import re
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxcl import data, models
from jaxcl.cli.choosing import imported
from jaxcl.cli.options import Run
from jaxcl.core.trees import PyTree
from jaxcl.data.benchmark import Benchmark, checksum
from jaxcl.inference import inputs
from jaxcl.report.runs import seeds_as
from jaxcl.report.text import counted, listed, size
from jaxcl.study import recipes
from jaxcl.study.memory import limit_bytes
from jaxcl.study.programs import Study
from jaxcl.study.recipes import Choice, Options

# A benchmark of the user's own, MODULE:FUNCTION, whose module is called like no kind of sequence.
MODULE = re.compile(rf"(?!(?:{'|'.join(data.SEQUENCES)})_)[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def folder_of(run: Run, usual: str) -> Path:
    """The run's folder; its usual name may hold a path, of which a name is made."""
    name = run.name or re.sub(r"[^\w.,=+-]+", "_", usual)[-200:].strip(".")
    try:
        return run.out.expanduser() / name
    except RuntimeError as error:  # ~ where there is no home
        raise ValueError(f"--out {run.out} cannot be found: {error}") from error


def load(run: Run, training: Options) -> Benchmark:
    """The benchmark, as images where the network needs them; its inputs fit the network."""
    flat = False if training.network != "mlp" else None
    parts = [dataclasses.replace(run, benchmark=name) for name in run.benchmark.split(";")]
    if len(parts) > 1:  # each says itself how many tasks it has
        parts = [dataclasses.replace(part, tasks=None) for part in parts]
    try:
        benchmark = data.chained([_sequence(part, flat) for part in parts])
    except RuntimeError as error:  # ~ where there is no home
        raise ValueError(f"the data cannot be found: {error} Give --data-dir.") from error
    if len(parts) > 1 and run.tasks not in (None, len(benchmark.tasks)):
        raise ValueError(f"{run.benchmark} has {len(benchmark.tasks)} tasks, not {run.tasks}.")
    reason = _misfit(benchmark, training)
    if reason:
        kinds = typing.get_args(typing.get_type_hints(Options)["network"])
        others = [dataclasses.replace(training, network=kind) for kind in kinds]
        fit = [other.network for other in others if not _misfit(benchmark, other)]
        verb = "fits" if len(fit) == 1 else "fit"
        raise ValueError(
            f"--network {training.network} does not fit inputs of {benchmark.shape}: "
            f"{reason.rstrip('.')}; {listed(fit)} {verb}."
        )
    return benchmark


def _sequence(run: Run, flat: bool | None) -> Benchmark:
    if MODULE.fullmatch(run.benchmark):
        return _of_module(run)
    return data.load(run.benchmark, tasks=run.tasks, data_dir=run.data_dir, flat=flat)


def _of_module(run: Run) -> Benchmark:
    """What a function of the user's own gives, MODULE:FUNCTION."""
    make = imported(run.benchmark)
    made = make() if run.tasks is None else make(run.tasks)
    if not isinstance(made, Benchmark):
        raise ValueError(f"{run.benchmark} gives a {type(made).__name__}, not a data.Benchmark.")
    return data.check(made)


def _misfit(benchmark: Benchmark, training: Options) -> str:
    """Why the network cannot read the benchmark's inputs; "" if it can."""
    if training.network == "mlp":
        return ""
    with sizes_that_exist():
        try:
            recipes.network(benchmark, dataclasses.replace(training, init=None))
        except ValueError as error:
            return str(error)
    return ""


def settings_of(run: Run, benchmark: Benchmark, training: Any, **more: Any) -> dict[str, Any]:
    """What decides on the results of a run."""
    if training.init:  # the file may change, its name stays
        arrays = models.read_weights(training.init)
        more |= {"init_checksum": checksum([arrays[name] for name in sorted(arrays)])}
    return {
        "benchmark": run.benchmark,
        "tasks": len(benchmark.tasks),
        "seeds": seeds_as(run.numbers),
        "inputs": inputs.plain(inputs.of(benchmark)),
        "data": data.about(benchmark),
        **more,
        **dataclasses.asdict(training),
    }


def layout_options(run: Run, devices: Any) -> dict[str, Any]:
    """How the replicas lie over the devices, for `study.build`."""
    return {
        "devices": devices,
        "chunk": run.chunk,
        "devices_per_replica": run.devices_per_replica,
        "reproducible": run.reproducible,
    }


@contextlib.contextmanager
def sizes_that_exist() -> Iterator[None]:
    """Says so where an array would have more entries than can be counted."""
    try:
        yield
    except OverflowError as error:
        raise ValueError(f"the network is too large for any machine: {error}") from error


def check_size(studies: Sequence[Study], learner: PyTree, choice: Choice) -> None:
    """Raises ValueError if the learners alone exceed what a device has, before anything is written.

    Args:
        studies: of one method.
        learner: the shapes of one learner of the last study.
        choice: the method.
    """
    layout, benchmark = studies[-1].layout, studies[-1].benchmark
    each = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(learner))
    batch = 4 * choice.shared.batch * math.prod(benchmark.shape)  # of float32
    limit = limit_bytes(layout)
    if each * layout.per_device + batch * layout.chunk > limit:
        raise ValueError(
            f"{choice.spec.name}: a device has {size(limit)}, which is too little for "
            f"{counted(layout.per_device, 'learner')} of {size(each)} and batches of "
            f"{size(batch)}; choose a smaller network, fewer seeds or a smaller batch"
            f"{choice.spec.smaller and f', or {choice.spec.smaller}'}."
        )


def notes(benchmark: Benchmark, training: Options) -> list[str]:
    """What may not be meant as it is asked for, as lines to show."""
    said = []
    if benchmark.left_out:
        said += [f"left out: {listed(benchmark.left_out)}"]
    fewest = min(len(task.train.y) for task in benchmark.tasks)
    if training.batch > fewest:
        said += [
            f"warning: --batch {training.batch} is more than the {fewest} examples of a task, so "
            f"that an epoch is one step"
        ]
    return said
