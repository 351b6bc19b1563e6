"""What the command accepts: words to typed options, for the methods that are chosen."""

import dataclasses
import importlib
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

from jaxcl.cli import config
from jaxcl.cli.streams import standard_output
from jaxcl.core.checks import check_choice, nearest
from jaxcl.methods import REGISTRY, check_distinct, find
from jaxcl.methods.spec import Spec, check_options, check_spec, option
from jaxcl.report.text import listed
from jaxcl.study import recipes
from jaxcl.study.pace import interval
from jaxcl.study.recipes import Choice, Options

T = TypeVar("T")

HELP = """Parameter-isolation continual learning in JAX.

"jaxcl compare" needs no option. Defaults depend on the benchmark, and --help shows them, with the
options of the methods that are chosen: "jaxcl compare --benchmark split_mnist --help".
Every option of training can be given to one method alone, as in "--NAME.learning-rate 0.02".
"jaxcl --version" prints the version."""

# Each command with what it does. Those that do not train are modules of `cli` of that name, with
# `run(words)`.
COMMANDS = {
    "compare": "Train several methods on one sequence of tasks, and show what each forgot.",
    "sweep": "Train one method with every combination of settings, and pick the best.",
    "plot": "Draw a run again, without training.",
    "report": "Write one or several runs as a web page, one file that needs no network.",
    "merge": "Join runs of the same settings into one, with more seeds or more methods.",
    "runs": "List runs: method, benchmark, seeds, state, accuracy, time, size.",
    "show": "Print the results of a run as a table, Markdown, CSV, LaTeX or JSON.",
    "infer": "Measure a run's networks told the task, and inferring it from the input alone.",
    "export": "Write one task's own network as parameters and as a program without jaxcl.",
    "forget": "Take a task out of a run's networks, and leave all others as they are.",
}
TRAINING = ("compare", "sweep")
ONCE = ("resume", "override")  # options that do not belong to a command to be repeated
ALIASES = {"--split": "--devices-per-replica"}  # as earlier versions called them


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
        seeds: number of seeds, which train side by side in one program.
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
        override: go on although jaxcl, JAX or the kind of device is another one than before, which
            may round otherwise; the results say so.
    """

    benchmark: str = "permuted_digits"
    tasks: int | None = option(None, least=1)
    seeds: int = option(5, least=1, most=1_000_000)
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
    override: bool = False

    @property
    def plain(self) -> str:
        """The benchmark without its options, by which it has defaults."""
        return self.benchmark.partition(",")[0]


@dataclasses.dataclass(frozen=True)
class Compare:
    """Train several methods on one sequence of tasks, and show what each forgot.

    Attributes:
        methods: names, or "all"; MODULE:SPEC names one of your own.
        warn_free: say so if a task begins with less than this share of the weights free, for
            methods that divide one network among the tasks.
        run: data, devices and files.
        training: how every method trains.
        choices: the methods with all of their options.
        scenarios: in which they train, one after the other; `training` has the first.
    """

    methods: tuple[str, ...]
    warn_free: float
    run: Run
    training: Options
    choices: tuple[Choice, ...]
    scenarios: tuple[str, ...] = ("task",)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Train one method with every combination of settings, in one program, and pick the best.

    Attributes:
        method: its name, or MODULE:SPEC.
        run: data, devices and files.
        choice: the method with its options; the first value of those that have several.
        values: all values of each option that can be swept.
    """

    method: str
    run: Run
    choice: Choice
    values: Mapping[str, tuple]

    @property
    def training(self) -> Options:
        return self.choice.shared

    @property
    def swept(self) -> dict[str, tuple]:
        """The options that have several values."""
        return {name: values for name, values in self.values.items() if len(values) > 1}


DEFAULT_METHODS = tuple(spec.name for spec in REGISTRY if spec.by_default)


def parse(args: Sequence[str]) -> Compare | Sweep:
    """The command that the words ask for; tyro ends the process if there is none.

    Raises:
        ValueError: for a command, a method or a module that does not exist.
    """
    args = [_renamed(word) for word in args]
    check_words(args)
    if args and not args[0].startswith("-") and args[0] not in COMMANDS:
        raise ValueError(
            f"there is no command {args[0]!r}{nearest(args[0], COMMANDS)}; the commands are "
            f"{listed(list(COMMANDS))}."
        )
    if args[:1] not in ([name] for name in TRAINING):
        _help(args)
    args = config.expand(args, [*_names(Run), "methods", "warn_free", "method"])
    run = Run(benchmark=_value(args, "--benchmark") or Run.benchmark)
    shared = recipes.defaults(run.plain)
    if args[:1] == ["sweep"]:
        return _parse_sweep(args, run, shared)
    return _parse_compare(args, run, shared)


def check_words(args: Sequence[str]) -> None:
    """Raises ValueError for a word that cannot be shown."""
    for word in args:
        if not word.replace("\t", " ").isprintable():
            raise ValueError(f"{word!a} holds what cannot be printed.")


def parse_plainly(kind: type[T], name: str, args: Sequence[str]) -> T:
    """What the words after a command's name say, for a command that trains nothing.

    Args:
        kind: the dataclass of its options, whose docstring is its help.
        name: the command's.
        args: the words.
    """
    import tyro

    check_words(args)
    with standard_output():
        return tyro.cli(kind, prog=f"jaxcl {name}", args=args)


def _parse_compare(args: Sequence[str], run: Run, shared: Options) -> Compare:
    names = _method_names(_value(args, "--methods"))
    specs = [_find(name) for name in names]
    check_distinct(specs)
    _check_own_names(specs)
    args, scenarios = _scenarios(args)
    args, for_one = _for_one_method(args, specs)
    aliased = _aliases([spec.options for spec in specs])
    fields: list[tuple] = [
        ("methods", tuple[str, ...], names),
        ("warn_free", float, option(0.05, least=0, most=1)),
        *_common(run),
        ("training", _grouped(Options), shared),
    ]
    presets = {spec.name: dict(spec.presets.get(run.plain, {})) for spec in specs}
    for spec in specs:
        own = {k: v for k, v in presets[spec.name].items() if k in _names(spec.options)}
        if _names(spec.options):
            kind = _aliased(spec.options, aliased)
            fields.append((spec.name, kind, kind(**own)))
    fields += _rare(run)
    kind = _dataclass("Compare", fields, f"{Compare.__doc__}    {CONFIG_HELP}")
    words = read_words(kind, kind(), "compare", args[1:])
    check_options(kind, {"warn_free": words.warn_free}, _option)
    choices = []
    for spec in specs:
        changes = {k: v for k, v in presets[spec.name].items() if k in _names(Options)}
        start = dataclasses.replace(words.training, **_unsaid(changes, words.training, shared))
        own = vars(getattr(words, spec.name)) if _names(spec.options) else {}
        training = _parse_training(start, for_one[spec.name], spec.name)
        choice = Choice(spec, training, spec.options(**own))
        check_options(spec.options, own, lambda field, s=spec: _option(field, s, aliased))
        choices.append(choice)
    _check_shared(_run_of(words), words.training)
    scenarios = scenarios or (str(words.training.scenario),)
    _check_scenarios(scenarios, choices)
    return Compare(
        names, words.warn_free, _run_of(words), words.training, tuple(choices), scenarios
    )


SCENARIOS = ("task", "domain", "class")


def _scenarios(args: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Words in which the first of several scenarios stands alone; and all of them, or none."""
    given = _value(args, "--scenario") or ""
    if "," not in given:
        return list(args), ()
    found = tuple(name.strip() for name in given.split(","))
    for name in found:
        check_choice("--scenario", name, SCENARIOS)
        if found.count(name) > 1:
            raise ValueError(f"--scenario names {name} twice: {given}.")
    alone = {given: found[0], f"--scenario={given}": f"--scenario={found[0]}"}
    return [alone.get(word, word) for word in args], found


def _check_scenarios(scenarios: Sequence[str], choices: Sequence[Choice]) -> None:
    """Raises ValueError for a method that trains in none of the scenarios, or in its own."""
    for choice in choices:
        name = choice.spec.name
        if choice.shared.scenario != scenarios[0]:
            raise ValueError(
                f"--{name}.scenario differs from the others'; all methods have the same: "
                f"--scenario task,class compares them in both."
            )
        if len(scenarios) > 1 and not {*scenarios} & {*choice.spec.scenarios}:
            raise ValueError(
                f"{name} trains in the scenario {', '.join(choice.spec.scenarios)}, not in "
                f"{listed(scenarios)}."
            )


def _parse_sweep(args: Sequence[str], run: Run, shared: Options) -> Sweep:
    name = next((word for word in args[1:2] if not word.startswith("-")), None)
    spec = _find(name) if name else None
    kinds = [_grid(Options), *([_grid(spec.options)] if spec else [])]
    fields: list[tuple] = [
        ("method", _positional(str), name or _missing()),
        *_common(run),
        ("training", _grouped(kinds[0]), _grid_of(kinds[0], shared)),
    ]
    if spec and _names(spec.options):
        aliased = _aliases([spec.options])
        kind = _aliased(kinds[1], aliased)
        fields.append((spec.name, kind, _grid_of(kind, spec.options())))
    fields += _rare(run)
    kind = _dataclass("Sweep", fields, f"{SWEEP_HELP}    {CONFIG_HELP}")
    _check_effect(spec, args)
    words = read_words(kind, kind(), "sweep", args[1:])
    assert spec is not None  # tyro asks for the method
    own = vars(getattr(words, spec.name)) if _names(spec.options) else {}
    values = {**vars(words.training), **own}
    swept = {field: values[field] for field in recipes.swept(spec)}
    check_options(Options, vars(words.training), _option)
    check_options(spec.options, own, _option)
    _check_values(spec, swept, own)
    first = {field: next(iter(found), None) for field, found in swept.items()}
    choice = Choice(
        spec,
        dataclasses.replace(shared, **_first(words.training, first)),
        dataclasses.replace(spec.options(), **{f: first.get(f, v) for f, v in own.items()}),
    )
    _check_shared(_run_of(words), choice.shared)
    return Sweep(words.method, _run_of(words), choice, swept)


CONFIG_HELP = """config: file with options, YAML or the settings.json of a run; those of the
        command line win.
"""
SWEEP_HELP = """Train one method with every combination of settings in one program; pick the best.

Attributes:
    method: a method's name, or MODULE:SPEC for one of your own.
    run: data, devices and files.
    training: how the method trains. What takes FLOAT,... may get several values, such as
        "--learning-rate 0.01,0.03,0.1". The best combination has the highest accuracy on the
        validation sets; the test sets take no part in the choice.
"""


def _check_effect(spec: Spec | None, args: Sequence[str]) -> None:
    """Raises ValueError for an option of another method, which tyro would not know."""
    if spec is None:
        return
    own = {*_names(spec.options), *_names(Options), *_names(Run)}
    others = {name for other in REGISTRY for name in _names(other.options)} - own
    for word in args:
        name = word.partition("=")[0].removeprefix("--").replace("-", "_")
        if word.startswith("--") and name in others:
            can = ", ".join(_option(field) for field in recipes.swept(spec))
            raise ValueError(f"{_option(name)} has no effect on {spec.name}; sweep {can}.")


def _first(grid: Any, first: Mapping[str, Any]) -> dict[str, Any]:
    return {field: first.get(field, value) for field, value in vars(grid).items()}


def _check_values(spec: Spec, swept: Mapping[str, tuple], own: Mapping[str, Any]) -> None:
    for name, values in swept.items():
        kind = spec.options if name in own else Options
        default = next(f.default for f in dataclasses.fields(kind) if f.name == name)
        if not values and default is not None:
            raise ValueError(f"{_option(name)} needs at least one value.")
        if len(set(values)) < len(values):
            raise ValueError(f"{_option(name)} repeats a value: {','.join(map(str, values))}.")
    if not any(len(values) > 1 for values in swept.values()):
        example = spec.example or "--learning-rate 0.01,0.03,0.1"
        raise ValueError(f"there is nothing to sweep; give several values: {example}")


def _check_shared(run: Run, training: Options) -> None:
    """Raises ValueError for what can be seen to be wrong without data and devices."""
    check_options(Run, vars(run), _option)
    check_options(Options, vars(training), _option)
    if not training.hidden:
        raise ValueError("--hidden needs at least one width.")
    if max(training.hidden) > 1_000_000:
        raise ValueError(f"--hidden must be at most 1000000, got {max(training.hidden)}.")
    try:
        interval(run.save_every)
    except ValueError as error:
        raise ValueError(f"--save-every {error}") from None
    check_name(run.name)


def check_name(name: str | None) -> None:
    """Raises ValueError for what can be no folder's name."""
    if name is not None and (name in ("", ".", "..") or Path(name).name != name):
        raise ValueError(f"--name must be the name of a folder, without a path, got {name!r}.")
    if name is not None and len(name.encode()) > 255:
        raise ValueError(f"--name must be at most 255 bytes long, got {len(name.encode())}.")


def _method_names(given: str | None) -> tuple[str, ...]:
    """The names of a list, in the registry's spelling; "all" is every method."""
    if given is None:
        return DEFAULT_METHODS
    if given.strip().lower() == "all":
        return tuple(spec.name for spec in REGISTRY)
    names = [name.strip() for name in given.split(",") if name.strip() not in ("", "None")]
    if not names:
        known = ", ".join(spec.name for spec in REGISTRY)
        raise ValueError(f"--methods needs at least one of {known}.")
    names = [name if ":" in name else name.lower() for name in names]
    if len(set(names)) < len(names):
        raise ValueError(f"--methods names a method twice: {','.join(names)}.")
    return tuple(names)


def _find(name: str) -> Spec:
    """A method by its name, or MODULE:SPEC."""
    if ":" not in name:
        return find(name.lower())
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise ValueError(f"the module of {name!r} cannot be imported: {error}.") from error
    except AttributeError:
        raise ValueError(f"the module {module!r} has no {attribute!r}.") from None
    return check_spec(found, name)


def _check_own_names(specs: Sequence[Spec]) -> None:
    """An option of a method cannot have the name of one that all share."""
    for spec in specs:
        for field in _names(spec.options):
            if field in _names(Options):
                raise ValueError(
                    f"the method {spec.name!r} defines the option {field!r}, which all methods "
                    f"share; give it another name."
                )


def _for_one_method(
    args: Sequence[str], specs: Sequence[Spec]
) -> tuple[list[str], dict[str, list[str]]]:
    """Takes "--NAME.OPTION VALUE" out, where the option is one that all methods share."""
    rest, taken = [], {spec.name: [] for spec in specs}
    flags = {_option(name)[2:] for name in _names(Options)}
    flags |= {f"no-{flag}" for flag in flags}
    words = iter(args)
    for word in words:
        method, dot, flag = word.removeprefix("--").partition(".")
        key, equals, value = flag.partition("=")
        if not (word.startswith("--") and dot and method in taken and key in flags):
            rest.append(word)
            continue
        taken[method].append(f"--{key}")
        boolean = key.removeprefix("no-").replace("-", "_")
        if equals:
            taken[method].append(value)
        elif not isinstance(getattr(Options, boolean, None), bool):
            taken[method] += [next(words, "")]
    return rest, taken


def _parse_training(start: Options, words: list[str], method: str) -> Options:
    if not words:
        return start
    training = read_words(Options, start, f"compare (for {method})", words)
    check_options(Options, vars(training), lambda field: f"--{method}.{field.replace('_', '-')}")
    return training


def _unsaid(changes: Mapping[str, Any], said: Options, usual: Options) -> dict[str, Any]:
    """Presets of a method, where the command line leaves the usual value."""
    return {k: v for k, v in changes.items() if getattr(said, k) == getattr(usual, k)}


# What tyro reads: dataclasses that are made for the methods at hand


def _names(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def _option(field: str, spec: Spec | None = None, aliased: Sequence[str] = ()) -> str:
    prefix = f"{spec.name}." if spec and field not in aliased else ""
    return f"--{prefix}{field.replace('_', '-')}"


def _aliases(kinds: Sequence[type]) -> list[str]:
    """The fields that may go without their method's name: no other option is called so."""
    every = [name for kind in kinds for name in _names(kind)]
    taken = {*_names(Run), *_names(Options), "methods", "warn_free"}
    return [name for name in every if every.count(name) == 1 and name not in taken]


def _dataclass(name: str, fields: Sequence[tuple], doc: str | None) -> Any:
    """A frozen dataclass of (name, type, default) rows."""
    rows = [
        (field, kind, default if isinstance(default, dataclasses.Field) else _default(default))
        for field, kind, default in fields
    ]
    return dataclasses.make_dataclass(name, rows, namespace={"__doc__": doc}, frozen=True)


def _default(value: Any) -> Any:
    return dataclasses.field(default_factory=lambda: value)


def _aliased(kind: type, aliased: Sequence[str]) -> Any:
    """The same dataclass, whose fields can be given without the method's name."""
    import tyro

    hints, rows = typing.get_type_hints(kind), []
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if field.name in aliased:
            hint = Annotated[hint, tyro.conf.arg(aliases=(_option(field.name),))]
        default = field.default
        if default is dataclasses.MISSING:
            default = field.default_factory()  # pyright: ignore[reportCallIssue]
        rows.append((field.name, hint, default))
    return _dataclass(kind.__name__, rows, kind.__doc__)


def _grid(kind: type) -> Any:
    """The same dataclass, with several values for each field that can be swept."""
    hints, rows = typing.get_type_hints(kind), []
    for field in dataclasses.fields(kind):
        many = field.metadata.get("sweep")
        hint = tuple[float, ...] if many else hints[field.name]
        rows.append((field.name, hint, _several(field, field.default)))
    return _dataclass(kind.__name__, rows, kind.__doc__)


def _grid_of(kind: type, options: Any) -> Any:
    """An instance of a grid, of one value each."""
    fields = {field.name: field for field in dataclasses.fields(options)}
    return kind(**{name: _several(fields[name], value) for name, value in vars(options).items()})


def _several(field: dataclasses.Field, value: Any) -> Any:
    if not field.metadata.get("sweep"):
        return value
    return () if value is None else (value,)


MACHINE = ("data_dir", "devices", "devices_per_replica", "chunk", "reproducible", "cache")
MACHINE += ("save_every", "override", "debug_nans")
CLUSTER = ("distributed", "coordinator", "processes", "process", "timeout")


def _common(run: Run) -> list[tuple]:
    """The options of a run that come first in the help."""
    rare = {*MACHINE, *CLUSTER}
    names = [name for name in _names(Run) if name not in rare]
    return [("config", Path | None, None), ("run", *_part(run, names, "", _unprefixed))]


def _rare(run: Run) -> list[tuple]:
    """Those that come last."""
    return [
        ("machine", *_part(run, MACHINE, "Where and how it runs.", _grouped)),
        ("cluster", *_part(run, CLUSTER, "Several processes that share one run.", _grouped)),
    ]


def _part(run: Run, names: Sequence[str], about: str, marked: Callable) -> tuple[Any, Any]:
    """Some fields of Run as a dataclass of their own, and what they are."""
    hints, fields = typing.get_type_hints(Run), {f.name: f for f in dataclasses.fields(Run)}
    _, _, attributes = (Run.__doc__ or "").partition("\n")
    rows = [(name, hints[name], fields[name]) for name in names]
    kind = _dataclass("Run", rows, f"{about}\n{attributes}")
    return marked(kind), kind(**{name: getattr(run, name) for name in names})


def _run_of(words: Any) -> Run:
    return Run(**vars(words.run), **vars(words.machine), **vars(words.cluster))


def _grouped(kind: Any) -> Any:
    """Options without a prefix, in a group of their own in the help."""
    import tyro

    return tyro.conf.OmitArgPrefixes[kind]


def _unprefixed(kind: Any) -> Any:
    import tyro

    return Annotated[kind, tyro.conf.arg(name="")]


def _missing() -> Any:
    import tyro

    return tyro.MISSING


def _positional(kind: Any) -> Any:
    import tyro

    return tyro.conf.Positional[kind]


def read_words(kind: Any, default: Any, name: str, args: Sequence[str]) -> Any:
    """What the words after the command's name say, as an instance of a dataclass."""
    import tyro

    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_names_and_tuples)
    return tyro.cli(
        kind, default=default, prog=f"jaxcl {name}", args=args, registry=registry
    )  # fmt: skip


def _help(args: Sequence[str]) -> NoReturn:
    """Shows what there is, or says that a command is missing; ends the process."""
    import tyro

    kinds = [
        Annotated[_dataclass(name, [], words), tyro.conf.subcommand(name)]
        for name, words in COMMANDS.items()
    ]
    union: Any = typing.Union[*kinds]
    tyro.cli(union, prog="jaxcl", description=HELP, args=args)
    raise AssertionError("without a command tyro ends the process")


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


def _value(args: Sequence[str], option: str) -> str | None:
    """The last value of an option, which decides on what else there is."""
    found = None
    for i, word in enumerate(args):
        if word == option and i + 1 < len(args):
            found = args[i + 1]
        elif word.startswith(f"{option}="):
            found = word.partition("=")[2]
    return found


def _renamed(word: str) -> str:
    name, equals, value = word.partition("=")
    return f"{ALIASES.get(name, name)}{equals}{value}"


def command_line(command: Compare | Sweep) -> str:
    """The command with every option spelled out."""
    import shlex

    words = ["jaxcl", type(command).__name__.lower()]
    given: dict[str, Any] = {k: v for k, v in vars(command.run).items() if k not in ONCE}
    if isinstance(command, Compare):
        given |= {"methods": command.methods, "warn_free": command.warn_free}
        given |= {**vars(command.training), "scenario": command.scenarios}
        for choice in command.choices:
            name, shared = choice.spec.name, vars(command.training)
            given |= {f"{name}.{k}": v for k, v in vars(choice.own).items()}
            given |= {f"{name}.{k}": v for k, v in vars(choice.shared).items() if v != shared[k]}
    else:
        words.append(command.method)
        choice = command.choice
        given |= {**vars(choice.shared), **vars(choice.own), **command.values}
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
