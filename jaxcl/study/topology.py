"""Devices that are not here, to compile for: slices of TPUs, and a GPU."""

import importlib.util
import os
from typing import Any

import jax
from jax.experimental import topologies

from jaxcl.core.checks import install

# Kinds of chip that libtpu has names for, each with the smallest slice.
CHIPS = {
    "v2": "2x2", "v3": "2x2", "v4": "2x2x1", "v5e": "2x2", "v5p": "2x2x1", "v6e": "2x2",
    "tpu7x": "2x2x1",
}  # fmt: skip
# Bytes of memory of a device, by its kind; of those that show a chip's two cores as two, half a
# chip's. Source: Google Cloud's pages on each kind of TPU.
MEMORY = {
    "TPU v2": 8 << 30, "TPU v3": 16 << 30, "TPU v4": 16 << 30, "TPU v5 lite": 16 << 30,
    "TPU v5": 95 << 30, "TPU v6 lite": 32 << 30, "TPU7x": 96 << 30,
}  # fmt: skip
# What libtpu would look for on a machine that has a TPU.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5e-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
H100 = {
    "threads_per_block_limit": 1024, "threads_per_warp": 32, "shared_memory_per_block": 49152,
    "shared_memory_per_core": 233472, "threads_per_core_limit": 2048, "core_count": 132,
    "fpus_per_core": 128, "block_dim_limit_x": 2147483647, "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535, "memory_bandwidth": 3352320000000, "l2_cache_size": 52428800,
    "clock_rate_ghz": 1.98, "device_memory_size": 84929347584,
    "shared_memory_per_block_optin": 232448, "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536,
}  # fmt: skip


def tpu(name: str) -> list[Any]:
    """The devices of a slice of TPUs, for `study.build`; what is built can be lowered, not run.

    To be called before anything else loads libtpu. Programs are compiled as they are on a TPU.

    Args:
        name: kind of chip and shape, such as "v5e:4x4".

    Returns:
        The devices, of all hosts of the slice.

    Raises:
        ImportError: if libtpu is not installed.
        ValueError: for a slice that it does not know.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError(f"to compile for a TPU takes libtpu: {install('tpu')}")
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    try:
        return list(topologies.get_topology_desc(name, "tpu").devices)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).partition(": ")[2] or str(error)
        examples = ", ".join(f"{chip}:{shape}" for chip, shape in CHIPS.items())
        raise ValueError(
            f"libtpu knows no topology {name!r} ({reason.rstrip('.')}); it knows {examples} and "
            f"larger ones of these kinds, such as v5e:4x4."
        ) from error


def h100() -> list[Any]:
    """One NVIDIA H100, for `study.build`; what is built can be lowered and compiled, not run.

    It takes jax-cuda13-plugin and jax-cuda13-pjrt of JAX's version, and no other package of NVIDIA.

    Raises:
        ImportError: if they are not installed.
    """
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        raise ImportError(
            f"to compile for a GPU takes jax-cuda13-plugin and jax-cuda13-pjrt: pip install "
            f"--no-deps jax-cuda13-plugin=={jax.__version__} jax-cuda13-pjrt=={jax.__version__}"
        )
    limits = "".join(f"  {name}: {value}\n" for name, value in H100.items())
    config = (
        f"gpu_device_info {{\n{limits}  cuda_compute_capability {{ major: 9 }}\n}}\n"
        'platform_name: "CUDA"\ndnn_version_info { major: 9 minor: 7 }\n'
        "runtime_version { major: 12 minor: 8 patch: 0 }\n"
        'device_description_str: "NVIDIA H100 80GB HBM3"\n'
    )
    return list(
        topologies.get_topology_desc(
            platform="cuda", target_config=config, topology="1x1x1"
        ).devices
    )
