"""Where the settings of a comparison come from: a recorded search, one of its own, or neither."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jaxcl.report.results import Results
from jaxcl.report.text import listed

if TYPE_CHECKING:
    from jaxcl.study.recipes import Choice

KEY = "preset"  # in the settings of a run: for each method, one of `WORDS`
WORDS = {
    "tuned": "chosen by a search on validation data with other seeds (search.md)",
    "best": "chosen by the recorded search on validation data",
    "none": "own defaults",
    "given": "as given",
}


def origin(choice: "Choice", benchmark: str) -> str:
    """Where a method's options come from: "best", "none" or "given"; see `WORDS`."""
    from jaxcl.study import recipes

    usual, preset = recipes.defaults(benchmark), choice.spec.presets.get(benchmark, {})
    common = {field.name for field in dataclasses.fields(recipes.Options)}
    best = (
        dataclasses.replace(usual, **{k: v for k, v in preset.items() if k in common}),
        choice.spec.options(**{k: v for k, v in preset.items() if k not in common}),
    )
    here = (choice.shared, choice.own)
    if preset and here == best:
        return "best"
    return "none" if here == (usual, choice.spec.options()) else "given"


def said(results: Results) -> str:
    """Where the settings come from, in words; "" for results that do not say it."""
    found: Any = results.settings.get(KEY)
    if not isinstance(found, Mapping):
        return ""
    groups: dict[str, list[str]] = {}
    for name, method in results.methods.items():
        word = found.get(name)
        if word in WORDS:
            groups.setdefault(word, []).append(method.shown.label)
    if not groups:
        return ""
    if len(groups) == 1:
        return f"Settings: {WORDS[next(iter(groups))]}."
    parts = [f"{WORDS[word]} for {listed(labels)}" for word, labels in groups.items()]
    return f"Settings: {'; '.join(parts)}."
