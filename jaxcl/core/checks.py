"""Checks of what a caller gives, each with its sentence; and the words for those sentences.

Each check raises ValueError with the name that it is given, what was expected and what came.
"""

import difflib
import importlib
import re
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from jax.core import Tracer


def is_concrete(value: Any) -> bool:
    """False for a traced value, whose number cannot be checked."""
    return not isinstance(value, Tracer)


def check_number(
    name: str,
    value: Any,
    *,
    above: float = -np.inf,
    least: float = -np.inf,
    most: float = np.inf,
) -> None:
    """A number, or each of an array, is finite and within its limits. What is traced passes."""
    if not is_concrete(value):
        return
    numbers = np.asarray(value, np.float64)
    for words, holds in (
        ("finite", np.isfinite(numbers)),
        (f"above {above:g}", numbers > above),
        (f"at least {least:g}", numbers >= least),
        (f"at most {most:,}" if most > 1e5 else f"at most {most:g}", numbers <= most),
    ):
        if not holds.all():
            raise ValueError(f"{name} must be {words}, got {value}.")


def check_count(name: str, value: Any, most: int | None = None) -> None:
    """A value is a whole number from 1 on, up to `most`."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or not 1 <= value <= (most or value):
        limit = f"from 1 to {most}" if most else "of at least 1"
        raise ValueError(f"{name} must be a whole number {limit}, got {value!r}.")


def check_task(name: str, task: Any, tasks: int) -> None:
    """A task is a whole number from 0 on, below `tasks`. What is traced passes."""
    if not is_concrete(task):
        return
    number = np.asarray(task)
    whole = number.ndim == 0 and np.issubdtype(number.dtype, np.integer)
    if not whole or not 0 <= number < tasks:
        raise ValueError(f"{name} must be a whole number from 0 to {tasks - 1}, got {task}.")


def check_choice(name: str, value: Any, known: Sequence) -> None:
    """A value is one of those that are known."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}.")


def check_pattern(name: str, pattern: Any) -> None:
    """A pattern is a regular expression."""
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(
            f"{name} must be a regular expression, got {pattern!r}: {error}."
        ) from None


def shorten(names: Sequence[str], most: int = 12) -> str:
    """A list of names for an error message."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + rest


def install(extra: str) -> str:
    """The command that installs an extra, in words for an error message.

    >>> print(install("report"))
    pip install "jaxcl[report]", or in a clone of jaxcl pip install ".[report]"
    """
    return f'pip install "jaxcl[{extra}]", or in a clone of jaxcl pip install ".[{extra}]"'


def load_extra(module: str, remedy: str = install("experiments")) -> ModuleType:
    """A module of a package that is optional; ImportError with the remedy if it is not there."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} cannot be imported ({error}): {remedy}") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names that resemble one, as the end of an error message."""
    close = difflib.get_close_matches(name, list(known), cutoff=0.5)
    return f"; the nearest are {shorten(close)}" if close else ""
