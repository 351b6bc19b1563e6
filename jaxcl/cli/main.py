"""The command `jaxcl`: what it accepts, and the checks before anything runs.

`jaxcl compare` trains several methods on one sequence of tasks, `jaxcl sweep` one method with many
settings. Bad input ends in one sentence and exit code 2, before a file is written. What follows is
in `_compare` and `_sweep`.
"""

import contextlib
import dataclasses
import difflib
import importlib.util
import logging
import os
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import jax

import jaxcl
from jaxcl.cli import processes
from jaxcl.study import recipes
from jaxcl.study.recipes import METHODS, SWEPT, Options
from jaxcl.study.replicas import Device

HELP = """Parameter-isolation continual learning in JAX.

"jaxcl compare" needs no option. Defaults depend on the benchmark, and --help shows them:
"jaxcl compare --benchmark split_mnist --help". "jaxcl --version" prints the version."""

_OWN = {"hat": ("s_max", "c"), "packnet": ("prune",), "pnn": ("alpha",)}  # numeric settings
_EXAMPLES = {"hat": "--s-max 100,200,400 --c 0.5,0.75,1", "packnet": "--prune 0.25,0.5,0.75"}


@dataclasses.dataclass(frozen=True)
class Run:
    """Data, devices and files.

    Attributes:
        benchmark: the sequence of tasks: permuted_digits, split_digits, split_mnist,
            permuted_mnist, split_fashion_mnist, permuted_fashion_mnist or split_cifar100.
        tasks: number of tasks; None takes the benchmark's usual number.
        seeds: number of seeds, which train side by side in one program.
        data_dir: folder of tensorflow-datasets; None takes TFDS_DATA_DIR, else
            ~/tensorflow_datasets. The digits need none.
        out: folder of all runs.
        name: folder of this run within it; None takes the benchmark's name, and for a sweep
            sweep_METHOD_BENCHMARK.
        devices: number of devices, of each process if there are several; None takes all, where
            each core of a CPU counts as one.
        split: number of devices that share each replica and its batches.
        chunk: most replicas that run side by side in a device; None takes what is fastest.
        cache: keep compiled programs on disk for the next start.
        distributed: share the work with the other processes of a cluster, which JAX finds on TPUs,
            Slurm, Open MPI and GKE.
        coordinator: HOST:PORT where process 0 is to be met, if there is no such cluster.
        processes: number of processes that meet there.
        process: which of them this is, from 0.
        timeout: seconds to wait for the others at the start.
    """

    benchmark: str = "permuted_digits"
    tasks: int | None = None
    seeds: int = 5
    data_dir: Path | None = None
    out: Path = Path("runs")
    name: str | None = None
    devices: int | None = None
    split: int = 1
    chunk: int | None = None
    cache: bool = True
    distributed: bool = False
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    timeout: int = 60


@dataclasses.dataclass(frozen=True)
class Compare:
    """Train several methods on one sequence of tasks, and show what each forgot.

    Attributes:
        methods: any of finetune, joint, independent, pnn, hat, packnet.
        resume: go on with the run in the same folder, after its last finished task.
        warn_free: say so if a task of hat or packnet begins with less than this share of the
            weights free.
        run: data, devices and files.
        training: how every method trains.
    """

    methods: tuple[str, ...] = ("finetune", "joint", "pnn", "hat", "packnet")
    resume: bool = False
    warn_free: float = 0.05
    run: Run = dataclasses.field(default_factory=Run)
    training: Options = dataclasses.field(default_factory=Options)


Grid = dataclasses.make_dataclass(  # Options, with several values for each number of SWEPT
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
    """Train one method with every combination of settings, in one program, and pick the best.

    Attributes:
        method: one of finetune, joint, independent, pnn, hat, packnet.
        run: data, devices and files.
        training: how the method trains. What takes FLOAT,... may get several values, such as
            "--s-max 100,200,400". The best combination has the highest accuracy on the validation
            sets; the test sets take no part in the choice.
    """

    method: str
    run: Run
    training: Grid  # pyright: ignore[reportInvalidTypeForm]


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command.

    Args:
        args: the words after `jaxcl`; by default those of this process.

    Raises:
        SystemExit: with code 2 for bad input, with 130 if the user interrupts.
    """
    args = list(sys.argv[1:] if args is None else args)
    if args == ["--version"]:
        print(f"jaxcl {jaxcl.__version__}")
        return
    try:
        for module in ("tyro", "rich", "matplotlib"):
            _need(module)
        command = parse(args)
        check(command)
        logging.getLogger("absl").setLevel(logging.ERROR)
        cache = use_cache(command.run.cache)
        processes.join(command.run)
    except (ValueError, ImportError, OSError) as error:
        _fail(error)
    resumed = "; the same command with --resume goes on" if type(command) is Compare else ""
    with processes.leaving_at_once(resumed):
        try:
            devices = use_devices(command.run)
            module = importlib.import_module(f"jaxcl.cli.{type(command).__name__.lower()}")
            job = module.prepare(command, devices, cache)
        except (ValueError, ImportError, OSError) as error:
            _fail(error)
        except KeyboardInterrupt:
            _fail("stopped before anything was trained.", code=130)
        try:
            job()
        except KeyboardInterrupt:
            _fail(f"stopped{resumed}.", code=130)
        except MemoryError as error:
            _fail(error)


def parse(args: Sequence[str]) -> Compare | Sweep:
    """The command that the words ask for; tyro ends the process if there is none."""
    import tyro
    from tyro.conf import OmitArgPrefixes, PositionalRequiredArgs, subcommand

    run = Run(benchmark=_benchmark(args))
    options = recipes.defaults(run.benchmark)
    values = {name: (value,) if name in SWEPT else value for name, value in vars(options).items()}
    grid = Grid(**{name: () if value == (None,) else value for name, value in values.items()})
    compare = Compare(run=run, training=options)
    sweep = Sweep(method=tyro.MISSING, run=run, training=grid)
    commands = typing.Union[  # noqa: UP007  tyro reads it at run time
        typing.Annotated[Compare, subcommand("compare", default=compare)],
        typing.Annotated[Sweep, subcommand("sweep", default=sweep)],
    ]
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_names_and_tuples)
    config = (OmitArgPrefixes, PositionalRequiredArgs)
    return tyro.cli(
        commands, prog="jaxcl", description=HELP, args=args, registry=registry, config=config
    )


def check(command: Compare | Sweep) -> None:
    """Raises ValueError for what can be seen to be wrong without data and devices."""
    for part in (command, command.run, command.training):
        for name, value in vars(part).items():
            recipes.check_numbers(_option(name), value, _LIMITS.get(name, {}))
    processes.check(command.run)
    training, name = command.training, command.run.name
    if not training.hidden:
        raise ValueError("--hidden needs at least one width.")
    if name is not None and (name in ("", ".", "..") or Path(name).name != name):
        raise ValueError(f"--name must be the name of a folder, without a path, got {name!r}.")
    methods = command.methods if isinstance(command, Compare) else (command.method,)
    if not methods:
        raise ValueError(f"--methods needs at least one of {', '.join(METHODS)}.")
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}; {_nearest(method, METHODS)}.")
    if len(set(methods)) < len(methods):
        raise ValueError(f"--methods names a method twice: {','.join(methods)}.")
    if isinstance(command, Sweep):
        for name in SWEPT:
            if not getattr(training, name) and getattr(Options, name) is not None:
                raise ValueError(f"{_option(name)} needs at least one value.")
        own = ("learning_rate", "weight_decay", *_OWN.get(command.method, ()))
        swept = [name for name in SWEPT if len(getattr(training, name)) > 1]
        for name in swept:
            if name not in own:
                raise ValueError(
                    f"{_option(name)} has no effect on {command.method}; "
                    f"sweep {', '.join(map(_option, own))}."
                )
        if not swept:
            example = _EXAMPLES.get(command.method, "--learning-rate 0.01,0.03,0.1")
            raise ValueError(f"there is nothing to sweep; give several values: {example}")


def use_cache(wanted: bool) -> Path | None:
    """Turns JAX's persistent compilation cache on or off; its folder."""
    jax.config.update("jax_enable_compilation_cache", wanted)
    if not wanted:
        return None
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = (
        jax.config.values["jax_compilation_cache_dir"] or Path(cache).expanduser() / "jaxcl" / "xla"
    )
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    return Path(folder)


def use_devices(run: Run) -> list[Device]:
    """The devices to run on, of all processes. On a CPU JAX is told to show each core as one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if run.devices or "JAX_NUM_CPU_DEVICES" not in os.environ:
        with contextlib.suppress(RuntimeError):  # if a backend runs, its devices are what they are
            jax.config.update("jax_num_cpu_devices", run.devices or cores or 1)
    try:
        devices = jax.devices()
    except RuntimeError as error:
        raise ValueError(f"no device can be used: {error}") from error
    groups = [[d for d in devices if d.process_index == p] for p in range(jax.process_count())]
    least, most = min(map(len, groups)), max(map(len, groups))
    if least < most:  # as all processes see
        jax.distributed.shutdown()
        raise ValueError(
            f"every process has to bring as many devices, but one has {least} and another {most}; "
            f"choose --devices {least} for all."
        )
    with processes.agreement():
        if (run.devices or 1) > least:
            kind = devices[0].platform
            raise ValueError(f"--devices is {run.devices}, but there are {least} ({kind}).")
    return [device for group in groups for device in group[: run.devices]]


_COUNTS = ("tasks", "seeds", "devices", "split", "chunk", "processes", "timeout")
_LIMITS = {
    **recipes.LIMITS,
    **{name: {"least": 1} for name in _COUNTS},
    "process": {"least": 0},
    "warn_free": {"least": 0, "most": 1},
}


def _benchmark(args: Sequence[str]) -> str:
    """The value of --benchmark, which decides on the other defaults."""
    name = Run.benchmark
    for i, word in enumerate(args):
        if word == "--benchmark" and i + 1 < len(args):
            name = args[i + 1]
        elif word.startswith("--benchmark="):
            name = word.partition("=")[2]
    return name


def _names_and_tuples(info):
    """Tells tyro to call strings names, and to read tuples as "a,b,c"; None is the empty one."""
    import tyro

    kind, *_ = typing.get_args(info.type) if info.type_origin is tuple else (info.type,)
    metavar = {str: "NAME", int: "INT", float: "FLOAT"}.get(kind, "")

    def read_tuple(words):
        return () if words == ["None"] else tuple(map(kind, words[0].split(",")))

    def write_tuple(values):
        return [",".join(map(str, values)) or "None"]

    if info.type_origin is tuple:
        metavar, read, write = f"{metavar},...", read_tuple, write_tuple
    elif info.type is str:
        read, write = (lambda words: words[0]), (lambda value: [value])
    else:
        return None
    origin = info.type_origin or info.type
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1, metavar=metavar, instance_from_str=read, str_from_instance=write,
        is_instance=lambda value: isinstance(value, origin),
    )  # fmt: skip


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.0)
    return f"the nearest names are {', '.join(near)}"


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _need(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ImportError(
            f"the command needs {module}, which comes with the extra 'experiments': "
            f'pip install "jaxcl[experiments]"'
        )


def _fail(reason: Exception | str, code: int = 2) -> NoReturn:
    if isinstance(reason, OSError) and reason.filename:
        reason = f"{reason.filename}: {reason.strerror}"
    print(f"jaxcl: {' '.join(str(reason).split())}", file=sys.stderr)
    raise SystemExit(code)
