"""Runs as one web page that needs nothing but itself: no network, no other file.

Text is escaped, and the page's own policy forbids every request. The charts are drawn by Vega-Lite,
whose code comes from the package vl-convert and is written into the page.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from jaxcl.core.checks import install, load_extra
from jaxcl.report import along, html, inferred, paired, text, unfinished
from jaxcl.report.charts import Chart, charts, datasets
from jaxcl.report.colors import colors, labels
from jaxcl.report.export import records
from jaxcl.report.html import head, scroll
from jaxcl.report.joining import side_by_side
from jaxcl.report.results import Results, plain, summary
from jaxcl.report.runs import Run
from jaxcl.report.tables import WITHIN, ledgers, share
from jaxcl.report.wording import sentence

HERE = Path(__file__).parent
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; form-action 'none'; base-uri 'none'"
)
LIBRARIES = (
    "Charts: Vega, Vega-Lite and Vega-Embed, copyright University of Washington Interactive Data "
    "Lab and contributors, BSD-3-Clause licence"
)
RECORDS = ("table", "measures", "pairs")
SAVED = {"table": "the table", "cells": "all accuracies", "measures": "the methods' measures"}
SAVED |= {"epochs": "the training curves", "pairs": "the paired differences"}


def page(runs: Sequence[Run]) -> str:
    """One or several runs as a web page.

    Args:
        runs: of `runs.open_run`. Several become one comparison, over the seeds that all have.

    Raises:
        ValueError: if runs do not fit together, or one of several is not finished.
        ImportError: if vl-convert is not installed.
    """
    names = [run.name for run in runs]
    results = _together(runs)
    title = results.benchmark if results else runs[0].settings.get("benchmark", names[0])
    parts = [f"<h1>{escape(str(title))}</h1>", f'<p class="soft">{escape(_subtitle(runs))}</p>']
    parts += [unfinished.section(run) for run in runs if run.results is None]
    drawn: list[Chart] = []
    if results:
        drawn = [*charts(results), *along.charts(results)]
        parts += [f'<p class="lead">{escape(sentence(results))}</p>', _contents(results, drawn)]
        parts += _findings(results, drawn, _dropped(runs, results))
    measured = [run for run in runs if run.inferred]
    if measured:
        words = (
            "The networks of a run told the task, and inferring it from the input alone; the "
            "class may be right though the task is not."
        )
        tables = [
            f"<h3>{escape(r.name)}</h3>{scroll(inferred.table(r.inferred))}" for r in measured
        ]
        parts.append(_section("inferred", "Task inference", f"<p>{words}</p>", *tables))
    parts += [_section("run", "What was run", *map(_about, runs)), _settings(runs)]
    if results:
        tables = {**datasets(results), **along.datasets(results)}
        tables |= {name: records(results, name) for name in RECORDS}
        parts += [_downloads(tables), _scripts(tables, drawn)]
    return _document(str(title), "\n".join(parts))


def _together(runs: Sequence[Run]) -> Results | None:
    if len(runs) == 1:
        return runs[0].results
    for run in runs:
        if run.results is None:
            raise ValueError(f"the run {run.name} is not finished, so nothing compares with it.")
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise ValueError(f"two runs are called {max(names, key=names.count)}; rename a folder.")
    return side_by_side({run.name: run.results for run in runs if run.results})


def _subtitle(runs: Sequence[Run]) -> str:
    return f"jaxcl: {'run' if len(runs) == 1 else 'runs'} {text.listed([r.name for r in runs])}"


def _dropped(runs: Sequence[Run], results: Results) -> str:
    """A note on the seeds that not all runs have."""
    every = {seed for run in runs if run.results for seed in run.results.seeds}
    gone = sorted(every - set(results.seeds))
    if not gone:
        return ""
    return f" Left out, because not every run has them: seeds {text.listed(list(map(str, gone)))}."


# What was found


def _contents(results: Results, drawn: Sequence[Chart]) -> str:
    parts = [("table", "Results"), ("over", "Accuracy over the sequence")]
    parts += [("matrices", "Matrices"), ("transfer", "Forgetting and transfer")]
    parts += [("ledger", "Capacity")] if _has_ledger(results, drawn) else []
    parts += [("training", "Training")] if any(c.name == "curves" for c in drawn) else []
    parts += (
        [("within-tasks", "Within the tasks")] if any(c.name == "within" for c in drawn) else []
    )
    parts += [("cost", "Memory and time")]
    parts += [("paired", "Paired differences")] if _compared(results) else []
    parts += [("run", "What was run"), ("settings", "Settings"), ("save", "Data")]
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title in parts)
    return f"<nav>{links}</nav>"


def _findings(results: Results, drawn: Sequence[Chart], dropped: str) -> list[str]:
    by_name = {chart.name: chart for chart in drawn}
    caption = f"<p><small>{escape(html.caption(results) + dropped)}</small></p>"
    table = scroll(html.table(results))
    parts = [_section("table", "Results", table, caption), _chips(results)]
    parts.append(
        _section("over", "Accuracy over the sequence", _figure(by_name["sequence"], title=False))
    )
    cells = [chart for chart in drawn if chart.name.startswith("matrix")]
    grid = "\n".join(_figure(chart, caption=False) for chart in cells)
    note = (
        "Test accuracy (%) on each task, across, after training on each task, down. Darker is "
        "better; pale cells are of tasks that are not trained yet."
    )
    parts.append(
        _section(
            "matrices", "Accuracy matrices", f"<p>{note}</p>", _controls(cells[0]),
            f'<div class="grid{" large" if results.tasks > 6 else ""}">{grid}</div>',
        )
    )  # fmt: skip
    apart = ("sequence", "capacity", "curves", "within")
    rest = [c for c in drawn if c not in cells and c.name not in apart]
    pair = f'<div class="pair">{"".join(map(_figure, rest))}</div>'
    parts.append(_section("transfer", "Forgetting and transfer", pair))
    if _has_ledger(results, drawn):
        chart = [_figure(by_name["capacity"], title=False)] if "capacity" in by_name else []
        parts.append(_section("ledger", "Capacity", *chart, *map(_ledger, ledgers(results))))
    if "curves" in by_name:
        parts.append(_section("training", "Training", _figure(by_name["curves"], title=False)))
    if "within" in by_name:
        parts.append(_section("within-tasks", "Within the tasks", *_within(results, by_name)))
    parts.append(_section("cost", "Memory and time", _costs(results)))
    if _compared(results):
        parts.append(_section("paired", "Paired differences", *_pairs(results)))
    return parts


def _within(results: Results, by_name: Mapping[str, Chart]) -> list[str]:
    rows = [
        [
            head(row.shown.label),
            *map(html.interval, (row.anytime_accuracy, row.learning_curve_area)),
        ]
        for row in summary(results)
        if row.anytime_accuracy is not None
    ]
    table = html.grid(["Method", *WITHIN[1:]], rows, kind="plain sortable")
    return [_figure(by_name["within"], title=False), scroll(table)]


def _has_ledger(results: Results, drawn: Sequence[Chart]) -> bool:
    return any(chart.name == "capacity" for chart in drawn) or bool(ledgers(results))


def _chips(results: Results) -> str:
    shown = {name: method.shown for name, method in results.methods.items()}
    colored = colors(shown)
    chips = "".join(
        f'<button type="button" aria-pressed="true" data-method="{escape(label)}" '
        f'data-color="{escape(colored[name])}">{escape(label)}</button>'
        for name, label in labels(shown).items()
    )
    return f'<div class="chips" role="group" aria-label="Methods shown in the charts">{chips}</div>'


def _figure(chart: Chart, title: bool = True, caption: bool = True) -> str:
    named = chart.controls and caption
    head = f"<h3>{escape(chart.title)}</h3>" if title else ""
    words = f"<figcaption>{escape(chart.words)}</figcaption>" if caption else ""
    return (
        f"<figure>{head}{_controls(chart) if named else ''}"
        f'<div class="chart" id="{escape(chart.name)}"></div>{words}</figure>'
    )


def _controls(chart: Chart) -> str:
    made = []
    for signal, choices in chart.controls.items():
        values = "".join(
            f'<option value="{escape(str(value))}">{escape(said)}</option>'
            for value, said in choices
        )
        made.append(f'<label>Show <select data-signal="{escape(signal)}">{values}</select></label>')
    return "".join(made)


def _ledger(ledger: Any) -> str:
    rows = [
        [head(name), *(html.number(None, share(v)) for v in values)]
        for name, values in ledger.rows.items()
    ]
    table = html.grid(ledger.header, rows, kind="plain")
    return f"<h3>{escape(ledger.title)}</h3>{scroll(table)}"


def _costs(results: Results) -> str:
    """Parameters, memory and time, with a bar for each."""
    methods = list(results.methods.values())
    columns = {
        "Parameters": [(method.parameters, f"{method.parameters:,}") for method in methods],
        "Extra memory": [(method.extra_bytes, text.size(method.extra_bytes)) for method in methods],
        "Time (s)": [(method.seconds, f"{method.seconds:,.1f}") for method in methods],
        "Compilations": [(method.compilations, str(method.compilations)) for method in methods],
    }
    rows = []
    for i, method in enumerate(methods):
        cells = [head(method.shown.label)]
        for values in columns.values():
            value, said = values[i]
            width = 5 * value / (max(v for v, _ in values) or 1)
            bar = f'<span class="bar" style="width:{width:.2f}em"></span>'
            cells.append(html.number(value, f"{bar} {said}"))
        rows.append(cells)
    note = (
        "Parameters of the network once all tasks are learned; memory beyond that of plain "
        "fine-tuning; time of training all seeds, compilation included."
    )
    table = html.grid(["Method", *columns], rows, kind="plain sortable")
    return f"{scroll(table)}<p><small>{note}</small></p>"


def _compared(results: Results) -> list[paired.Pair]:
    return [pair for pair in paired.pairs(results) if pair.seeds > 1]


def _pairs(results: Results) -> list[str]:
    found = _compared(results)
    called = labels({name: method.shown for name, method in results.methods.items()})
    rows = [
        [
            head(called[pair.first]),
            f'<td class="left">{escape(called[pair.second])}</td>',
            html.number(pair.difference.mean, escape(text.signed(pair.difference))),
            html.number(pair.p, escape(text.p_value(pair.p))),
            html.number(pair.adjusted, escape(text.p_value(pair.adjusted))),
            f"<td>{'<strong>yes</strong>' if pair.significant else 'no'}</td>",
        ]
        for pair in found
    ]
    header = ["Method", "Compared with", "Difference (points)", "p", "p (Holm)", "Significant"]
    table = html.grid(header, rows, kind="plain sortable")
    return [scroll(table, tall=True), f"<p><small>{escape(paired.note(found))}</small></p>"]


# What was run


def _about(run: Run) -> str:
    settings, devices = run.settings, Counter(run.devices)
    facts = {
        "Benchmark": settings.get("benchmark"),
        "Tasks": settings.get("tasks"),
        "Seeds": text.listed([str(s) for s in run.results.seeds]) if run.results else
        settings.get("seeds"),
        "Scenario": settings.get("scenario"),
        "Devices": ", ".join(f"{count} x {kind}" for kind, count in devices.items()),
        "Versions": ", ".join(f"{name} {version}" for name, version in run.versions.items()),
    }  # fmt: skip
    if run.results and run.results.chance is not None:
        facts["Chance level"] = f"{text.percent(run.results.chance)}%"
    lines = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>"
        for name, value in facts.items()
        if value not in (None, "")
    )
    return f"<h3>{escape(run.name)}</h3><pre>{escape(run.command)}</pre><dl>{lines}</dl>"


def _settings(runs: Sequence[Run]) -> str:
    """All settings, a column for each run."""
    columns = [_flat(run.settings) for run in runs]
    rows = []
    for name in dict.fromkeys(name for column in columns for name in column):
        values = [column.get(name, "") for column in columns]
        differ = ' class="best"' if len(set(values)) > 1 else ""
        cells = [f"<td{differ}>{escape(value)}</td>" for value in values]
        rows.append([head(name), *cells])
    header = ["Setting", *(run.name if len(runs) > 1 else "Value" for run in runs)]
    return _section("settings", "Settings", scroll(html.grid(header, rows, kind="left")))


def _flat(settings: dict[str, Any]) -> dict[str, str]:
    found = {}
    for name, value in settings.items():
        if name == "options" and isinstance(value, dict):
            for method, options in value.items():
                own = options.items() if isinstance(options, dict) else ()
                found |= {f"{method}.{option}": json.dumps(v) for option, v in own}
        else:
            found[name] = value if isinstance(value, str) else json.dumps(plain(value))
    return found


def _downloads(tables: Mapping[str, list]) -> str:
    buttons = "".join(
        f'<button type="button" data-table="{name}">Save {said} as CSV</button>'
        for name, said in SAVED.items()
        if tables.get(name)
    )
    return _section("save", "Data", f'<div class="save">{buttons}</div>')


# The page


def _section(name: str, title: str, *parts: str) -> str:
    return f'<section id="{name}"><h2>{escape(title)}</h2>\n' + "\n".join(parts) + "\n</section>"


def _scripts(tables: Mapping[str, list], drawn: Sequence[Chart]) -> str:
    """The data, the charts, and what draws them."""
    data = {name: _columns(rows) for name, rows in tables.items() if rows}
    specs = [chart._asdict() | {"controls": None} for chart in drawn]
    library = load_extra("vl_convert", install("report")).javascript_bundle()
    return (
        f"{_json('data', data)}\n{_json('charts', specs)}\n"
        f'<script type="module">/* {LIBRARIES} */\n{_script(library)}\n'
        f"{_script((HERE / 'page.js').read_text(encoding='utf-8'))}</script>"
    )


def _document(title: str, body: str) -> str:
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">\n'
        f'<meta name="generator" content="jaxcl">\n<title>{escape(title)}</title>\n'
        f"<style>\n{(HERE / 'page.css').read_text(encoding='utf-8')}</style>\n</head>\n<body>\n"
        f"<noscript><p>The charts need JavaScript; the tables do not.</p></noscript>\n"
        f"<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _columns(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"columns": [*rows[0]], "rows": [[*row.values()] for row in rows]}


def _json(name: str, value: Any) -> str:
    """Data in the page, in which nothing ends the element that holds it."""
    said = json.dumps(plain(value), separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{said}</script>'


def _script(code: str) -> str:
    """Code in the page: the end of the element can only stand in its strings and patterns."""
    return code.replace("</script", r"<\/script").replace("<!--", r"<\!--")
