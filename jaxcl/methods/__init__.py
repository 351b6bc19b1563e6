"""The methods, a file for each paper: its mathematics, its options, and how it is shown.

It imports `core` and `wiring`; `study`, `report` and `cli` may import it.
"""

from collections.abc import Sequence

from jaxcl.core.checks import nearest
from jaxcl.methods import (
    agem,
    cpg,
    den,
    der,
    er,
    ewc,
    expandnet,
    finetune,
    hat,
    lwf,
    mas,
    packnet,
    pnn,
    si,
)
from jaxcl.methods.spec import Built, NoOptions, Problem, Spec, check_spec, option

__all__ = ["REGISTRY", "Built", "NoOptions", "Problem", "Spec", "find", "option"]

REGISTRY: tuple[Spec, ...] = (
    finetune.SPEC,
    finetune.JOINT,
    pnn.INDEPENDENT,
    pnn.SPEC,
    hat.SPEC,
    packnet.SPEC,
    ewc.SPEC,
    si.SPEC,
    mas.SPEC,
    lwf.SPEC,
    er.SPEC,
    agem.SPEC,
    der.SPEC,
    der.PLUSPLUS,
    expandnet.SPEC,
    cpg.SPEC,
    den.SPEC,
)


def find(method: str | Spec) -> Spec:
    """The Spec of that name; a Spec of a user's own is checked and given back.

    Raises:
        ValueError: for a name that no method has, or a Spec that lacks something.

    >>> find("joint").label
    'Joint'
    """
    if not isinstance(method, str):
        return check_spec(method)
    known = {spec.name: spec for spec in REGISTRY}
    if method not in known:
        raise ValueError(
            f"unknown method {method!r}{nearest(method, known)}; the methods are "
            f"{', '.join(known)}."
        )
    return known[method]


def check_distinct(specs: Sequence[Spec]) -> None:
    """Raises ValueError if two methods have one name, or mean different things by one option."""
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two methods are called {name!r}; each needs a name of its own.")
