"""A task's own network, by itself: an ordinary parameter tree, and a program without jaxcl."""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from jaxcl.core import masks
from jaxcl.core.checks import load_extra
from jaxcl.core.trees import PyTree, leaves_by_path, size_bytes
from jaxcl.inference.inputs import plain
from jaxcl.inference.predictor import Predictor
from jaxcl.report.text import write_whole

PLATFORMS = ("cpu", "cuda", "tpu")
SAMPLE = 256  # examples on which the network is compared with the original
ROUNDING = 1e-4  # of the largest logit
REPEATS = 20


class Network(NamedTuple):
    """One task's network.

    Attributes:
        params: its parameters.
        statistics: its running statistics, {} if there are none.
        apply: `(params, statistics, stored inputs) -> logits [B, C]`, one column for each class.
        left_out: what it does without, in words; "" if nothing.
    """

    params: PyTree
    statistics: PyTree
    apply: Callable[[PyTree, PyTree, Any], jax.Array]
    left_out: str


class Exported(NamedTuple):
    """What `export` wrote.

    Attributes:
        folder: `network.stablehlo`, `params.npz`, `params` (orbax) and `export.json`.
        difference: the largest difference of a logit from the original's.
        scale: the largest logit.
        entries: of the parameters, and those of them that are zero.
        left_out: as in Network.
        batch: the batch that the program is for; None for any.
        bytes: of the original's parameters, the exported ones and the program.
        milliseconds: for `SAMPLE` inputs, before and after.
    """

    folder: Path
    difference: float
    scale: float
    entries: tuple[int, int]
    left_out: str
    batch: int | None
    bytes: tuple[int, int, int]
    milliseconds: tuple[float, float]


def network(predictor: Predictor, task: int | None) -> Network:
    """A task's network by itself, without the units and columns that it does not use.

    Where leaving them out is not possible, or changes a logit by more than rounding, nothing is
    left out.
    """
    params, statistics = predictor.params(task), predictor.statistics(task)
    setup, compact = predictor.setup, predictor.setup.method.compact
    images = sample(predictor)
    original = predictor.logits(images, task)

    def apply(params, statistics, x):
        logits = setup.model.apply(params, statistics, setup.prepare(x))[0]
        return logits.astype(jnp.float32)[:, : original.shape[1]]

    whole = Network(params, statistics, apply, "")
    if compact is None:
        return whole
    learner, before = predictor.learner, _entries(params)
    number = predictor.tasks - 1 if task is None else task
    try:
        small = compact(learner.theta, learner.state, number, statistics)
        logits = np.asarray(apply(*small, images))
    except (ValueError, TypeError):  # of a network that is made for its own number of units
        return whole
    if not _close(logits, original):
        return whole
    after = _entries(small[0])
    words = f"{before - after:,} of {before:,} parameters, which this task does not use"
    return Network(*small, apply, words if after < before else "")


def export(
    predictor: Predictor,
    folder: Path,
    task: int | None = None,
    *,
    platforms: Sequence[str] = PLATFORMS,
    about: dict[str, Any] | None = None,
) -> Exported:
    """Writes a task's own network as a parameter tree and as a StableHLO program.

    The program takes stored inputs and gives logits. It runs without jaxcl:
    `jax.export.deserialize(bytearray(path.read_bytes())).call(images)`.

    Args:
        predictor: the network, from `jaxcl.load`; its inputs must be known.
        folder: for the files; it must not exist.
        task: the task, counted from 0; None where the network is not told one.
        platforms: where the program is to run.
        about: what else `export.json` is to say.

    Returns:
        What was written, and what it was compared with.

    Raises:
        ValueError: for a folder that exists, a task that is none, or a program that does not give
            the logits of the original.
        ImportError: without flatbuffers.
    """
    if predictor.inputs is None:
        raise ValueError("export: the network's inputs are not known; give save(..., inputs=...).")
    if folder.exists():
        raise ValueError(f"{folder} exists already; choose another folder.")
    load_extra("flatbuffers", 'pip install "jaxcl[export]"')  # by which jax writes programs
    images, single = sample(predictor), network(predictor, task)
    original = predictor.logits(images, task)
    if not np.isfinite(original).all():
        raise ValueError("export: the network's logits are not finite; its training diverged.")
    program, batch = _program(predictor, single, platforms)
    call = jax.jit(jax.export.deserialize(bytearray(program)).call)
    logits = np.asarray(call(images))
    difference, scale = np.abs(logits - original).max(), np.abs(original).max()
    if not _close(logits, original):
        raise ValueError(
            f"export: the program's logits differ by {difference:g} from the network's, of which "
            f"the largest is {scale:g}."
        )
    _check_masks(predictor, single, task)
    number = np.int32(predictor.tasks - 1 if task is None else task)
    whole = predictor.programs["logits"]
    exported = Exported(
        folder, float(difference), float(scale),
        (_entries(single.params), sum(int((leaf == 0).sum()) for leaf in _leaves(single.params))),
        single.left_out, batch,
        (size_bytes(predictor.params(task)), size_bytes(single.params), len(program)),
        (_milliseconds(whole, predictor.learner, images, number), _milliseconds(call, images)),
    )  # fmt: skip
    inputs = plain(predictor.inputs) | {"classes": original.shape[1]}
    said = {**(about or {}), "task": task, "inputs": inputs, "platforms": list(platforms)}
    said |= {"batch": batch, "left_out": single.left_out, "difference": float(difference)}
    try:
        _write(folder, single, program, said)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # it did not exist before
        raise
    return exported


def sample(predictor: Predictor) -> np.ndarray:
    """Random inputs in the form in which a network's inputs are stored."""
    inputs, rng = predictor.inputs, np.random.default_rng(0)
    assert inputs is not None
    shape, dtype = (SAMPLE, *inputs.shape), np.dtype(inputs.dtype)
    if dtype.kind == "f":
        return rng.normal(inputs.mean, inputs.std, shape).astype(dtype)
    if dtype == np.uint8:
        return rng.integers(0, min(255, int(inputs.scale)) + 1, shape).astype(dtype)
    return np.zeros(shape, dtype)  # tokens, of which more is not known


def _program(predictor: Predictor, single: Network, platforms) -> tuple[bytes, int | None]:
    """The serialized program, and the batch that it is for: any, if the network can do so."""
    inputs = predictor.inputs
    assert inputs is not None

    def logits(images):
        return single.apply(single.params, single.statistics, images)

    def serialized(size):
        stored = jax.ShapeDtypeStruct((size, *inputs.shape), inputs.dtype)
        made = jax.export.export(jax.jit(logits), platforms=platforms)(stored)
        return bytes(made.serialize())

    try:
        return serialized(*jax.export.symbolic_shape("batch")), None
    except ImportError:
        raise
    except Exception:  # whatever a network does that needs the number of its inputs
        return serialized(SAMPLE), SAMPLE


def _write(folder: Path, single: Network, program: bytes, said: dict[str, Any]) -> None:
    from orbax.checkpoint import v1  # heavy, so loaded when it is used

    folder.mkdir(parents=True)
    write_whole(folder / "network.stablehlo", program)
    tree = {"params": single.params}
    if jax.tree.leaves(single.statistics):
        tree["statistics"] = single.statistics
    arrays = {path: np.asarray(leaf) for path, leaf in leaves_by_path(tree).items()}
    np.savez(folder / "params.npz", allow_pickle=False, **arrays)
    path: Any = folder.absolute() / "params"
    v1.save(path, jax.tree.map(np.asarray, tree))
    write_whole(folder / "export.json", json.dumps(said, indent=1) + "\n")


def _check_masks(predictor: Predictor, single: Network, task: int | None) -> None:
    """What the task does not use is exactly zero."""
    if single.left_out:
        return
    used = leaves_by_path(predictor.masks(task), is_leaf=masks.is_mask)
    for path, leaf in leaves_by_path(single.params).items():
        if np.asarray(leaf)[~np.asarray(used[path])].any():
            raise ValueError(f"export: '{path}' has entries that the task does not use.")


def _close(logits: np.ndarray, original: np.ndarray) -> bool:
    tolerance = ROUNDING * max(float(np.abs(original).max()), 1.0)
    return logits.shape == original.shape and bool(np.abs(logits - original).max() <= tolerance)


def _leaves(params: PyTree) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(params)]


def _entries(params: PyTree) -> int:
    return sum(leaf.size for leaf in _leaves(params))


def _milliseconds(function: Callable, *args: Any) -> float:
    """The median time of a call, compiled before."""
    times = []
    for _ in range(REPEATS + 1):
        begin = time.perf_counter()
        jax.block_until_ready(function(*args))
        times.append(time.perf_counter() - begin)
    return 1e3 * float(np.median(times[1:]))
