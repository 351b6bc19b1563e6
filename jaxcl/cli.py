"""The command `jaxcl`: what it accepts, and what it does before anything is trained.

`jaxcl compare` trains several methods on one sequence of tasks, `jaxcl sweep` one method with many
settings. Bad input ends with one sentence and exit code 2, before a file is written. `_runs` does
the work.
"""

import dataclasses
import difflib
import importlib
import logging
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax

import jaxcl
from jaxcl import data, recipes
from jaxcl.recipes import METHODS, SWEPT, Options

HELP = """Parameter-isolation continual learning in JAX.

"jaxcl compare" needs nothing else. Defaults depend on the benchmark, so
"jaxcl compare --benchmark split_mnist --help" shows those of that benchmark.
"jaxcl --version" prints the version."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Data, devices and files.

    Attributes:
        benchmark: The sequence of tasks: split_digits, permuted_digits, split_mnist,
            permuted_mnist, split_fashion_mnist, permuted_fashion_mnist or split_cifar100.
        tasks: Number of tasks; None takes the benchmark's usual number.
        seeds: Number of seeds. They train side by side, in one program.
        data_dir: Folder of tensorflow-datasets; None takes TFDS_DATA_DIR, else
            ~/tensorflow_datasets. The digits need none.
        out: Folder of all runs.
        name: Folder of this run within it; None takes the benchmark's name.
        devices: Number of devices; None takes all, where each core of a CPU counts as one.
        split: Number of devices that share each replica and its batches.
        chunk: Most replicas that run side by side in a device; None takes what is fastest.
        cache: Keep compiled programs on disk, for the next start.
    """

    benchmark: str = "split_digits"
    tasks: int | None = None
    seeds: int = 5
    data_dir: Path | None = None
    out: Path = Path("runs")
    name: str | None = None
    devices: int | None = None
    split: int = 1
    chunk: int | None = None
    cache: bool = True


@dataclasses.dataclass(frozen=True)
class Compare:
    """Train several methods on one sequence of tasks, and show what each forgot.

    Attributes:
        methods: Any of finetune, joint, independent, pnn, hat, packnet.
        resume: Go on with the run that is in the folder, after the last task that was finished.
        run: Data, devices and files.
        options: How every method trains.
    """

    methods: tuple[str, ...] = ("finetune", "joint", "pnn", "hat", "packnet")
    resume: bool = False
    run: Run = Run()
    options: Options = Options()


Grid = dataclasses.make_dataclass(
    "Grid",
    [
        (field.name, tuple[float, ...] if field.name in SWEPT else field.type)
        for field in dataclasses.fields(Options)
    ],
    namespace={"__doc__": Options.__doc__},
    frozen=True,
)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Train one method with every combination of settings, in one program.

    The best setting has the highest accuracy on the validation sets; the test sets take no part in
    the choice. Give several values as in "--s-max 100,200,400".

    Attributes:
        method: One of finetune, joint, independent, pnn, hat, packnet.
        run: Data, devices and files.
        options: How the method trains. Those that take FLOAT,... can be swept.
    """

    method: str
    run: Run
    options: Any


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command.

    Args:
        args: words of the command line; by default those of this process.

    Raises:
        SystemExit: with code 2 for bad input, 130 if the user interrupts.
    """
    args = list(sys.argv[1:] if args is None else args)
    if args == ["--version"]:
        print(f"jaxcl {jaxcl.__version__}")
        return
    try:
        for extra in ("tyro", "rich", "matplotlib"):
            _extra(extra)
        command = parse(args)
        check(command)
        logging.getLogger("absl").setLevel(logging.ERROR)
        cache = use_cache() if command.run.cache else None
        use_devices(command.run)
        runs = importlib.import_module("jaxcl._runs")
        job = runs.prepare(command, cache)
    except (ValueError, ImportError, OSError) as error:
        fail(error)
    try:
        job()
    except KeyboardInterrupt:
        hint = "; the same command with --resume goes on" if isinstance(command, Compare) else ""
        fail(f"stopped{hint}", code=130)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        fail("the device ran out of memory; try a smaller --chunk, fewer --seeds or more --devices")


def parse(args: Sequence[str]) -> Compare | Sweep:
    """The command that the words ask for; tyro ends the process if they are none."""
    import tyro
    from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg, subcommand

    name = _value(args, "--benchmark") or Run.benchmark
    options = recipes.defaults(name)
    values = {field: _listed(field, value) for field, value in vars(options).items()}
    compare = Compare(run=Run(benchmark=name), options=options)

    # The method comes by name, which tyro does not accept for a default's other half.
    @dataclasses.dataclass(frozen=True)
    class Asked:
        method: Positional[str]
        run: OmitArgPrefixes[Run] = compare.run
        options: OmitArgPrefixes[Grid] = Grid(**values)

    raise NotImplementedError
