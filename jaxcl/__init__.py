"""jaxcl: parameter-isolation continual learning in JAX.

`isolate` freezes single entries of any parameters around any optax optimizer; `packnet`, `hat` and
`pnn` decide which, task after task. `masks` holds the pytrees of masks. The submodules `models`,
`train`, `study`, `recipes`, `replicas`, `data`, `metrics`, `analysis`, `checkpoint` and `report`
are loaded when they are first used.
"""

import importlib

from jaxcl import masks
from jaxcl._hat import HATState, gate, hat
from jaxcl._isolate import IsolateState, isolate, set_trainable
from jaxcl._method import Method, finetune, multihead
from jaxcl._model import LateralSpec, Model
from jaxcl._packnet import PackNetState, ledger, packnet
from jaxcl._pnn import PNNState, pnn
from jaxcl.wiring import Wiring, trace_wiring

__version__ = "0.1.0"

__all__ = [
    "HATState",
    "IsolateState",
    "LateralSpec",
    "Method",
    "Model",
    "PNNState",
    "PackNetState",
    "Wiring",
    "analysis",
    "checkpoint",
    "data",
    "finetune",
    "gate",
    "hat",
    "isolate",
    "ledger",
    "masks",
    "metrics",
    "models",
    "multihead",
    "packnet",
    "pnn",
    "recipes",
    "replicas",
    "report",
    "set_trainable",
    "study",
    "trace_wiring",
    "train",
]


def __getattr__(name: str):
    if name in __all__:  # the submodules; all else is here already
        return importlib.import_module(f"jaxcl.{name}")
    raise AttributeError(f"module 'jaxcl' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
