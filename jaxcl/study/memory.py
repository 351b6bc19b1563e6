"""What a study's programs need of a device's memory."""

import os

import jax
import jax.numpy as jnp

from jaxcl.study import replicas
from jaxcl.study.feed import examples_by_task, features_fit
from jaxcl.study.programs import Study, build


def advice(study: Study) -> str:
    """What to do once a device is out of memory, from the sizes of programs with smaller chunks."""
    layout = study.layout
    limit = limit_bytes(layout)
    each, in_all = layout.chunk, layout.per_device
    says = f"the device is out of memory: {each} replicas at a time, {in_all} in all"
    chunk = layout.chunk
    while chunk > 1:
        chunk //= 2
        smaller = build(
            study.recipe, study.benchmark, list(study.seeds), settings=study.settings, epochs=1,
            retrain_epochs=int(any(phase.closed for phase in study.phases)),
            devices=list(layout.mesh.devices.flat), chunk=chunk,
            devices_per_replica=layout.mesh.shape[replicas.BATCH_AXIS],
        )  # fmt: skip
        if (needed := program_bytes(smaller)) < 0.9 * limit:
            return f"{says}; --chunk {chunk} needs {needed / 1e9:.2g} of its {limit / 1e9:.2g} GB."
    return f"{says}; no chunk fits its {limit / 1e9:.2g} GB: choose fewer seeds or settings."


def limit_bytes(layout: replicas.Layout) -> int:
    """Bytes that a device has."""
    devices = layout.mesh.local_devices  # others may not be asked
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    if limit is None:  # a CPU, whose devices share the machine's memory
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)
    return limit


def program_bytes(study: Study) -> int:
    """Bytes that the training of an epoch needs on each device: arguments, results, temporaries."""
    layout, programs = study.layout, study.programs

    def padded(leaf):
        return jax.ShapeDtypeStruct((layout.padded, *leaf.shape[1:]), leaf.dtype)

    settings = jax.tree.map(padded, study.settings)
    learners = jax.eval_shape(programs["start"], padded(study.seeds), (settings,))
    setup = study.setup
    data, _ = examples_by_task(setup, study.benchmark)(0)
    number, features = jnp.int32(0), None
    if features_fit(study, setup, learners, data):
        features = jax.eval_shape(programs["frozen_features"], learners, (settings,), data, number)
    used = programs["epoch"].lower(
        learners._replace(state=()), (settings, learners.state, features),
        data, number, number, number, number, jnp.zeros(2),
    ).compile().memory_analysis()  # fmt: skip
    return (
        used.argument_size_in_bytes + used.output_size_in_bytes
        + used.temp_size_in_bytes - used.alias_size_in_bytes
    )  # fmt: skip
