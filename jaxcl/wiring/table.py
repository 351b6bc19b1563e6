"""The table of gates, checked against the parameters."""

import numpy as np

from jaxcl.core import masks
from jaxcl.core.checks import nearest
from jaxcl.core.model import Wiring
from jaxcl.core.trees import PyTree


def check_wiring(wiring: Wiring, params: PyTree) -> None:
    """Checks that a table fits the parameters.

    Args:
        wiring: the table.
        params: pytree of arrays, or of anything that has a shape.

    Raises:
        ValueError: naming the first entry that is no leaf, names no gate or has the wrong width,
            or the gate that no leaf feeds or none reads.

    >>> wiring = Wiring({"unit": 4}, {"head": (("unit", 1),)}, {"hidden": "unit"})
    >>> params = {"hidden": np.ones((2, 5)), "head": np.ones((5, 3))}
    >>> check_wiring(wiring, params)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: The wiring's inputs of 'head' span 4 units; expected the input axis (-2) ...
    """
    shapes = {path: np.shape(leaf) for path, leaf in masks.leaves_by_path(params).items()}
    for name, units in wiring.gates.items():
        if units < 1:
            raise ValueError(f"Gate '{name}' of the wiring has {units} units; expected 1 or more.")
    for path in [*wiring.inputs, *wiring.outputs, *wiring.groups]:
        if path not in shapes:
            raise ValueError(f"The wiring's '{path}' is no parameter{nearest(path, shapes)}.")
    read = [(path, name) for path, parts in wiring.inputs.items() for name, _ in parts if name]
    for path, name in [*read, *wiring.outputs.items()]:
        if name not in wiring.gates:
            hint = nearest(name, wiring.gates)
            raise ValueError(f"The wiring puts '{path}' on gate '{name}', which is no gate{hint}.")
    for path, groups in wiring.groups.items():
        if path not in wiring.inputs or groups < 1 or shapes[path][-1] % groups:
            raise ValueError(
                f"The wiring's groups of '{path}' must divide its {shapes[path][-1]} outputs, and "
                f"its inputs must be given; got {groups}."
            )
    for path, parts in wiring.inputs.items():
        width = sum(repeats * (wiring.gates[name] if name else 1) for name, repeats in parts)
        shape, groups = shapes[path], wiring.groups.get(path, 1)
        if len(shape) < 2 or shape[-2] * groups != width or min(r for _, r in parts) < 1:
            raise ValueError(
                f"The wiring's inputs of '{path}' span {width} units; expected the input axis (-2) "
                f"of its shape {shape}{f' times {groups} groups' if groups > 1 else ''}."
            )
    for path, name in wiring.outputs.items():
        if shapes[path][-1:] != (wiring.gates[name],):
            raise ValueError(
                f"The wiring puts '{path}' of shape {shapes[path]} on gate '{name}' with "
                f"{wiring.gates[name]} units; expected as many as its last axis has."
            )
    for name in wiring.gates:
        if name not in wiring.outputs.values():
            raise ValueError(f"No leaf in the wiring's outputs feeds gate '{name}'.")
        if name not in {gate for _, gate in read}:
            raise ValueError(f"No kernel in the wiring's inputs reads gate '{name}'.")
