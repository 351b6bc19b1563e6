"""What `compare` and `sweep` do alike: the data that they load, the settings that they record."""

import dataclasses
from typing import Any

from jaxcl import data
from jaxcl.cli.options import Run
from jaxcl.data.benchmark import Benchmark
from jaxcl.study.recipes import Options


def load(run: Run, training: Options) -> Benchmark:
    """The benchmark, as images where the network needs them."""
    flat = False if training.network != "mlp" else None
    return data.load(run.benchmark, tasks=run.tasks, data_dir=run.data_dir, flat=flat)


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
