"""Anytime accuracy and the area under learning curves, against cases computed by hand."""

import json

import numpy as np
import pytest

from jaxcl import report
from jaxcl.report import along, during
from jaxcl.report.reading import from_json
from jaxcl.report.results import to_json
from tests.cli.runs import results

NAN = np.nan
# Two tasks with points 0, 1, 2; of the second task the first seed stopped before point 2.
ONE = [[[0.1, NAN], [0.5, NAN], [0.9, NAN]], [[0.9, 0.2], [0.7, 0.6], [NAN, NAN]]]
TWO = [[[0.2, NAN], [0.4, NAN], [0.6, NAN]], [[0.6, 0.0], [0.5, 0.3], [0.4, 0.6]]]


def test_by_hand():
    area = during.learning_curve_area([ONE, TWO])
    # ((0.1 + 0.5 + 0.9) / 3 + (0.2 + 0.6) / 2) / 2; ((0.2 + 0.4 + 0.6) / 3 + 0.9 / 3) / 2
    np.testing.assert_allclose(area, [0.45, 0.35])
    anytime = during.anytime_accuracy([ONE, TWO])
    # (0.5 + 0.9 + (0.7 + 0.6) / 2) / 3; (0.4 + 0.6 + (0.5 + 0.3) / 2 + (0.4 + 0.6) / 2) / 4
    np.testing.assert_allclose(anytime, [2.05 / 3, 0.475])
    np.testing.assert_array_equal(during.learning_curves(TWO), [[0.2, 0.4, 0.6], [0.0, 0.3, 0.6]])


def test_the_area_begins_before_the_first_step():
    """The broken twin: off by one, so that the network before its training does not count."""
    off = during.learning_curve_area(np.array(TWO)[:, 1:])
    assert not np.isclose(off, during.learning_curve_area(TWO))
    with_start = (np.array(TWO)[0, :, 0].mean() + np.array(TWO)[1, :, 1].mean()) / 2
    assert np.isclose(with_start, during.learning_curve_area(TWO))


def test_where_all_tasks_are_alike_it_is_the_published_area():
    curves = during.learning_curves(TWO)
    assert np.isclose(report.metrics.learning_curve_area(curves), during.learning_curve_area(TWO))


@pytest.mark.parametrize("wrong", [[0.5], [[[0.1, 0.2]]], np.zeros((2, 0, 2))])
def test_other_shapes_are_refused(wrong):
    with pytest.raises(ValueError, match=r"during must have shape \[..., T, P, T\]"):
        during.anytime_accuracy(wrong)


def study():
    found = results(seeds=2)
    one = np.full((2, 3, 3, 3), NAN)
    for task in range(3):
        one[:, task, :, : task + 1] = np.linspace(0.2, 0.8, 3)[:, None]
    methods = {name: method._replace(during=one) for name, method in found.methods.items()}
    return found._replace(
        methods=methods, settings={**found.settings, "evaluate_every": "2 epochs"}
    )


def test_they_are_in_every_output(tmp_path):
    found = study()
    paths = {path.name for path in found.save(tmp_path)}
    assert {"during.svg", "during.png"} <= paths
    again = report.read(tmp_path)
    for name, method in found.methods.items():
        np.testing.assert_array_equal(again.methods[name].during, method.during)
    content = json.loads((tmp_path / "results.json").read_text())["methods"]["hat"]
    np.testing.assert_allclose(content["learning_curve_area"], [0.5, 0.5])
    np.testing.assert_allclose(content["anytime_accuracy"], [0.65, 0.65])
    page = (tmp_path / "table.md").read_text()
    assert "Within the tasks (evaluated every 2 epochs)" in page
    assert "| HAT | 65.0 ± 0.0 | 50.0 ± 0.0 |" in page
    assert report.within_table(found).row_count == 2
    frame = found.to_pandas()
    assert frame["anytime_accuracy"].tolist() == pytest.approx([0.65, 0.65])
    rows = found.to_pandas("during")
    assert len(rows) == 2 * 2 * 3 * (1 + 2 + 3)
    assert [*rows.columns] == ["method", "seed", "training", "point", "tested", "accuracy"]
    (chart,) = along.charts(found)
    assert chart.spec["data"]["name"] in along.datasets(found)


def test_without_them_nothing_is_said_of_them(tmp_path):
    plain = results(seeds=2)
    assert "during" not in to_json(plain)["methods"]["hat"]
    assert "anytime_accuracy" not in plain.to_pandas().columns
    assert not along.charts(plain) and report.within_table(plain) is None
    assert "during" not in plain.plots()


def test_a_file_that_holds_others_is_refused():
    content = to_json(study())
    content["methods"]["hat"]["during"][0][1][2][0] = 1.5
    with pytest.raises(ValueError, match="methods/hat/during must hold finite numbers from 0 to 1"):
        from_json(content)
    content["methods"]["hat"]["during"] = [[0.1]]
    with pytest.raises(ValueError, match="methods/hat/during must have shape"):
        from_json(content)
