"""Seeds and settings as one axis: over a mesh of devices, and in equal chunks within each."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

PyTree = Any

AXIS = "replica"
CPU_CACHE_BYTES = 8 << 20  # what a chunk's parameters may fill before smaller chunks are faster


class Layout(NamedTuple):
    """Where replicas run.

    Attributes:
        mesh: one axis of devices, `"replica"`.
        replicas: number of replicas that were asked for.
        padded: number that run: a multiple of devices times chunk; the surplus repeats the last.
        chunk: replicas that run side by side within a device.
    """

    mesh: Mesh
    replicas: int
    padded: int
    chunk: int


def layout(
    replicas: int,
    replica_bytes: int,
    *,
    devices: Sequence[jax.Device] | None = None,
    chunk: int | None = None,
) -> Layout:
    """Spreads replicas evenly over devices, and cuts each device's share into equal chunks.

    Args:
        replicas: number of replicas, at least 1.
        replica_bytes: size of one replica's parameters.
        devices: the devices to use; by default all of this process.
        chunk: most replicas that run side by side in a device. By default all of them on an
            accelerator; on a CPU as many as its cache holds, and at least 2.

    Returns:
        A layout.

    Raises:
        ValueError: for numbers below 1.
    """
    if replicas < 1:
        raise ValueError(f"replicas must be at least 1, got {replicas}.")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}.")
    devices = list(devices or jax.local_devices())[:replicas]
    share = math.ceil(replicas / len(devices))
    if chunk is None:
        chunk = share
        if devices[0].platform == "cpu":
            chunk = max(2, CPU_CACHE_BYTES // max(2 * replica_bytes, 1))
    chunks = math.ceil(share / chunk)
    chunk = math.ceil(share / chunks)
    mesh = jax.make_mesh(
        (len(devices),), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,), devices=devices
    )
    return Layout(mesh, replicas, len(devices) * chunks * chunk, chunk)


def spread(function: Callable, where: Layout, count: Callable[[], None] = lambda: None) -> Callable:
    """Compiles `function(carried, fixed, *shared)` for all replicas at once.

    A single replica on a device runs as plain code, which is faster than a mapped axis of length 1.

    Args:
        function: a pure function of two pytrees of one replica, of which the first is consumed, and
            of arguments that all replicas read.
        where: the layout.
        count: called whenever the function is traced, so compiled.

    Returns:
        A compiled function of the same arguments, where the leaves of the first two have a leading
        [padded] axis. It returns a pytree with the same leading axis.
    """

    def on_device(carried, fixed, *shared):
        count()
        share = where.padded // where.mesh.size

        def run(replica):
            return function(*replica, *shared)

        if share == 1:
            result = run(jax.tree.map(lambda leaf: leaf[0], (carried, fixed)))
            return jax.tree.map(lambda leaf: leaf[None], result)
        if where.chunk == share:
            return jax.vmap(run)((carried, fixed))
        size = where.chunk if where.chunk > 1 else None
        return jax.lax.map(run, (carried, fixed), batch_size=size)

    def everywhere(carried, fixed, *shared):
        own, whole = PartitionSpec(AXIS), PartitionSpec()
        return jax.shard_map(
            on_device,
            mesh=where.mesh,
            in_specs=(own, own, *[whole] * len(shared)),
            out_specs=own,
            check_vma=False,
        )(carried, fixed, *shared)

    return jax.jit(everywhere, donate_argnums=0)


def place(tree: PyTree, where: Layout) -> PyTree:
    """Puts arrays with a leading [replicas] axis on the mesh, padded by the last replica."""

    def put(leaf):
        short = where.padded - leaf.shape[0]
        if short:
            leaf = jnp.concatenate([leaf, jnp.repeat(leaf[-1:], short, axis=0)])
        return jax.device_put(leaf, NamedSharding(where.mesh, PartitionSpec(AXIS)))

    return jax.tree.map(put, tree)


def share(tree: PyTree, where: Layout) -> PyTree:
    """Puts one copy of arrays that all replicas read on every device."""
    return jax.device_put(tree, NamedSharding(where.mesh, PartitionSpec()))


def unpad(tree: PyTree, where: Layout) -> PyTree:
    """Drops the surplus replicas."""
    return jax.tree.map(lambda leaf: leaf[: where.replicas], tree)
