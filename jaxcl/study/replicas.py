"""Seeds and settings as one axis: over a mesh of devices, and in equal chunks within each."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxcl.core.trees import PyTree

Device = Any  # jax.Device, which type checkers take for a variable

AXIS = "replica"
BATCH_AXIS = "batch"
CPU_CACHE_BYTES = 1 << 20  # of a core, beyond which a chunk's parameters are slower side by side


class Layout(NamedTuple):
    """Where replicas run.

    Attributes:
        mesh: devices, as `"replica"` times `"batch"`.
        replicas: number of replicas that were asked for.
        padded: number that run: a multiple of the mesh's replica axis times chunk; the surplus
            repeats the last.
        chunk: replicas that run side by side within a device.

    >>> here = layout(3, replica_bytes=1000, devices=jax.devices()[:1], chunk=1)
    >>> here.per_device, here.chunk
    (3, 1)
    """

    mesh: Mesh
    replicas: int
    padded: int
    chunk: int

    @property
    def per_device(self) -> int:
        """Number of replicas that a device holds."""
        return self.padded // self.mesh.shape[AXIS]


def layout(
    replicas: int,
    replica_bytes: int,
    *,
    devices: Sequence[Device] | None = None,
    chunk: int | None = None,
    devices_per_replica: int = 1,
    reproducible: bool = False,
) -> Layout:
    """Spreads replicas evenly over devices, and cuts each device's share into equal chunks.

    Args:
        replicas: number of replicas, at least 1.
        replica_bytes: size of one replica's parameters.
        devices: the devices to use; by default all, of all processes.
        chunk: most replicas that run side by side in a device. By default all of them on an
            accelerator; on a CPU as many as a core's cache holds, and at least 1.
        devices_per_replica: number of devices that share each replica, and each take a part of
            its batches.
        reproducible: every replica runs by itself and in the same loop, however many there are:
            the chunk is 1, and a device holds at least two, as a loop of one turn is compiled as
            if it were none, which rounds otherwise.

    Returns:
        A layout. Devices beyond one for each replica stay idle, spread over the processes.

    Raises:
        ValueError: for numbers below 1, `devices_per_replica` that does not divide the devices, or
            more processes than replicas.

    >>> found = layout(6, replica_bytes=1000, devices=jax.devices()[:1], chunk=2)
    >>> found.replicas, found.chunk
    (6, 2)
    """
    counts = {"replicas": replicas, "chunk": chunk, "devices_per_replica": devices_per_replica}
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    devices = list(devices or jax.devices())
    if len(devices) % devices_per_replica:
        raise ValueError(
            f"devices_per_replica must divide the {len(devices)} devices, got "
            f"{devices_per_replica}."
        )
    each = devices_per_replica
    groups = [devices[i : i + each] for i in range(0, len(devices), each)]
    least = 2 if reproducible else 1  # replicas in a device
    rows = max(1, min(len(groups), replicas // least))
    devices = [device for i in range(rows) for device in groups[i * len(groups) // rows]]
    if (processes := jax.process_count()) > len({device.process_index for device in devices}):
        raise ValueError(
            f"some of {processes} processes have no work with {replicas} replicas; start fewer "
            f"processes, or ask for more seeds or settings."
        )
    per_device = max(least, math.ceil(replicas / rows))
    if reproducible:
        chunk = 1
    if chunk is None:
        chunk = per_device
        if devices[0].platform == "cpu":
            chunk = max(1, CPU_CACHE_BYTES // max(replica_bytes, 1))
    chunks = math.ceil(per_device / chunk)
    chunk = math.ceil(per_device / chunks)
    mesh = Mesh(
        np.array(devices).reshape(rows, each),
        (AXIS, BATCH_AXIS),
        axis_types=(AxisType.Auto, AxisType.Auto),
    )
    return Layout(mesh, replicas, rows * chunks * chunk, chunk)


def spread(
    function: Callable,
    layout: Layout,
    *,
    count: Callable[[], None] = lambda: None,
    in_place: bool = False,
) -> Callable:
    """Compiles `function(carried, fixed, *shared)` for all replicas at once.

    A single replica on a device runs as plain code, which is faster than a mapped axis of length 1.

    Args:
        function: a pure function of two pytrees of one replica, and of arguments that all replicas
            read.
        layout: the layout.
        count: called whenever the function is traced, so compiled.
        in_place: the function gives `(carried, result)`, and the new carried arrays take the place
            of the old ones: the first argument is consumed, and no replica is held twice.

    Returns:
        A compiled function of the same arguments, where the leaves of the first two have a leading
        [padded] axis. It returns a pytree with the same leading axis.
    """

    def on_device(carried, fixed, *shared):
        count()

        def run(replica):
            return function(*replica, *shared)

        if layout.per_device == 1:
            result = run(jax.tree.map(lambda leaf: leaf[0], (carried, fixed)))
            return jax.tree.map(lambda leaf: leaf[None], result)
        if layout.chunk == layout.per_device:
            return jax.vmap(run)((carried, fixed))
        if in_place:
            return _chunk_by_chunk(run, layout, carried, fixed)
        size = layout.chunk if layout.chunk > 1 else None
        return jax.lax.map(run, (carried, fixed), batch_size=size)

    # Where devices share each replica, what they do is left to XLA, guided by the batch's sharding.
    by_hand = {AXIS} if layout.mesh.shape[BATCH_AXIS] > 1 else set(layout.mesh.axis_names)

    def everywhere(carried, fixed, *shared):
        own, whole = PartitionSpec(AXIS), PartitionSpec()
        return jax.shard_map(
            on_device,
            mesh=layout.mesh,
            in_specs=(own, own, *[whole] * len(shared)),
            out_specs=own,
            axis_names=by_hand,
            check_vma=False,
        )(carried, fixed, *shared)

    return jax.jit(everywhere, donate_argnums=0 if in_place else ())


def _chunk_by_chunk(run: Callable, layout: Layout, carried: PyTree, fixed: PyTree) -> PyTree:
    """`jax.lax.map`, which would hold the old and the new arrays of all chunks at once."""
    one = layout.chunk == 1

    def part(tree, i):
        if one:
            return jax.tree.map(lambda leaf: leaf[i], tree)
        first = i * layout.chunk
        return jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, layout.chunk), tree
        )

    def put(tree, new, i):
        if one:
            return jax.tree.map(lambda leaf, row: leaf.at[i].set(row), tree, new)
        first = i * layout.chunk
        return jax.tree.map(
            lambda leaf, rows: jax.lax.dynamic_update_slice_in_dim(leaf, rows, first, 0), tree, new
        )

    def step(i, both):
        new = (run if one else jax.vmap(run))(part((both[0], fixed), i))
        return put(both, new, i)

    _, result = jax.eval_shape(jax.vmap(run), (carried, fixed))
    empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), result)
    return jax.lax.fori_loop(0, layout.per_device // layout.chunk, step, (carried, empty))


def place(tree: PyTree, layout: Layout) -> PyTree:
    """Puts host arrays with a leading [replicas] axis on the mesh, padded by the last replica.

    >>> here = layout(3, replica_bytes=1000, devices=jax.devices()[:1])
    >>> place(np.zeros((3, 2)), here).shape
    (3, 2)
    """

    def padded(leaf):
        short = layout.padded - leaf.shape[0]
        return np.concatenate([leaf, np.repeat(leaf[-1:], short, axis=0)])

    return _put(jax.tree.map(padded, tree), NamedSharding(layout.mesh, PartitionSpec(AXIS)))


def replicate(tree: PyTree, layout: Layout) -> PyTree:
    """Puts one copy of arrays that all replicas read on every device.

    >>> here = layout(3, replica_bytes=1000, devices=jax.devices()[:1])
    >>> replicate(np.zeros((5, 2)), here).shape
    (5, 2)
    """
    return _put(tree, NamedSharding(layout.mesh, PartitionSpec()))


def _put(tree: PyTree, sharding: NamedSharding) -> PyTree:
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def put(leaf):  # each process its part; device_put would send all of it round, to compare
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(put, tree)


def gather(array: np.ndarray) -> np.ndarray:
    """An array of each process, of one shape, as [processes, ...] on every host."""
    return np.asarray(multihost_utils.process_allgather(array))


def fetch(tree: PyTree, layout: Layout) -> PyTree:
    """The replicas' arrays on every host, without the surplus replicas.

    >>> here = layout(3, replica_bytes=1000, devices=jax.devices()[:1])
    >>> print(fetch(place(np.arange(3), here), here))
    [0 1 2]
    """
    if jax.process_count() > 1:
        tree = multihost_utils.process_allgather(tree, tiled=True)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[: layout.replicas], tree)
