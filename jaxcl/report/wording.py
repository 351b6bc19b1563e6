"""What a study shows, said in a sentence, and what its tests say in another one."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxcl.report.paired import pairs
from jaxcl.report.results import Results, Row, as_results, summary
from jaxcl.report.text import counted, listed, percent

FEW = 6  # methods that are named one by one


def sentence(results: Results | Mapping[str, Any]) -> str:
    """What the table shows, in a sentence; and a second one where seeds allow a test.

    >>> mine = {"accuracy": [[[0.9, 0.1], [0.8, 0.9]]], "parameters": 10, "extra_bytes": 0}
    >>> mine |= {"seconds": 1.5, "compilations": 1}
    >>> study = {"benchmark": "digits", "tasks": 2, "seeds": [0], "methods": {"mine": mine}}
    >>> print(sentence(study))
    On one seed, mine forgets 10.0 points on average and ends at 85.0% accuracy.
    """
    results = as_results(results)
    rows = summary(results)
    failed = [row for row in rows if not _finite(row)]
    guessing = [row for row in rows if row.at_chance and row not in failed]
    sound = [row for row in rows if row not in failed and row not in guessing]
    upper = next((row for row in sound if row.shown.role == "upper"), None)
    lower = next((row for row in sound if row.shown.role == "lower"), None)
    others = [row for row in sound if row.shown.role == "method"]
    several = results.tasks > 1

    parts = []
    followed = [row for row in others if row.forgetting]  # from task to task
    groups = [[lower] if lower else [], followed]
    if len(others) > FEW:  # those that forget nothing by name, the others by their range
        groups[1:] = [
            [row for row in followed if row.keeps_all],
            [row for row in followed if not row.keeps_all],
        ]
    groups.append([row for row in others if row not in followed])
    for group in filter(None, groups):
        parts.append(_clause(group, upper, several, first=not parts))
    if upper and not any(upper.shown.words in part for part in parts):
        accuracy = "" if parts else " accuracy"
        parts.append(f"{upper.shown.words} ends at {percent(upper.accuracy.mean)}%{accuracy}")
    close = [row for row in others if lower and several and _overlap(row, lower)]
    if close and lower:
        verb = "intervals of {} overlap" if len(close) > 1 else "interval of {} overlaps"
        parts.append(
            f"in forgetting, the 95% {verb.format(_some(close))} that of {lower.shown.words}"
        )
    if guessing:
        verb = "are" if len(guessing) > 1 else "is"
        points = listed([percent(row.accuracy.mean) for row in guessing])
        parts.append(f"{_names(guessing)} {verb} at chance level ({points}%)")
    parts += [
        f"{row.shown.words} learns nothing in {row.unlearned} of {counted(results.tasks, 'task')}"
        for row in sound
        if row.unlearned
    ]
    parts += [
        f"{row.shown.words} closes a whole layer in {counted(row.closed, 'task')} of "
        f"{len(results.seeds) * results.tasks} trained, so that what they predict is constant"
        for row in rows
        if row.closed
    ]
    parts += [
        f"{row.diverged} of {len(results.seeds)} seeds of {row.shown.words} diverged"
        for row in sound + guessing
        if row.diverged
    ]
    if failed:
        parts.append(f"{_names(failed)} {'have' if len(failed) > 1 else 'has'} no finite result")

    where = [] if len(results.seeds) > 1 else ["on one seed"]
    where += [] if several else ["with one task and so nothing to forget"]
    text = ", ".join([*where, "; ".join(parts)]) + "."
    ours = ["on one", "with one", *(r.shown.words for r in rows if r.shown.words != r.shown.label)]
    text = text[0].upper() + text[1:] if text.startswith(tuple(ours)) else text
    return text + _tested(results, sound)


def _clause(group: list[Row], upper: Row | None, several: bool, first: bool) -> str:
    """What one or more methods forget, and where they end."""
    s, text = "" if len(group) > 1 else "s", _some(group)
    if len(group) > FEW and not first:
        text = f"the other {text}"
    if several and group[0].forgetting:
        points = _values([row.forgetting.mean for row in group if row.forgetting], _points)
        average = " points on average" if first else ""
        nothing = all(row.keeps_all for row in group)
        text += f" forget{s} {'nothing' if nothing else points + average}"
        text += " (below zero: old tasks improved)" if "-" in points else ""
        text += " and"
    at = upper.accuracy.mean if upper else math.inf
    gap = max(abs(row.accuracy.mean - at) for row in group)
    if upper and gap <= 0.02:
        at, gap = percent(at), math.ceil(round(1000 * gap, 6)) / 10  # rounded up: stays true
        return text + f" end{s} within {gap:.1f} points of {upper.shown.words} ({at}%)"
    numbers = _values([row.accuracy.mean for row in group], percent)
    return text + f" end{s} at {numbers}%" + (" accuracy" if first else "")


def _points(forgetting: float) -> str:
    """Percentage points, in which only nothing is 0.0."""
    said = percent(forgetting)
    return "under 0.1" if said == "0.0" and forgetting > 0 else said


def _tested(results: Results, rows: list[Row]) -> str:
    """From which methods the most accurate one differs by more than chance."""
    compared = [row for row in rows if row.shown.role != "upper"]
    if len(compared) < 2 or len(results.seeds) < 2:
        return ""
    top = max(compared, key=lambda row: row.accuracy.mean)
    others = [row for row in compared if row is not top]
    found = {frozenset(pair[:2]): pair for pair in pairs(results)}
    close = [row for row in others if not found[frozenset((top.method, row.method))].significant]
    told = [row for row in others if row not in close]
    if not told:
        s = "no other method differs" if len(others) > 1 else f"{_names(others)} does not differ"
        words = f"{s} significantly in accuracy from {top.shown.words}"
    else:
        words = f"{top.shown.words} is significantly more accurate than "
        words += "all others" if len(told) == len(others) > 1 else _some(told, "others")
        words += f", but not than {_some(close, 'others')}" if close else ""
    test = "paired t-tests with Holm's correction" if len(found) > 1 else "a paired t-test"
    return f" By {test}, {words}."


def _values(values: Sequence[float], say: Callable[[float], str]) -> str:
    """Each of them, or their range if they are many."""
    if len(values) <= FEW:
        return listed([say(value) for value in values])
    return f"{say(min(values))} to {say(max(values))}"


def _some(rows: list[Row], called: str = "methods") -> str:
    """Their names, or their number if they are many."""
    return _names(rows) if len(rows) <= FEW else f"{len(rows)} {called}"


def _names(rows: list[Row]) -> str:
    return listed([row.shown.words for row in rows])


def _finite(row: Row) -> bool:
    return bool(np.isfinite([row.accuracy.mean, (row.forgetting or row.accuracy).mean]).all())


def _overlap(row: Row, other: Row) -> bool:
    a, b = row.forgetting, other.forgetting
    if a is None or b is None:
        return False
    return bool(abs(a.mean - b.mean) <= a.half_width + b.half_width)  # False for one seed: nan
