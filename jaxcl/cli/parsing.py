"""Words to commands: what each method may be told, presets, and checks before anything runs."""

import dataclasses
import importlib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

from jaxcl.cli import config
from jaxcl.cli import words as of_words
from jaxcl.cli.options import Compare, Extend, Run, Sweep, check_name, flag, names_of
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
    "extend": "Train a finished run's networks on further tasks, and keep its results so far.",
    "plot": "Draw a run again, without training.",
    "report": "Write one or several runs as a web page, one file that needs no network.",
    "merge": "Join runs of the same settings into one, with more seeds or more methods.",
    "runs": "List runs: method, benchmark, seeds, state, accuracy, time, size.",
    "show": "Print the results of a run as a table, Markdown, CSV, LaTeX or JSON.",
    "infer": "Measure a run's networks told the task, and inferring it from the input alone.",
    "export": "Write one task's own network as parameters and as a program without jaxcl.",
    "forget": "Take a task out of a run's networks, and leave all others as they are.",
}
TRAINING = ("compare", "sweep", "extend")


DEFAULT_METHODS = tuple(spec.name for spec in REGISTRY if spec.by_default)


def parse(args: Sequence[str]) -> Compare | Sweep | Extend:
    """The command that the words ask for; tyro ends the process if there is none.

    Raises:
        ValueError: for a command, a method or a module that does not exist.
    """
    args = [of_words.renamed(word) for word in args]
    check_words(args)
    if args and not args[0].startswith("-") and args[0] not in COMMANDS:
        raise ValueError(
            f"there is no command {args[0]!r}{nearest(args[0], COMMANDS)}; the commands are "
            f"{listed(list(COMMANDS))}."
        )
    if args[:1] not in ([name] for name in TRAINING):
        _help(args)
    if args[:1] == ["extend"]:
        return _parse_extend(args)
    args = config.expand(args, [*names_of(Run), "methods", "warn_free", "method"])
    run = Run(benchmark=of_words.value_of(args, "--benchmark") or Run.benchmark)
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
    names = _method_names(of_words.value_of(args, "--methods"))
    specs = [_find(name) for name in names]
    check_distinct(specs)
    _check_own_names(specs)
    args, scenarios = _scenarios(args)
    args, for_one = _for_one_method(args, specs)
    aliased = of_words.unprefixed_names([spec.options for spec in specs])
    fields: list[tuple] = [
        ("methods", tuple[str, ...], names),
        ("warn_free", float, option(0.05, least=0, most=1)),
        *of_words.common(run),
        ("training", of_words.grouped(Options), shared),
    ]
    presets = {spec.name: dict(spec.presets.get(run.plain, {})) for spec in specs}
    for spec in specs:
        own = {k: v for k, v in presets[spec.name].items() if k in names_of(spec.options)}
        if names_of(spec.options):
            kind = of_words.with_aliases(spec.options, aliased)
            fields.append((spec.name, kind, kind(**own)))
    fields += of_words.rare(run)
    kind = of_words.made("Compare", fields, f"{Compare.__doc__}    {CONFIG_HELP}")
    words = of_words.read_words(kind, kind(), "compare", args[1:])
    check_options(kind, {"warn_free": words.warn_free}, flag)
    choices = []
    for spec in specs:
        changes = {k: v for k, v in presets[spec.name].items() if k in names_of(Options)}
        start = dataclasses.replace(words.training, **_unsaid(changes, words.training, shared))
        own = vars(getattr(words, spec.name)) if names_of(spec.options) else {}
        training = _parse_training(start, for_one[spec.name], spec.name)
        choice = Choice(spec, training, spec.options(**own))
        check_options(spec.options, own, lambda field, s=spec: flag(field, s, aliased))
        choices.append(choice)
    _check_shared(of_words.run_of(words), words.training)
    scenarios = scenarios or (str(words.training.scenario),)
    _check_scenarios(scenarios, choices)
    return Compare(
        names, words.warn_free, of_words.run_of(words), words.training, tuple(choices), scenarios
    )


SCENARIOS = ("task", "domain", "class")


def _scenarios(args: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Words in which the first of several scenarios stands alone; and all of them, or none."""
    given = of_words.value_of(args, "--scenario") or ""
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
    kinds = [of_words.grid(Options), *([of_words.grid(spec.options)] if spec else [])]
    fields: list[tuple] = [
        ("method", of_words.positional(str), name or of_words.missing()),
        *of_words.common(run),
        ("training", of_words.grouped(kinds[0]), of_words.grid_of(kinds[0], shared)),
    ]
    if spec and names_of(spec.options):
        aliased = of_words.unprefixed_names([spec.options])
        kind = of_words.with_aliases(kinds[1], aliased)
        fields.append((spec.name, kind, of_words.grid_of(kind, spec.options())))
    fields += of_words.rare(run)
    kind = of_words.made("Sweep", fields, f"{SWEEP_HELP}    {CONFIG_HELP}")
    _check_effect(spec, args)
    words = of_words.read_words(kind, kind(), "sweep", args[1:])
    assert spec is not None  # tyro asks for the method
    own = vars(getattr(words, spec.name)) if names_of(spec.options) else {}
    values = {**vars(words.training), **own}
    swept = {field: values[field] for field in recipes.swept(spec)}
    check_options(Options, vars(words.training), flag)
    check_options(spec.options, own, flag)
    _check_values(spec, swept, own)
    first = {field: next(iter(found), None) for field, found in swept.items()}
    choice = Choice(
        spec,
        dataclasses.replace(shared, **_first(words.training, first)),
        dataclasses.replace(spec.options(), **{f: first.get(f, v) for f, v in own.items()}),
    )
    _check_shared(of_words.run_of(words), choice.shared)
    return Sweep(words.method, of_words.run_of(words), choice, swept)


def _parse_extend(args: Sequence[str]) -> Extend:
    fields: list[tuple] = [
        ("folder", of_words.positional(Path), of_words.missing()),
        ("tasks", int | None, option(None, least=1)),
        ("benchmark", str | None, None),
        ("methods", tuple[str, ...], ()),
        ("warn_free", float, option(0.05, least=0, most=1)),
        ("out", Path | None, None),
        ("name", str | None, None),
        ("resume", bool, False),
        *of_words.rare(Run()),
    ]
    kind = of_words.made("Extend", fields, EXTEND_HELP)
    words = of_words.read_words(kind, kind(), "extend", args[1:])
    check_options(kind, {"tasks": words.tasks, "warn_free": words.warn_free}, flag)
    if words.tasks is not None and words.benchmark is not None:
        raise ValueError("give --tasks or --benchmark, not both; --benchmark NAME,tasks=2 has two.")
    methods = tuple(words.methods)
    own = {name: _find(name) for name in methods if ":" in name}
    there = words.folder.expanduser().resolve()
    run = Run(
        out=words.out or there.parent, name=words.name or f"{there.name}_extended",
        resume=words.resume, **vars(words.machine), **vars(words.cluster),
    )  # fmt: skip
    _check_shared(run, Options())
    return Extend(
        words.folder, words.tasks, words.benchmark, methods, words.warn_free, own, run
    )  # fmt: skip


EXTEND_HELP = f"""{Extend.__doc__}
        out: folder of all runs; None takes that of the finished one.
        name: folder of the extended run within it; None takes the finished one's name with
            _extended behind it.
        resume: go on with the extended run, from where it was saved last.
"""
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
    own = {*names_of(spec.options), *names_of(Options), *names_of(Run)}
    others = {name for other in REGISTRY for name in names_of(other.options)} - own
    for word in args:
        name = word.partition("=")[0].removeprefix("--").replace("-", "_")
        if word.startswith("--") and name in others:
            can = ", ".join(flag(field) for field in recipes.swept(spec))
            raise ValueError(f"{flag(name)} has no effect on {spec.name}; sweep {can}.")


def _first(grid: Any, first: Mapping[str, Any]) -> dict[str, Any]:
    return {field: first.get(field, value) for field, value in vars(grid).items()}


def _check_values(spec: Spec, swept: Mapping[str, tuple], own: Mapping[str, Any]) -> None:
    for name, values in swept.items():
        kind = spec.options if name in own else Options
        default = next(f.default for f in dataclasses.fields(kind) if f.name == name)
        if not values and default is not None:
            raise ValueError(f"{flag(name)} needs at least one value.")
        if len(set(values)) < len(values):
            raise ValueError(f"{flag(name)} repeats a value: {','.join(map(str, values))}.")
    if not any(len(values) > 1 for values in swept.values()):
        example = spec.example or "--learning-rate 0.01,0.03,0.1"
        raise ValueError(f"there is nothing to sweep; give several values: {example}")


def _check_shared(run: Run, training: Options) -> None:
    """Raises ValueError for what can be seen to be wrong without data and devices."""
    check_options(Run, vars(run), flag)
    check_options(Options, vars(training), flag)
    if not training.hidden:
        raise ValueError("--hidden needs at least one width.")
    if max(training.hidden) > 1_000_000:
        raise ValueError(f"--hidden must be at most 1000000, got {max(training.hidden)}.")
    try:
        interval(run.save_every)
    except ValueError as error:
        raise ValueError(f"--save-every {error}") from None
    if run.debug_nans and (run.distributed or run.coordinator):
        raise ValueError("--debug-nans is for one process: leave out --distributed, --coordinator.")
    check_name(run.name)


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
        for field in names_of(spec.options):
            if field in names_of(Options):
                raise ValueError(
                    f"the method {spec.name!r} defines the option {field!r}, which all methods "
                    f"share; give it another name."
                )


def _for_one_method(
    args: Sequence[str], specs: Sequence[Spec]
) -> tuple[list[str], dict[str, list[str]]]:
    """Takes "--NAME.OPTION VALUE" out, where the option is one that all methods share."""
    rest, taken = [], {spec.name: [] for spec in specs}
    flags = {flag(name)[2:] for name in names_of(Options)}
    flags |= {f"no-{name}" for name in flags}
    words = iter(args)
    for word in words:
        method, dot, given = word.removeprefix("--").partition(".")
        key, equals, value = given.partition("=")
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
    training = of_words.read_words(Options, start, f"compare (for {method})", words)
    check_options(Options, vars(training), lambda field: f"--{method}.{field.replace('_', '-')}")
    return training


def _unsaid(changes: Mapping[str, Any], said: Options, usual: Options) -> dict[str, Any]:
    """Presets of a method, where the command line leaves the usual value."""
    return {k: v for k, v in changes.items() if getattr(said, k) == getattr(usual, k)}


def _help(args: Sequence[str]) -> NoReturn:
    """Shows what there is, or says that a command is missing; ends the process."""
    import tyro

    kinds = [
        Annotated[of_words.made(name, [], words), tyro.conf.subcommand(name)]
        for name, words in COMMANDS.items()
    ]
    union: Any = typing.Union[*kinds]
    tyro.cli(union, prog="jaxcl", description=HELP, args=args)
    raise AssertionError("without a command tyro ends the process")
