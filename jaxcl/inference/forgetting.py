"""Takes a task out of what a run trained: its newest checkpoint is written anew, the others go."""

import json
import shutil
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcl import train
from jaxcl.core.trees import PyTree
from jaxcl.inference.runs import FORGOTTEN, Run, Trained
from jaxcl.report.text import write_whole
from jaxcl.study import checkpoint

NEW, OLD = "forgetting", "forgotten"  # of the checkpoint, while one takes the other's place


class Forgotten(NamedTuple):
    """What became of one method's networks.

    Attributes:
        renewed: numbers of parameters, state and memory that are no longer what they were, of the
            first seed.
        capacity: share of the network in use before and after, means over the seeds; None if the
            method divides none among the tasks.
        isolates: no other weight knows of the task.
    """

    renewed: int
    capacity: tuple[float, float] | None
    isolates: bool


def can_forget(trained: Trained) -> bool:
    """Whether a method can tell apart what a task left in it."""
    setup, _ = trained.setup()
    return setup.method.forget_task is not None and setup.scenario == "task"


def check(trained: Trained, task: int) -> None:
    """Raises ValueError for a task that is not there, or while another one is in training.

    Likewise where the newest checkpoint cannot be read, which would go on knowing the task.
    """
    newest = checkpoint.latest(trained.checkpoints)
    if newest and newest != trained.newest:
        raise ValueError(
            f"{newest[1]} cannot be read, so nothing can be taken out of it; the run's command "
            f"with --resume puts it aside, and trains again what it held."
        )
    if trained.newest[0] != trained.tasks:
        raise ValueError(
            f"{trained.spec.name} is in the middle of its task {trained.tasks}, counted from 0; go "
            f"on with --resume first, to that task's end."
        )
    gone = trained.run.forgotten.get(trained.spec.name, ())
    there = [number for number in range(trained.tasks) if number not in gone]
    if task not in there:
        numbers = ", ".join(map(str, there)) or "none"
        raise ValueError(
            f"{trained.spec.name} has no task {task}; it has {numbers}, counted from 0."
        )


def forget(trained: Trained, task: int) -> Forgotten:
    """Takes a task out of all seeds' networks of one method, on disk.

    Args:
        trained: what a run trained of a method.
        task: the task, counted from 0; it must be finished.

    Raises:
        ValueError: for a task that is not there, or a method that cannot forget; nothing is written
            then.
        OSError: if the new checkpoint cannot be written; the old one is still there then.
    """
    check(trained, task)
    run, name, (done, path) = trained.run, trained.spec.name, trained.newest
    gone = set(run.forgotten.get(name, ()))
    setup, room = trained.setup()
    kept = np.array([n < done and n != task and n not in gone for n in range(room)])
    before = trained.content
    renew = jax.jit(jax.vmap(lambda learner: train.forget_task(setup, learner, task, kept)))
    after = jax.device_get(renew(jax.tree.map(jax.numpy.asarray, before["learners"])))
    key = jax.numpy.asarray(before["learners"].key)
    new = {**before, "learners": after._replace(key=key)}
    fresh, old = path.with_name(NEW), path.with_name(OLD)
    for left in (fresh, old):  # by one that was interrupted
        shutil.rmtree(left, ignore_errors=True)
    checkpoint.save(fresh, new, checkpoint.about(path))
    checkpoint.remove_old(path.parent, keep=1)  # they know the task too
    path.rename(old)
    fresh.rename(path)
    shutil.rmtree(old)
    _note(run, name, sorted({*gone, task}))
    return _compared(trained, before["learners"], after)


def _note(run: Run, name: str, tasks: list[int]) -> None:
    path = run.folder / FORGOTTEN
    there: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    write_whole(path, json.dumps({**there, name: tasks}, indent=1) + "\n")


def _compared(trained: Trained, before: PyTree, after: PyTree) -> Forgotten:
    method, seeds = trained.setup()[0].method, len(trained.run.seeds)

    def kept_by(learner):
        return jax.tree.leaves((learner.theta, learner.state, learner.memory))

    def capacity(learners):
        each = jax.vmap(method.capacity)(learners.theta, learners.state)
        return float(np.mean(np.asarray(each)[:seeds]))

    renewed = sum(
        int(np.sum(np.asarray(old[0]) != np.asarray(new[0])))
        for old, new in zip(kept_by(before), kept_by(after))
    )
    both = (capacity(before), capacity(after)) if trained.spec.divides else None
    return Forgotten(renewed, both, method.isolates)
