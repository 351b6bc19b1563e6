"""A learner of one's own loop in a folder, and back as a Predictor."""

import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax

from jaxcl import train
from jaxcl.core.checks import check_count, nearest
from jaxcl.core.trees import PyTree
from jaxcl.inference import inputs as of_inputs
from jaxcl.inference.inputs import Inputs
from jaxcl.inference.predictor import Predictor, predictor
from jaxcl.methods import Built
from jaxcl.report.text import write_whole
from jaxcl.study import checkpoint

FORMAT = 1
RECORD, LEARNER = "learner.json", "learner"


def save(
    path: str | os.PathLike,
    learner: Any,
    builder: str,
    *,
    tasks: int,
    room: int | None = None,
    inputs: Inputs | None = None,
) -> None:
    """Saves a learner of your own loop, to be opened by `load`.

    Args:
        path: a folder, which must not exist.
        learner: a `train.Learner`; or `(theta, state)` of a method, or `(theta, state, statistics)`
            with the network's running statistics.
        builder: `"module:function"`, which makes anew what the learner runs on, without arguments:
            a `train.Setup`, or a `Built`, a method with its network.
        tasks: how many tasks are finished, at least 1.
        room: how many tasks the method is made for; by default so many.
        inputs: what an input is, for checks of images; see `inference.inputs.Inputs`.

    Raises:
        ValueError: if there is something at `path`, or the builder does not make this learner.
    """
    check_count("save: tasks", tasks)
    folder = Path(path).expanduser()
    if os.path.lexists(folder):
        raise ValueError(f"{folder} exists already; a learner does not replace anything.")
    setup, room = _built(builder), room or tasks
    parts = len(learner) if type(learner) is tuple else None
    whole = _as_learner(setup, learner, room)
    like = _abstract(setup, room, parts)
    if jax.tree.structure(like) != jax.tree.structure(_reduced(whole, parts)):
        raise ValueError(f"the builder {builder!r} makes another learner than this one.")
    record = {
        "format": FORMAT,
        "builder": builder,
        "parts": parts,
        "tasks": tasks,
        "room": room,
        "inputs": None if inputs is None else of_inputs.plain(inputs),
    }
    checkpoint.save(folder / LEARNER, _reduced(whole, parts))
    write_whole(folder / RECORD, json.dumps(record, indent=1) + "\n")  # last: now it is whole


def is_saved(folder: Path) -> bool:
    """Whether `save` wrote this folder."""
    return (folder / RECORD).is_file()


def restore(
    folder: Path,
    builder: str | Callable | None,
    shardings: Callable[[PyTree], PyTree] | None = None,
) -> Predictor:
    """What `save` wrote, as a Predictor.

    Args:
        folder: the folder.
        builder: a function as for `save`, or its name. It has to be given: a name that a file holds
            is not trusted to be imported.
        shardings: from the tree of the leaves' shapes to one of shardings.

    Raises:
        ValueError: without a builder, for a damaged folder, or one of another learner.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        named, tasks, room, parts = (record[key] for key in ("builder", "tasks", "room", "parts"))
        inputs = None if record["inputs"] is None else of_inputs.read(record["inputs"])
        check_count("tasks", tasks)
        check_count("room", room, 1 << 16)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / RECORD} cannot be read: {error}.") from error
    if record["format"] != FORMAT or parts not in (None, 2, 3):
        raise ValueError(f"{folder / RECORD} is of another version of jaxcl.")
    if builder is None:
        raise ValueError(
            f"{folder} holds a learner whose network {named!r} makes; if you trust it, give "
            f"jaxcl.load(..., builder={named!r})."
        )
    setup = _built(builder)
    like = _abstract(setup, room, parts)
    if shardings is not None:
        like = jax.tree.map(
            lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at),
            like, shardings(like),
        )  # fmt: skip
    found = checkpoint.restore(folder / LEARNER, like)
    return predictor(setup, _as_learner(setup, found, room), tasks, inputs)


def _built(builder: str | Callable) -> train.Setup:
    """The setup that a builder makes."""
    if isinstance(builder, str):
        module, colon, name = builder.partition(":")
        if not (module and colon and name):
            raise ValueError(f"builder must be 'module:function', got {builder!r}.")
        try:
            found = importlib.import_module(module)
        except ImportError as error:
            raise ValueError(f"the module of {builder!r} cannot be imported: {error}.") from error
        if not callable(getattr(found, name, None)):
            raise ValueError(
                f"the module {module!r} has no function {name!r}{nearest(name, vars(found))}."
            )
        builder = getattr(found, name)
    assert callable(builder)
    built: Any = builder()
    if isinstance(built, Built):
        return train.Setup(
            built.method, built.model, optax.identity(), norm=built.norm, mixed=built.mixed
        )
    if not isinstance(built, train.Setup):
        raise ValueError(
            f"the builder must make a train.Setup or a Built, not a {type(built).__name__}."
        )
    return built


def _start(setup: train.Setup, room: int) -> train.Learner:
    return jax.eval_shape(lambda key: train.start(setup, key, room), jax.random.key(0))


def _abstract(setup: train.Setup, room: int, parts: int | None) -> PyTree:
    return _reduced(_start(setup, room), parts)


def _reduced(learner: train.Learner, parts: int | None) -> Any:
    """The learner, or the first parts of one that was given as a tuple."""
    return learner if parts is None else (learner.theta, learner.state, learner.statistics)[:parts]


def _as_learner(setup: train.Setup, given: Any, room: int) -> train.Learner:
    """A learner from what a loop of one's own has of it."""
    if isinstance(given, train.Learner):
        return given
    parts: list[Any] = list(given) if isinstance(given, tuple) else []
    if len(parts) not in (2, 3):
        raise ValueError(
            f"expected a train.Learner, (theta, state) or (theta, state, statistics), got a "
            f"{type(given).__name__}."
        )
    start = _start(setup, room)
    if len(parts) == 2 and jax.tree.leaves(start.statistics):
        raise ValueError("the network has running statistics: give (theta, state, statistics).")
    statistics = parts[2] if len(parts) == 3 else start.statistics
    return start._replace(theta=parts[0], state=parts[1], statistics=statistics)
