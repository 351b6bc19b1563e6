"""The memory of examples: what it holds against a list that is filled one by one, and the law."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcl
from jaxcl.core.method import Batch, Context, Step
from jaxcl.methods import replay

ROOM, CLASSES, TASKS = 4, 3, 2


def context_of(key, task=0):
    def nothing(*args):
        raise AssertionError("not needed here")

    return Context(task, key, 0.5, nothing, nothing, lambda batch: batch.y, nothing)


def sample(shape=(), dtype=jnp.int32):
    one = jax.ShapeDtypeStruct((1,), jnp.int32)
    logits = jax.ShapeDtypeStruct((1, CLASSES), jnp.float32)
    return Batch(jax.ShapeDtypeStruct((1, *shape), dtype), one, one, features=logits)


def made(policy="reservoir", memory=ROOM, logits=False):
    base = jaxcl.multihead(jaxcl.finetune(), TASKS)
    return replay.store("test", base, memory, policy, logits=logits)


draw = jax.jit(replay.draw, static_argnums=2)


@functools.partial(jax.jit, static_argnums=0)
def offered(store, buffer, key, x, y=None, task=0, weight=None, logits=None):
    """The buffer after one batch."""
    y = jnp.zeros(x.shape[0], jnp.int32) if y is None else y
    step = Step(Batch(x, y, None, weight), logits, None, None, None)
    return replay.offer(store, context_of(key, task), buffer, step)


def stream(batches, size, seed=0):
    """Batches of numbered examples, of which some rows only fill up; and the true rows."""
    rng = np.random.default_rng(seed)
    x = np.arange(batches * size, dtype=np.int32).reshape(batches, size)
    y = rng.integers(0, CLASSES, x.shape).astype(np.int32)
    weight = (rng.random(x.shape) < 0.8).astype(np.float32)
    task = np.arange(batches) * TASKS // batches
    return x, y, task, weight


def by_lists(policy, key_of, x, y, task, weight, wins=max):
    """The same draws, by a list for each cell, an example after the other; in plain integers.

    `wins` chooses among the rows of a batch that go to one slot: the last of them.
    """
    cells = {"reservoir": 1, "ring": TASKS, "balanced": TASKS * CLASSES}[policy]
    room = {"reservoir": ROOM, "ring": 3, "balanced": 2}[policy]
    held, count = [[None] * room for _ in range(cells)], [0] * cells
    for b in range(len(x)):
        chance_key, slot_key = jax.random.split(jax.random.fold_in(key_of(b), replay.STORE))
        bits = np.asarray(jax.random.bits(chance_key, x[b].shape, jnp.uint32)).tolist()
        drawn = np.asarray(jax.random.randint(slot_key, x[b].shape, 0, room)).tolist()
        places = {}
        for i in range(len(x[b])):
            if weight[b, i] == 0:
                continue
            number = int(task[b]) * CLASSES + int(y[b, i])
            cell = {"reservoir": 0, "ring": int(task[b]), "balanced": number}[policy]
            n = count[cell]
            count[cell] += 1
            if policy == "ring":
                slot = n % room
            elif n < room:
                slot = n
            elif bits[i] * (n + 1) < room * 2**32:  # with the chance room / (n + 1)
                slot = drawn[i]
            else:
                continue
            places.setdefault((cell, slot), []).append(i)
        for (cell, slot), rows in places.items():
            held[cell][slot] = int(x[b, wins(rows)])
    return held, count


@pytest.mark.parametrize("policy", replay.POLICIES)
def test_buffer_is_filled_as_a_list_would_be(policy):
    """Several rows of a batch go to one slot, rows that fill up go nowhere, cells are apart."""
    x, y, task, weight = stream(12, 7)
    room = {"reservoir": ROOM, "ring": 3 * TASKS + 1, "balanced": 2 * TASKS * CLASSES}[policy]
    store = made(policy, room)
    buffer = replay.empty(store, sample())

    def key_of(b):
        return jax.random.fold_in(jax.random.key(5), b)

    for b in range(len(x)):
        buffer = offered(store, buffer, key_of(b), x[b], y[b], task[b], weight[b])
    expected, count = by_lists(policy, key_of, x, y, task, weight)
    found = np.asarray(buffer.x).reshape(len(count), -1)
    filled = np.arange(found.shape[1])[None] < np.array(count)[:, None]
    assert [[n if f else None for n, f in zip(*row)] for row in zip(found, filled)] == expected
    np.testing.assert_array_equal(buffer.count, count)
    held, labels = np.asarray(buffer.x)[filled.ravel()], y.ravel()
    np.testing.assert_array_equal(np.asarray(buffer.y)[filled.ravel()], labels[held])
    np.testing.assert_array_equal(np.asarray(buffer.task)[filled.ravel()], task[held // x.shape[1]])
    assert (weight.ravel()[held] == 1).all()

    # The broken twins: the first write wins; rows that fill up are offered as well.
    assert by_lists(policy, key_of, x, y, task, weight, wins=min)[0] != expected
    assert by_lists(policy, key_of, x, y, task, np.ones_like(weight))[0] != expected


def shares_held(runs, examples, batch):
    """In how many of many independent streams each example is held at the end; [examples]."""
    store = made()

    def run(key):
        def step(b, buffer):
            rows = b * batch + jnp.arange(batch)
            weight = (rows < examples).astype(float)
            add = offered.__wrapped__  # traced anew for the twin
            return add(store, buffer, jax.random.fold_in(key, b), rows, weight=weight)

        batches = -(-examples // batch)
        return jax.lax.fori_loop(0, batches, step, replay.empty(store, sample())).x

    held = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), runs))
    return np.bincount(np.asarray(held).ravel(), minlength=examples)[:examples] / runs


def one_too_few(key, number, slots):
    """The twin that draws from {0, ..., n - 1}, as the code of agem does."""
    return honest(key, jnp.where(number < slots, number, number - 1), slots)


honest = replay.reservoir_slots


def test_reservoir_holds_every_example_with_the_same_chance(monkeypatch):
    runs, examples = 4000, 22
    expected = ROOM / examples
    error = np.sqrt(expected * (1 - expected) / runs)
    assert abs(shares_held(runs, examples, 5) - expected).max() < 4 * error
    monkeypatch.setattr(replay, "reservoir_slots", one_too_few)
    assert abs(shares_held(runs, examples, 5) - expected).max() > 8 * error


def test_reservoir_is_right_for_long_streams():
    """Beyond 2^31 examples, of which float32 tells every 256th."""
    draws, slots, number = 100_000, 2**23, 2**31 + 12345
    numbers = jnp.full(draws, number, jnp.uint32)
    found = np.asarray(replay.reservoir_slots(jax.random.key(3), numbers, slots))
    kept = found[found < slots]
    expected = draws * slots / (number + 1)
    assert abs(kept.size - expected) < 4 * np.sqrt(expected)
    assert len(np.unique(kept % 256)) > 150  # of 390 draws

    # The broken twin: a slot of {0, ..., n} from a float.
    floats = jax.random.uniform(jax.random.key(3), (draws,)) * (np.float32(number) + 1)
    kept = np.asarray(floats.astype(jnp.uint32))
    assert len(np.unique(kept[kept < slots] % 256)) < 75

    buffer = replay.empty(made(), sample())._replace(count=jnp.array([number], jnp.uint32))
    buffer = offered(made(), buffer, jax.random.key(0), jnp.arange(5, dtype=jnp.int32))
    assert int(buffer.count[0]) == number + 5


def test_draw_is_uniform_among_what_is_filled():
    """With replacement; in a memory whose cells are filled unequally, and of some tasks alone."""
    store = made("ring", 10)
    x = jnp.arange(3, dtype=jnp.int32) + 1
    buffer = offered(store, replay.empty(store, sample()), jax.random.key(0), x, task=0)
    buffer = offered(store, buffer, jax.random.key(0), 10 * x[:1], task=1)
    rows, logits = draw(buffer, jax.random.key(1), 8000)
    values, count = np.unique(rows.x, return_counts=True)
    np.testing.assert_array_equal(values, [1, 2, 3, 10])
    assert abs(count - 2000).max() < 4 * np.sqrt(2000)
    assert logits == () and (rows.weight == 1).all() and rows.replayed.all()
    np.testing.assert_array_equal(rows.task, rows.x == 10)
    rows, _ = draw(buffer, jax.random.key(1), 100, among=buffer.task < 1)
    assert set(rows.x.tolist()) == {1, 2, 3}


def test_draw_from_nothing_has_no_weight():
    rows, _ = draw(replay.empty(made(), sample()), jax.random.key(1), 5)
    assert (rows.weight == 0).all() and (rows.x == 0).all()
    assert replay.mean(jnp.ones(5), rows.weight) == 0  # not 0 / 0


def test_examples_and_logits_are_stored_in_their_types():
    store = made(logits=True)
    buffer = replay.empty(store, sample((2, 2), jnp.uint8))
    x = jnp.arange(12, dtype=jnp.uint8).reshape(3, 2, 2)
    logits = jnp.arange(9.0).reshape(3, 3)
    buffer = offered(store, buffer, jax.random.key(0), x, logits=logits)
    assert buffer.x.dtype == jnp.uint8
    np.testing.assert_array_equal(buffer.x[:3], x)
    np.testing.assert_array_equal(buffer.logits[:3], logits)
    rows, stored = draw(buffer, jax.random.key(2), 6)
    np.testing.assert_array_equal(stored[:, 0] / 3 * 4, rows.x[:, 0, 0])


def test_balanced_counts_classes_among_the_logits_where_all_tasks_share_a_head():
    store = replay.store("test", jaxcl.finetune(), 7, "balanced")
    buffer = replay.empty(store, sample())
    assert buffer.y.shape == (6,) and buffer.count.shape == (CLASSES,)
    y = jnp.array([2, 2, 0, 2], jnp.int32)
    buffer = offered(store, buffer, jax.random.key(0), jnp.arange(4, dtype=jnp.int32), y, task=1)
    np.testing.assert_array_equal(buffer.count, [1, 0, 3])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"memory": 0}, "er: memory must be a whole number from 1 to 16777215, got 0"),
        ({"memory": 2**24}, "er: memory must be a whole number from 1"),
        ({"replay_batch": 0}, "er: replay_batch must be a whole number"),
        ({"policy": "first"}, "er: policy must be one of 'reservoir', 'ring', 'balanced'"),
        ({"policy": "ring"}, "er: policy='ring' needs tasks"),
    ],
)
def test_refusals(options, says):
    with pytest.raises(ValueError, match=says):
        jaxcl.er(jaxcl.finetune(), **options)


def test_refuses_a_base_that_isolates_or_remembers():
    with pytest.raises(ValueError, match="the base method isolates"):
        jaxcl.er(jaxcl.packnet(2))
    with pytest.raises(ValueError, match="has 'online' of its own"):
        jaxcl.er(jaxcl.er(jaxcl.finetune()))


def test_refuses_a_memory_without_room_and_examples_that_do_not_fit():
    with pytest.raises(ValueError, match=r"test: memory must be at least 6, .*'balanced', got 5"):
        replay.empty(made("balanced", 5), sample())
    buffer = replay.empty(made(), sample((2,)))
    with pytest.raises(ValueError, match=r"holds x as int32\[2\], and the examples are float32"):
        offered(made(), buffer, jax.random.key(0), jnp.zeros((3, 2)))
    y = jnp.zeros(3)
    with pytest.raises(ValueError, match=r"holds y as int32\[\], and the examples are float32"):
        offered(made(), buffer, jax.random.key(0), jnp.zeros((3, 2), jnp.int32), y)
