"""A search as a picture: a heat map of a grid, points where settings were drawn."""

import numpy as np
from matplotlib.figure import Figure

from jaxcl.report import figures
from jaxcl.report.searches import Search, number, said_of
from jaxcl.study.grids import Range

WIDE = 20  # times the lowest value, from which a logarithmic axis shows more


def figure(search: Search) -> Figure:
    """Validation accuracy of every setting."""
    sizes = [0 if isinstance(v, Range) else len(v) for v in search.swept.values()]
    return _grid(search) if len(search.settings) == np.prod(sizes) else _points(search)


def _grid(search: Search) -> Figure:
    """The last setting across, the combinations of the others down."""
    *others, last = search.swept
    across = search.swept[last]
    assert not isinstance(across, Range)
    values = search.validation.mean(axis=1).reshape(-1, len(across))
    down = [{k: v for k, v in s.items() if k != last} for s in search.settings[:: len(across)]]
    rows = [", ".join(map(number, setting.values())) for setting in down]
    return figures.heat_map(values, rows, list(map(number, across)), (", ".join(others), last))


def _points(search: Search) -> Figure:
    """A panel for each setting, its values across."""
    drawn = Figure(figsize=(2.6 * len(search.swept) + 0.6, 2.6), layout="constrained")
    panels = drawn.subplots(1, len(search.swept), squeeze=False, sharey=True)[0]
    accuracy = 100 * search.validation.mean(axis=1)
    for name, ax in zip(search.swept, panels):
        values = np.array([setting[name] for setting in search.settings])
        ax.plot(values, accuracy, "o", color="#555555", markersize=4, clip_on=False)
        if search.best is not None:
            ax.plot(values[search.best], accuracy[search.best], "o", color="#d1550b", markersize=7)
        if values.min() > 0 and values.max() > WIDE * values.min():
            ax.set_xscale("log")
        ax.set_xlabel(name.replace("_", " "))
    panels[0].set_ylabel("validation accuracy (%)")
    if search.best is not None:
        drawn.suptitle(f"best: {said_of(search.winner)}".replace("_", " "), fontsize=9)
    return drawn
