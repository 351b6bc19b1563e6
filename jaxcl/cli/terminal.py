"""What the command shows while it works."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TextIO, cast

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from jaxcl.cli import processes
from jaxcl.cli.streams import Lossy
from jaxcl.report.runs import seeds_of
from jaxcl.report.text import counted
from jaxcl.study import replicas


def consoles() -> tuple[Console, Console]:
    """For results and for progress; only one of several processes shows anything."""
    quiet = not processes.is_main()
    console = partial(Console, highlight=False, markup=False, emoji=False, quiet=quiet)
    out = console(soft_wrap=True)
    out.on_broken_pipe = _raise_again  # rich would end the process with code 1
    return out, console(file=cast(TextIO, Lossy(sys.stderr)))


def _raise_again() -> None:
    raise


def introduce(err: Console, settings: dict, layout: replicas.Layout) -> None:
    """Says what will run where."""
    count, kind = layout.mesh.size, layout.mesh.devices.flat[0].platform.upper()
    several = jax.process_count()
    err.print(
        f"{settings['benchmark']}: {counted(settings['tasks'], 'task')}, "
        f"{counted(len(seeds_of(settings)), 'seed')}, on "
        f"{counted(count, f'{kind} device')}"
        f"{f' of {several} processes' if several > 1 else ''}"
    )


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
