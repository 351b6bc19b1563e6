"""What `jaxcl infer` has measured of a run, read back and as a table of a web page."""

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxcl.report import html
from jaxcl.report.metrics import Interval
from jaxcl.report.reading import numbers
from jaxcl.report.results import interval, shown_of

FILES = ("inferred.json", "confusion.svg", "confusion.png")


class Inferred(NamedTuple):
    """One method and one rule by which the task is chosen; means over seeds and their intervals.

    Attributes:
        method: its name.
        rule: the rule's.
        of: the numbers of seeds and of tasks that were measured.
        told: accuracy where the task is told.
        right: accuracy where it is inferred, task and class.
        classes: likewise, the class alone.
        task: share of examples whose task is told rightly.
    """

    method: str
    rule: str
    of: tuple[int, int]
    told: Interval
    right: Interval
    classes: Interval
    task: Interval


def read_inferred(folder: Path) -> list[Inferred]:
    """What `inferred.json` of a run holds; nothing if there is none.

    Raises:
        ValueError: if the file holds something else.
    """
    file = folder / "inferred.json"
    if not file.is_file():
        return []
    try:
        methods = json.loads(file.read_text(encoding="utf-8"))["methods"]
        return [
            _inferred(str(name), str(rule), of_rule)
            for name, rules in methods.items()
            for rule, of_rule in rules.items()
        ]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read: {' '.join(str(error).split())[:200]}") from None
    except (KeyError, TypeError, AttributeError, IndexError):
        raise ValueError(f"{file} does not hold what jaxcl infer writes.") from None


def remove_inferred(folder: Path) -> bool:
    """Removes what `jaxcl infer` wrote, once the networks are no longer those it measured.

    Returns:
        Whether there was anything.
    """
    there = [folder / name for name in FILES if (folder / name).exists()]
    for path in there:
        path.unlink()
    return bool(there)


def _inferred(name: str, rule: str, content: Mapping) -> Inferred:
    seeds, tasks = len(content["told"]), len(content["told"][0])

    def read(key: str, *shape: int) -> np.ndarray:
        return numbers(f"{name}/{rule}/{key}", content[key], (shape,), str(shape), most=1)

    def over(shares: np.ndarray) -> Interval:
        """Of the seeds that did not diverge, if there are any."""
        means = shares.mean(axis=1)
        return interval(means[np.isfinite(means)] if np.isfinite(means).any() else means)

    told, both, classes = (over(read(key, seeds, tasks)) for key in ("told", "inferred", "classes"))
    right = over(np.diagonal(read("confusion", seeds, tasks, tasks), axis1=1, axis2=2))
    return Inferred(name, rule, (seeds, tasks), told, both, classes, right)


def table(found: list[Inferred]) -> str:
    """A row for each method and rule."""
    header = ["Method", "Rule", "Told (%)", "Inferred (%)", "Class right (%)", "Task right (%)"]
    rows = [
        [
            f'<th scope="row">{escape(shown_of(one.method).label)}</th>',
            f'<td class="left">{escape(one.rule)}</td>',
            *map(html.interval, one[3:]),
        ]
        for one in found
    ]
    return html.grid(header, rows, kind="plain sortable")
