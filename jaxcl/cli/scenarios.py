"""A comparison in several scenarios: one part for each, in a folder of its own.

A part is what `compare` in that scenario alone would be: the same settings, checkpoints and files,
in runs/NAME/task, runs/NAME/class and so on. Methods that are told the task in training are in the
part "task" alone; in the others their networks infer it (see `inferring`).
"""

import dataclasses
from pathlib import Path

from jaxcl.cli.options import Compare
from jaxcl.study.recipes import Choice

TOLD = "task"  # the scenario in which a network is told the task


def inferred_in(command: Compare, scenario: str) -> list[Choice]:
    """The methods that cannot train in a scenario, but infer the task once they were told it."""
    return [
        choice
        for choice in command.choices
        if scenario not in choice.spec.scenarios and TOLD in choice.spec.scenarios
    ]


def divide(command: Compare, folder: Path) -> dict[Path, Compare]:
    """The parts of a comparison, by their folders: itself, where there is one.

    A part has the methods that train in its scenario, which may be none. Where a method infers the
    task, there is a part "task", asked for or not.

    Raises:
        ValueError: if the folder holds a run in one scenario, or no method trains in one of them.
    """
    asked = command.scenarios
    needed = any(inferred_in(command, name) for name in asked)
    if len(asked) == 1 and not needed:
        return {folder: command}
    if (folder / "settings.json").exists():
        raise ValueError(
            f"{folder} holds a run in one scenario; choose another --name, or delete that folder."
        )
    parts = {folder / name: _part(command, folder, name) for name in asked}
    if needed and TOLD not in asked:
        told = [choice for choice in command.choices if not {*asked} <= {*choice.spec.scenarios}]
        first = dataclasses.replace(command, **_chosen(command, told))
        parts[folder / TOLD] = _part(first, folder, TOLD)
    return parts


def _part(command: Compare, folder: Path, scenario: str) -> Compare:
    """The methods that train for one scenario.

    Raises:
        ValueError: if there are none, and none that infers the task.
    """
    here = [choice for choice in command.choices if scenario in choice.spec.scenarios]
    if not here and not inferred_in(command, scenario):
        raise ValueError(f"none of {', '.join(command.methods)} trains in the scenario {scenario}.")
    chosen = _chosen(command, here)
    chosen["choices"] = tuple(
        choice._replace(shared=dataclasses.replace(choice.shared, scenario=scenario))
        for choice in chosen["choices"]
    )
    return dataclasses.replace(
        command,
        run=dataclasses.replace(command.run, out=folder, name=scenario),
        training=dataclasses.replace(command.training, scenario=scenario),
        scenarios=(scenario,),
        **chosen,
    )


def _chosen(command: Compare, choices: list[Choice]) -> dict:
    """Fields of a command of some of its methods."""
    own = {id(choice.spec) for choice in choices}
    every = zip(command.methods, command.choices)
    return {
        "methods": tuple(name for name, choice in every if id(choice.spec) in own),
        "choices": tuple(choices),
    }
