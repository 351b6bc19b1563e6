"""The training engine: one learner, one task, one epoch, as pure functions.

Everything here can be jitted, vmapped over learners and placed on a mesh by the caller; `study`
does. `task`, `epoch` and all numbers are traced, so one compiled program serves a whole sequence.
It imports `core` alone; `methods`, `study` and whatever comes after them may import it.
"""

from jaxcl.train.evaluation import evaluate, evaluate_all, frozen_features
from jaxcl.train.forward import network
from jaxcl.train.lifecycle import (
    begin_phase,
    begin_task,
    end_phase,
    end_task,
    forget_task,
    grow,
    start,
)
from jaxcl.train.loop import end_epoch, epoch, steps
from jaxcl.train.losses import accuracy, cross_entropy, explained, squared_error
from jaxcl.train.types import (
    Data,
    EarlyStopping,
    Learner,
    Metrics,
    Position,
    Setup,
    check,
    examples,
)

__all__ = [
    "Data",
    "EarlyStopping",
    "Learner",
    "Metrics",
    "Position",
    "Setup",
    "accuracy",
    "begin_phase",
    "begin_task",
    "check",
    "cross_entropy",
    "end_epoch",
    "end_phase",
    "end_task",
    "epoch",
    "evaluate",
    "evaluate_all",
    "examples",
    "explained",
    "forget_task",
    "frozen_features",
    "grow",
    "network",
    "squared_error",
    "start",
    "steps",
]
