"""Words to commands: what each method may be told, presets, and checks before anything runs."""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

from jaxcl.cli import config, sweeping, tuning
from jaxcl.cli import words as of_words
from jaxcl.cli.choosing import (
    check_own_names,
    check_shared,
    check_words_of,
    find_method,
    method_names,
)
from jaxcl.cli.options import OF_COMPARE, PRESETS, Compare, Extend, Run, Sweep, flag, names_of
from jaxcl.cli.scenarios import TOLD
from jaxcl.cli.streams import standard_output
from jaxcl.core.checks import check_choice, nearest
from jaxcl.methods import check_distinct
from jaxcl.methods.spec import Spec, check_options, option
from jaxcl.report.loggers import LOGGERS
from jaxcl.report.text import listed
from jaxcl.study import recipes
from jaxcl.study.points import every
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
    args = config.expand(args, [*names_of(Run), *OF_COMPARE, "method"])
    run = Run(benchmark=of_words.value_of(args, "--benchmark") or Run.benchmark)
    shared = recipes.defaults(run.plain)
    if args[:1] == ["sweep"]:
        return sweeping.parse(args, run, shared)
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
    names = method_names(of_words.value_of(args, "--methods"))
    specs = [find_method(name) for name in names]
    check_distinct(specs)
    check_own_names(specs)
    args, scenarios = _scenarios(args)
    aliased = of_words.unprefixed_names([spec.options for spec in specs])
    args, grids = tuning.take(args, specs, aliased)
    args, for_one = _for_one_method(args, specs)
    fields: list[tuple] = [
        ("methods", tuple[str, ...], names),
        ("warn_free", float, option(0.05, least=0, most=1)),
        ("preset", str, PRESETS[0]),
        *tuning.FIELDS,
        ("dry_run", bool, False),
        ("topology", str | None, None),
        ("evaluate_every", str | None, None),
        ("log", tuple[str, ...], ()),
        *of_words.common(run),
        ("training", of_words.grouped(Options), shared),
    ]
    presets = {spec.name: _preset(spec, run, args) for spec in specs}
    for spec in specs:
        own = {k: v for k, v in presets[spec.name].items() if k in names_of(spec.options)}
        if names_of(spec.options):
            kind = of_words.with_aliases(spec.options, aliased)
            fields.append((spec.name, kind, kind(**own)))
    fields += of_words.rare(run)
    kind = of_words.made("Compare", fields, f"{Compare.__doc__}    {CONFIG_HELP}")
    words = of_words.read_words(kind, kind(), "compare", args[1:])
    check_options(kind, {"warn_free": words.warn_free}, flag)
    _check_dry(words, of_words.run_of(words))
    choices = []
    for spec in specs:
        changes = {k: v for k, v in presets[spec.name].items() if k in names_of(Options)}
        start = dataclasses.replace(words.training, **_unsaid(changes, args))
        own = vars(getattr(words, spec.name)) if names_of(spec.options) else {}
        training = _parse_training(start, for_one[spec.name], spec.name)
        choice = Choice(spec, training, spec.options(**own))
        check_options(spec.options, own, lambda field, s=spec: flag(field, s, aliased))
        choices.append(choice)
    check_shared(of_words.run_of(words), words.training)
    scenarios = scenarios or (str(words.training.scenario),)
    _check_scenarios(scenarios, choices)
    choices, tune = tuning.of(words, choices, grids, scenarios)
    check_words_of("--evaluate-every", words.evaluate_every, every)
    _check_log(words.log)
    return Compare(
        names, words.warn_free, of_words.run_of(words), words.training, tuple(choices), scenarios,
        words.preset, tune, words.dry_run, words.topology, words.evaluate_every, words.log,
    )  # fmt: skip


def _check_log(names: Sequence[str]) -> None:
    for name in names:
        check_choice("--log", name, tuple(LOGGERS))
        if names.count(name) > 1:
            raise ValueError(f"--log names {name} twice.")


def _check_dry(words: Any, run: Run) -> None:
    """Raises ValueError for options that need, or do not go with, a run that trains nothing."""
    if words.topology is not None and not words.dry_run:
        raise ValueError(
            "--topology compiles for devices that are not here: give --dry-run as well."
        )
    if words.dry_run and (run.distributed or run.coordinator):
        raise ValueError("--dry-run takes one process: leave out --distributed and --coordinator.")


def _preset(spec: Spec, run: Run, args: Sequence[str]) -> dict[str, Any]:
    """The options that `--preset` stands for."""
    asked = of_words.value_of(args, "--preset") or PRESETS[0]
    if asked not in PRESETS:
        known = " or ".join(PRESETS)
        raise ValueError(f"--preset must be {known}, got {asked!r}{nearest(asked, PRESETS)}.")
    return dict(spec.presets.get(run.plain, {})) if asked == "best" else {}


CONFIG_HELP = """config: file with options, YAML or the settings.json of a run; those of the
        command line win.
"""
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
        if not {*scenarios, TOLD} & {*choice.spec.scenarios}:
            raise ValueError(
                f"{name} trains in the scenario {', '.join(choice.spec.scenarios)}, not in "
                f"{listed(scenarios)}."
            )


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
    own = {name: find_method(name) for name in methods if ":" in name}
    there = words.folder.expanduser().resolve()
    run = Run(
        out=words.out or there.parent, name=words.name or f"{there.name}_extended",
        resume=words.resume, **vars(words.machine), **vars(words.cluster),
    )  # fmt: skip
    check_shared(run, Options())
    return Extend(
        words.folder, words.tasks, words.benchmark, methods, words.warn_free, own, run
    )  # fmt: skip


EXTEND_HELP = f"""{Extend.__doc__}
        out: folder of all runs; None takes that of the finished one.
        name: folder of the extended run within it; None takes the finished one's name with
            _extended behind it.
        resume: go on with the extended run, from where it was saved last.
"""


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


def _unsaid(changes: Mapping[str, Any], args: Sequence[str]) -> dict[str, Any]:
    """Presets of a method, of which the command line says nothing."""
    return {k: v for k, v in changes.items() if of_words.value_of(args, flag(k)) is None}


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
