"""Results for other programs: the same numbers in every form, and nothing that is not escaped."""

import csv
import io
import re

import numpy as np
import pytest

from jaxcl import report
from jaxcl.report.results import as_results
from tests.report.studies import method, study


@pytest.fixture
def results():
    used = [[0.2, 0.4, x] for x in (0.5, 0.6, 0.7)]
    return as_results(
        study(
            finetune=method([0.5, 0.6, 0.7]),
            joint=method([0.91] * 3, best=0.91),
            hat=method([0.9] * 3, capacity=used),
            packnet={**method([0.88, 0.9, 0.9]), "diverged": [None, None, [1, 2]]},
        )
    )


def test_table(results):
    rows = {row["method"]: row for row in report.records(results)}
    assert list(rows) == list(results.methods)
    summed = {row.method: row for row in report.summary(results)}
    assert rows["hat"]["capacity"] == summed["hat"].capacity.mean
    assert rows["joint"]["forgetting"] is None
    assert rows["packnet"]["diverged"] == 1


def test_accuracy_has_every_entry_once(results):
    rows = report.records(results, "accuracy")
    assert len(rows) == 4 * 3 * 9
    for row in rows[:: len(rows) // 7]:
        matrix = results.methods[row["method"]].accuracy[results.seeds.index(row["seed"])]
        assert matrix[row["trained"] - 1, row["tested"] - 1] == row["accuracy"]


def test_what_is_not_known_is_left_out():
    one = method([0.9] * 3)
    one["accuracy"] = np.where(np.tri(3, dtype=bool), one["accuracy"], np.nan).tolist()
    assert len(report.records(study(hat=one), "accuracy")) == 3 * 6


def test_measures_and_pairs(results):
    rows = report.records(results, "measures")
    assert len(rows) == 9
    assert rows[-1] == {
        **{"method": "hat", "seed": 2, "measure": "capacity"},
        **{"task": 3, "other": None, "value": 0.7},
    }
    assert len(report.records(results, "pairs")) == 6
    with pytest.raises(ValueError, match="what must be one of 'table', 'accuracy'"):
        report.records(results, "all")


@pytest.mark.parametrize("what", ["table", "accuracy", "measures", "pairs"])
def test_csv_and_pandas_hold_the_same_rows(results, what):
    pandas = pytest.importorskip("pandas")
    rows = report.records(results, what)
    read = list(csv.DictReader(io.StringIO(results.to_csv(what))))
    frame = results.to_pandas(what)
    assert isinstance(frame, pandas.DataFrame)
    assert [*read[0]] == [*rows[0]] == list(frame.columns)
    for text, row, (_, line) in zip(read, rows, frame.iterrows(), strict=True):
        for name, value in row.items():
            if value is None or value != value:
                assert text[name] == ""
                assert pandas.isna(line[name])
            else:
                assert text[name] == str(value)
                assert line[name] == value


def test_a_missing_pandas_is_named(results, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ImportError, match=r'pandas.*pip install "jaxcl\[report\]", or in a clone'):
        results.to_pandas()


def test_latex(results):
    text = results.to_latex()
    for line in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert text.count(line) == 1
    rows = {line.split(" & ")[0]: line for line in text.splitlines() if line.endswith(r"\\")}
    assert len(rows) == 5
    assert len({row.count(" & ") for row in rows.values()}) == 1
    bold = {name for name, row in rows.items() if r"\mathbf" in row}
    assert bold == {"HAT", "PackNet*"}  # not joint training, and not fine-tuning
    assert r"$30.0 \pm 24.8$" in rows["Fine-tuning"]
    assert rows["Joint"].split(" & ")[2] == "--"
    assert r"1\,234\,567" in rows["HAT"]


def test_names_are_text_everywhere():
    """Nothing in a name is taken for markup."""
    name = r"<script>alert(1)</script>_%&\x$"
    results = as_results(study(**{name: method([0.9] * 3)}))
    assert "<script>" not in results._repr_html_()
    assert "&lt;script&gt;" in results._repr_html_()
    label = next(line for line in results.to_latex().splitlines() if "script" in line).split(
        " & $"
    )[0]
    assert re.sub(r"\\textbackslash\{\}|\\[_%&$]", "", label) == "<script>alert(1)</script>x"


def test_a_notebook_shows_sentence_and_table(results):
    html = results._repr_html_()
    for words in ("PackNet*", "Fine-tuning forgets 30.0 points", "<strong>90.0 ± 0.0</strong>"):
        assert words in html
    assert html.count("<tr>") == 5
    assert "In bold: the best, and what cannot be told from it" in html


def test_plots_are_figures(results):
    drawn = results.plots()
    assert set(drawn) == {"accuracy", "matrix", "capacity"}
    assert all(hasattr(figure, "savefig") for figure in drawn.values())


def with_curves(results):
    loss = np.full((3, 3, 2), np.nan)
    loss[:, :, 0], loss[:, 0, 1] = 0.5, 0.25
    methods = dict(results.methods)
    methods["hat"] = methods["hat"]._replace(curves={"loss": loss})
    return results._replace(methods=methods)


def test_curves_are_written_and_drawn_where_there_are_any(results, tmp_path):
    assert report.records(results, "curves") == []
    assert "curves.csv" not in {path.name for path in results.save(tmp_path / "none")}
    curved = with_curves(results)
    rows = report.records(curved, "curves")
    assert len(rows) == 3 * 4
    assert rows[1] == {
        **{"method": "hat", "seed": 0, "task": 1, "epoch": 2, "curve": "loss", "value": 0.25}
    }
    names = {path.name for path in curved.save(tmp_path / "some")}
    assert {"curves.csv", "curves.svg", "curves.png"} <= names
    again = report.Results.load(tmp_path / "some")
    np.testing.assert_array_equal(
        again.methods["hat"].curves["loss"], curved.methods["hat"].curves["loss"]
    )
