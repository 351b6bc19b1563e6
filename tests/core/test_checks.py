"""The checks of what a caller gives: what passes, and the sentence for what does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.core import checks


@pytest.mark.parametrize("value", [0.0, 1, np.float32(0.5), [0.0, 1.0], jnp.array([0.5, 0.25])])
def test_numbers_within_their_limits_pass(value):
    checks.check_number("it", value, least=0, most=1)


@pytest.mark.parametrize(
    ("value", "limits", "words"),
    [
        (np.nan, {"least": 0}, "finite, got nan"),
        (np.inf, {"above": 0}, "finite, got inf"),
        (0.0, {"above": 0}, "above 0, got 0.0"),
        (-0.5, {"least": 0, "most": 1}, "at least 0, got -0.5"),
        (1.5, {"least": 0, "most": 1}, "at most 1, got 1.5"),
        ([0.5, 2.0], {"most": 1}, r"at most 1, got \[0.5, 2.0\]"),
        (-(10**30), {"least": 1}, "at least 1, got -1000"),
    ],
)
def test_numbers_beyond_a_limit(value, limits, words):
    with pytest.raises(ValueError, match=f"it must be {words}"):
        checks.check_number("it", value, **limits)


def test_what_is_traced_passes():
    jax.jit(lambda value: checks.check_number("it", value, least=1))(0.0)
    with pytest.raises(ValueError, match="it must be at least 1"):
        checks.check_number("it", 0.0, least=1)


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "2", None])
def test_counts(value):
    checks.check_count("it", np.int64(1))
    with pytest.raises(ValueError, match=f"it must be a whole number of at least 1, got {value!r}"):
        checks.check_count("it", value)


def test_counts_have_a_limit():
    checks.check_count("it", 9, most=9)
    with pytest.raises(ValueError, match="it must be a whole number from 1 to 9, got 10"):
        checks.check_count("it", 10, most=9)


@pytest.mark.parametrize("task", [-1, 2, 0.0, [0, 1], np.int8(-1), jnp.int32(2)])
def test_tasks(task):
    for known in (0, np.uint8(1), jnp.int32(1)):
        checks.check_task("it", known, 2)
    jax.jit(lambda task: checks.check_task("it", task, 2))(2)
    with pytest.raises(ValueError, match="it must be a whole number from 0 to 1, got"):
        checks.check_task("it", task, 2)


def test_a_list_of_names_is_cut_in_messages():
    assert checks.shorten([str(i) for i in range(5)], most=3) == "'0', '1', '2' and 2 more"
    assert checks.shorten(["a"]) == "'a'"
