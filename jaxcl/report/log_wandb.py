"""Weights & Biases: offline, unless the environment's WANDB_MODE says otherwise."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple


class WandB(NamedTuple):
    """A writer of one method's numbers; see `loggers.Writer`."""

    run: Any

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Takes numbers by name."""
        self.run.log(dict(numbers), step=step)

    def close(self) -> None:
        """Ends the run, which `wandb sync` can then send."""
        self.run.finish()


def open_wandb(
    package: Any, folder: Path, method: str, settings: Mapping[str, Any], first: int
) -> WandB:
    """Begins a run in `logs/wandb`, in a group of the folder's name; it goes on if it was there.

    Args:
        package: wandb.
        folder: the run's.
        method: the method's name.
        settings: of the run.
        first: the step at which it begins.
    """
    place = folder.resolve()
    (place / "logs").mkdir(parents=True, exist_ok=True)
    identity = hashlib.sha256(f"{place}/{method}".encode()).hexdigest()[:16]
    run = package.init(
        project="jaxcl", name=f"{place.name} {method}", group=place.name, id=identity,
        dir=str(place / "logs"), config=dict(settings),
        mode=os.environ.get("WANDB_MODE", "offline"),
        resume="allow" if first else None, settings={"silent": True, "console": "off"},
    )  # fmt: skip
    return WandB(run)
