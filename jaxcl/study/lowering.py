"""A study's programs, lowered from shapes alone: nothing runs, and no device need be at hand."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxcl.core.trees import PyTree
from jaxcl.study import replicas
from jaxcl.study.feed import examples_by_task, features_fit, stack
from jaxcl.study.programs import Study

PROGRAMS = ("start", "begin_task", "epoch", "end", "evaluate")


def learners(study: Study) -> PyTree:
    """The shapes of all learners of a study, with a leading [padded] axis."""
    layout = study.layout

    def padded(leaf):
        return jax.ShapeDtypeStruct((layout.padded, *leaf.shape[1:]), leaf.dtype)

    seeds, settings = padded(study.seeds), jax.tree.map(padded, study.settings)
    return jax.eval_shape(study.programs["start"], seeds, (settings,))


def lower(study: Study, names: Iterable[str] = PROGRAMS) -> dict[str, Any]:
    """Programs of a study for the devices of its layout, such as those of `topology`.

    Args:
        study: from `build`.
        names: of PROGRAMS.

    Returns:
        By name what `jax.stages.Lowered` is, to be compiled. Each device's share of the arguments
        is that of a run.
    """
    arguments = _arguments(study)
    return {name: study.programs[name].lower(*arguments[name]) for name in names}


def _arguments(study: Study) -> dict[str, tuple]:
    """What each program is called with in a run, as shapes on the mesh."""
    layout, setup = study.layout, study.setup
    own, whole = PartitionSpec(replicas.AXIS), PartitionSpec()

    def shapes(tree, spec):
        sharding = NamedSharding(layout.mesh, spec)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype, sharding=sharding), tree
        )

    def padded(tree):
        rows = jax.tree.map(lambda a: jax.ShapeDtypeStruct((layout.padded,), a.dtype), tree)
        return shapes(rows, own)

    seeds, settings = padded(study.seeds), padded(study.settings)
    all_learners = shapes(learners(study), own)
    data, validation = shapes(examples_by_task(setup, study.benchmark)(0), whole)
    held_out = shapes(stack([task.test for task in study.benchmark.tasks]), whole)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    features = None
    if features_fit(study, setup, all_learners, data):
        made = study.programs["frozen_features"]
        features = shapes(jax.eval_shape(made, all_learners, (settings,), data, number), own)
    looks = setup.method.consolidate is not None or any(p.begin for p in setup.method.phases)
    ends = (number, data if looks else None, validation)
    return {
        "start": (seeds, (settings,)),
        "begin_task": (all_learners, (settings,), number),
        "epoch": (
            all_learners._replace(state=()), (settings, all_learners.state, features),
            data, number, number, number, number, jax.ShapeDtypeStruct((2,), jnp.float32),
        ),
        "end": (all_learners, (settings,), *ends),
        "evaluate": (all_learners, (settings,), held_out, number),
    }  # fmt: skip
