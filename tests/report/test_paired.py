"""Paired differences: against scipy's tests, and Holm's correction by its definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from jaxcl import report
from jaxcl.report import metrics, paired
from tests.report.studies import method, study


def accuracies(rng, seeds=5, tasks=3):
    accuracy = rng.uniform(0.3, 0.9, (seeds, tasks, tasks))
    return {**method([0.5] * seeds, tasks=tasks), "accuracy": accuracy.tolist()}


@pytest.fixture
def results():
    rng = np.random.default_rng(0)
    return study(seeds=5, **{name: accuracies(rng) for name in ("finetune", "hat", "pnn")})


@pytest.mark.parametrize("measure", ["accuracy", "forgetting"])
def test_pairs_are_those_of_scipy(results, measure):
    of = paired.MEASURES[measure]
    found = report.pairs(results, measure)
    assert [pair[:2] for pair in found] == [
        ("finetune", "hat"),
        ("finetune", "pnn"),
        ("hat", "pnn"),
    ]
    for pair in found:
        a, b = (of(np.array(results["methods"][name]["accuracy"])) for name in pair[:2])
        expected = stats.ttest_rel(a, b)
        assert pair.p == pytest.approx(expected.pvalue, rel=1e-9)
        low, high = expected.confidence_interval(0.95)
        assert pair.difference.mean == pytest.approx((low + high) / 2)
        assert pair.difference.half_width == pytest.approx((high - low) / 2)
        assert pair.seeds == 5


def holm_by_definition(values):
    """The least level at which the step-down procedure rejects each of them."""

    def rejected(level):
        order, out = np.argsort(values), set()
        for step, i in enumerate(order):
            if values[i] > level / (len(values) - step):
                break
            out.add(i)
        return out

    levels = np.unique([min(1, f * p) for p in values for f in range(1, len(values) + 1)])
    return [
        min((x for x in levels if i in rejected(x + 1e-15)), default=1) for i in range(len(values))
    ]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_holm(values):
    np.testing.assert_allclose(paired.holm(values), holm_by_definition(values), atol=1e-12)


def test_holm_passes_over_what_is_not_known():
    found = paired.holm([np.nan, 0.02, 0.01])
    np.testing.assert_allclose(found, [np.nan, 0.02, 0.02])
    with pytest.raises(ValueError, match="p-values must lie in 0 to 1"):
        paired.holm([1.1])


@given(arrays.arrays(np.float64, st.integers(2, 6), elements=st.floats(-1, 1)))
@settings(max_examples=60, deadline=None)
def test_p_lies_in_0_to_1_and_does_not_depend_on_the_sign(values):
    p = paired.paired_t(values)
    assert 0 <= p <= 1
    assert paired.paired_t(-values) == p


def test_no_spread():
    assert paired.paired_t(np.zeros(3)) == 1
    assert paired.paired_t(np.full(3, 0.1)) == 0
    assert np.isnan(paired.paired_t(np.array([0.1])))


def test_seeds_that_diverged_are_left_out_of_both(results):
    results["methods"]["hat"]["diverged"] = [None, [1, 2], None, None, None]
    results["methods"]["hat"]["accuracy"][1] = np.full((3, 3), np.nan).tolist()
    well = [0, 2, 3, 4]
    found = {pair[:2]: pair for pair in report.pairs(results)}
    a, b = (
        metrics.average_accuracy(np.array(results["methods"][name]["accuracy"])[well])
        for name in ("finetune", "hat")
    )
    assert found["finetune", "hat"].seeds == 4
    assert found["finetune", "hat"].p == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert found["finetune", "pnn"].seeds == 5


def test_nothing_in_common():
    gone = {**method([0.5] * 2), "diverged": [[1, 1], None]}
    other = {**method([0.5] * 2), "diverged": [None, [1, 1]]}
    [pair] = report.pairs(study(seeds=2, hat=gone, pnn=other))
    assert pair.seeds == 0
    assert np.isnan(pair.adjusted)
    assert not pair.significant
    assert paired.markdown(study(seeds=2, hat=gone, pnn=other)) == ""
    with pytest.raises(ValueError, match="measure must be one of 'accuracy', 'forgetting'"):
        report.pairs(study(seeds=2, hat=gone), "speed")


def test_more_pairs_make_fewer_claims():
    """The broken twin: without the correction a small difference counts as found."""
    rng = np.random.default_rng(1)
    methods = {f"m{i}": accuracies(rng) for i in range(12)}
    found = report.pairs(study(seeds=5, **methods))
    assert any(pair.p < paired.LEVEL for pair in found)
    assert not any(pair.significant for pair in found)


def test_the_table_names_the_test(results):
    text = paired.markdown(results)
    for words in (
        "paired t-tests over 5 shared seeds",
        "Holm's correction for 3 pairs",
        "p (Holm)",
    ):
        assert words in text
    assert text.count("\n| ") == 3 + 2  # with its head


# The best, and those that cannot be told from it


def test_best():
    clear = study(hat=method([0.9] * 3), pnn=method([0.5] * 3), joint=method([0.95] * 3))
    assert paired.best(clear) == {"hat"}
    assert paired.best(clear, "forgetting") == {"hat"}
    near = study(hat=method([0.9, 0.7, 0.8]), pnn=method([0.7, 0.8, 0.8]), er=method([0.1] * 3))
    assert paired.best(near) == {"hat", "pnn"}
    equal = study(hat=method([0.9] * 3), pnn=method([0.9] * 3))
    assert paired.best(equal) == {"hat", "pnn"}
    one = study(seeds=1, hat=method([0.9]), pnn=method([0.899]))
    assert paired.best(one) == {"hat"}


def test_no_best_among_what_diverged():
    gone = {**method([np.nan] * 2), "diverged": [[1, 1], [1, 1]]}
    assert paired.best(study(seeds=2, hat=gone)) == set()
    assert paired.best(study(seeds=2, hat=gone, pnn=method([0.1, 0.1]))) == {"pnn"}
