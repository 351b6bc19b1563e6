"""What was found, as sections of a web page: tables and charts of one study, or of one in several
scenarios, whose charts stand side by side.

Results come by scenario: {"": results} where there is one alone, whose page does not name it.
"""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from jaxcl.report import along, charts, html, paired, text
from jaxcl.report.charts import Chart
from jaxcl.report.colors import colors, labels
from jaxcl.report.export import records
from jaxcl.report.html import head, scroll, section
from jaxcl.report.results import Results, shown_in, summary
from jaxcl.report.scenarios import marks
from jaxcl.report.scenarios import note as scenarios_note
from jaxcl.report.scenarios import rows as scenarios_rows
from jaxcl.report.tables import WITHIN, Ledger, ledgers, share
from jaxcl.report.wording import sentence

Found = Mapping[str, Results]
Drawn = Mapping[str, Sequence[Chart]]

MEASURES = ("accuracy", "forgetting")  # of the table of several scenarios
RECORDS = ("table", "measures", "pairs")
APART = ("sequence", "capacity", "curves", "within")  # charts with a section of their own


def charts_of(found: Found) -> dict[str, list[Chart]]:
    """The charts by scenario; of several, each reads the rows of its own."""
    drawn = {name: [*charts.charts(one), *along.charts(one)] for name, one in found.items()}
    if len(found) == 1:
        return drawn
    return {name: [_of_scenario(chart, name) for chart in each] for name, each in drawn.items()}


def tables_of(found: Found) -> dict[str, list[dict[str, Any]]]:
    """The data of the page: what charts draw, and tables to save. A column names the scenario."""
    tables: dict[str, list[dict[str, Any]]] = {}
    for scenario, results in found.items():
        own = {**charts.datasets(results), **along.datasets(results)}
        own |= {name: records(results, name) for name in RECORDS}
        said = {} if len(found) == 1 else {"scenario": scenario}
        for name, rows in own.items():
            tables.setdefault(name, []).extend({**said, **row} for row in rows)
    return tables


def _of_scenario(chart: Chart, scenario: str) -> Chart:
    """The chart under a name of its own, of one scenario's rows."""
    spec = _filtered(chart.spec, {"filter": {"field": "scenario", "equal": scenario}})
    return chart._replace(spec=spec, scenario=scenario)


def _filtered(spec: Any, only: dict[str, Any]) -> Any:
    """A filter before all else, wherever data are named."""
    if isinstance(spec, list):
        return [_filtered(one, only) for one in spec]
    if not isinstance(spec, dict):
        return spec
    made = {key: _filtered(value, only) for key, value in spec.items()}
    return made | {"transform": [only, *spec.get("transform", [])]} if "data" in spec else made


# Sections


def sentences(found: Found) -> list[str]:
    """What was found, in words."""
    named = {name: f"<strong>{escape(name)}:</strong> " if name else "" for name in found}
    return [
        f'<p class="lead">{named[name]}{escape(sentence(results))}</p>'
        for name, results in found.items()
    ]


def contents(found: Found, drawn: Drawn) -> str:
    """Links to the sections."""
    names = {chart.name for each in drawn.values() for chart in each}
    parts = [("table", "Results"), ("over", "Accuracy over the sequence")]
    parts += [("matrices", "Matrices"), ("transfer", "Forgetting and transfer")]
    parts += [("ledger", "Capacity")] if "capacity" in names or _ledgers(found) else []
    parts += [("training", "Training")] if "curves" in names else []
    parts += [("within-tasks", "Within the tasks")] if "within" in names else []
    parts += [("cost", "Memory and time")]
    parts += [("paired", "Paired differences")] if any(map(_compared, found.values())) else []
    parts += [("run", "What was run"), ("settings", "Settings"), ("save", "Data")]
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title in parts)
    return f"<nav>{links}</nav>"


def sections(found: Found, drawn: Drawn, dropped: str) -> list[str]:
    """All that was found; `dropped` is a note on seeds that were left out."""
    by_name: dict[str, dict[str, Chart]] = {}
    for scenario, each in drawn.items():
        for chart in each:
            by_name.setdefault(chart.name, {})[scenario] = chart
    parts = [section("table", "Results", *_results(found, dropped)), _chips(found)]
    parts += [section("over", "Accuracy over the sequence", _same(by_name["sequence"]))]
    parts += [_matrices(found, drawn), section("transfer", "Forgetting and transfer", _ends(drawn))]
    every = _ledgers(found)
    if "capacity" in by_name or every:
        chart = [_same(by_name["capacity"])] if "capacity" in by_name else []
        parts += [section("ledger", "Capacity", *chart, *map(_ledger, every))]
    if "curves" in by_name:
        parts += [section("training", "Training", _same(by_name["curves"]))]
    if "within" in by_name:
        within = [_same(by_name["within"]), _within(found)]
        parts += [section("within-tasks", "Within the tasks", *within)]
    parts += [section("cost", "Memory and time", _costs(found))]
    if any(map(_compared, found.values())):
        parts += [section("paired", "Paired differences", *_pairs(found))]
    return parts


def _ends(drawn: Drawn) -> str:
    """What sums up each seed: the charts that have no section of their own."""
    rest = {
        scenario: [c for c in each if c.name not in APART and not c.name.startswith("matrix")]
        for scenario, each in drawn.items()
    }
    made = {s: "".join(_figure(c, c.title, c.words) for c in each) for s, each in rest.items()}
    return _beside({s: f'<div class="pair">{figures}</div>' for s, figures in made.items()})


def _beside(parts: Mapping[str, str]) -> str:
    """Scenarios side by side, each under its name; one alone as it is."""
    if len(parts) == 1 and "" in parts:
        return parts[""]
    columns = "".join(f"<div><h3>{escape(n)}</h3>{part}</div>" for n, part in parts.items())
    return f'<div class="beside">{columns}</div>'


def _same(each: Mapping[str, Chart]) -> str:
    """One chart of every scenario, with one set of controls and one caption."""
    first = next(iter(each.values()))
    caption = f"<figcaption>{escape(first.words)}</figcaption>"
    return _controls(first) + _beside({name: _figure(c) for name, c in each.items()}) + caption


def _results(found: Found, dropped: str) -> list[str]:
    """The table, and what its intervals are."""
    if len(found) == 1:
        [results] = found.values()
        said = html.caption(results) + dropped
        return [scroll(html.table(results)), f"<p><small>{escape(said)}</small></p>"]
    top = {
        (scenario, measure): paired.best(results, measure)
        for scenario, results in found.items()
        for measure in MEASURES
    }
    header = ["Method"]
    for scenario in found:
        header += [f"{scenario}: accuracy (%)", f"{scenario}: forgetting (points)"]
    rows, shown = [], shown_in(found.values())
    for method, each in scenarios_rows(found).items():
        cells = [head(shown[method].label)]
        for scenario, results in found.items():
            row, bold = each.get(scenario), {m: method in top[scenario, m] for m in MEASURES}
            said = marks(row, results) if row else ""
            cells += [html.interval(row and row.accuracy, bold["accuracy"], said)]
            cells += [html.interval(row and row.forgetting, bold["forgetting"])]
        rows.append(cells)
    said = (
        f"{scenarios_note(found)} In bold: the best of a scenario, and what cannot be told from it."
    )
    table = html.grid(header, rows, kind="sortable")
    return [scroll(table), f"<p><small>{escape(said)}</small></p>"]


def _matrices(found: Found, drawn: Drawn) -> str:
    cells = {
        scenario: [chart for chart in each if chart.name.startswith("matrix")]
        for scenario, each in drawn.items()
    }
    large = " large" if max(results.tasks for results in found.values()) > 6 else ""
    grids = {
        scenario: f'<div class="grid{large}">{"".join(_figure(c, c.title) for c in each)}</div>'
        for scenario, each in cells.items()
    }
    note = (
        "Test accuracy (%) on each task, across, after training on each task, down. Darker is "
        "better; pale cells are of tasks that are not trained yet."
    )
    controls = _controls(next(iter(cells.values()))[0])
    return section("matrices", "Accuracy matrices", f"<p>{note}</p>", controls, _beside(grids))


def _within(found: Found) -> str:
    def cells(results: Results) -> list[list[str]]:
        return [
            [
                head(row.shown.label),
                *map(html.interval, (row.anytime_accuracy, row.learning_curve_area)),
            ]
            for row in summary(results)
            if row.anytime_accuracy is not None
        ]

    return _joined(found, ["Method", *WITHIN[1:]], cells)


def _joined(
    found: Found, header: list[str], rows: Callable[[Results], list[list[str]]], tall: bool = False
) -> str:
    """One table of all scenarios, which a second column names where there are several."""
    if len(found) > 1:
        header = [header[0], "Scenario", *header[1:]]
    made = []
    for scenario, results in found.items():
        named = [] if len(found) == 1 else [f'<td class="left">{escape(scenario)}</td>']
        made += [[first, *named, *cells] for first, *cells in rows(results)]
    return scroll(html.grid(header, made, kind="plain sortable"), tall)


def _ledgers(found: Found) -> list[Ledger]:
    return [
        one._replace(title=f"{one.title}{f', {scenario}' if len(found) > 1 else ''}")
        for scenario, results in found.items()
        for one in ledgers(results)
    ]


def _chips(found: Found) -> str:
    """A button for each label, which may stand in several scenarios."""
    colored: dict[str, str] = {}
    for results in found.values():
        shown = {name: method.shown for name, method in results.methods.items()}
        color = colors(shown)
        colored |= {label: color[name] for name, label in labels(shown).items()}
    chips = "".join(
        f'<button type="button" aria-pressed="true" data-method="{escape(label)}" '
        f'data-color="{escape(color)}">{escape(label)}</button>'
        for label, color in colored.items()
    )
    return f'<div class="chips" role="group" aria-label="Methods shown in the charts">{chips}</div>'


def _figure(chart: Chart, title: str = "", words: str = "") -> str:
    """A chart, with its title and caption where they are given."""
    head = f"<h3>{escape(title)}</h3>" if title else ""
    caption = f"<figcaption>{escape(words)}</figcaption>" if words else ""
    name = f"{chart.name}-{chart.scenario}" if chart.scenario else chart.name
    return f'<figure>{head}<div class="chart" id="{escape(name)}"></div>{caption}</figure>'


def _controls(chart: Chart) -> str:
    made = []
    for signal, choices in chart.controls.items():
        values = "".join(
            f'<option value="{escape(str(value))}">{escape(said)}</option>'
            for value, said in choices
        )
        made.append(f'<label>Show <select data-signal="{escape(signal)}">{values}</select></label>')
    return "".join(made)


def _ledger(ledger: Ledger) -> str:
    rows = [
        [head(name), *(html.number(None, share(v)) for v in values)]
        for name, values in ledger.rows.items()
    ]
    table = html.grid(ledger.header, rows, kind="plain")
    return f"<h3>{escape(ledger.title)}</h3>{scroll(table)}"


def _costs(found: Found) -> str:
    """Parameters, memory and time, with a bar for each."""
    every = [method for results in found.values() for method in results.methods.values()]
    columns = {
        "Parameters": lambda method: (method.parameters, f"{method.parameters:,}"),
        "Extra memory": lambda method: (method.extra_bytes, text.size(method.extra_bytes)),
        "Time (s)": lambda method: (method.seconds, f"{method.seconds:,.1f}"),
        "Compilations": lambda method: (method.compilations, str(method.compilations)),
    }
    most = {name: max(of(method)[0] for method in every) or 1 for name, of in columns.items()}

    def cells(results: Results) -> list[list[str]]:
        return [
            [
                head(method.shown.label),
                *(_bar(*of(method), most[name]) for name, of in columns.items()),
            ]
            for method in results.methods.values()
        ]

    note = (
        "Parameters of the network once all tasks are learned; memory beyond that of plain "
        "fine-tuning; time of training all seeds, compilation included."
    )
    return f"{_joined(found, ['Method', *columns], cells)}<p><small>{note}</small></p>"


def _bar(value: float, said: str, most: float) -> str:
    bar = f'<span class="bar" style="width:{5 * value / most:.2f}em"></span>'
    return html.number(value, f"{bar} {said}")


def _compared(results: Results) -> list[paired.Pair]:
    return [pair for pair in paired.pairs(results) if pair.seeds > 1]


def _pairs(found: Found) -> list[str]:
    def cells(results: Results) -> list[list[str]]:
        called = labels({name: method.shown for name, method in results.methods.items()})
        return [
            [
                head(called[pair.first]),
                f'<td class="left">{escape(called[pair.second])}</td>',
                html.number(pair.difference.mean, escape(text.signed(pair.difference))),
                html.number(pair.p, escape(text.p_value(pair.p))),
                html.number(pair.adjusted, escape(text.p_value(pair.adjusted))),
                f"<td>{'<strong>yes</strong>' if pair.significant else 'no'}</td>",
            ]
            for pair in _compared(results)
        ]

    header = ["Method", "Compared with", "Difference (points)", "p", "p (Holm)", "Significant"]
    said = paired.note(*filter(None, map(_compared, found.values())))
    return [_joined(found, header, cells, tall=True), f"<p><small>{escape(said)}</small></p>"]
