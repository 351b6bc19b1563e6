"""Tables, one sentence and plots of a study, all computed from one JSON-like dict, the results.

It imports the rooms before it (`core` to `study`); `inference` and `cli` may import it.
"""

from jaxcl.report.results import Row, summary
from jaxcl.report.tables import markdown, table, usage
from jaxcl.report.wording import sentence
from jaxcl.report.write import plots, write

__all__ = [
    "Row",
    "markdown",
    "plots",
    "sentence",
    "summary",
    "table",
    "usage",
    "write",
]
