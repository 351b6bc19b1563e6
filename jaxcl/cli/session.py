"""What `compare` and `sweep` do alike: data that they load, settings, sizes, their folder."""

import contextlib
import dataclasses
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxcl import data
from jaxcl.cli.options import Run
from jaxcl.core.trees import PyTree
from jaxcl.data.benchmark import Benchmark
from jaxcl.report.text import listed
from jaxcl.study import recipes
from jaxcl.study.memory import limit_bytes
from jaxcl.study.programs import Study
from jaxcl.study.recipes import Options


def folder_of(run: Run, usual: str) -> Path:
    """The run's folder."""
    try:
        return run.out.expanduser() / (run.name or usual)
    except RuntimeError as error:  # ~ where there is no home
        raise ValueError(f"--out {run.out} cannot be found: {error}") from error


def load(run: Run, training: Options) -> Benchmark:
    """The benchmark, as images where the network needs them; its inputs fit the network."""
    flat = False if training.network != "mlp" else None
    try:
        benchmark = data.load(run.benchmark, tasks=run.tasks, data_dir=run.data_dir, flat=flat)
    except RuntimeError as error:  # ~ where there is no home
        raise ValueError(f"the data cannot be found: {error} Give --data-dir.") from error
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


def _misfit(benchmark: Benchmark, training: Options) -> str:
    """Why the network cannot read the benchmark's inputs; "" if it can."""
    if training.network == "mlp":
        return ""
    with sizes_that_exist():
        try:
            recipes.network(benchmark, training)
        except ValueError as error:
            return str(error)
    return ""


def settings_of(run: Run, benchmark: Benchmark, training: Any, **more: Any) -> dict[str, Any]:
    """What decides on the results of a run."""
    return {
        "benchmark": run.benchmark,
        "tasks": len(benchmark.tasks),
        "seeds": run.seeds,
        **more,
        **dataclasses.asdict(training),
    }


def layout_options(run: Run, devices: Any) -> dict[str, Any]:
    """How the replicas lie over the devices, for `study.build`."""
    return {
        "devices": devices,
        "chunk": 1 if run.reproducible else run.chunk,
        "devices_per_replica": run.devices_per_replica,
    }


@contextlib.contextmanager
def sizes_that_exist() -> Iterator[None]:
    """Says so where an array would have more entries than can be counted."""
    try:
        yield
    except OverflowError as error:
        raise ValueError(f"the network is too large for any machine: {error}") from error


def check_size(studies: Sequence[Study], learner: PyTree) -> None:
    """Raises ValueError if the learners alone exceed what a device has, before anything is written.

    Args:
        studies: of one method.
        learner: the shapes of one learner of the last study.
    """
    layout = studies[-1].layout
    each = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(learner))
    needed, limit = each * layout.per_device, limit_bytes(layout)
    if needed > limit:
        raise ValueError(
            f"{layout.per_device} learners of {each / 1e9:.3g} GB are too large for a device with "
            f"{limit / 1e9:.3g} GB; choose a smaller network or fewer seeds."
        )


def notes(benchmark: Benchmark, training: Options) -> list[str]:
    """What may not be meant as it is asked for, as lines to show."""
    fewest = min(len(task.train.y) for task in benchmark.tasks)
    if training.batch <= fewest:
        return []
    return [
        f"warning: --batch {training.batch} is more than the {fewest} examples of a task, so that "
        f"an epoch is one step"
    ]
