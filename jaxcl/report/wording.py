"""What a study shows, said in one sentence."""

import math
from typing import TYPE_CHECKING

import numpy as np

from jaxcl.report.text import label, listed, percent

if TYPE_CHECKING:
    pass
from jaxcl.report.results import Row, summary

_WORDS = {"finetune": "fine-tuning", "joint": "joint training"}  # inside a sentence


def sentence(results: dict) -> str:
    """What the table shows, said in one sentence from its numbers."""
    rows = {row.method: row for row in summary(results)}
    failed = [rows.pop(name) for name, row in list(rows.items()) if not _finite(row)]
    joint, base = rows.pop("joint", None), rows.pop("finetune", None)
    several, others = results["tasks"] > 1, list(rows.values())

    parts = []
    for group in filter(None, ([base] if base else [], others)):
        parts.append(_clause(group, joint, several, first=not parts))
    if joint and not any("joint training" in part for part in parts):
        accuracy = "" if parts else " accuracy"
        parts.append(f"joint training ends at {percent(joint.accuracy.mean)}%{accuracy}")
    close = [row for row in others if base and several and _overlap(row, base)]
    if close:
        verb = "intervals of {} overlap" if len(close) > 1 else "interval of {} overlaps"
        parts.append(f"in forgetting, the 95% {verb.format(_names(close))} that of fine-tuning")
    if failed:
        parts.append(f"{_names(failed)} {'have' if len(failed) > 1 else 'has'} no finite result")

    where = [] if len(results["seeds"]) > 1 else ["on one seed"]
    where += [] if several else ["with one task and so nothing to forget"]
    text = ", ".join([*where, "; ".join(parts)]) + "."
    ours = text.startswith(("on one", "with one", "fine-tuning", "joint training"))
    return text[0].upper() + text[1:] if ours else text


def _clause(group: list[Row], joint: Row | None, several: bool, first: bool) -> str:
    """What one or more methods forget, and where they end."""
    s, text = "" if len(group) > 1 else "s", _names(group)
    if several:
        points = [percent(row.forgetting.mean) for row in group if row.forgetting]
        nothing = points and not first and set(points) == {"0.0"}
        amount = "nothing" if nothing else listed(points)
        text += f" forget{s} {amount}" + (" points on average" if first else "")
        text += " (below zero: old tasks improved)" if any("-" in p for p in points) else ""
        text += " and"
    at = joint.accuracy.mean if joint else math.inf
    gap = max(abs(row.accuracy.mean - at) for row in group)
    if gap <= 0.02:
        at, gap = percent(at), math.ceil(round(1000 * gap, 6)) / 10  # rounded up: stays true
        return text + f" end{s} within {gap:.1f} points of joint training ({at}%)"
    numbers = listed([percent(row.accuracy.mean) for row in group])
    return text + f" end{s} at {numbers}%" + (" accuracy" if first else "")


def _names(rows: list[Row]) -> str:
    return listed([_WORDS.get(row.method, label(row.method)) for row in rows])


def _finite(row: Row) -> bool:
    return bool(np.isfinite([row.accuracy.mean, (row.forgetting or row.accuracy).mean]).all())


def _overlap(row: Row, other: Row) -> bool:
    a, b = row.forgetting, other.forgetting
    if a is None or b is None:
        return False
    return bool(abs(a.mean - b.mean) <= a.half_width + b.half_width)  # False for one seed: nan
