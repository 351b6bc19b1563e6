"""`jaxcl export`: one task's own network, as parameters and as a program without jaxcl."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import tyro

from jaxcl.cli import terminal
from jaxcl.cli.parsing import parse_plainly
from jaxcl.cli.streams import standard_output
from jaxcl.inference.exporting import SAMPLE, Exported, export
from jaxcl.inference.runs import load
from jaxcl.report.text import counted, size


@dataclasses.dataclass(frozen=True)
class Export:
    """Write one task's own network as an ordinary parameter tree and as a StableHLO program.

    The tree is params.npz, and params for orbax, without the units that the task does not use. The
    program, network.stablehlo, takes inputs as they are stored and gives logits; it runs on CPU,
    CUDA and TPU, and needs jax alone. Both are compared with the original before they are written.

    Attributes:
        run: folder of a run, such as runs/permuted_digits.
        method: which of its methods.
        task: which task, counted from 0 as in Python (tables count from 1); None where the network
            is not told it.
        seed: which seed, counted from 0.
        out: folder for the files; None takes one under exports in that of the run.
    """

    run: tyro.conf.Positional[Path]
    method: str
    task: int | None = None
    seed: int = 0
    out: Path | None = None


def run(args: Sequence[str]) -> None:
    """Runs the command.

    Raises:
        ValueError: if the run has no such network, or the folder exists already.
    """
    command = parse_plainly(Export, "export", args)
    one = load(command.run)
    if not hasattr(one, "methods"):
        raise ValueError(f"{command.run} holds a learner, not a run: export it from Python.")
    name = command.method + ("" if command.task is None else f"_task_{command.task}")
    network = one[command.method].seed(command.seed)
    folder = command.out or command.run / "exports" / f"{name}_seed_{command.seed}"
    about = {"method": command.method, "seed": command.seed, "run": command.run.resolve().name}
    written = export(network, folder, command.task, about=about)
    out, _ = terminal.consoles()
    with standard_output():
        for line in lines(written):
            out.print(line, soft_wrap=True)


def lines(written: Exported) -> list[str]:
    """What was written, compared and measured, in words."""
    entries, zeros = written.entries
    before, after, program = map(size, written.bytes)
    slow, fast = written.milliseconds
    said = [f"{entries:,} parameters, of which {zeros:,} are zero; {after}, {before} before"]
    if written.left_out:
        said.append(f"left out: {written.left_out}")
    of = "any number of inputs" if written.batch is None else f"{written.batch} inputs at a time"
    said += [
        f"the program takes {of}; {program}",
        f"the largest difference of a logit from the original's is {written.difference:.1g}, of "
        f"the largest logit {written.scale:.3g}, over {counted(SAMPLE, 'random input')}",
        f"{SAMPLE} inputs take {fast:.2f} ms here, {slow:.2f} ms before",
        f"Written to {written.folder}: network.stablehlo, params.npz, params, export.json",
    ]
    return said
