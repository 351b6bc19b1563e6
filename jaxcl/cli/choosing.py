"""The methods that words name, and checks of what can be seen to be wrong without data."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from jaxcl.cli.options import Run, check_name, check_seeds, flag, names_of
from jaxcl.methods import REGISTRY, find
from jaxcl.methods.spec import Spec, check_options, check_spec
from jaxcl.study.pace import interval
from jaxcl.study.recipes import Options

DEFAULT_METHODS = tuple(spec.name for spec in REGISTRY if spec.by_default)


def method_names(given: str | None) -> tuple[str, ...]:
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


def find_method(name: str) -> Spec:
    """A method by its name, or MODULE:SPEC."""
    if ":" not in name:
        return find(name.lower())
    return check_spec(imported(name), name)


def imported(name: str) -> Any:
    """What MODULE:NAME names.

    Raises:
        ValueError: if the module cannot be imported, or has nothing of that name.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise ValueError(f"the module of {name!r} cannot be imported: {error}.") from error
    except AttributeError:
        raise ValueError(f"the module {module!r} has no {attribute!r}.") from None


def check_own_names(specs: Sequence[Spec]) -> None:
    """An option of a method cannot have the name of one that all share."""
    for spec in specs:
        for field in names_of(spec.options):
            if field in names_of(Options):
                raise ValueError(
                    f"the method {spec.name!r} defines the option {field!r}, which all methods "
                    f"share; give it another name."
                )


def check_words_of(option: str, given: str | None, read: Callable[[str], Any]) -> None:
    """Raises ValueError, naming the option, for words that `read` refuses."""
    try:
        if given is not None:
            read(given)
    except ValueError as error:
        raise ValueError(f"{option} {error}") from None


def check_shared(run: Run, training: Options) -> None:
    """Raises ValueError for what can be seen to be wrong without data and devices."""
    check_options(Run, {k: v for k, v in vars(run).items() if k not in ("seeds", "seed")}, flag)
    check_seeds(run)
    check_options(Options, vars(training), flag)
    if not training.hidden:
        raise ValueError("--hidden needs at least one width.")
    if max(training.hidden) > 1_000_000:
        raise ValueError(f"--hidden must be at most 1000000, got {max(training.hidden)}.")
    check_words_of("--save-every", run.save_every, interval)
    if run.debug_nans and (run.distributed or run.coordinator):
        raise ValueError("--debug-nans is for one process: leave out --distributed, --coordinator.")
    check_name(run.name)
