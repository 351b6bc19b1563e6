"""The report says what the numbers say: rows, sentences in every case, files."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxcl import report
from jaxcl.report.results import as_results
from tests.report.studies import method, study

matplotlib = pytest.importorskip("matplotlib")
rich_console = pytest.importorskip("rich.console")


@pytest.fixture
def results():
    used = [[0.5, 0.75, 0.875]] * 3
    return study(
        finetune=method([0.5, 0.6, 0.7]),
        joint=method([0.91, 0.91, 0.91], best=0.91),
        pnn=method([0.9, 0.9, 0.9]),
        hat=method([0.898, 0.898, 0.898], capacity=[[0.2, 0.4, x] for x in (0.5, 0.6, 0.7)]),
        packnet=method([0.89, 0.89, 0.89], best=0.89, capacity=used),
    )


def test_summary_by_hand(results):
    rows = {row.method: row for row in report.summary(results)}
    assert list(rows) == ["finetune", "joint", "pnn", "hat", "packnet"]
    row = rows["finetune"]
    # The seeds forget 0.4, 0.3 and 0.2; t(0.975, 2) = 4.3027, times 0.1 / sqrt(3).
    np.testing.assert_allclose(row.forgetting, (0.3, 0.248414), rtol=1e-5)
    np.testing.assert_allclose(row.backward_transfer, (-0.3, 0.248414), rtol=1e-5)
    np.testing.assert_allclose(row.accuracy.mean, (2 * 0.6 + 0.9) / 3)
    assert (row.parameters, row.extra_bytes, row.capacity, row.seconds) == (
        1234567,
        2048,
        None,
        12.34,
    )
    assert rows["joint"].forgetting is None
    assert rows["joint"].backward_transfer is None
    np.testing.assert_allclose(rows["hat"].capacity, (0.6, 0.248414), rtol=1e-5)


def test_markdown(results):
    lines = report.markdown(results).splitlines()
    assert len({line.count("|") for line in lines[:7]}) == 1
    assert lines[2] == (
        "| Fine-tuning | 70.0 ± 16.6 | 30.0 ± 24.8 | -30.0 ± 24.8 | 1,234,567 | 2.0 kB | - | 12.3 |"
    )
    assert "| - | - |" in lines[3]
    assert "95% interval (Student t) over 3 seeds" in lines[-1]


def test_markdown_never_shows_minus_zero_and_escapes_bars():
    text = report.markdown(study(seeds=1, **{"a|b": method([0.89999])}))
    assert "-0.0" not in text
    assert "| a\\|b | 90.0 | 0.0 | 0.0 |" in text
    assert "no intervals" in text


def printed(results):
    console = rich_console.Console(width=80, file=io.StringIO())
    console.print(report.table(results))
    return console.file.getvalue()


def test_table_fits_a_terminal(results):
    text = printed(results)
    for word in ("Fine-tuning", "-30.0±24.8", "1,234,567", "87.5±0.0", "forgetting", "parameters"):
        assert word in text


def test_method_names_are_no_markup():
    assert "hat[bold]" in printed(study(**{"hat[bold]": method([0.9, 0.9, 0.9])}))


KEEPS, FORGETS = method([0.9, 0.9, 0.9]), method([0.6, 0.61, 0.59])
JOINT = method([0.91, 0.91, 0.91], best=0.91)
SENTENCES = {
    "all": (
        study(finetune=FORGETS, joint=JOINT, pnn=KEEPS, hat=method([0.898] * 3), packnet=KEEPS),
        "Fine-tuning forgets 30.0 points on average and ends at 70.0% accuracy; PNN, HAT and "
        "PackNet forget 0.0, 0.2 and 0.0 and end within 1.2 points of joint training (91.0%). "
        "By paired t-tests with Holm's correction, PNN is significantly more accurate than "
        "fine-tuning and HAT, but not than PackNet.",
    ),
    "no reference": (
        study(finetune=FORGETS, hat=KEEPS),
        "Fine-tuning forgets 30.0 points on average and ends at 70.0% accuracy; HAT forgets "
        "nothing and ends at 90.0%. By a paired t-test, HAT is significantly more accurate than "
        "fine-tuning.",
    ),
    "no fine-tuning": (
        study(pnn=KEEPS, hat=FORGETS),
        "PNN and HAT forget 0.0 and 30.0 points on average and end at 90.0 and 70.0% accuracy. By "
        "a paired t-test, PNN is significantly more accurate than HAT.",
    ),
    "far from joint training": (
        study(joint=JOINT, pnn=KEEPS, hat=FORGETS),
        "PNN and HAT forget 0.0 and 30.0 points on average and end at 90.0 and 70.0% accuracy; "
        "joint training ends at 91.0%. By paired t-tests with Holm's correction, PNN is "
        "significantly more accurate than HAT.",
    ),
    "only fine-tuning": (
        study(finetune=FORGETS),
        "Fine-tuning forgets 30.0 points on average and ends at 70.0% accuracy.",
    ),
    "only joint training": (study(joint=JOINT), "Joint training ends at 91.0% accuracy."),
    "an unknown name keeps its letters": (
        study(mine=KEEPS),
        "mine forgets nothing and ends at 90.0% accuracy.",
    ),
    "one seed": (
        study(seeds=1, finetune=method([0.6]), hat=method([0.6])),
        "On one seed, fine-tuning forgets 30.0 points on average and ends at 70.0% accuracy; HAT "
        "forgets 30.0 and ends at 70.0%.",
    ),
    "one task": (
        study(tasks=1, seeds=2, hat=method([0, 0], tasks=1), joint=method([0, 0], tasks=1)),
        "With one task and so nothing to forget, HAT ends within 0.0 points of joint training "
        "(90.0%).",
    ),
    "intervals overlap": (
        study(finetune=method([0.5, 0.6, 0.7]), hat=method([0.6, 0.7, 0.8]), pnn=KEEPS),
        "Fine-tuning forgets 30.0 points on average and ends at 70.0% accuracy; HAT and PNN forget "
        "20.0 and 0.0 and end at 76.7 and 90.0%; in forgetting, the 95% interval of HAT overlaps "
        "that of fine-tuning. By paired t-tests with Holm's correction, no other method differs "
        "significantly in accuracy from PNN.",
    ),
    "two overlap": (
        study(finetune=FORGETS, hat=FORGETS, pnn=FORGETS),
        "Fine-tuning forgets 30.0 points on average and ends at 70.0% accuracy; HAT and PNN forget "
        "30.0 and 30.0 and end at 70.0 and 70.0%; in forgetting, the 95% intervals of HAT and PNN "
        "overlap that of fine-tuning. By paired t-tests with Holm's correction, no other method "
        "differs significantly in accuracy from fine-tuning.",
    ),
    "nothing is exactly nothing": (
        study(seeds=1, finetune=method([0.6]), hat=method([0.89999]), pnn=method([0.9])),
        "On one seed, fine-tuning forgets 30.0 points on average and ends at 70.0% accuracy; HAT "
        "and PNN forget under 0.1 and 0.0 and end at 90.0 and 90.0%.",
    ),
    "two that are alike": (
        study(hat=KEEPS, pnn=KEEPS),
        "HAT and PNN forget nothing and end at 90.0 and 90.0% accuracy. By a "
        "paired t-test, PNN does not differ significantly in accuracy from HAT.",
    ),
    "earlier tasks improve": (
        study(pnn=method([0.95, 0.95, 0.95])),
        "PNN forgets -5.0 points on average (below zero: old tasks improved) and ends at 93.3% "
        "accuracy.",
    ),
    "a failed run": (
        study(hat=KEEPS, pnn=method([np.nan, 0.9, 0.9])),
        "HAT forgets nothing and ends at 90.0% accuracy; PNN has no finite result.",
    ),
    "only failed runs": (
        study(hat=method([np.nan] * 3), pnn=method([np.nan] * 3)),
        "HAT and PNN have no finite result.",
    ),
}


@pytest.mark.parametrize("case", SENTENCES)
def test_sentence(case):
    results, expected = SENTENCES[case]
    assert report.sentence(results) == expected


def test_a_matrix_of_which_the_end_alone_is_known():
    """It has an accuracy and no forgetting, and is not said to have failed."""
    end = method([0.5, 0.6, 0.7])
    accuracy = np.array(end["accuracy"])
    accuracy[:, :-1] = np.nan
    found = study(finetune=method([0.1] * 3), hat=method([0.9] * 3), den=end | {"inferred": "x"})
    found["methods"]["den"]["accuracy"] = accuracy.tolist()
    rows = report.summary(found)
    assert [row.forgetting is None for row in rows] == [False, False, True]
    said = report.sentence(found)
    assert "HAT forgets nothing and ends at 90.0%; DEN ends at 70.0%" in said
    assert "| DEN | 70.0 ± 16.6 | - | - |" in report.markdown(found)
    assert as_results(found).methods["den"].inferred == "x"


def test_what_is_forgotten_and_won_back_is_not_nothing():
    """Forgetting is 0 on average, and the first task is not what it was in between."""
    kept, swayed = method([0.9, 0.9, 0.9]), method([0.9, 0.9, 0.9])
    accuracy = np.array(swayed["accuracy"])
    accuracy[:, 1, 0], accuracy[:, -1, 0], accuracy[:, -1, 1] = 0.9, 0.8, 1.0
    swayed["accuracy"] = accuracy.tolist()
    rows = report.summary(study(hat=kept, pnn=swayed))
    assert abs(rows[1].forgetting.mean) < 1e-12
    assert [row.keeps_all for row in rows] == [True, False]


def test_within_is_rounded_up():
    near = method([0.8988, 0.8988, 0.8988], best=0.8988)  # 1.12 points below 0.91
    assert "within 1.2 points" in report.sentence(study(joint=JOINT, hat=near))


def test_write(results, tmp_path):
    paths = report.write(results, tmp_path / "new" / "folder")
    names = [path.name for path in paths]
    assert names == [
        "results.json",
        "table.md",
        *(
            f"{plot}.{kind}"
            for plot in ("accuracy", "matrix", "capacity")
            for kind in ("svg", "png")
        ),
    ]
    assert sorted(names) == sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    text = (tmp_path / "new" / "folder" / "table.md").read_text(encoding="utf-8")
    assert text.startswith("# digits\n\nFine-tuning forgets 30.0 points")
    again = json.loads(paths[0].read_text())
    assert again["settings"] == {"epochs": 2, "sizes": [3, 4]}
    assert report.summary(again) == report.summary(results)
    assert report.markdown(again) == report.markdown(results)


def test_unmeasured_entries_become_null_and_come_back(tmp_path):
    hat = method([0.9, 0.9, 0.9])
    hat["accuracy"] = np.where(np.tri(3, dtype=bool), hat["accuracy"], np.nan)  # an array, with nan
    path = report.write(study(hat=hat), tmp_path)[0]
    again = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert again["methods"]["hat"]["accuracy"][0] == [
        [0.9, None, None],
        [0.9, 0.9, None],
        [0.9] * 3,
    ]
    assert report.summary(again)[0].forgetting.mean == 0


def test_plots_are_the_same_bytes_whatever_the_style_and_leave_it_alone(tmp_path):
    results = study(hat=method([0.7, 0.8, 0.9], capacity=[[0.2, 0.4, x] for x in (0.5, 0.6, 0.7)]))
    first = report.plots(results, tmp_path / "a")
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red"}):
        before = dict(matplotlib.rcParams)
        second = report.plots(results, tmp_path / "b")
        assert dict(matplotlib.rcParams) == before
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert "<dc:date>" not in (tmp_path / "a" / "accuracy.svg").read_text()


def test_a_heat_map_leaves_out_what_diverged():
    from jaxcl.report import figures

    for values, bold in (([[0.2, np.nan, 0.9]], ["90.0"]), ([[np.nan, np.nan]], [])):
        [ax] = figures.heat_map(
            np.array(values), [""], list("abc"[: len(values[0])]), ("", "x")
        ).axes
        assert [t.get_text() for t in ax.texts if t.get_fontweight() == "bold"] == bold
        assert len(ax.texts) == np.isfinite(values).sum()


def test_extras_are_loaded_when_used_and_pyplot_never(tmp_path):
    code = f"""
import sys
from jaxcl import report
assert not {{"matplotlib", "rich"}} & set(sys.modules), "loaded at import"
report.plots({study(hat=method([0.9] * 3)) | {"settings": {}}!r}, {str(tmp_path)!r})
assert "matplotlib.pyplot" not in sys.modules, "pyplot was loaded"
"""
    path = os.pathsep.join(
        [str(Path(report.__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": path})


@pytest.mark.parametrize(
    "results",
    [
        study(tasks=1, seeds=1, hat=method([0], tasks=1, capacity=[[0.3]])),
        study(tasks=12, seeds=2, mine=method([0.9, 0.8], tasks=12), hat=method([0, 0], tasks=12)),
        study(**dict.fromkeys("abcdef", KEEPS)),
        study(hat=KEEPS, pnn=method([np.nan, 0.9, 0.9])),
        study(mine=method([0.9] * 3, capacity=[[1.0] * 3] * 3), joint=JOINT),
    ],
    ids=["one task, one seed", "many tasks", "many methods", "failed run", "unknown method"],
)
def test_plots_of_unusual_studies(results, tmp_path):
    paths = report.plots(results, tmp_path)
    capacity = any(method["capacity"] for method in results["methods"].values())
    assert len(paths) == (6 if capacity else 4)
    assert all(path.stat().st_size > 1000 for path in paths)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": {}}, "at least one method"),
        ({"tasks": 4}, r"methods/hat/accuracy must have shape \(3, 4, 4\).* has \(3, 3, 3\)"),
        ({"seeds": [0]}, r"methods/hat/accuracy must have shape \(1, 3, 3\)"),
        (
            {"methods": {"hat": method([0.9] * 3, capacity=[0.1, 0.2, 0.3])}},
            r"methods/hat/capacity must have shape \(3, 3\).* has \(3,\)",
        ),
    ],
)
def test_results_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        report.summary(study(hat=KEEPS) | change)


@pytest.mark.parametrize(
    ("module", "call"),
    [("rich", report.table), ("matplotlib", lambda results: report.plots(results, "nowhere"))],
)
def test_a_missing_extra_is_named(module, call, monkeypatch):
    for name in [name for name in sys.modules if re.match(rf"{module}(\.|$)", name)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)  # Python's own mark of "cannot be imported"
    with pytest.raises(ImportError, match=rf'{module}.*pip install "jaxcl\[experiments\]"'):
        call(study(hat=KEEPS))


def test_tasks_that_taught_nothing_are_counted_though_the_mean_is_above_chance():
    """Four of five tasks at chance after their own training, the last one learned."""
    accuracy = np.full((3, 5, 5), 0.5)
    accuracy[:, -1, -1] = 0.98
    silent = method([0.5] * 3, tasks=5) | {"accuracy": accuracy.tolist()}
    said = report.sentence(study(tasks=5, packnet=silent) | {"chance": 0.5})
    assert "PackNet learns nothing in 4 of 5 tasks" in said
    assert "learns nothing" not in report.sentence(
        study(tasks=5, packnet=method([0.5] * 3, tasks=5)) | {"chance": 0.5}
    )


def test_tasks_of_one_class_are_at_no_chance_level():
    alone = method([1.0] * 3)
    assert "chance" in report.sentence(study(hat=alone) | {"chance": 0.99})
    assert "chance" not in report.sentence(study(hat=alone) | {"chance": 1.0})


def test_a_layer_without_units_is_said():
    units = np.full((3, 3), 7)
    units[1, 2] = 0
    dead = method([0.9] * 3) | {"measures": {"fewest_units": units.tolist()}}
    said = report.sentence(study(hat=dead))
    assert "HAT closes a whole layer in 1 task of 9 trained" in said
    dead["measures"]["fewest_units"][1][2] = 1
    assert "closes" not in report.sentence(study(hat=dead))
