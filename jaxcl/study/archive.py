"""The checkpoints of one method: how they are called, written in the background, and read again.

They are called by where a study stands: `task_2` after the second task; `task_2_epoch_3` and
`task_2_epoch_3_step_40` on the way there.
"""

import itertools
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxcl.core.trees import PyTree
from jaxcl.study import checkpoint, replicas
from jaxcl.study.events import Station, StepsEnd, TaskEnd
from jaxcl.study.programs import Study
from jaxcl.study.record import MethodRun, Record, shapes

PART = ".orbax-checkpoint-tmp"  # after the name of a checkpoint that is being written
ASIDE = ".unreadable"


def name_of(event: Station) -> str:
    """What the checkpoint after an event is called."""
    name = f"task_{event.task + 1}"
    if isinstance(event, TaskEnd):
        return name
    name += f"_epoch_{event.epoch}"
    return f"{name}_step_{event.step}" if isinstance(event, StepsEnd) else name


# Going on


def restore(run: MethodRun, *, finished: bool = False) -> MethodRun:
    """A method as far as its latest checkpoint, spread over the devices that there are now.

    Args:
        run: the method before its first task.
        finished: read the learners of a method that is at its end, too.

    Raises:
        ValueError: if there are checkpoints and none can be read, or they are of another run.
    """
    newest = run.folder and checkpoint.latest(run.folder)
    if not run.folder or not newest:
        return run
    found = checkpoint.latest(run.folder, readable=True)
    if not found:
        checkpoint.verify(newest[1])  # says what is wrong
        raise ValueError(f"the checkpoint in {newest[1]} cannot be read.")
    task, path = found
    if task > run.tasks:
        raise ValueError(f"{path} is of a task that this run does not have.")
    _check_about(path, run)
    one = next(one for one in run.studies if len(one.benchmark.tasks) >= task)
    record = _read(path, run.record, one)
    numbers = jax.tree.map(np.array, record._replace(learners=None))
    learners = record.learners
    at_end = numbers.cursor.task == run.tasks
    learners = None if at_end and not finished else _spread(learners, one.layout)
    return run._replace(
        record=numbers._replace(learners=learners),
        found=path,
        passed_over=newest[1] if newest != found else None,
    )


def _check_about(path: Path, run: MethodRun) -> None:
    """Raises ValueError for a checkpoint of another run."""
    there = checkpoint.about(path)
    for name, value in run.about.items():
        if there.get(name) != value:
            raise ValueError(
                f"the checkpoint in {path} was written with other {name}: this folder's files are "
                f"not those of one run."
            )


def _read(path: Path, like: Record, one: Study) -> Record:
    """A checkpoint; the learners' rows are those that were saved."""
    stored = checkpoint.shapes(path)
    if not {"learners/key", "cursor/task"} <= stored.keys():
        raise ValueError(f"the checkpoint in {path} holds no record of this version of jaxcl.")
    rows, layout = stored["learners/key"].shape[0], one.layout
    spec = PartitionSpec(replicas.AXIS) if rows == layout.padded else PartitionSpec()
    sharding = NamedSharding(layout.mesh, spec)
    learners = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape), leaf.dtype, sharding=sharding),
        shapes(one.setup, one.benchmark),
    )
    return checkpoint.restore(path, like._replace(learners=learners))


def _spread(learners: PyTree, layout: replicas.Layout) -> PyTree:
    """Learners of any number of rows over the devices that there are now."""
    if learners.key.shape[0] == layout.padded:
        return learners
    index = np.minimum(np.arange(layout.padded), layout.replicas - 1)
    take = jax.jit(
        lambda tree: jax.tree.map(lambda leaf: leaf[index], tree),
        out_shardings=NamedSharding(layout.mesh, PartitionSpec(replicas.AXIS)),
    )
    return take(learners)


def extend(run: MethodRun, before: MethodRun) -> MethodRun:
    """A method that goes on from the end of a run of its first tasks; the checkpoint is written.

    Args:
        run: the method before its first task, on a sequence that begins with the tasks of `before`.
        before: the finished run, restored with its learners.

    Raises:
        OSError: if the checkpoint cannot be written; nothing is left of it then.
    """
    done = before.tasks
    one = next(one for one in run.studies if len(one.benchmark.tasks) >= done)
    learners = _spread(before.record.learners, one.layout)
    if len(one.benchmark.tasks) > done:
        fixed = (replicas.place(one.settings, one.layout),)
        learners = one.programs["grow"](learners, fixed)

    def lead(new, old):
        """What was measured, before what is not yet."""
        new = np.array(new)
        new[tuple(map(slice, old.shape))] = old
        return new

    known = (one._replace(learners=None) for one in (run.record, before.record))
    record = jax.tree.map(lead, *known)._replace(learners=learners)
    name = f"task_{done}"
    if run.folder:
        saver = Saver(run.folder, run.about)
        saver.save(name, record)
        saver.wait()
    return run._replace(record=record, found=run.folder and run.folder / name)


def make_room(run: MethodRun) -> None:
    """Makes the folder and clears the way for the checkpoints that are going to be written.

    What stands there after the checkpoint that `restore` found cannot be read, and gets another
    name. What a process left half written is removed. Of several processes, one calls it: it reads
    no checkpoint, which all would have to do together; no other one may be at work in the folder.
    """
    if run.folder is None:
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    least = checkpoint.order(run.found.name) if run.found else ()
    for path in sorted(run.folder.iterdir()):
        name, part, _ = path.name.partition(PART)
        order = checkpoint.order(name)
        if part and order and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif not part and order > least and order[0] <= run.tasks:
            names = (path.with_name(f"{name}{ASIDE}_{i}") for i in itertools.count(1))
            path.rename(next(name for name in names if not os.path.lexists(name)))


# Saving


class Saver:
    """Writes checkpoints into a folder in the background, one after the other."""

    def __init__(self, folder: Path, about: Mapping[str, str]):
        self._folder = folder
        self._about = about
        self._handle: Any = None
        self._path = folder

    def save(self, name: str, record: Record) -> None:
        """Begins to write; the record may then change.

        Raises:
            OSError: if this one, or the one before, cannot be written; nothing is left of it then.
        """
        self.wait()
        self._path = self._folder / name
        self._handle = self._try(lambda: checkpoint.save_async(self._path, record, self._about))

    def wait(self, seconds: float | None = None) -> None:
        """Waits until all is written, or for so long, and removes what is too old then."""
        if self._handle is None:
            return
        try:
            self._try(lambda: self._handle.result(seconds))
        except TimeoutError:
            return
        self._handle = None
        if jax.process_index() == 0:
            checkpoint.remove_old(self._folder)

    def _try(self, function: Any) -> Any:
        try:
            return function()
        except TimeoutError:
            raise
        except (OSError, ValueError) as error:  # the latter is how orbax says that a disk is full
            self._handle = None
            for part in self._path.parent.glob(f"{self._path.name}{PART}*"):
                shutil.rmtree(part, ignore_errors=True)
            said = re.search(r"os_error_code='(\d+)'", str(error))
            code = int(said[1]) if said else getattr(error, "errno", None)
            reason = os.strerror(code) if code else str(error)
            raise OSError(code, reason, str(self._path)) from error
