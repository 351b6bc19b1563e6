"""A comparison in several scenarios: one part for each, in a folder of its own.

A part is what `compare` in that scenario alone would be: the same settings, checkpoints and files,
in runs/NAME/task, runs/NAME/class and so on. Methods that are told the task in training are in the
part "task" alone.
"""

import dataclasses
from pathlib import Path

from jaxcl.cli.options import Compare


def divide(command: Compare, folder: Path) -> dict[Path, Compare]:
    """The parts of a comparison, by their folders: itself, where there is one scenario.

    Raises:
        ValueError: if the folder holds a comparison in one scenario.
    """
    if len(command.scenarios) == 1:
        return {folder: command}
    if (folder / "settings.json").exists():
        raise ValueError(
            f"{folder} holds a run in one scenario; choose another --name, or delete that folder."
        )
    return {folder / name: _part(command, folder, name) for name in command.scenarios}


def _part(command: Compare, folder: Path, scenario: str) -> Compare:
    """The methods that train for one scenario.

    Methods that train for the task-incremental one alone could be evaluated in the others with the
    task inferred: their results would join the part's, from the part "task", after training.
    """
    choices = tuple(
        choice._replace(shared=dataclasses.replace(choice.shared, scenario=scenario))
        for choice in command.choices
        if scenario in choice.spec.scenarios
    )
    if not choices:
        raise ValueError(f"none of {', '.join(command.methods)} trains in the scenario {scenario}.")
    chosen = {id(choice.spec) for choice in choices}
    every = zip(command.methods, command.choices)
    return dataclasses.replace(
        command,
        methods=tuple(name for name, choice in every if id(choice.spec) in chosen),
        run=dataclasses.replace(command.run, out=folder, name=scenario),
        training=dataclasses.replace(command.training, scenario=scenario),
        choices=choices,
        scenarios=(scenario,),
    )
