"""Tables, one sentence and plots of a study, all computed from one `Results`.

It imports the rooms before it (`core` to `study`); `inference` and `cli` may import it.
"""

from jaxcl.report.export import records, to_csv, to_latex, to_pandas
from jaxcl.report.paired import Pair, pairs
from jaxcl.report.reading import read
from jaxcl.report.results import MethodResults, Results, Row, Shown, summary
from jaxcl.report.scenarios import scenarios_markdown, scenarios_table, write_scenarios
from jaxcl.report.tables import markdown, table, usage, within_table
from jaxcl.report.wording import sentence
from jaxcl.report.write import draw, plots, write

__all__ = [
    "MethodResults",
    "Pair",
    "Results",
    "Row",
    "Shown",
    "draw",
    "markdown",
    "pairs",
    "plots",
    "read",
    "records",
    "scenarios_markdown",
    "scenarios_table",
    "sentence",
    "summary",
    "table",
    "to_csv",
    "to_latex",
    "to_pandas",
    "usage",
    "within_table",
    "write",
    "write_scenarios",
]
