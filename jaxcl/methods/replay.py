"""A memory of examples: how it is filled inside a compiled step, and drawn from."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxcl.core.checks import check_choice, check_count
from jaxcl.core.method import Batch, Context, Method, Online, Step
from jaxcl.core.trees import PyTree

POLICIES = ("reservoir", "ring", "balanced")
MOST = 2**24 - 1  # examples; so many are exact in float32

# Folded into a step's key, one for each use. They are large, as networks fold in small ones.
DRAW, SECOND_DRAW, STORE, PASS, SECOND_PASS, AUGMENT = range(1 << 30, (1 << 30) + 6)


class Buffer(NamedTuple):
    """The examples, side by side; each cell is an equal share of the slots.

    Attributes:
        x: [slots, ...] in the stored type.
        y: int [slots], labels within their task.
        task: int [slots].
        logits: float [slots, C], the network's as the example was stored; () if they are not kept.
        count: uint32 [cells], how many examples each cell has been offered. It is exact up to 2^32.
    """

    x: jax.Array
    y: jax.Array
    task: jax.Array
    logits: Any
    count: jax.Array


class Store(NamedTuple):
    """How a memory is divided into cells, and these are filled.

    Attributes:
        name: of the method, for errors.
        memory: the most examples.
        policy: `"reservoir"`, one cell that holds a uniform sample of all that was offered;
            `"ring"`, a cell for each task, which holds the latest; `"balanced"`, a cell for each
            class, which holds a uniform sample of what was offered of it.
        tasks: the number of tasks that have a ring, or classes, of their own.
        logits: keep the network's logits.
    """

    name: str
    memory: int
    policy: Literal["reservoir", "ring", "balanced"]
    tasks: int
    logits: bool


def store(
    name: str,
    base: Method,
    memory: int,
    policy: Literal["reservoir", "ring", "balanced"] = "reservoir",
    tasks: int | None = None,
    logits: bool = False,
) -> Store:
    """A Store, checked; `tasks` is by default the number that `base` is made for."""
    check_count(f"{name}: memory", memory, MOST)
    check_choice(f"{name}: policy", policy, POLICIES)
    tasks = (tasks if policy == "ring" else None) or base.tasks
    if policy == "ring" and tasks is None:
        raise ValueError(f"{name}: policy='ring' needs tasks, the number of rings.")
    return Store(name, memory, policy, tasks or 1, logits)


def replaying(
    name: str, base: Method, online: Online, auxiliary: Callable[..., jax.Array] | None = None
) -> Method:
    """The base method with a memory; it may move the heads of all tasks so far.

    Raises:
        ValueError: if the base method brings its own, or isolates tasks.
    """
    if base.isolates:
        raise ValueError(
            f"{name}: replay changes what finished tasks see, and the base method isolates them; "
            "expected one like finetune()."
        )
    for hook, new in (("online", online), ("auxiliary", auxiliary)):
        if new is not None and getattr(base, hook) is not None:
            raise ValueError(f"{name}: the base method has {hook!r} of its own; expected none.")

    def forget_task(theta, state, memory, task, kept, fresh):
        assert base.forget_task is not None
        theta, state, _ = base.forget_task(theta, state, (), task, kept, fresh)
        return theta, state, without(memory, task)

    return base._replace(
        trainable=base.trainable_seen or base.trainable,
        online=online,
        auxiliary=auxiliary or base.auxiliary,
        forget_task=base.forget_task and forget_task,
    )


def empty(store: Store, sample: Batch) -> Buffer:
    """A buffer without examples.

    Args:
        store: how it is divided.
        sample: one row's shapes and types, as for `Online.init`.

    Raises:
        ValueError: if there are more cells than slots.
    """
    classes = store.tasks * sample.features.shape[-1]
    cells = {"reservoir": 1, "ring": store.tasks, "balanced": classes}[store.policy]
    slots = store.memory // cells * cells
    if not slots:
        raise ValueError(
            f"{store.name}: memory must be at least {cells}, one example for each cell of "
            f"policy={store.policy!r}, got {store.memory}."
        )

    def room(leaf):
        return jnp.zeros((slots, *leaf.shape[1:]), leaf.dtype)

    logits = room(sample.features) if store.logits else ()
    count = jnp.zeros(cells, jnp.uint32)
    return Buffer(room(sample.x), room(sample.y), room(sample.task), logits, count)


def offer(store: Store, context: Context, buffer: Buffer, step: Step) -> Buffer:
    """Offers a step's rows to the buffer, one after the other; those of weight 0 are left out.

    Where several rows go to one slot, the last of them stays.

    Source: Vitter's algorithm R (1985): example n of a stream, from 0, is kept if n < M, else with
        the chance M / (n + 1), in place of a random one; then each is held with the chance M / N.
    """
    rows, key = step.batch, jax.random.fold_in(context.key, STORE)
    new = Buffer(rows.x, rows.y, tasks_of(context, rows), step.logits, buffer.count)
    _check_fits(store, buffer, new)
    cells = buffer.count.size
    size, each = buffer.y.shape[0] // cells, jnp.arange(rows.y.shape[0])
    offered = jnp.ones(each.shape, bool) if rows.weight is None else rows.weight > 0
    cell = jnp.zeros_like(new.task)
    if store.policy != "reservoir" and store.tasks > 1:
        cell = new.task * (cells // store.tasks)
    if store.policy == "balanced":
        cell += context.labels(rows)

    later = each[None, :] > each[:, None]
    alike = offered[None, :] & (cell[None, :] == cell[:, None])
    before = jnp.sum(alike & later.T, axis=1, dtype=jnp.uint32)  # offered to the cell, in the batch
    number = buffer.count[cell] + before
    slot = number % size if store.policy == "ring" else reservoir_slots(key, number, size)
    stored = offered & (slot < size)
    place = cell * size + slot.astype(cell.dtype)
    beaten = jnp.any(stored[None, :] & (place[None, :] == place[:, None]) & later, axis=1)
    put = jnp.where(stored & ~beaten, place, buffer.y.shape[0])  # the rest is dropped

    def write(old, row):
        return old.at[put].set(row.astype(old.dtype), mode="drop")

    return Buffer(
        write(buffer.x, new.x),
        write(buffer.y, new.y),
        write(buffer.task, new.task),
        write(buffer.logits, new.logits) if store.logits else (),
        buffer.count.at[cell].add(offered.astype(jnp.uint32)),
    )


def without(buffer: Buffer, task: int) -> Buffer:
    """The buffer without a task's examples; those that stay move up within their cells.

    A cell that loses some counts as if it had been offered no more than it has left, so that new
    examples fill it up before any is replaced: of a reservoir, what stays is a uniform sample of
    the other tasks' examples, and what comes is kept with certainty until it is full.
    """
    cells = buffer.count.size
    size = buffer.y.shape[0] // cells
    filled = jnp.arange(size)[None, :] < buffer.count[:, None]
    stays = filled & (buffer.task.reshape(cells, size) != task)
    order = jnp.argsort(~stays, axis=1, stable=True)
    number = jnp.sum(stays, axis=1, dtype=jnp.uint32)
    loses = number < jnp.minimum(buffer.count, jnp.uint32(size))
    there = jnp.arange(size)[None, :] < number[:, None]

    def move(leaf):
        rows = leaf.reshape(cells, size, *leaf.shape[1:])
        wide = (...,) + (None,) * (rows.ndim - 2)
        moved = jnp.take_along_axis(rows, order[wide], axis=1)
        moved = jnp.where(there[wide], moved, jnp.zeros_like(moved))
        return jnp.where(loses.reshape(-1, *[1] * (rows.ndim - 1)), moved, rows).reshape(leaf.shape)

    x, y, tasks, logits = jax.tree.map(move, buffer[:4])
    return Buffer(x, y, tasks, logits, jnp.where(loses, number, buffer.count))


def regrown(store: Store, key: jax.Array, buffer: Buffer, fresh: Buffer) -> Buffer:
    """The buffer in an empty one that may have more cells, which are smaller then.

    Of a cell that does not fit, a ring's latest examples stay, and of the others a uniform sample.
    """
    cells, more = buffer.count.size, fresh.count.size
    if cells == more:
        return buffer
    size, smaller = buffer.y.shape[0] // cells, fresh.y.shape[0] // more
    slot = jnp.arange(size)[None, :]
    age = jax.random.uniform(key, (cells, size))
    if store.policy == "ring":
        latest = ((buffer.count - 1) % size).astype(jnp.int32)[:, None]
        age = (latest - slot) % size / size
    filled = slot < buffer.count[:, None]
    order = jnp.argsort(jnp.where(filled, age, 2.0), axis=1)[:, :smaller]

    def move(old, new):
        rows = old.reshape(cells, size, *old.shape[1:])
        chosen = jnp.take_along_axis(rows, order[(...,) + (None,) * (rows.ndim - 2)], axis=1)
        room = new.reshape(more, smaller, *new.shape[1:])
        return room.at[:cells].set(chosen).reshape(new.shape)

    x, y, tasks, logits = jax.tree.map(move, buffer[:4], fresh[:4])
    return Buffer(x, y, tasks, logits, fresh.count.at[:cells].set(buffer.count))


def reservoir_slots(key: jax.Array, number: jax.Array, slots: int) -> jax.Array:
    """Where examples of a stream go.

    A slot drawn from {0, ..., n} lies below `slots` with the chance slots / (n + 1), and is then
    any of them alike. Drawn as these two, it is right far beyond the 2^24 values that a float32
    tells apart: the chance is off by less than 1e-7 of itself, and 2^-32.

    Args:
        key: typed key.
        number: uint32 [B], each example's number, counted from 0.
        slots: number of slots.

    Returns:
        uint32 [B]; `slots` for an example that is not kept.
    """
    chance_key, slot_key = jax.random.split(key)
    chance = jnp.where(number < slots, 0, slots / (number.astype(jnp.float32) + 1))
    kept = jax.random.bits(chance_key, number.shape, jnp.uint32) < (chance * 2.0**32).astype(
        jnp.uint32
    )
    slot = jax.random.randint(slot_key, number.shape, 0, slots).astype(jnp.uint32)
    return jnp.where(number < slots, number, jnp.where(kept, slot, jnp.uint32(slots)))


def draw(
    buffer: Buffer, key: jax.Array, size: int, among: jax.Array | None = None
) -> tuple[Batch, PyTree]:
    """Rows of the memory, uniformly and with replacement.

    Args:
        buffer: the memory.
        key: typed key.
        size: number of rows.
        among: bool [slots], those that may be drawn; by default all that are filled.

    Returns:
        The rows, all of weight 0 if there are none to draw; and their stored logits.
    """
    slots, cells = buffer.y.shape[0], buffer.count.size
    filled = jnp.minimum(buffer.count, slots // cells).astype(jnp.int32)  # from a cell's start on
    if among is not None:  # each slot for itself
        filled = (jnp.arange(slots // cells)[None, :] < filled[:, None]).ravel() & among
        filled, cells = filled.astype(jnp.int32), slots
    end = jnp.cumsum(filled)
    number = jax.random.randint(key, (size,), 0, jnp.maximum(end[-1], 1))
    cell = jnp.minimum(jnp.searchsorted(end, number, side="right"), cells - 1)
    index = cell * (slots // cells) + number - (end - filled)[cell]
    weight = jnp.broadcast_to((end[-1] > 0).astype(float), (size,))
    x, y, task, logits = jax.tree.map(lambda leaf: leaf[index], buffer[:4])
    return Batch(x, y, task, weight, jnp.ones(size, bool)), logits


def logits_of(context: Context, theta: PyTree, state: PyTree, rows: Batch, key: jax.Array) -> Any:
    """The logits of a training pass of its own over rows of the memory, augmented anew."""
    rows = rows._replace(x=context.augment(jax.random.fold_in(key, AUGMENT), rows.x))
    return context.logits(theta, state, rows, train=True, key=key)


def joined(context: Context, batch: Batch, replayed: Batch) -> Batch:
    """The rows of the running task, and then those of the memory; as a step trains on them."""
    new = batch._replace(
        task=tasks_of(context, batch),
        weight=jnp.ones(batch.y.shape[0]) if batch.weight is None else batch.weight,
        replayed=jnp.zeros(batch.y.shape[0], bool),
        features=None,  # the memory has none, so that the network computes all of them
    )
    return jax.tree.map(lambda *pair: jnp.concatenate(pair), new, replayed)


def tasks_of(context: Context, rows: Batch) -> jax.Array:
    """Each row's task, int32 [B]."""
    task = context.task if rows.task is None else rows.task
    return jnp.broadcast_to(jnp.asarray(task, jnp.int32), rows.y.shape[:1])


def mean(values: jax.Array, weight: jax.Array) -> jax.Array:
    """The mean over rows of weight 1; 0 if there are none."""
    return jnp.sum(values * weight) / jnp.maximum(jnp.sum(weight), 1)


def _check_fits(store: Store, buffer: Buffer, new: Buffer) -> None:
    """Raises ValueError for rows of other shapes and types than the memory is made for."""
    for name in ("x", "y"):
        room, rows = getattr(buffer, name), getattr(new, name)
        if room.shape[1:] != rows.shape[1:] or room.dtype != rows.dtype:
            raise ValueError(
                f"{store.name}: the memory holds {name} as {room.dtype}{list(room.shape[1:])}, and "
                f"the examples are {rows.dtype}{list(rows.shape[1:])}; Setup.sample must be like "
                f"one stored x, and labels int32."
            )
