"""TensorBoard's event files, by tensorboardX, which needs no TensorFlow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple


class TensorBoard(NamedTuple):
    """A writer of one method's numbers; see `loggers.Writer`."""

    writer: Any

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Takes numbers by name."""
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Ends the file."""
        self.writer.close()


def open_tensorboard(
    package: Any, folder: Path, method: str, settings: Mapping[str, Any], first: int
) -> TensorBoard:
    """Begins a file in `logs/tensorboard/METHOD`; what an earlier one says from `first` on is void.

    Args:
        package: tensorboardX.
        folder: the run's.
        method: the method's name.
        settings: of the run; `settings.json` holds them.
        first: the step at which it begins.
    """
    where = str(folder / "logs" / "tensorboard" / method)
    return TensorBoard(package.SummaryWriter(where, purge_step=first or None))
