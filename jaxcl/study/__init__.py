"""A study: one method on a sequence of tasks, for many seeds and settings, in a few programs.

It imports `core`, `data`, `train`, `models` and `methods`; `report` and `cli` may import it.
"""

from jaxcl.study.events import Cursor, EpochEnd, StepsEnd, TaskEnd, compilations, run
from jaxcl.study.feed import FEATURE_BYTES, features_fit, mixed, stack
from jaxcl.study.memory import program_bytes
from jaxcl.study.points import Evaluated, Every
from jaxcl.study.programs import Study, build

__all__ = [
    "FEATURE_BYTES",
    "Cursor",
    "EpochEnd",
    "Evaluated",
    "Every",
    "StepsEnd",
    "Study",
    "TaskEnd",
    "build",
    "compilations",
    "features_fit",
    "mixed",
    "program_bytes",
    "run",
    "stack",
]
