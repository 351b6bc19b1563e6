"""Scenarios side by side: one table and one plot."""

import numpy as np

from jaxcl import report
from jaxcl.report import findings
from jaxcl.report.results import as_results
from tests.report.studies import method, study


def found():
    task = as_results(study(finetune=method([0.8, 0.7, 0.6]), hat=method([0.9] * 3)))
    alone = as_results(study(finetune=method([0.2, 0.3, 0.4])))
    return {"task": task._replace(chance=0.5), "class": alone._replace(chance=0.1)}


def test_a_line_for_each_method_and_two_columns_for_each_scenario():
    header, _, *lines = report.scenarios_markdown(found()).splitlines()
    assert header.count("|") == 6 and "class accuracy (%)" in header
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[:2]]
    assert [row[0] for row in cells] == ["Fine-tuning", "HAT"]
    ends = np.array([0.2, 0.3, 0.4]) * 2 / 3 + 0.9 / 3
    assert cells[0][3].startswith(f"{100 * ends.mean():.1f} ")
    assert cells[1][3:] == ["-", "-"]


def test_what_is_inferred_is_marked():
    both = found()
    hat = both["task"].methods["hat"]
    shown = hat.shown._replace(label="HAT (inferred)")
    methods = {**both["class"].methods, "hat": hat._replace(inferred="energy", shown=shown)}
    both["class"] = both["class"]._replace(methods=methods)
    order = {"class": both["class"], "task": both["task"]}
    page = report.scenarios_markdown(order)
    [line] = [line for line in page.splitlines() if line.startswith("| HAT |")]
    assert line.startswith("| HAT | 90.0 ± 0.0† |") and line.count("†") == 1
    assert "† Trained told the task, which is then inferred from the input (energy)." in page
    assert "†" not in report.scenarios_markdown(found())
    table = findings.sections(order, findings.charts_of(order), "")[0]
    assert table.count("†</") == 1 and ">HAT</th>" in table


def test_what_diverged_is_named_with_its_scenario():
    both = found()
    one = both["class"].methods["finetune"]
    methods = {"finetune": one._replace(diverged=[(2, 1), None, None])}
    both["class"] = both["class"]._replace(methods=methods)
    page = report.scenarios_markdown(both)
    assert r"class: \* Fine-tuning diverged: seed 0 in task 2, epoch 1" in page
    assert page.count("95% interval") == 1


def test_the_files_are_the_same_bytes_again(tmp_path):
    first = report.write_scenarios(found(), tmp_path / "a")
    again = report.write_scenarios(found(), tmp_path / "b")
    assert [p.name for p in first] == ["table.md", "scenarios.svg", "scenarios.png"]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in again]
    drawn = first[1].read_text()
    assert "HAT" in drawn or "<path" in drawn
