"""Metrics against values worked by hand, and the identities between them."""

import doctest
import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxcl import metrics

R = np.array([[0.9, 0.2, 0.1], [0.7, 0.8, 0.3], [0.6, 0.9, 0.9]])
OF_MATRIX = [
    metrics.average_accuracy,
    metrics.anytime_accuracy,
    metrics.learning_accuracy,
    metrics.backward_transfer,
    metrics.forgetting,
]

fractions = st.integers(0, 100).map(lambda percent: percent / 100)
matrices = st.integers(1, 5).flatmap(
    lambda tasks: arrays(np.float64, (tasks, tasks), elements=fractions)
)
properties = settings(max_examples=50, deadline=None)


def test_doctests():
    result = doctest.testmod(metrics)
    assert result.attempted > 10
    assert result.failed == 0


def test_values_by_hand():
    np.testing.assert_allclose([f(R) for f in OF_MATRIX], [2.4 / 3, 2.45 / 3, 2.6 / 3, -0.1, 0.1])
    baseline = [0.5, 0.1, 0.2]  # (0.2 - 0.1 + 0.3 - 0.2) / 2
    np.testing.assert_allclose(metrics.forward_transfer(R, baseline), 0.1)


def test_forgetting_counts_from_the_best_moment_and_not_from_the_diagonal():
    later_is_better = [[0.5, 0.0, 0.0], [0.8, 0.7, 0.0], [0.6, 0.7, 0.9]]
    np.testing.assert_allclose(metrics.forgetting(later_is_better), 0.1)
    np.testing.assert_allclose(metrics.backward_transfer(later_is_better), 0.05)
    best_at_the_end = [[0.5, 0.0], [0.8, 0.7]]
    np.testing.assert_allclose(metrics.forgetting(best_at_the_end), -0.3)


def test_one_task_transfers_and_forgets_nothing():
    one = [[0.7]]
    assert [float(f(one)) for f in OF_MATRIX] == [0.7, 0.7, 0.7, 0.0, 0.0]
    assert metrics.forward_transfer(one, 0.5) == 0.0
    ratio, mean = metrics.forgetting_ratio(one, 0.1, [[0.7]])
    np.testing.assert_allclose([ratio[0, 0], mean[0]], 0, atol=1e-12)


@properties
@given(matrices)
def test_average_is_learning_plus_backward_transfer(accuracy):
    tasks = len(accuracy)
    change = metrics.backward_transfer(accuracy) * (tasks - 1) / tasks
    expected = metrics.learning_accuracy(accuracy) + change
    np.testing.assert_allclose(metrics.average_accuracy(accuracy), expected, atol=1e-12)


@properties
@given(matrices)
def test_forgetting_is_at_least_minus_backward_transfer(accuracy):
    assert metrics.forgetting(accuracy) >= -metrics.backward_transfer(accuracy) - 1e-12


@properties
@given(matrices)
def test_nothing_is_forgotten_when_columns_stay_as_learned(accuracy):
    learned = np.diagonal(accuracy)
    isolated = np.where(np.tri(len(accuracy), dtype=bool), learned, accuracy)
    assert metrics.forgetting(isolated) == 0
    assert metrics.backward_transfer(isolated) == 0


BEFORE = np.array([[0.9, 0.95, 0.1], [0.9, 0.6, 0.1], [0.9, 0.6, 0.9]])


def test_a_task_forgets_only_what_it_was_trained_for():
    assert metrics.forgetting(BEFORE) == metrics.forgetting(BEFORE, since="own") == 0
    np.testing.assert_allclose(metrics.forgetting(BEFORE, since="first"), 0.175)  # A-GEM's formula
    unmeasured = np.where(np.tri(3, dtype=bool), BEFORE, np.nan)
    assert metrics.forgetting(unmeasured, since="first") == 0
    np.testing.assert_allclose(metrics.forgetting(np.stack([BEFORE, R]), "first"), [0.175, 0.1])


@properties
@given(matrices)
def test_forgetting_is_that_of_the_formula(accuracy):
    """In loops, from each task's own row or from the first."""
    last = len(accuracy) - 1
    for since, first in (("own", lambda k: k), ("first", lambda k: 0)):
        drops = [
            max(accuracy[t][k] for t in range(first(k), last)) - accuracy[last][k]
            for k in range(last)
        ]
        expected = np.mean(drops) if drops else 0
        np.testing.assert_allclose(metrics.forgetting(accuracy, since), expected, atol=1e-12)


@properties
@given(matrices)
def test_anytime_accuracy_is_that_of_the_formula(accuracy):
    moments = [np.mean([row[k] for k in range(t + 1)]) for t, row in enumerate(accuracy)]
    np.testing.assert_allclose(metrics.anytime_accuracy(accuracy), np.mean(moments))


@properties
@given(matrices)
def test_forgetting_is_not_negative_when_accuracy_only_falls(accuracy):
    assert metrics.forgetting(np.minimum.accumulate(accuracy, axis=0)) >= -1e-12


@pytest.mark.parametrize("metric", OF_MATRIX)
def test_leading_axes_are_carried_along(metric):
    many = np.random.default_rng(0).random((2, 3, 4, 4))
    out = metric(many)
    assert out.shape == (2, 3)
    np.testing.assert_allclose(out[1, 2], metric(many[1, 2]))
    np.testing.assert_allclose(metric(jnp.asarray(many)), out, rtol=1e-5, atol=1e-6)


def test_forward_transfer_and_ratio_carry_leading_axes():
    many = np.random.default_rng(0).random((5, 3, 3))
    joint, random = np.full((3, 3), 0.9), np.random.default_rng(1).random((5, 3)) / 2
    transfer = metrics.forward_transfer(many, random)
    ratio, mean = metrics.forgetting_ratio(many, random, joint)
    assert (transfer.shape, ratio.shape, mean.shape) == ((5,), (5, 3, 3), (5, 3))
    one_ratio, one_mean = metrics.forgetting_ratio(many[2], random[2], joint)
    np.testing.assert_allclose(transfer[2], metrics.forward_transfer(many[2], random[2]))
    np.testing.assert_allclose(ratio[2], one_ratio)
    np.testing.assert_allclose(mean[2], one_mean)


def test_unmeasured_entries_above_the_diagonal_do_not_matter():
    measured = np.array([[0.9, 0.0, 0.0], [0.7, 0.8, 0.0], [0.6, 0.9, 0.9]])
    missing = np.where(np.tri(3, dtype=bool), measured, np.nan)
    for metric in OF_MATRIX:
        assert metric(missing) == metric(measured)
    np.testing.assert_array_equal(
        metrics.forgetting_ratio(missing, 0.1, missing)[1],
        metrics.forgetting_ratio(measured, 0.1, measured)[1],
    )
    assert math.isnan(metrics.forward_transfer(missing, 0.1))


def test_a_missing_result_is_not_hidden():
    broken = R.copy()
    broken[0, 0] = np.nan  # task 0, when it was trained
    for metric in (metrics.forgetting, metrics.backward_transfer, metrics.anytime_accuracy):
        assert math.isnan(metric(broken))
    assert math.isnan(metrics.learning_accuracy(broken))
    ratio, mean = metrics.forgetting_ratio(broken, 0.1, R)
    assert math.isnan(ratio[0, 0]) and math.isnan(mean[0]) and np.isfinite(mean[1:]).all()
    ratio, mean = metrics.forgetting_ratio(R, 0.1, broken)
    assert math.isnan(mean[0]) and np.isfinite(mean[1:]).all()
    broken = R.copy()
    broken[2, 1] = np.nan  # task 1 at the end
    for metric in (metrics.average_accuracy, metrics.forgetting, metrics.backward_transfer):
        assert math.isnan(metric(broken))
    np.testing.assert_array_equal(metrics.free([0.5, np.nan, 1]), [1, 0.5, np.nan])
    np.testing.assert_array_equal(
        metrics.reuse([[np.nan, 0.1], [0.1, 0.2]]), [[np.nan, np.nan], [0.5, 1]]
    )
    assert math.isnan(metrics.learning_curve_area([[0.1, np.nan, 0.3]]))
    assert metrics.learning_curve_area([[0.1, np.nan, 0.3]], beta=0) == 0.1
    assert all(map(math.isnan, metrics.confidence_interval([0.1, np.nan, 0.3])))


def test_a_network_that_does_not_exist_has_no_forward_transfer():
    columns = np.where(np.tri(3, dtype=bool), R, np.nan)  # as of a progressive network
    assert math.isnan(metrics.forward_transfer(columns, 0.1))
    columns[0, 1] = 0.5  # a part of what is read is not enough
    assert math.isnan(metrics.forward_transfer(columns, 0.1))
    columns[1, 2] = 0.3
    np.testing.assert_allclose(metrics.forward_transfer(columns, 0.1), (0.4 + 0.2) / 2)


def test_forgetting_ratio_is_zero_at_the_joint_level_and_minus_one_at_chance():
    joint, random = R + 0.05, np.array([0.1, 0.05, 0.02])
    np.testing.assert_allclose(metrics.forgetting_ratio(joint, random, joint)[1], 0, atol=1e-12)
    chance = np.broadcast_to(random, (3, 3))
    np.testing.assert_allclose(metrics.forgetting_ratio(chance, random, joint)[1], -1)


def test_learning_curve_area():
    curve = [[0.0, 0.4, 0.8], [0.2, 0.6, 1.0]]
    np.testing.assert_allclose(metrics.learning_curve_area(curve), 0.5)
    np.testing.assert_allclose(metrics.learning_curve_area(curve, beta=0), 0.1)


@pytest.mark.parametrize(
    ("seeds", "level", "quantile"),  # the printed table of Student's t
    [(2, 0.95, 12.706), (5, 0.95, 2.776), (5, 0.99, 4.604), (11, 0.9, 1.812), (31, 0.95, 2.042)],
)
def test_confidence_interval_uses_students_t(seeds, level, quantile):
    values = np.arange(seeds) * 0.01
    error = values.std(ddof=1) / math.sqrt(seeds)
    mean, half_width = metrics.confidence_interval(values, level)
    np.testing.assert_allclose([mean, half_width], [values.mean(), quantile * error], rtol=5e-4)


def test_confidence_interval_is_taken_over_the_first_axis():
    values = np.random.default_rng(0).random((4, 3, 2))
    interval = metrics.confidence_interval(values)
    assert interval.mean.shape == interval.half_width.shape == (3, 2)
    single = metrics.confidence_interval(values[:, 1, 0])
    np.testing.assert_allclose(interval.half_width[1, 0], single.half_width)
    shifted = metrics.confidence_interval(1 + 2 * values)
    np.testing.assert_allclose(shifted.half_width, 2 * interval.half_width)


def test_one_seed_has_no_interval():
    mean, half_width = metrics.confidence_interval([0.7])
    assert mean == 0.7
    assert math.isnan(half_width)


def test_interval_covers_the_truth_as_often_as_it_says():
    values = np.random.default_rng(0).normal(size=(4, 20_000))
    mean, half_width = metrics.confidence_interval(values, level=0.9)
    assert abs(np.mean(np.abs(mean) <= half_width) - 0.9) < 0.01


@pytest.mark.parametrize("bad", [0.5, [0.5, 0.5], [[0.5, 0.5]], np.zeros((2, 3, 2)), [[]]])
@pytest.mark.parametrize("metric", OF_MATRIX)
def test_a_matrix_that_is_not_square_is_refused(metric, bad):
    with pytest.raises(ValueError, match=r"accuracy must have shape \[..., T, T\]"):
        metric(bad)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.forward_transfer(R, [0.1, 0.2]), r"baseline .* \[\.\.\., 3\], .* \(2,\)"),
        (lambda: metrics.forgetting_ratio(R, [0.1, 0.2], R), "random must be one number"),
        (lambda: metrics.forgetting_ratio(R, 0.1, R[:2, :2]), "joint must have shape"),
        (lambda: metrics.forgetting_ratio(R, 0.8, R), r"joint\[1, 1\] equals"),
        (lambda: metrics.learning_curve_area([0.1, 0.2]), "curve must have shape"),
        (lambda: metrics.learning_curve_area([[0.1, 0.2]], beta=2), "beta must lie in 0 to 1"),
        (lambda: metrics.learning_curve_area([[0.1, 0.2]], beta=-1), "beta must lie in 0 to 1"),
        (lambda: metrics.forgetting(R, since="best"), "since must be one of 'own', 'first'"),
        (lambda: metrics.free(0.5), r"capacity must have shape \[..., T\].*one number, 0.5"),
        (lambda: metrics.reuse([0.5]), r"overlap must have shape"),
        (lambda: metrics.confidence_interval([]), "at least one seed"),
        (lambda: metrics.confidence_interval(0.5), "at least one seed"),
        (lambda: metrics.confidence_interval([1, 2], level=95), "level must lie between"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()
