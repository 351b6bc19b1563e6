"""`jaxcl forget`: takes a task out of the networks of a run."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import tyro

from jaxcl.cli import terminal
from jaxcl.cli.folder import check_free, hold
from jaxcl.cli.parsing import parse_plainly
from jaxcl.cli.streams import standard_output
from jaxcl.inference.forgetting import Forgotten, can_forget, check, forget
from jaxcl.inference.runs import Run, load
from jaxcl.report.inferred import remove_inferred
from jaxcl.report.text import listed, percent


@dataclasses.dataclass(frozen=True)
class Forget:
    """Take a task out of a run's networks: its head, its examples, and the weights that it alone
    used. All other tasks' networks give the same logits as before, to the bit.

    The results of the run stay as they are; so do networks that were exported.

    Attributes:
        run: folder of a run, such as runs/permuted_digits.
        task: which task, counted from 0 as in Python; tables count from 1.
        method: of which method; None takes it out of all that can forget.
    """

    run: tyro.conf.Positional[Path]
    task: int
    method: str | None = None


def run(args: Sequence[str]) -> None:
    """Runs the command.

    Raises:
        ValueError: for a task that is not there, or if no method can forget.
    """
    command = parse_plainly(Forget, "forget", args)
    check_free(command.run)
    one = load(command.run)
    if not isinstance(one, Run):
        raise ValueError(f"{command.run} holds a learner, not a run; see train.forget_task.")
    names = one.methods if command.method is None else (command.method,)
    able = [name for name in names if can_forget(one[name])]
    unable = [name for name in names if name not in able]
    reason = "cannot forget: what a task left in their weights cannot be told apart"
    if not able:
        raise ValueError(f"{listed(list(names))} {reason}.")
    for name in able:
        check(one[name], command.task)
    out, err = terminal.consoles()
    if unable:
        err.print(f"{listed(unable)} {reason}", soft_wrap=True)
    with hold(command.run):
        for name in able:
            found = forget(one[name], command.task)
            with standard_output():
                out.print(f"{name}: {words(found)}", soft_wrap=True)
        if remove_inferred(command.run):
            err.print("what jaxcl infer measured before is removed", soft_wrap=True)


def words(found: Forgotten) -> str:
    """What became of one method's networks."""
    said = [f"{found.renewed:,} numbers of parameters, state and memory started anew"]
    if found.capacity is not None:
        before, after = found.capacity
        freed = f"{percent(before - after)}% of the network became free"
        said.append(freed if after < before else "no weight became free: other tasks read them all")
    if not found.isolates:
        said.append("what shared weights hold of the task stays")
    return "; ".join(said)
