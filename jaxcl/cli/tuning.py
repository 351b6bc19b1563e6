"""Words to the searches of `compare --tune`: every method's grid."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxcl.cli import gridwords
from jaxcl.cli.options import Tune, flag, names_of
from jaxcl.methods.spec import Spec
from jaxcl.report.text import listed
from jaxcl.study import recipes
from jaxcl.study.grids import Values
from jaxcl.study.recipes import Choice, Options

FIRST = 1_000_000  # of the seeds of searches, so that those of comparisons are others
FIELDS: list[tuple] = [
    ("tune", bool, False),
    ("samples", int | None, None),
    ("tune_seeds", int, 3),
]


def take(
    args: Sequence[str], specs: Sequence[Spec], aliased: Sequence[str]
) -> tuple[list[str], dict[str, Values]]:
    """Words in which one number stands for each grid; and the grids, where there is a search."""
    if "--tune" not in args:
        return list(args), {}
    shared = [name for name in recipes.swept(specs[0]) if name in names_of(Options)]
    names = {*shared}
    for spec in specs:
        names |= {f"{spec.name}.{name}" for name in recipes.swept(spec)}
        names |= {name for name in recipes.swept(spec) if name in aliased}
    return gridwords.take(args, names)


def of(
    words: Any,
    choices: Sequence[Choice],
    given: Mapping[str, Values],
    scenarios: Sequence[str],
) -> tuple[list[Choice], Tune | None]:
    """The methods, with what is given for them; and the searches, if there are to be any.

    Args:
        words: the command's words, read.
        choices: the methods with their options.
        given: the grids that the words say, by option, or METHOD.OPTION.
        scenarios: in which they train.

    Raises:
        ValueError: naming the option, for a grid that cannot be, or nothing to search.
    """
    if not words.tune:
        for name, usual in (("samples", None), ("tune_seeds", 3)):
            if getattr(words, name) != usual:
                raise ValueError(f"{flag(name)} has no effect without --tune.")
        return list(choices), None
    _check(words, scenarios, choices)
    found, grids = [], {}
    for choice in choices:
        own = {k: v for k, v in given.items() if k in recipes.swept(choice.spec)}
        start = f"{choice.spec.name}."
        own |= {k.removeprefix(start): v for k, v in given.items() if k.startswith(start)}
        grid = {**recipes.tuning(choice), **own}
        gridwords.check(choice.spec, grid, words.samples)
        grids[choice.spec.name] = gridwords.several(grid)
        firsts = {name: gridwords.first(values) for name, values in grid.items()}
        found.append(recipes.with_settings(choice, firsts))
    if not any(grids.values()):
        raise ValueError(
            "--tune has nothing to search: each option has one value; leave some out, or give "
            "several values, as in --learning-rate log:1e-3:1e-1:5."
        )
    return found, Tune(grids, words.samples, words.tune_seeds)


def seeds_of(tune: Tune) -> list[int]:
    """The seeds of the searches."""
    return list(range(FIRST, FIRST + tune.seeds))


def _check(words: Any, scenarios: Sequence[str], choices: Sequence[Choice]) -> None:
    gridwords.check_samples(words.samples)
    if not 1 <= words.tune_seeds <= FIRST:
        raise ValueError(f"--tune-seeds must be from 1 to {FIRST:,}, got {words.tune_seeds}.")
    if len(scenarios) > 1:
        raise ValueError(f"--tune searches in one scenario, not in {listed(list(scenarios))}.")
    for choice in choices:
        recipes.check(choice)  # a search trains in the scenario itself, and infers no task
