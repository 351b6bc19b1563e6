"""Differences between methods over the same seeds, and which of them are more than chance.

Seeds are shared: seed s draws the same initial values and the same order of examples for every
method, so differences within a seed vary less than the methods themselves. Each two methods are
compared with a paired t-test; Holm's correction holds the chance of a single false claim among all
of them at 5 %.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxcl.core.checks import check_choice
from jaxcl.report import metrics, text
from jaxcl.report.metrics import Interval
from jaxcl.report.results import MethodResults, Results, as_results, interval

LEVEL = 0.05  # below which a corrected p-value is called significant

MEASURES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "accuracy": metrics.average_accuracy,
    "forgetting": metrics.forgetting,
}


class Pair(NamedTuple):
    """Two methods, compared over the seeds in which neither diverged.

    Attributes:
        first: name of a method.
        second: name of the other one.
        difference: first minus second, mean and half width of the 95% interval, fractions.
        seeds: number of seeds that both have.
        p: of the paired t-test, two-sided; nan below two seeds.
        adjusted: by Holm's correction over all pairs.

    >>> Pair("a", "b", Interval(0.1, 0.02), 5, 0.001, 0.001).significant
    True
    """

    first: str
    second: str
    difference: Interval
    seeds: int
    p: float
    adjusted: float

    @property
    def significant(self) -> bool:
        return bool(self.adjusted < LEVEL)


def pairs(results: Results | Mapping[str, Any], measure: str = "accuracy") -> list[Pair]:
    """Every two methods, compared over the same seeds.

    Args:
        results: the results of a study, or what `results.json` holds.
        measure: "accuracy", the mean over the tasks at the end, or "forgetting". For the latter,
            references that are trained on all tasks at once are left out.

    Returns:
        A Pair for each two methods, in the order of the results.

    Raises:
        ValueError: for another measure, or results that do not fit together.

    >>> one = {"parameters": 10, "extra_bytes": 0, "seconds": 1.5, "compilations": 1}
    >>> methods = {"a": one | {"accuracy": [[[0.9]], [[0.8]]]}}
    >>> methods |= {"b": one | {"accuracy": [[[0.7]], [[0.7]]]}}
    >>> [pair] = pairs({"benchmark": "digits", "tasks": 1, "seeds": [0, 1], "methods": methods})
    >>> pair.first, pair.second, round(pair.difference.mean, 3), pair.seeds
    ('a', 'b', 0.15, 2)
    """
    check_choice("measure", measure, tuple(MEASURES))
    methods = {
        name: method
        for name, method in as_results(results).methods.items()
        if measure == "accuracy" or method.shown.role != "upper"
    }
    found = [
        _pair(first, second, methods, MEASURES[measure])
        for first, second in itertools.combinations(methods, 2)
    ]
    adjusted = holm([pair.p for pair in found])
    return [pair._replace(adjusted=p) for pair, p in zip(found, adjusted)]


def _pair(first: str, second: str, methods: Mapping[str, MethodResults], of: Callable) -> Pair:
    a, b = methods[first], methods[second]
    well = np.array([one is None and two is None for one, two in zip(a.diverged, b.diverged)])
    if not well.any():
        return Pair(first, second, Interval(np.nan, np.nan), 0, np.nan, np.nan)
    difference = of(a.accuracy[well]) - of(b.accuracy[well])
    p = paired_t(difference)
    return Pair(first, second, interval(difference), len(difference), p, p)


def paired_t(difference: np.ndarray) -> float:
    """The two-sided p-value of Student's t-test of differences [S] against a mean of 0.

    It is nan for less than two of them. If all are equal, there is no spread to measure with: the
    value is 1 for zeros, and 0 for anything else.

    >>> round(paired_t(np.array([1.0, 2.0, 3.0])), 4)  # t = 2 / (1 / sqrt(3)), 2 degrees of freedom
    0.0742
    """
    from scipy.special import stdtr  # Student's distribution; scipy comes with jax

    count = len(difference)
    if count < 2 or not np.isfinite(difference).all():
        return float("nan")
    error = difference.std(ddof=1) / np.sqrt(count)
    mean = abs(difference.mean())
    if error <= 1e-12 * mean or mean == 0:  # equal but for the rounding of their mean
        return float(mean == 0)
    return float(2 * stdtr(count - 1, -mean / error))


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for their number; those that are nan stay so and do not count.

    Raises:
        ValueError: for a value outside of [0, 1].

    >>> holm([0.01, 0.04, 0.03, float("nan")])
    [0.03, 0.06, 0.06, nan]

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    given = np.asarray(values, np.float64)
    known = np.flatnonzero(~np.isnan(given))
    if np.any((given[known] < 0) | (given[known] > 1)):
        raise ValueError(f"p-values must lie in 0 to 1, got {list(values)}.")
    order = known[np.argsort(given[known], kind="stable")]
    adjusted = np.full(len(given), np.nan)
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * given[order]))
    return adjusted.tolist()


def markdown(results: Results | Mapping[str, Any]) -> str:
    """All pairs as a table in Markdown; empty where no two methods share two seeds.

    >>> one = {"parameters": 10, "extra_bytes": 0, "seconds": 1.5, "compilations": 1}
    >>> methods = {"a": one | {"accuracy": [[[0.9]], [[0.8]]]}}
    >>> methods |= {"b": one | {"accuracy": [[[0.7]], [[0.7]]]}}
    >>> page = markdown({"benchmark": "digits", "tasks": 1, "seeds": [0, 1], "methods": methods})
    >>> print(page.splitlines()[4])
    | a | b | +15.0 ± 63.5 | 0.205 | 0.205 | no |
    """
    results = as_results(results)
    compared = [pair for pair in pairs(results) if pair.seeds > 1]
    if not compared:
        return ""
    label = {name: method.shown.label for name, method in results.methods.items()}
    rows = []
    for pair in compared:
        values = map(text.p_value, (pair.p, pair.adjusted))
        row = [label[pair.first], label[pair.second], text.signed(pair.difference), *values]
        rows.append([*row, "yes" if pair.significant else "no"])
    header = [
        "method",
        "compared with",
        "difference in accuracy (points)",
        "p",
        "p (Holm)",
        "significant",
    ]
    return "\n\n".join(
        ["## Paired differences", text.markdown(header, rows, left=2), text.escaped(note(compared))]
    )


def note(*compared: Sequence[Pair]) -> str:
    """Which test this is; pairs of several scenarios are corrected in each by itself.

    >>> pair = Pair("a", "b", Interval(0.1, 0.02), 5, 0.001, 0.001)
    >>> note([pair]).split(";")[0]
    'Mean difference and half width of its 95% interval'
    """
    seeds = sorted({pair.seeds for each in compared for pair in each})
    counts = text.listed([str(len(each)) for each in compared])
    pairs = text.counted(len(compared[0]), "pair") if len(compared) == 1 else f"{counts} pairs"
    shared = text.counted(seeds[-1], "shared seed")
    shared = shared if len(seeds) == 1 else f"{seeds[0]} to {shared}"
    return (
        f"Mean difference and half width of its 95% interval; two-sided paired t-tests over "
        f"{shared}, with Holm's correction for {pairs}. A difference "
        f"is called significant where the corrected p is below 0.05."
    )


def best(results: Results | Mapping[str, Any], measure: str = "accuracy") -> set[str]:
    """The best method, and those that cannot be told from it.

    These are the methods whose paired difference from the best has an interval that contains zero,
    without a correction. References that are trained on all tasks at once take no part. With one
    seed it is the best alone, and those that are equal to it.

    >>> one = {"parameters": 10, "extra_bytes": 0, "seconds": 1.5, "compilations": 1}
    >>> methods = {"a": one | {"accuracy": [[[0.9]]]}, "b": one | {"accuracy": [[[0.7]]]}}
    >>> best({"benchmark": "digits", "tasks": 1, "seeds": [0], "methods": methods})
    {'a'}
    """
    results = as_results(results)
    of, sign = MEASURES[measure], -1 if measure == "forgetting" else 1
    scores = {}
    for name, method in results.methods.items():
        well = np.array([at is None for at in method.diverged])
        if method.shown.role != "upper" and well.any():
            scores[name] = sign * float(of(method.accuracy[well]).mean())
    scores = {name: score for name, score in scores.items() if np.isfinite(score)}
    if not scores:
        return set()
    top = max(scores, key=lambda name: scores[name])
    tied = {name for name, score in scores.items() if score == scores[top]}
    for pair in pairs(results, measure):
        mean, half = pair.difference
        if top in pair[:2] and {*pair[:2]} <= {*scores} and abs(mean) <= half + 1e-12:
            tied |= {*pair[:2]}
    return tied
