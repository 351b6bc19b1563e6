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
from jaxcl.report import findings, html, inferred, text, unfinished
from jaxcl.report.charts import Chart
from jaxcl.report.html import head, scroll, section
from jaxcl.report.joining import side_by_side
from jaxcl.report.results import Results, plain
from jaxcl.report.runs import Run

HERE = Path(__file__).parent
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; form-action 'none'; base-uri 'none'"
)
LIBRARIES = (
    "Charts: Vega, Vega-Lite and Vega-Embed, copyright University of Washington Interactive Data "
    "Lab and contributors, BSD-3-Clause licence"
)
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
    results = _together(runs)
    found = {"": results} if results else {}
    what = "run" if len(runs) == 1 else "runs"
    note = _dropped(runs, results) if results else ""
    return _page(runs, found, f"{what} {text.listed([run.name for run in runs])}", note)


def scenarios_page(name: str, parts: Mapping[str, Run]) -> str:
    """One comparison in several scenarios as a web page, side by side.

    Args:
        name: of the comparison.
        parts: its runs by scenario; some may be unfinished.

    Raises:
        ImportError: if vl-convert is not installed.
    """
    found = {scenario: run.results for scenario, run in parts.items() if run.results}
    said = f"run {name} in the scenarios {text.listed(list(parts))}"
    return _page(list(parts.values()), found, said, "")


def _page(runs: Sequence[Run], found: Mapping[str, Results], said: str, note: str) -> str:
    """A page on results by scenario, "" where there is one alone."""
    first = next(iter(found.values()), None)
    title = str(first.benchmark if first else runs[0].settings.get("benchmark", runs[0].name))
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="soft">{escape(f"jaxcl: {said}")}</p>']
    parts += [unfinished.section(run) for run in runs if run.results is None]
    drawn = findings.charts_of(found)
    if found:
        parts += [*findings.sentences(found), findings.contents(found, drawn)]
        parts += findings.sections(found, drawn, note)
    if any(run.inferred or run.outdated for run in runs):
        parts.append(section("inferred", "Task inference", *map(_inferred, runs)))
    parts += [section("run", "What was run", *map(_about, runs)), _settings(runs)]
    if found:
        tables = findings.tables_of(found)
        parts += [_downloads(tables), _scripts(tables, [c for cs in drawn.values() for c in cs])]
    return _document(title, "\n".join(parts))


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


def _dropped(runs: Sequence[Run], results: Results) -> str:
    """A note on the seeds that not all runs have."""
    every = {seed for run in runs if run.results for seed in run.results.seeds}
    gone = sorted(every - set(results.seeds))
    if not gone:
        return ""
    return f" Left out, because not every run has them: seeds {text.listed(list(map(str, gone)))}."


def _inferred(run: Run) -> str:
    """What `jaxcl infer` has measured of a run's networks, or that it has to do so again."""
    parts = [f"<h3>{escape(run.name)}</h3>"] if run.inferred or run.outdated else []
    if run.inferred:
        words = (
            "The networks of a run told the task, and inferring it from the input alone; the "
            "class may be right though the task is not."
        )
        parts += [f"<p>{words}</p>", scroll(inferred.table(run.inferred))]
    if run.outdated:
        parts += [
            "<p>What was measured before the run had all its seeds and tasks is left out; "
            "<code>jaxcl infer</code> measures it again.</p>"
        ]
    return "".join(parts)


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
    return section("settings", "Settings", scroll(html.grid(header, rows, kind="left")))


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
    return section("save", "Data", f'<div class="save">{buttons}</div>')


# The page


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
