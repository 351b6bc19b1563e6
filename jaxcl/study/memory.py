"""What a study's programs need of a device's memory."""

import os

import jax
import jax.numpy as jnp

from jaxcl.study import replicas
from jaxcl.study.feed import examples_by_task, features_fit
from jaxcl.study.programs import Study, build


def advice(stage: Study) -> str:
    """What to do once a device is out of memory, from the sizes of programs with smaller chunks."""
    where = stage.layout
    devices = where.mesh.local_devices  # others may not be asked
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    if limit is None:  # a CPU, whose devices share the machine's memory
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)
    says = f"the device is out of memory: {where.chunk} replicas at a time, {where.share} in all"
    chunk = where.chunk
    while chunk > 1:
        chunk //= 2
        smaller = build(
            stage.recipe, stage.benchmark, list(stage.seeds), settings=stage.settings,
            epochs=stage.epochs, retrain_epochs=stage.retrain_epochs,
            devices=list(where.mesh.devices.flat), chunk=chunk,
            split=where.mesh.shape[replicas.BATCH_AXIS],
        )  # fmt: skip
        if (needed := program_bytes(smaller)) < 0.9 * limit:
            return f"{says}; --chunk {chunk} needs {needed / 1e9:.2g} of its {limit / 1e9:.2g} GB."
    return f"{says}; no chunk fits its {limit / 1e9:.2g} GB: choose fewer seeds or settings."


def program_bytes(stage: Study) -> int:
    """Bytes that the training of an epoch needs on each device: arguments, results, temporaries."""
    where, programs = stage.layout, stage.programs

    def padded(leaf):
        return jax.ShapeDtypeStruct((where.padded, *leaf.shape[1:]), leaf.dtype)

    settings = jax.tree.map(padded, stage.settings)
    learners = jax.eval_shape(programs["start"], padded(stage.seeds), (settings,))
    setup = stage.recipe({name: value[0] for name, value in stage.settings.items()})
    data, validation = examples_by_task(setup, stage.benchmark)(0)
    number, features = jnp.int32(0), None
    if features_fit(stage, setup, learners, data):
        features = jax.eval_shape(programs["frozen_features"], learners, (settings,), data, number)
    used = programs["epoch"].lower(
        learners._replace(state=()), (settings, learners.state, features),
        data, number, number, validation,
    ).compile().memory_analysis()  # fmt: skip
    return (
        used.argument_size_in_bytes + used.output_size_in_bytes
        + used.temp_size_in_bytes - used.alias_size_in_bytes
    )  # fmt: skip
