"""jaxcl: parameter-isolation continual learning in JAX.

`isolate` freezes single entries of any parameters around any optax optimizer; `packnet`, `hat` and
`pnn` decide which, task after task. `masks` holds the pytrees of masks. `load` opens a run, and
`infer` tells the task of an example; `sharding` lays a large model over a mesh of devices. The
modules `models`, `train`, `study`, `recipes`, `replicas`, `data`, `metrics`, `analysis`,
`checkpoint`, `report` and `inference` are loaded when they are first used, as all names are.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxcl import data, inference, models, report, study, testing, train, wiring
    from jaxcl.core import masks, sharding
    from jaxcl.core.heads import multihead
    from jaxcl.core.isolate import IsolateState, isolate, set_trainable
    from jaxcl.core.method import Method
    from jaxcl.core.model import LateralSpec, Model
    from jaxcl.inference.runs import load
    from jaxcl.inference.saved import save
    from jaxcl.inference.tasks import calibrate, infer
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
    from jaxcl.report import analysis, metrics
    from jaxcl.report.comparing import compare
    from jaxcl.study import checkpoint, recipes, replicas
    from jaxcl.wiring import Wiring, trace_wiring

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
    "compare",
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
    "sharding",
    "si",
    "study",
    "testing",
    "trace_wiring",
    "train",
    "wiring",
]

_MODULES = {
    "jaxcl": ("data", "inference", "models", "report", "study", "testing", "train", "wiring"),
    "jaxcl.core": ("masks", "sharding"),
    "jaxcl.report": ("analysis", "metrics"),
    "jaxcl.study": ("checkpoint", "recipes", "replicas"),
}
_NAMES = {
    "jaxcl.core.heads": ("multihead",),
    "jaxcl.core.isolate": ("IsolateState", "isolate", "set_trainable"),
    "jaxcl.core.method": ("Method",),
    "jaxcl.core.model": ("LateralSpec", "Model"),
    "jaxcl.inference.runs": ("load",),
    "jaxcl.inference.saved": ("save",),
    "jaxcl.inference.tasks": ("calibrate", "infer"),
    "jaxcl.methods.agem": ("agem",),
    "jaxcl.methods.cpg": ("CPGState", "cpg"),
    "jaxcl.methods.den": ("DENOptions", "DENState", "den"),
    "jaxcl.methods.der": ("der", "derpp"),
    "jaxcl.methods.er": ("er",),
    "jaxcl.methods.ewc": ("ewc",),
    "jaxcl.methods.expandnet": ("ExpandNetState", "expandnet"),
    "jaxcl.methods.finetune": ("finetune",),
    "jaxcl.methods.hat": ("HATState", "gate", "hat"),
    "jaxcl.methods.lwf": ("lwf",),
    "jaxcl.methods.mas": ("mas",),
    "jaxcl.methods.packnet": ("PackNetState", "ledger", "packnet"),
    "jaxcl.methods.pnn": ("PNNState", "pnn"),
    "jaxcl.methods.si": ("si",),
    "jaxcl.report.comparing": ("compare",),
    "jaxcl.wiring": ("Wiring", "trace_wiring"),
}
_MODULE_OF = {name: f"{home}.{name}" for home, names in _MODULES.items() for name in names}
_HOME_OF = {name: home for home, names in _NAMES.items() for name in names}


def __getattr__(name: str):
    if name in _MODULE_OF:
        found = importlib.import_module(_MODULE_OF[name])
    elif name in _HOME_OF:
        found = getattr(importlib.import_module(_HOME_OF[name]), name)
    else:
        raise AttributeError(f"module 'jaxcl' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__():
    return sorted(__all__)
