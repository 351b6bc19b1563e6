"""Several results as one: what fits together is joined, what does not is refused."""

import numpy as np
import pytest

from jaxcl import report
from jaxcl.report import joining
from jaxcl.report.results import as_results
from tests.report.studies import method, study


def part(seeds=(0, 1), options=None, settings=None, tasks=3, **methods):
    """Results with methods whose first entry depends on seed and method."""
    made = {}
    for name, measures in methods.items():
        one = method([0.5] * len(seeds), tasks=tasks, **measures)
        for row, seed in zip(one["accuracy"], seeds):
            row[0][0] = round(0.1 + 0.01 * seed + 0.001 * len(name), 6)
        made[name] = one
    found = as_results(study(seeds=len(seeds), tasks=tasks, **made))
    own = {"seeds": len(seeds), "methods": [*methods], "options": options or {}, "epochs": 2}
    return found._replace(seeds=list(seeds), settings={**own, **(settings or {})})


def marks(results, name):
    return results.methods[name].accuracy[:, 0, 0].tolist()


def test_more_seeds():
    used = {"capacity": [[0.1, 0.2, 0.3]] * 2}
    a, b = part((2, 3), hat=used), part((0, 5), hat=used)
    merged = joining.merge({"a": a, "b": b})
    assert merged.seeds == [0, 2, 3, 5] == merged.settings["seeds"]
    np.testing.assert_allclose(marks(merged, "hat"), [0.103, 0.123, 0.133, 0.153])
    assert merged.methods["hat"].measures["capacity"].shape == (4, 3)
    assert merged.methods["hat"].seconds == 2 * 12.34
    assert report.summary(merged)[0].accuracy.mean == report.summary(a)[0].accuracy.mean


def test_more_methods_and_what_both_hold_alike():
    a, b = part(hat={}, finetune={}, options={"hat": {"c": 1}}), part(hat={}, pnn={})
    b = b._replace(settings={**b.settings, "options": {"hat": {"c": 1}, "pnn": {}}})
    merged = joining.merge({"a": a, "b": b})
    assert list(merged.methods) == ["hat", "finetune", "pnn"] == merged.settings["methods"]
    assert merged.settings["options"] == {"hat": {"c": 1}, "pnn": {}}
    assert merged.methods["hat"].seconds == 12.34


def test_diverged_seeds_stay_with_their_seed():
    a, b = part((4, 5), hat={}), part((0, 1), hat={})
    hat = a.methods["hat"]._replace(diverged=[None, (2, 3)])
    merged = joining.merge({"a": a._replace(methods={"hat": hat}), "b": b})
    assert merged.methods["hat"].diverged == [None, None, None, (2, 3)]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (part((2, 3), hat={}, settings={"epochs": 3}), "epochs is 2 in the one and 3 in the other"),
        (
            part((2, 3), hat={}, settings={"batch": 3}),
            "batch is None in the one and 3 in the other",
        ),
        (part((2, 3), hat={}, tasks=4), "tasks is 3 in the one and 4 in the other"),
        (part((2, 3), hat={})._replace(benchmark="b"), "benchmark is 'digits' in the one and 'b'"),
        (part((2, 3), hat={}, options={"hat": {"c": 2}}), "the options of hat are .*'c': 1.* and"),
        (part((2, 3), pnn={}), "hat has no seed 2 and 3, which other methods have"),
        (part((1, 2), longer_hat={}), "hat has no seed 2"),
    ],
)
def test_what_does_not_fit_is_refused(other, message):
    one = part((0, 1), hat={}, options={"hat": {"c": 1}})
    with pytest.raises(ValueError, match=message):
        joining.merge({"one": one, "other": other})


def test_different_numbers_of_one_seed_are_refused():
    one, other = part(hat={}), part(hat={})
    other.methods["hat"].accuracy[1, 2, 2] = 0.4
    with pytest.raises(ValueError, match="hold different numbers for seed 1 of hat"):
        joining.merge({"one": one, "other": other})
    with pytest.raises(ValueError, match="nothing to merge"):
        joining.merge({"one": one})


# Side by side


def test_runs_side_by_side_over_the_seeds_that_they_share():
    a, b = part((0, 1, 2), hat={}, finetune={}), part((2, 1), hat={}, settings={"epochs": 9})
    found = joining.side_by_side({"a": a, "b": b})
    assert found.seeds == [1, 2]
    assert list(found.methods) == ["hat (a)", "finetune", "hat (b)"]
    assert [m.shown.label for m in found.methods.values()] == ["HAT (a)", "Fine-tuning", "HAT (b)"]
    for name in ("hat (a)", "hat (b)"):
        np.testing.assert_allclose(marks(found, name), [0.113, 0.123])
    assert "HAT (a)" in report.sentence(found)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (part((5, 6), hat={}), "the runs one and other have no seed in common"),
        (part(hat={}, tasks=4), "tasks is 3 in the one and 4 in the other"),
        (part(hat={})._replace(benchmark="b"), "benchmark is 'digits' in the one and 'b'"),
        (part(hat={}, settings={"scenario": "class"}), "scenario is None in the one and 'class'"),
    ],
)
def test_runs_that_cannot_be_compared(other, message):
    with pytest.raises(ValueError, match=message):
        joining.side_by_side({"one": part(hat={}), "other": other})
