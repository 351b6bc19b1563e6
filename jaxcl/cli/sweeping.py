"""Words to a sweep: the grids of one method's options."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxcl.cli import gridwords
from jaxcl.cli import words as of_words
from jaxcl.cli.choosing import check_shared, find_method
from jaxcl.cli.options import Run, Sweep, flag, names_of
from jaxcl.methods import REGISTRY
from jaxcl.methods.spec import Spec, check_options
from jaxcl.study import recipes
from jaxcl.study.grids import Values
from jaxcl.study.recipes import Choice, Options

HELP = """Train one method with every combination of settings in one program; pick the best.

Attributes:
    method: a method's name, or MODULE:SPEC for one of your own.
    samples: number of settings that are drawn; None tries every combination.
    run: data, devices and files.
    training: how the method trains. What takes FLOAT,... may get several values, such as
        "--learning-rate 0.01,0.03,0.1", or a range of so many, "log:1e-3:1e-1:7" or "lin:0:1:5";
        with --samples also a range to draw from, "log:1e-3:1e-1". The best setting has the
        highest accuracy on the validation sets; the test sets take no part in the choice.
    config: file with options, YAML or the settings.json of a run; those of the command line win.
"""


def parse(args: Sequence[str], run: Run, shared: Options) -> Sweep:
    """The sweep that the words ask for.

    Raises:
        ValueError: for an option or a grid that cannot be.
    """
    name = next((word for word in args[1:2] if not word.startswith("-")), None)
    spec = find_method(name) if name else None
    kinds = [of_words.grid(Options), *([of_words.grid(spec.options)] if spec else [])]
    fields: list[tuple] = [
        ("method", of_words.positional(str), name or of_words.missing()),
        ("samples", int | None, None),
        *of_words.common(run),
        ("training", of_words.grouped(kinds[0]), of_words.grid_of(kinds[0], shared)),
    ]
    given: dict[str, Values] = {}
    if spec and names_of(spec.options):
        aliased = of_words.unprefixed_names([spec.options])
        kind = of_words.with_aliases(kinds[1], aliased)
        fields.append((spec.name, kind, of_words.grid_of(kind, spec.options())))
    fields += of_words.rare(run)
    kind = of_words.made("Sweep", fields, HELP)
    _check_effect(spec, args)
    if spec:
        args, given = _take(args, spec)
    words = of_words.read_words(kind, kind(), "sweep", args[1:])
    assert spec is not None  # tyro asks for the method
    own = vars(getattr(words, spec.name)) if names_of(spec.options) else {}
    values = {**vars(words.training), **own, **given}
    swept = {field: values[field] for field in recipes.swept(spec)}
    plain = {k: v for k, v in {**vars(words.training), **own}.items() if k not in given}
    check_options(Options, {k: v for k, v in plain.items() if k in names_of(Options)}, flag)
    check_options(spec.options, {k: v for k, v in plain.items() if k in own}, flag)
    gridwords.check_samples(words.samples)
    gridwords.check(spec, given, words.samples)
    _check_values(spec, swept, own)
    first = {field: gridwords.first(found) if found else None for field, found in swept.items()}
    choice = Choice(
        spec,
        dataclasses.replace(shared, **_first(words.training, first)),
        dataclasses.replace(spec.options(), **{f: first.get(f, v) for f, v in own.items()}),
    )
    check_shared(of_words.run_of(words), choice.shared)
    return Sweep(words.method, of_words.run_of(words), choice, swept, words.samples)


def _take(args: Sequence[str], spec: Spec) -> tuple[list[str], dict[str, Values]]:
    """The grids, by option; those of the method's own may be called METHOD.OPTION."""
    names = recipes.swept(spec)
    prefixed = [f"{spec.name}.{name}" for name in names if name in names_of(spec.options)]
    rest, found = gridwords.take(args, [*names, *prefixed])
    return rest, {name.rpartition(".")[2]: values for name, values in found.items()}


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


def _check_values(spec: Spec, swept: Mapping[str, Values], own: Mapping[str, Any]) -> None:
    for name, values in swept.items():
        kind = spec.options if name in own else Options
        default = next(f.default for f in dataclasses.fields(kind) if f.name == name)
        if not values and default is not None:
            raise ValueError(f"{flag(name)} needs at least one value.")
    if not gridwords.several(swept):
        example = spec.example or "--learning-rate 0.01,0.03,0.1"
        raise ValueError(f"there is nothing to sweep; give several values: {example}")
