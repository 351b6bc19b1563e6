"""What a progressive network grows to: parameters, bytes and time of inference by columns.

    python experiments/pnn_growth.py                 # a minute on a laptop
    python experiments/pnn_growth.py --hidden 2000 2000

A network of k columns is built for each k; its last column runs for task k, with laterals from all
others. Parameters are those of all columns, each with the laterals that it needs. Memory is all
that the method holds to train the last column, and inference runs all of them. In both, every
column has room for laterals from k - 1 sources, so that one program serves all tasks: what is not
there yet is zero. Source: Rusu et al. (2016), Sec. 2: parameters grow quadratically with k.
"""

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import tyro
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import jaxcl
from jaxcl import masks, models
from jaxcl.report import figures
from jaxcl.report.text import markdown

MEASURES = {  # its title, and its unit over that of the title
    "parameters": ("parameters (millions)", 1e-6),
    "bytes": ("memory (MB)", 1e-6),
    "seconds": ("inference (ms)", 1e3),
}
COLORS = {"adapter": "#0b66ad", "linear": "#d1550b", "none": "#8c8c8c"}


@dataclass(frozen=True)
class Settings:
    """Everything that is chosen.

    Attributes:
        columns: most columns, so tasks.
        inputs: width of the input.
        hidden: widths of a column's hidden layers.
        classes: width of a head.
        batch: examples in a call.
        rounds: calls of each network, by turns; the fastest counts.
        out: folder of the results.
    """

    columns: int = 8
    inputs: int = 784
    hidden: tuple[int, ...] = (400, 400)
    classes: int = 10
    batch: int = 256
    rounds: int = 30
    out: Path = Path(__file__).parent / "results" / "pnn_growth"


def build(settings: Settings, lateral: str, columns: int):
    """Bytes of the method, parameters of the last column, and a call of its compiled network."""
    model = models.mlp(settings.inputs, settings.hidden, settings.classes)
    method, network = jaxcl.pnn(model, columns, None if lateral == "none" else lateral)

    @jax.jit
    def start(key):
        theta, state = method.init(key, network.init(key)[0])
        return method.begin_task(key, theta, state, columns - 1)

    theta, state = start(jax.random.key(0))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(theta))
    x = jnp.ones((settings.batch, settings.inputs))
    run = jax.jit(lambda view, x: network.apply(view, {}, x)[0])
    view = method.view(theta, state, columns - 1)
    return masks.size_bytes((theta, state)), parameters, lambda: run(view, x).block_until_ready()


def measure(settings: Settings) -> dict[str, dict[str, list]]:
    """Parameters, bytes and seconds for each kind of lateral, of 1 to `columns` columns."""
    results, calls = {}, {}
    for lateral in COLORS:
        size, last, run = zip(*(build(settings, lateral, k + 1) for k in range(settings.columns)))
        results[lateral] = {
            "parameters": [sum(last[: k + 1]) for k in range(settings.columns)],
            "bytes": list(size),
            "seconds": [float("inf")] * settings.columns,
        }
        calls |= {(lateral, k): call for k, call in enumerate(run)}
    for _ in range(settings.rounds):
        for (lateral, k), call in calls.items():
            begin = time.perf_counter()
            call()
            best = results[lateral]["seconds"]
            best[k] = min(best[k], round(time.perf_counter() - begin, 6))
    return results


@figures.style()
def plot(results: dict, settings: Settings) -> None:
    """One panel for each measure, one line for each kind of lateral."""
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    for ax, (name, (title, factor)) in zip(figure.subplots(1, 3), MEASURES.items(), strict=True):
        for lateral, color in COLORS.items():
            values = [factor * value for value in results[lateral][name]]
            ax.plot(range(1, len(values) + 1), values, "o-", ms=3, color=color, label=lateral)
        ax.set_title(title)
        ax.set_xticks(range(1, settings.columns + 1))
        ax.set_ylim(bottom=0)
    ax.legend(title="laterals", frameon=False, fontsize=8, title_fontsize=8)
    figure.supxlabel("columns", fontsize=9)
    figures.save(figure, settings.out, "growth")


def main(settings: Settings) -> None:
    """Measures, prints the table, and writes it with all numbers and the plot."""
    results, rows = measure(settings), []
    plot(results, settings)
    for k in range(settings.columns):
        rows.append([str(k + 1)])
        for name, (_, factor) in MEASURES.items():
            values = (factor * results[lateral][name][k] for lateral in COLORS)
            rows[-1].append(" / ".join(f"{value:.3g}" for value in values))
    header = ["columns", *(title for title, _ in MEASURES.values())]
    device = jax.devices()[0].device_kind
    note = f"Laterals: {' / '.join(COLORS)}. Time of a batch of {settings.batch} on {device}."
    table = Table(*header, caption=note)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    text = f"{markdown(header, rows, left=0)}\n\n{note}\n"
    (settings.out / "table.md").write_text(text, encoding="utf-8")
    numbers = {"settings": dataclasses.asdict(settings) | {"out": None}, "device": device}
    text = json.dumps(numbers | {"laterals": results})
    (settings.out / "results.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Settings))
