"""A study: one method on a sequence of tasks, for many seeds and settings, in a few programs.

It imports `core`, `data`, `train`, `models` and `methods`; `report` and `cli` may import it.
"""

from jaxcl.study.events import (
    FEATURE_BYTES,
    EpochEnd,
    Study,
    TaskEnd,
    build,
    compilations,
    features_fit,
    mixed,
    program_bytes,
    run,
    stack,
)

__all__ = [
    "FEATURE_BYTES",
    "EpochEnd",
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
