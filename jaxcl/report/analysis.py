"""What a network uses of its earlier tasks, in numbers and drawn: see `methods.analysis`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcl.core.checks import load_extra
from jaxcl.methods.analysis import AFS, APS, afs, aps, compression, reuse, transfer_score

__all__ = ["AFS", "APS", "afs", "aps", "compression", "plot", "reuse", "transfer_score"]


def plot(
    shares: Mapping[str, Any],
    folder: str | Path,
    name: str = "sensitivity",
    *,
    layers: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
) -> list[Path]:
    """Draws shares for each layer and column, one panel for each kind, as SVG and as PNG.

    Args:
        shares: for each panel's title [layers, columns], in [0, 1], such as `AFS.layers`.
        folder: where the files go; it is made if need be.
        name: of the files.
        layers: the layers' names; by default their numbers. The first is drawn lowest.
        columns: the columns' names; by default their numbers.

    Returns:
        The paths written.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    load_extra("matplotlib")
    from jaxcl.report import figures

    panels = {title: np.asarray(values, np.float64) for title, values in shares.items()}
    rows, width = next(iter(panels.values())).shape
    columns = columns or [str(k + 1) for k in range(width)]
    layers = layers or [str(i + 1) for i in range(rows)]
    return figures.save(figures.shares(panels, layers, columns), folder, name)
