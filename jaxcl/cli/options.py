"""The options of `compare` and `sweep`, as types, and as the words that give them again."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxcl.core.checks import check_number
from jaxcl.methods.spec import Spec, option
from jaxcl.study.grids import Range, Values
from jaxcl.study.recipes import Choice, Options

MOST_SEEDS, MOST_SEED = 1_000_000, 0xFFFFFFFF
PRESETS, TUNED = ("best", "none"), "tuned"
ONCE = ("resume", "override", "debug_nans")  # that do not belong to a command to be repeated
# Options of `compare` beside those of Run and of the methods, and of `extend` beside Run's.
OF_COMPARE = ("methods", "warn_free", "preset", "tune", "samples", "tune_seeds", "dry_run")
OF_COMPARE += ("topology", "evaluate_every", "log")
EXTENDS = ("tasks", "benchmark", "methods", "warn_free")


@dataclasses.dataclass(frozen=True)
class Run:
    """Data, devices and files.

    Attributes:
        benchmark: the sequence of tasks, SEQUENCE_SET, such as permuted_digits or split_cifar100.
            SEQUENCE is split, permuted, rotated, alphabets, or of several sets subsets or mixture;
            SET is digits, mnist5k, mnist, fashion_mnist, cifar100, omniglot, tfds:NAME for any set
            of images of tensorflow-datasets, npz:PATH for arrays or folder:PATH for images in a
            folder for each class. Options may follow: split_mnist,classes=0-1/2-4/5-9 or
            split_folder:birds,size=32,order=3; see docs/data.md. MODULE:FUNCTION is one of your
            own, of a function that gives a data.Benchmark.
        tasks: number of tasks; None takes the benchmark's usual number.
        seeds: number of seeds, which train side by side in one program; or several, as in 3,5,7,
            the seeds themselves.
        seed: the first one, where their number is given.
        data_dir: folder of tensorflow-datasets; None takes TFDS_DATA_DIR, else
            ~/tensorflow_datasets. Digits, mnist5k and files of your own need none.
        out: folder of all runs.
        name: folder of this run within it; None takes the benchmark's name, and for a sweep
            sweep_METHOD_BENCHMARK.
        devices: number of devices, of each process if there are several; None takes all, where
            each core of a CPU counts as one.
        devices_per_replica: number of devices that share each replica and its batches.
        chunk: most replicas that run side by side on a device; None chooses by measurements.
        reproducible: train replica by replica in one loop, so that the numbers of a seed depend
            neither on the number of seeds nor on that of the devices, on one machine; slower, and
            --chunk has no effect.
        cache: keep compiled programs on disk for the next start.
        distributed: share the work with the other processes of a cluster, which JAX finds on TPUs,
            Slurm, Open MPI and GKE.
        coordinator: HOST:PORT where process 0 is to be met, if there is no such cluster.
        processes: number of processes that meet there.
        process: which of them this is, from 0.
        timeout: seconds to wait for the others at the start.
        resume: go on with the run in the same folder, from where it was saved last.
        save_every: how often to save within a task, beside after each: a time, such as 30s, 5m or
            1h, or a number of epochs, such as 10epochs.
        debug_nans: stop at the first NaN of any seed, and name the operation and its line; all
            learners are held twice meanwhile.
        override: go on although jaxcl, JAX or the kind of device is another one than before, which
            may round otherwise; the results say so.
    """

    benchmark: str = "permuted_digits"
    tasks: int | None = option(None, least=1)
    seeds: tuple[int, ...] = (5,)
    seed: int = 0
    data_dir: Path | None = None
    out: Path = Path("runs")
    name: str | None = None
    devices: int | None = option(None, least=1)
    devices_per_replica: int = option(1, least=1)
    chunk: int | None = option(None, least=1)
    reproducible: bool = False
    cache: bool = True
    distributed: bool = False
    coordinator: str | None = None
    processes: int | None = option(None, least=1)
    process: int | None = option(None, least=0)
    timeout: int = option(60, least=1)
    resume: bool = False
    save_every: str = "5m"
    debug_nans: bool = False
    override: bool = False

    @property
    def plain(self) -> str:
        """The benchmark without its options, by which it has defaults."""
        return self.benchmark.partition(",")[0]

    @property
    def numbers(self) -> tuple[int, ...]:
        """The seeds, one by one."""
        count, *more = self.seeds
        return self.seeds if more else tuple(range(self.seed, self.seed + count))


@dataclasses.dataclass(frozen=True)
class Tune:
    """The searches before a comparison.

    Attributes:
        grids: by method, the values of each option that has several.
        samples: most settings that are tried; None for all combinations.
        seeds: number of seeds.
    """

    grids: Mapping[str, Mapping[str, Values]]
    samples: int | None
    seeds: int


@dataclasses.dataclass(frozen=True)
class Compare:
    """Train several methods on one sequence of tasks, and show what each forgot.

    Attributes:
        methods: names, or "all"; MODULE:SPEC names one of your own.
        warn_free: say so if a task begins with less than this share of the weights free, for
            methods that divide one network among the tasks.
        evaluate_every: evaluate all tasks so far also while one is trained, each so many epochs,
            such as 1epochs, or steps, such as 100steps.
        log: where to log numbers while methods train: tensorboard, wandb, or both.
        run: data, devices and files.
        training: how every method trains.
        choices: the methods with all of their options.
        scenarios: in which they train, one after the other; `training` has the first.
        preset: settings to begin with: best, those that a recorded search chose for the benchmark
            where there is one, or none, each option's own default.
        tune: choose each method's settings by a search of its own on the validation sets, and
            compare them on the test sets with seeds that no search has seen. What has a number
            can be given a grid: "--learning-rate log:1e-3:1e-1:7", "--NAME.OPTION 1,10".
        samples: most settings that a search tries; None for the whole grid.
        tune_seeds: number of seeds of a search.
        dry_run: compile, and say what it would need, without training.
        topology: of TPUs that are not here, to compile for; None for the devices that are.
    """

    methods: tuple[str, ...]
    warn_free: float
    run: Run
    training: Options
    choices: tuple[Choice, ...]
    scenarios: tuple[str, ...] = ("task",)
    preset: str = PRESETS[0]
    tune: Tune | None = None
    dry_run: bool = False
    topology: str | None = None
    evaluate_every: str | None = None
    log: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Train one method with every combination of settings, in one program, and pick the best.

    Attributes:
        method: its name, or MODULE:SPEC.
        run: data, devices and files.
        choice: the method with its options; the first value of those that have several.
        values: all values of each option that can be swept.
        samples: number of settings that are drawn; None for every combination.
    """

    method: str
    run: Run
    choice: Choice
    values: Mapping[str, Values]
    samples: int | None = None

    @property
    def training(self) -> Options:
        return self.choice.shared

    @property
    def swept(self) -> dict[str, Values]:
        """The options that have several values."""
        found = self.values.items()
        return {name: v for name, v in found if isinstance(v, Range) or len(v) > 1}


def check_seeds(run: Run) -> None:
    """Raises ValueError for seeds that no run can have."""
    if not run.seeds:
        raise ValueError("--seeds needs a number of seeds, or several seeds, as in 3,5,7.")
    if len(run.seeds) == 1:
        check_number("--seeds", run.seeds[0], least=1, most=MOST_SEEDS)
        check_number("--seed", run.seed, least=0, most=MOST_SEED - run.seeds[0] + 1)
        return
    check_number("--seeds", list(run.seeds), least=0, most=MOST_SEED)
    if len(set(run.seeds)) < len(run.seeds):
        raise ValueError(f"--seeds names a seed twice: {','.join(map(str, run.seeds))}.")
    if run.seed:
        raise ValueError("--seed is the first of a number of seeds; --seeds lists them already.")


@dataclasses.dataclass(frozen=True)
class Extend:
    """Train a finished run's networks on further tasks, and keep its results so far.

    The extended run is one like any other, in a folder of its own: it can be stopped and resumed,
    opened, reported, and extended again. The finished run stays as it is.

    Attributes:
        folder: of the finished run, such as runs/permuted_digits.
        tasks: number of all tasks, where the run's own benchmark can have more of them.
        benchmark: tasks that follow the run's; of inputs of the same shape and type.
        methods: which of its methods; none takes all. MODULE:SPEC names one of your own.
        warn_free: as for compare.
        own: the Specs of those of your own, by the words that name them.
        run: where it goes, devices and files.
    """

    folder: Path
    tasks: int | None
    benchmark: str | None
    methods: tuple[str, ...]
    warn_free: float
    own: Mapping[str, Spec]
    run: Run


def check_name(name: str | None) -> None:
    """Raises ValueError for what can be no folder's name."""
    if name is not None and (name in ("", ".", "..") or Path(name).name != name):
        raise ValueError(f"--name must be the name of a folder, without a path, got {name!r}.")
    if name is not None and len(name.encode()) > 255:
        raise ValueError(f"--name must be at most 255 bytes long, got {len(name.encode())}.")


def names_of(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def flag(field: str, spec: Spec | None = None, aliased: Sequence[str] = ()) -> str:
    prefix = f"{spec.name}." if spec and field not in aliased else ""
    return f"--{prefix}{field.replace('_', '-')}"


def _tune(tune: Tune) -> dict[str, Any]:
    given: dict[str, Any] = {"tune": True, "samples": tune.samples, "tune_seeds": tune.seeds}
    for name, grid in tune.grids.items():
        given |= {f"{name}.{option}": values for option, values in grid.items()}
    return given


def command_line(command: Compare | Sweep | Extend) -> str:
    """The command with every option spelled out."""
    words = [type(command).__name__.lower()]
    words += [command.method] if isinstance(command, Sweep) else []
    words += [str(command.folder)] if isinstance(command, Extend) else []
    return _line(words, given_by(command))


def short_line(command: Compare, usual: Compare) -> str:
    """The command with those options that are otherwise than usual, and what it is about."""
    given, plain = given_by(command), given_by(usual)
    kept = {name: value for name, value in given.items() if plain.get(name) != value}
    for name in plain.keys() - given.keys():  # of one method, by a preset
        option = name.rpartition(".")[2]
        kept[option] = given[option]
    first = {name: given[name] for name in ("methods", "benchmark")}
    return _line(["compare"], {**first, **kept})


def given_by(command: Compare | Sweep | Extend) -> dict[str, Any]:
    """All options of a command by name."""
    given: dict[str, Any] = {k: v for k, v in vars(command.run).items() if k not in ONCE}
    if isinstance(command, Extend):
        given |= {name: getattr(command, name) for name in EXTENDS}
        del given["seeds"], given["seed"]
    elif isinstance(command, Compare):
        given |= {"methods": command.methods, "warn_free": command.warn_free}
        given |= {"evaluate_every": command.evaluate_every, "log": command.log}
        given |= {**vars(command.training), "scenario": command.scenarios}
        for choice in command.choices:
            name, shared = choice.spec.name, vars(command.training)
            given |= {f"{name}.{k}": v for k, v in vars(choice.own).items()}
            given |= {f"{name}.{k}": v for k, v in vars(choice.shared).items() if v != shared[k]}
        given |= {"preset": command.preset} if command.preset in PRESETS else {}
        given |= _tune(command.tune) if command.tune else {}
    else:
        choice = command.choice
        given |= {**vars(choice.shared), **vars(choice.own), **command.values}
        given |= {"samples": command.samples}
    return given


def _line(command: Sequence[str], given: Mapping[str, Any]) -> str:
    import shlex

    words = ["jaxcl", *command]
    for name, value in given.items():
        prefix, _, field = name.rpartition(".")
        option = f"{prefix}{'.' if prefix else ''}"
        flag = field.replace("_", "-")
        if isinstance(value, bool):
            words += [f"--{option}{flag if value else f'no-{flag}'}"]
        elif isinstance(value, tuple) and value:
            words += [f"--{option}{flag}", ",".join(map(str, value))]
        elif value is not None and value != ():
            words += [f"--{option}{flag}", str(value)]
    return shlex.join(words)
