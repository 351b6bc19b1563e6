"""A finished run grows: only the seeds and methods that it lacks are trained, and then joined.

What is missing trains in a folder of its own, runs/NAME/growing, as a run does: it may be stopped,
and goes on. The run itself stays as it is until all is there; then the joined checkpoints take the
places of the old ones. A process that is killed amid that leaves enough for the next one to finish.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxcl.cli import processes
from jaxcl.cli.folder import check_origin, plainly, recorded, write_settings
from jaxcl.cli.options import Compare
from jaxcl.cli.running import Place
from jaxcl.inference import joining
from jaxcl.inference.runs import FORGOTTEN, load
from jaxcl.report import inferred
from jaxcl.report.presets import KEY
from jaxcl.report.runs import digest, seeds_of
from jaxcl.report.text import listed
from jaxcl.study import checkpoint

FOLDER, JOINED = "growing", "joined"
MAY_GROW = {"seeds", "methods", "options"}


class Growth(NamedTuple):
    """What a run lacks.

    Attributes:
        place: of the whole run.
        seeds: by method those that are missing; methods that have all are left out.
        overridden: what is otherwise than when the run began, and allowed to be.
    """

    place: Place
    seeds: dict[str, list[int]]
    overridden: list[str]

    @property
    def apart(self) -> Place:
        """Where the missing part is trained."""
        return self.place._replace(folder=self.place.folder / FOLDER)

    @property
    def words(self) -> str:
        """What is trained, for the terminal; "" for nothing, where every method infers the task."""
        parts = [
            f"{name} with {listed([str(seed) for seed in seeds[:20]])}"
            f"{' ...' if len(seeds) > 20 else ''}"
            for name, seeds in self.seeds.items()
        ]
        if not parts:
            return ""
        measured = (self.place.folder / inferred.FILES[0]).exists()
        goes = ". What jaxcl infer measured of the smaller run is removed then" if measured else ""
        return f"the run grows; what it lacks are the seeds of {'; '.join(parts)}{goes}"


def recover(folder: Path) -> None:
    """Finishes what a process that was killed left half joined; the folder must be held."""
    if (folder / FOLDER / JOINED / "settings.json").exists():
        _take_places(folder)
    files = [path / "settings.json" for path in (folder, folder / FOLDER)]
    if all(file.exists() for file in files):
        here, apart = (recorded(file.parent)["settings"] for file in files)
        if here == apart:
            shutil.rmtree(folder / FOLDER)  # all of it is joined already


def needed(place: Place, names: Sequence[str]) -> Growth | None:
    """What a folder's finished run lacks of a larger one; None if it is no part of it.

    Args:
        place: of the larger run.
        names: of its methods, as checkpoints are called.

    Raises:
        ValueError: if it is a part, but cannot grow.
    """
    folder = place.folder
    if not (folder / "settings.json").is_file():
        return None
    content, here = recorded(folder), plainly(place.settings)
    there = content["settings"]
    keys = {*here, *there} - {KEY}
    differing = {name for name in keys if here.get(name) != there.get(name)}
    if place.run.resume and differing == {"epochs"}:
        raise ValueError(
            f"{folder} was trained for {there.get('epochs')} epochs a task, to which none can be "
            f"added: every task began where the one before had ended; choose another --name."
        )
    if not differing or not differing <= MAY_GROW or not _is_part(there, here):
        return None
    _check(place, there, names)
    said = check_origin(folder, content, place.settings, place.origin, place.run.override)
    before, wanted = {*seeds_of(there)}, seeds_of(here)
    had = {*there["options"]}
    missing = {n: [s for s in wanted if n not in had or s not in before] for n in names}
    return Growth(place, {n: seeds for n, seeds in missing.items() if seeds}, said)


def _is_part(there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Whether a run's seeds and methods are some of another's, with the same options."""
    try:
        old, new = there["options"], here["options"]
        return (
            {*seeds_of(there)} <= {*seeds_of(here)}
            and {*there["methods"]} <= {*here["methods"]}
            and all(name in new and new[name] == own for name, own in old.items())
        )
    except (KeyError, TypeError, ValueError):
        return False


def _check(place: Place, there: Mapping[str, Any], names: Sequence[str]) -> None:
    folder = place.folder
    if not place.run.resume:
        raise ValueError(
            f"{folder} holds a part of this run; add --resume to train only what it lacks, or "
            f"choose another --name."
        )
    if not (folder / "results.json").exists():
        raise ValueError(
            f"{folder} holds an unfinished run of less; it can grow once its own command with "
            f"--resume has finished it."
        )
    if (folder / FORGOTTEN).exists():
        raise ValueError(f"{folder} holds a run of which tasks were forgotten, which cannot grow.")
    if processes.several():
        raise ValueError(f"{folder} holds a part of this run, which grows in one process alone.")
    for name in names:
        newest = checkpoint.latest(folder / "checkpoints" / name) if name in there["options"] else 0
        done = newest and checkpoint.order(newest[1].name) >= (there["tasks"], float("inf"))
        if newest != 0 and not done:
            raise ValueError(
                f"{folder} has no checkpoint of {name} after its last task, so it cannot grow."
            )


def finish(growth: Growth, command: Compare) -> None:
    """Joins the run and what it lacked; everything must be trained."""
    folder, own = growth.place.folder, [choice.spec for choice in command.choices]
    joined = growth.apart.folder / JOINED
    shutil.rmtree(joined, ignore_errors=True)
    before, apart = load(folder, methods=own), load(growth.apart.folder, methods=own)
    settings, origin = growth.place.settings, growth.place.origin
    about = {"settings": digest(settings), "data": origin.data}
    for spec in own:
        name, parts = spec.name, []
        if name in before.specs:
            parts.append((before[name].content, before.seeds))
        if name in growth.seeds:
            parts.append((apart[name].content, growth.seeds[name]))
        content = joining.join(parts, seeds_of(plainly(settings)))
        checkpoint.save(joined / "checkpoints" / name / f"task_{settings['tasks']}", content, about)
    joined.mkdir(parents=True, exist_ok=True)  # there may be no checkpoint
    # Last: it says that all is there.
    write_settings(joined, settings, origin, command, growth.overridden)
    _take_places(folder)


def _take_places(folder: Path) -> None:
    """Puts what is joined into the places of what was there; may be done again after a kill."""
    joined = folder / FOLDER / JOINED
    for path in sorted((joined / "checkpoints").glob("*")):
        target = folder / "checkpoints" / path.name
        shutil.rmtree(target, ignore_errors=True)
        path.rename(target)
    (folder / "results.json").unlink(missing_ok=True)  # of the smaller run
    inferred.remove_inferred(folder)
    os.replace(joined / "settings.json", folder / "settings.json")
    shutil.rmtree(folder / FOLDER)
