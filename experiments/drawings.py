"""The drawings and the table of the documentation, made from the code.

`python experiments/drawings.py` writes docs/images/concept_*.svg and docs/methods.md.
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from jaxcl.methods import REGISTRY
from jaxcl.report import figures
from jaxcl.report.text import markdown

DOCS = Path(__file__).parents[1] / "docs"
TASKS = ("#0b66ad", "#00876a", "#d1550b")  # of the first, the second and the third
FREE = "#e4e7eb"
PAGE = """# Methods and scenarios

In the scenario *task* a network is told the task and has a head for it. In *domain* it is told
nothing, and one head serves all tasks; in *class* it is told nothing and tells the classes of all
tasks apart.

{table}

A method that trains in the scenario *task* alone is compared in the others with the task inferred
from the input ([data.md](data.md#three-scenarios)).

Each method's own options are in `jaxcl compare --methods NAME --help`.
"""


def table() -> str:
    """What each method of the registry trains in, and where it is published."""
    scenarios = ("task", "domain", "class")
    rows = []
    for spec in REGISTRY:
        trained = ["yes" if name in spec.scenarios else "" for name in scenarios]
        rows.append([spec.label, spec.reference or "-", spec.name, *trained])
    return PAGE.format(table=markdown(["method", "reference", "name", *scenarios], rows, left=3))


def columns(ax) -> None:
    """Three columns of two layers; laterals from the earlier ones to the last."""
    for k, color in enumerate(TASKS):
        for layer in range(2):
            _box(ax, 3 * k, 2 * layer, color, f"task {k + 1}" if layer == 0 else "")
        _arrow(ax, (3 * k + 1, 0.9), (3 * k + 1, 1.95), color)
        for j in range(k):
            _arrow(ax, (3 * j + 1.7, 0.9), (3 * k + 0.3, 1.95), color)
    ax.set(xlim=(-0.3, 8.3), ylim=(-0.3, 3.2))


def gates(ax) -> None:
    """Units of two layers, each with the color of the task that opened it first."""
    owners = [[0, 0, 1, 2, -1], [0, 1, 1, 2, -1]]
    for layer, row in enumerate(owners):
        for i, owner in enumerate(row):
            color = FREE if owner < 0 else TASKS[owner]
            ax.plot(1.5 * i, 2 * layer, "o", ms=20, color=color, zorder=3)
            for j, other in enumerate(owners[1]) if layer == 0 else ():
                last = max(owner, other)
                line = FREE if min(owner, other) < 0 else TASKS[last]
                ax.plot([1.5 * i, 1.5 * j], [0, 2], color=line, lw=0.9, zorder=1)
    ax.set(xlim=(-0.6, 6.6), ylim=(-0.6, 2.6))


def owners(ax) -> None:
    """A matrix of weights with their owners."""
    found = np.random.default_rng(3).choice(4, size=(5, 9), p=[0.25, 0.4, 0.2, 0.15])
    for (i, k), owner in np.ndenumerate(found):
        color = TASKS[owner - 1] if owner else FREE
        ax.add_patch(
            FancyBboxPatch((k, i), 0.8, 0.8, boxstyle="round,pad=0.03", fc=color, ec="none")
        )
        text = {"ha": "center", "va": "center_baseline", "color": "white" if owner else "#777777"}
        ax.text(k + 0.4, i + 0.42, str(owner) if owner else "free", fontsize=8, **text)
    ax.set(xlim=(-0.2, 9), ylim=(-0.2, 5))


def _box(ax, x: float, y: float, color: str, words: str) -> None:
    ax.add_patch(FancyBboxPatch((x, y), 2, 0.8, boxstyle="round,pad=0.05", fc=color, ec="none"))
    ax.text(x + 1, y + 0.4, words, color="white", ha="center", va="center_baseline", fontsize=9)


def _arrow(ax, start: tuple, end: tuple, color: str) -> None:
    ax.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": color, "lw": 1.2})


@figures.style()
def main() -> None:
    for name, draw in (("columns", columns), ("gates", gates), ("owners", owners)):
        figure = Figure(figsize=(5.2, 2.4), layout="constrained")
        ax = figure.subplots()
        draw(ax)
        ax.set_axis_off()
        _, png = figures.save(figure, DOCS / "images", f"concept_{name}")
        png.unlink()  # the site shows the SVG
    (DOCS / "methods.md").write_text(table(), encoding="utf-8")


if __name__ == "__main__":
    main()
