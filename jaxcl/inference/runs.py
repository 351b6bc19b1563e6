"""Opens what the command wrote: settings, results, and every network as a Predictor.

No data set is read, nothing of the run is executed, and nothing is written.
"""

import json
import os
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcl import train
from jaxcl.core.checks import check_count, nearest
from jaxcl.core.trees import PyTree
from jaxcl.inference import inputs as of_inputs
from jaxcl.inference import saved
from jaxcl.inference.inputs import Inputs
from jaxcl.inference.predictor import Predictor, predictor
from jaxcl.methods import REGISTRY, Spec
from jaxcl.report.reading import read
from jaxcl.report.results import Results
from jaxcl.report.runs import digest, record, seeds_of
from jaxcl.study import checkpoint, recipes
from jaxcl.study.recipes import Choice, Options

FORGOTTEN = "forgotten.json"


@dataclass(frozen=True)
class Run:
    """A run of the command, finished or not: `run["NAME"]` is what it trained of one method.

    Attributes:
        folder: where it is.
        settings: all settings that decide on its results.
        specs: its methods, by name; empty for a sweep, which keeps no networks.
        inputs: what the networks' inputs are.
        forgotten: by method, the tasks that were forgotten.
    """

    folder: Path
    settings: Mapping[str, Any]
    specs: Mapping[str, Spec]
    inputs: Inputs
    forgotten: Mapping[str, tuple[int, ...]]

    @property
    def methods(self) -> tuple[str, ...]:
        """The names of its methods."""
        return tuple(self.specs)

    @property
    def seeds(self) -> list[int]:
        """Its seeds."""
        return seeds_of(self.settings)

    @cached_property
    def results(self) -> Results | None:
        """What came out of it, as arrays; None while it is not finished."""
        return read(self.folder) if (self.folder / "results.json").exists() else None

    def __getitem__(self, method: str) -> "Trained":
        if method not in self.specs:
            known = f"; it has {', '.join(self.specs)}" if self.specs else ": it is a sweep"
            raise ValueError(
                f"{self.folder} has no method {method!r}{nearest(str(method), self.specs)}{known}."
            )
        return self._opened.setdefault(method, Trained(self, self.specs[method]))

    @cached_property
    def _opened(self) -> dict[str, "Trained"]:
        """What was asked for, so that it is read once."""
        return {}


@dataclass(frozen=True)
class Trained:
    """What a run trained of one method.

    Attributes:
        run: the run.
        spec: the method.
    """

    run: Run
    spec: Spec

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints."""
        return self.run.folder / "checkpoints" / self.spec.name

    @cached_property
    def newest(self) -> tuple[int, Path]:
        """The newest whole checkpoint, and the task that it is of, counted from 1.

        It warns where a newer one cannot be read.

        Raises:
            ValueError: if there is none.
        """
        newest = checkpoint.latest(self.checkpoints)
        found = newest and checkpoint.latest(self.checkpoints, readable=True)
        if newest and not found:
            checkpoint.verify(newest[1])  # says what is wrong
        if not found:
            raise self._unfinished()
        if found[0] > len(self.run.inputs.classes):
            raise ValueError(f"{found[1]} is of a task that this run does not have.")
        if newest and found != newest:
            warnings.warn(
                f"{newest[1]} cannot be read; the networks are those of {found[1].name}.",
                stacklevel=2,
            )
        return found

    @property
    def tasks(self) -> int:
        """The number of finished tasks."""
        return int(self.content["cursor"]["task"])

    @property
    def accuracy(self) -> np.ndarray:
        """Accuracy on task k after task t, [seeds, tasks, tasks]; nan where it is not measured."""
        return np.asarray(self.content["accuracy"], np.float64)

    @property
    def diverged(self) -> dict[int, tuple[int, int]]:
        """The seeds whose training diverged, with the task and the epoch of it, from 1 on."""
        places = np.asarray(self.content["diverged"]).tolist()
        return {seed: (task, epoch) for seed, (task, epoch) in zip(self.run.seeds, places) if task}

    def choice(self) -> Choice:
        """The method with its options."""
        return _choice(self.run, self.spec)

    def setup(self) -> tuple[train.Setup, int]:
        """What its learners were trained with, and the number of tasks that they have room for."""
        choice, benchmark = self.choice(), self.run.inputs.benchmark(self.run.settings["benchmark"])
        limits = choice.spec.task_limits(len(benchmark.tasks))
        room = next(limit for limit in limits if limit >= self.newest[0])
        few = benchmark._replace(tasks=benchmark.tasks[:room])
        return recipes.recipe(choice, few, tasks=room)({}), room

    @cached_property
    def content(self) -> PyTree:
        """All that the checkpoint holds, on the host; its learners have a row for each seed."""
        _, path = self.newest
        setup, room = self.setup()
        stored = checkpoint.shapes(path)
        if "learners/key" not in stored:
            raise ValueError(
                f"the checkpoint in {path} holds no learners of this version of jaxcl."
            )
        rows = stored["learners/key"].shape[0]
        one = jax.eval_shape(lambda key: train.start(setup, key, room), jax.random.key(0))
        like: dict[str, Any] = {"learners": jax.tree.map(lambda leaf: _in_rows(rows, leaf), one)}
        for name, leaf in stored.items():
            group, _, rest = name.partition("/")
            if group != "learners" and rest:
                like.setdefault(group, {})[rest] = _like(leaf.shape, leaf.dtype)
            elif group != "learners":
                like[group] = _like(leaf.shape, leaf.dtype)
        found = checkpoint.restore(path, like)
        if checkpoint.about(path).get("settings") != digest(self.run.settings):
            raise ValueError(
                f"{self.run.folder / 'settings.json'} was changed since {path} was written, so it "
                f"does not describe these networks; restore it."
            )
        return found

    def _unfinished(self) -> ValueError:
        return ValueError(
            f"{self.run.folder} has no network of {self.spec.name} yet: no task is finished."
        )

    def learner(self, seed: int) -> train.Learner:
        """One seed's learner, after its last finished task."""
        seeds = self.run.seeds
        whole = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool)
        if not whole or seed not in seeds:
            last = len(seeds) - 1
            known = f"a whole number from 0 to {last}" if seeds[last] == last else f"one of {seeds}"
            raise ValueError(f"seed must be {known}, got {seed!r}.")
        row = seeds.index(int(seed))
        return jax.tree.map(lambda leaf: jax.numpy.asarray(leaf[row]), self.content["learners"])

    @cached_property
    def _first(self) -> Predictor:
        if not self.tasks:
            raise self._unfinished()
        setup, _ = self.setup()
        forgotten = self.run.forgotten.get(self.spec.name, ())
        learner = self.learner(self.run.seeds[0])
        return predictor(setup, learner, self.tasks, self.run.inputs, forgotten)

    def seed(self, seed: int) -> Predictor:
        """One seed's network. It warns of one whose training diverged.

        Raises:
            ValueError: for a seed that the run does not have, or a checkpoint that is damaged.
        """
        found = self._first._replace(learner=self.learner(seed))
        if seed in self.diverged:
            task, epoch = self.diverged[seed]
            warnings.warn(
                f"the training of {self.spec.name} with seed {seed} diverged in task {task}, epoch "
                f"{epoch}: what its network answers means nothing.",
                stacklevel=2,
            )
        return found


def load(
    path: str | os.PathLike,
    *,
    methods: Sequence[Spec] = (),
    builder: str | Callable | None = None,
    shardings: Callable[[PyTree], PyTree] | None = None,
) -> Any:
    """Opens a run of the command, or a learner that `save` wrote.

    Args:
        path: the folder.
        methods: the Specs of a run's methods that are not jaxcl's own.
        builder: for a learner, what it was saved with: see `save`.
        shardings: for a learner, where its leaves go, whatever devices it was saved from: from the
            tree of their shapes to one of shardings, such as
            `lambda tree: jaxcl.sharding.by_path(tree, mesh, rules)`. By default the first device.

    Returns:
        A Run: `load("runs/x")["NAME"].seed(0).predict(images, task=2)`; or a Predictor.

    Raises:
        ValueError: for a folder that holds neither, a run of an earlier version, or settings that
            are not those of a run; the sentence says what is wrong.
    """
    folder = Path(path).expanduser()
    if saved.is_saved(folder):
        return saved.restore(folder, builder, shardings)
    if shardings is not None:
        raise ValueError(f"{folder} is no learner that save() wrote; shardings are for those.")
    settings = record(folder)["settings"]
    try:
        return _run(folder, settings, {spec.name: spec for spec in methods})
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{folder / 'settings.json'}: {error}") from error


def _run(folder: Path, settings: Any, given: Mapping[str, Spec]) -> Run:
    if not {"benchmark", "tasks", "seeds"} <= settings.keys():
        raise ValueError("it does not hold the settings of a run.")
    if "inputs" not in settings:
        raise ValueError("it is of an earlier version of jaxcl, whose networks cannot be opened.")
    check_count("tasks", settings["tasks"], 1 << 20)
    seeds_of(settings)
    names = settings.get("methods", [])
    if not isinstance(settings["benchmark"], str):
        raise ValueError(f"benchmark must be a name, got {settings['benchmark']!r}.")
    known = {**{spec.name: spec for spec in REGISTRY}, **given}
    specs = {}
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"methods must be names, got {name!r}.")
        if ":" in name:  # a module to import, which a file is not trusted to name
            specs |= _own(name, given, settings)
        elif name in known:
            specs[name] = known[name]
        else:
            raise ValueError(f"unknown method {name!r}{nearest(name, known)}.")
    options = settings.get("options", {})
    if not isinstance(options, dict) or not all(isinstance(own, dict) for own in options.values()):
        raise ValueError("options must hold an object for each method.")
    inputs = of_inputs.read(settings["inputs"])
    if len(inputs.classes) != settings["tasks"]:
        raise ValueError(f"{len(inputs.classes)} tasks have classes, not {settings['tasks']}.")
    return Run(folder, settings, specs, inputs, _forgotten(folder / FORGOTTEN))


def _forgotten(path: Path) -> dict[str, tuple[int, ...]]:
    """By method, the tasks that `jaxcl forget` took out."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: tuple(int(task) for task in tasks) for name, tasks in found.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def _own(name: str, given: Mapping[str, Spec], settings: Mapping[str, Any]) -> dict[str, Spec]:
    """The Specs of a user's own that were given, for a method that was named MODULE:SPEC."""
    here = {key: spec for key, spec in given.items() if key in settings.get("options", {})}
    if not here:
        raise ValueError(
            f"the run has a method of your own, {name}: give its Spec, jaxcl.load(..., "
            f"methods=[{name.rpartition(':')[2]}])."
        )
    return here


def _choice(run: Run, spec: Spec) -> Choice:
    """The method with the options that the settings name."""
    shared_hints, own_hints = map(typing.get_type_hints, (Options, spec.options))
    own = run.settings.get("options", {}).get(spec.name, {})
    given = {name: run.settings[name] for name in shared_hints if name in run.settings} | own
    values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in given.items()}
    hints = {**shared_hints, **own_hints}
    try:
        for name, value in values.items():
            if name in hints and not _fits(value, hints[name]):
                raise ValueError(f"{name} is {value!r}.")
        return recipes.choose(spec, **values | {"init": None})  # what it began with is not needed
    except ValueError as error:
        raise ValueError(
            f"{run.folder / 'settings.json'}: the options of {spec.name} are none: {error}"
        ) from error


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value, whoever wrote it, is of the type that an option has."""
    kinds = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return value in kinds
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(one, kinds[0]) for one in value)
    if kinds:
        return any(_fits(value, kind) for kind in kinds)
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _like(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An array of NumPy's that takes no memory."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def _in_rows(rows: int, leaf: Any) -> Any:
    if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.ShapeDtypeStruct((rows, *leaf.shape), leaf.dtype)
    return _like((rows, *leaf.shape), leaf.dtype)
