"""jaxcl: parameter-isolation continual learning in JAX.

`isolate` freezes single entries of any parameters around any optax optimizer; `packnet`, `hat` and
`pnn` decide which, task after task. `masks` holds the pytrees of masks. `load` opens a run, `infer`
tells the task of an example. The modules `models`, `train`, `study`, `recipes`, `replicas`, `data`,
`metrics`, `analysis`, `checkpoint`, `report` and `inference`, and the functions `load`, `save`,
`infer` and `calibrate`, are loaded when they are first used.
"""

import importlib
from typing import TYPE_CHECKING

from jaxcl import wiring
from jaxcl.core import masks
from jaxcl.core.heads import multihead
from jaxcl.core.isolate import IsolateState, isolate, set_trainable
from jaxcl.core.method import Method
from jaxcl.core.model import LateralSpec, Model
from jaxcl.methods.agem import agem
from jaxcl.methods.cpg import CPGState, cpg
from jaxcl.methods.den import DENOptions, DENState, den
from jaxcl.methods.der import der, derpp
from jaxcl.methods.er import er
from jaxcl.methods.ewc import ewc
from jaxcl.methods.expandnet import ExpandNetState, expandnet
from jaxcl.methods.finetune import finetune
from jaxcl.methods.hat import HATState, gate, hat
from jaxcl.methods.lwf import lwf
from jaxcl.methods.mas import mas
from jaxcl.methods.packnet import PackNetState, ledger, packnet
from jaxcl.methods.pnn import PNNState, pnn
from jaxcl.methods.si import si
from jaxcl.wiring import Wiring, trace_wiring

if TYPE_CHECKING:
    from jaxcl import data, inference, models, report, study, testing, train
    from jaxcl.inference.runs import load
    from jaxcl.inference.saved import save
    from jaxcl.inference.tasks import calibrate, infer
    from jaxcl.report import analysis, metrics
    from jaxcl.study import checkpoint, recipes, replicas

__version__ = "0.1.0"

__all__ = [
    "CPGState",
    "DENOptions",
    "DENState",
    "ExpandNetState",
    "HATState",
    "IsolateState",
    "LateralSpec",
    "Method",
    "Model",
    "PNNState",
    "PackNetState",
    "Wiring",
    "agem",
    "analysis",
    "calibrate",
    "checkpoint",
    "cpg",
    "data",
    "den",
    "der",
    "derpp",
    "er",
    "ewc",
    "expandnet",
    "finetune",
    "gate",
    "hat",
    "infer",
    "inference",
    "isolate",
    "ledger",
    "load",
    "lwf",
    "mas",
    "masks",
    "metrics",
    "models",
    "multihead",
    "packnet",
    "pnn",
    "recipes",
    "replicas",
    "report",
    "save",
    "set_trainable",
    "si",
    "study",
    "testing",
    "trace_wiring",
    "train",
    "wiring",
]

_LAZY = {
    **{
        name: f"jaxcl.{name}"
        for name in ("data", "inference", "models", "report", "study", "testing", "train")
    },
    **{name: f"jaxcl.report.{name}" for name in ("analysis", "metrics")},
    **{name: f"jaxcl.study.{name}" for name in ("checkpoint", "recipes", "replicas")},
}
_LAZY_FUNCTIONS = {
    "calibrate": "jaxcl.inference.tasks",
    "infer": "jaxcl.inference.tasks",
    "load": "jaxcl.inference.runs",
    "save": "jaxcl.inference.saved",
}


def __getattr__(name: str):
    if name in _LAZY:
        return importlib.import_module(_LAZY[name])
    if name in _LAZY_FUNCTIONS:
        return getattr(importlib.import_module(_LAZY_FUNCTIONS[name]), name)
    raise AttributeError(f"module 'jaxcl' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
