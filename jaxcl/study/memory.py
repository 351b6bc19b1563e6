"""What a study's programs need of a device's memory."""

import os

import jax

from jaxcl.study import replicas, topology
from jaxcl.study.compiled import bytes_of
from jaxcl.study.lowering import lower
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
    """Bytes that a device has; of one that is only compiled for, those of its kind."""
    here = jax.process_index()
    devices = [d for d in layout.mesh.devices.flat if d.process_index == here]
    try:
        limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    except jax.errors.JaxRuntimeError:  # it is not here
        kind = devices[0].device_kind
        return topology.MEMORY.get(kind) or topology.H100["device_memory_size"]
    if limit is None:  # a CPU, whose devices share the machine's memory
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)
    return limit


def program_bytes(study: Study) -> int:
    """Bytes that the training of an epoch needs on each device: arguments, results, temporaries."""
    return bytes_of(lower(study, ["epoch"])["epoch"].compile()).total
