"""`jaxcl compare --dry-run`: what a study would need, found by compiling it; nothing is trained."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import jax

from jaxcl.cli import inferring, scenarios
from jaxcl.cli.options import Compare
from jaxcl.cli.session import folder_of, layout_options, load, notes, sizes_that_exist
from jaxcl.cli.streams import standard_output
from jaxcl.cli.terminal import consoles
from jaxcl.core.trees import PyTree
from jaxcl.data.benchmark import Benchmark
from jaxcl.report import text
from jaxcl.report.text import counted, size
from jaxcl.study import comparison, feed, lowering, replicas, topology
from jaxcl.study.compiled import Bytes, bytes_of
from jaxcl.study.memory import limit_bytes
from jaxcl.study.recipes import Choice
from jaxcl.study.replicas import Device

HEADER = (
    "method", "seeds", "at once", "learners", "of these memories", "training needs", "to compile",
    "a checkpoint",
)  # fmt: skip


class Needs(NamedTuple):
    """What one method would need.

    Attributes:
        layout: where its replicas would run.
        learners: bytes of all learners of a device.
        memories: of these, what the method carries through every step, such as examples to replay.
        training: of the program that trains an epoch, on each device; None if it does not compile.
        resident: bytes on each device of the examples that other programs read.
        seconds: to compile all programs.
        checkpoint: bytes of one.
        problem: why a program does not compile; "" if all do.
    """

    layout: replicas.Layout
    learners: int
    memories: int
    training: Bytes | None
    resident: int
    seconds: float
    checkpoint: int
    problem: str

    @property
    def total(self) -> int | None:
        """Bytes of a device while it trains."""
        return None if self.training is None else self.training.total + self.resident


def devices_of(command: Compare) -> list[Device]:
    """The devices of the topology, as many as are asked for.

    Raises:
        ImportError: if libtpu is not installed.
        ValueError: for a topology that it does not know, or more devices than there are.
    """
    assert command.topology is not None
    jax.config.update("jax_platforms", "cpu")  # else libtpu looks for a TPU here
    jax.config.update("jax_enable_compilation_cache", False)  # it is for what can run
    devices, wanted = topology.tpu(command.topology), command.run.devices
    if (wanted or 1) > len(devices):
        raise ValueError(
            f"--devices is {wanted}, but {command.topology} has {counted(len(devices), 'device')}."
        )
    return devices[:wanted]


def prepare(
    command: Compare, devices: Sequence[Device], cache: str, held: ExitStack
) -> Callable[[Callable[[], bool]], None]:
    """Like `compare.prepare`, for a job that compiles and prints a table; it writes no file."""
    del cache, held
    benchmark = load(command.run, command.training)
    parts = scenarios.divide(command, folder_of(command.run, usual=command.run.benchmark))
    inferring.check(command, benchmark)
    trained = [part for part in parts.values() if part.choices]
    return partial(_work, trained, benchmark, devices)


def _work(
    parts: Sequence[Compare],
    benchmark: Benchmark,
    devices: Sequence[Device],
    stop: Callable[[], bool],
) -> None:
    """Compiles method after method, and prints what each needs."""
    out, err = consoles()
    for line in notes(benchmark, parts[0].training):
        err.print(line, soft_wrap=True)
    for part in parts:
        found = {}
        for choice in part.choices:
            if stop():
                raise KeyboardInterrupt
            found[choice.spec.name] = needs(part, choice, benchmark, devices)
            err.print(f"{choice.spec.name}: compiled in {found[choice.spec.name].seconds:.1f} s")
        with standard_output():
            out.print(_said(part, len(benchmark.tasks), found), soft_wrap=True)
            for name, need in found.items():
                if problem := need.problem or _too_much(need):
                    out.print(f"{name} does not fit: {problem}", soft_wrap=True)


def needs(
    command: Compare, choice: Choice, benchmark: Benchmark, devices: Sequence[Device]
) -> Needs:
    """What one method would need on these devices.

    Args:
        command: seeds and the layout that is asked for.
        choice: the method with its options.
        benchmark: the sequence of tasks.
        devices: here, or of a topology.
    """
    options = layout_options(command.run, devices)
    with sizes_that_exist():
        run = comparison.begin(choice, benchmark, command.run.numbers, **options)
    last = run.studies[-1]
    layout, learners = last.layout, lowering.learners(last)
    began, problem, training = time.perf_counter(), "", None
    try:
        for study in run.studies:
            programs = lowering.lower(study)
            compiled = {name: program.compile() for name, program in programs.items()}
            training = bytes_of(compiled["epoch"])
    except jax.errors.JaxRuntimeError as error:
        problem, training = str(error).strip().splitlines()[0], None
    held_out = feed.stack([task.test for task in benchmark.tasks])
    shared = layout.mesh.shape[replicas.AXIS]
    return Needs(
        layout, _bytes(learners) // shared, _bytes(learners.memory) // shared, training,
        _bytes(held_out), time.perf_counter() - began,
        _bytes(learners) + _bytes(run.record._replace(learners=None)), problem,
    )  # fmt: skip


def _bytes(tree: PyTree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _too_much(need: Needs) -> str:
    limit = limit_bytes(need.layout)
    if need.total is None or need.total <= limit:
        return ""
    return (
        f"a device has {size(limit)} of the {size(need.total)} that its training needs; give a "
        f"smaller --chunk, fewer seeds or more devices."
    )


def _said(command: Compare, tasks: int, found: dict[str, Needs]) -> str:
    """What each method needs, a row of a table each."""
    layout = next(iter(found.values())).layout
    device = layout.mesh.devices.flat[0]
    kind = device.device_kind.upper() if device.platform == "cpu" else device.device_kind
    scenario = f", scenario {command.scenarios[0]}" if command.scenarios != ("task",) else ""
    seeds = counted(len(command.run.numbers), "seed")
    return (
        f"{command.run.benchmark}{scenario}: {counted(tasks, 'task')}, {seeds}, "
        f"on {counted(layout.mesh.size, f'{kind} device')} "
        f"of {size(limit_bytes(layout))}; nothing is trained\n\n"
        f"{text.markdown(HEADER, [[name, *_cells(need)] for name, need in found.items()])}\n\n"
        "Seeds and bytes are those of a device, a checkpoint's those of all of them."
    )


def _cells(need: Needs) -> list[Any]:
    total = "-" if need.total is None else size(need.total)
    return [
        str(need.layout.per_device), str(need.layout.chunk), size(need.learners),
        size(need.memories), total, f"{need.seconds:.1f} s", size(need.checkpoint),
    ]  # fmt: skip
