"""What the command shows while it works."""

from collections.abc import Sequence
from pathlib import Path

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from jaxcl.cli import processes
from jaxcl.study import replicas


def consoles() -> tuple[Console, Console]:
    """For results and for progress; only one of several processes shows anything."""
    quiet = not processes.leads()
    out = Console(soft_wrap=True, highlight=False, markup=False, quiet=quiet)
    return out, Console(stderr=True, highlight=False, markup=False, quiet=quiet)


def introduce(err: Console, settings: dict, where: replicas.Layout, cache: Path | None) -> None:
    """Says what will run where."""
    count, kind = where.mesh.size, where.mesh.devices.flat[0].platform.upper()
    processes = jax.process_count()
    err.print(
        f"{settings['benchmark']}: {settings['tasks']} tasks, {settings['seeds']} seeds, on "
        f"{count} {kind} device{'s' if count > 1 else ''}"
        f"{f' of {processes} processes' if processes > 1 else ''}"
    )
    if cache:
        err.print(f"Compiled programs are kept in {cache} (not with --no-cache)", soft_wrap=True)


def bars(err: Console) -> Progress:
    """Progress bars, one for each method."""
    name, status = TextColumn("{task.description:<12}"), TextColumn("{task.fields[status]}")
    bar = BarColumn(bar_width=24)
    return Progress(
        name, bar, TimeElapsedColumn(), status, console=err, disable=not err.is_terminal
    )


def show(progress: Progress, row, *, tasks: int, task: int, epoch: int, epochs: int) -> None:
    """Moves a bar on."""
    done = task + epoch / epochs
    status = f"task {task + 1} of {tasks}, epoch {epoch} of {epochs}" if epoch else "compiling"
    progress.start_task(row)
    progress.update(row, completed=done, total=tasks, status="" if done >= tasks else status)


def conclude(out: Console, folder: Path, paths: Sequence[Path]) -> None:
    """Says where the files are."""
    names = ", ".join(path.name for path in paths)
    out.print(f"Written to {folder}: {names}", soft_wrap=True)
