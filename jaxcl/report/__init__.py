"""Tables, one sentence and plots of a study, all computed from one JSON-like dict, the results.

It imports the rooms before it (`core` to `study`); only `cli` may import it.
"""

from jaxcl.report.write import (
    Row,
    markdown,
    plots,
    sentence,
    summary,
    table,
    usage,
    write,
)

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
