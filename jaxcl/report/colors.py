"""The color of every method, the same in every plot."""

from collections.abc import Mapping

from jaxcl.report.results import Shown

SPARE = ("#6a5bb0", "#8a5a2b", "#3f8f9e", "#d98cb3", "#7c8a99", "#5f6f2f")


def colors(shown: Mapping[str, Shown]) -> dict[str, str]:
    """A color for each name; those without one take the spare ones in turn.

    Args:
        shown: how each method appears, by name.
    """
    spare = [name for name, one in shown.items() if not one.color]
    return {name: one.color or SPARE[spare.index(name) % len(SPARE)] for name, one in shown.items()}


def labels(shown: Mapping[str, Shown]) -> dict[str, str]:
    """A label for each name; where two are alike, they are told apart by their names."""
    every = [one.label for one in shown.values()]
    return {
        name: one.label if every.count(one.label) == 1 else f"{one.label} ({name})"
        for name, one in shown.items()
    }
