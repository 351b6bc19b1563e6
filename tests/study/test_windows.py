"""One order for all seeds: streamed or held, in one window or many, the same numbers to the bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl import data, recipes, study
from jaxcl.data import streaming
from jaxcl.study import feed
from jaxcl.train.augmentation import crop_and_flip
from tests.data.pictures import pictures

OPTIONS = recipes.Options(hidden=(8,), epochs=3, batch=5, order="one")


@pytest.fixture
def both(tmp_path):
    pictures(tmp_path / "train"), pictures(tmp_path / "test", each=4, seed=1)
    return [
        data.load(f"split_folder:{tmp_path},size=6,stream={stream}", tasks=2)
        for stream in ("no", "yes")
    ]


def events(benchmark, method="packnet", options=OPTIONS, seeds=(0, 1), **more):
    return study.run(recipes.studies(method, benchmark, options, seeds=seeds), **more)


def numbers(learners):
    return [np.asarray(leaf) for leaf in jax.tree.leaves((learners.theta, learners.state))]


def end(*args, **more):
    *_, last = events(*args, **more)
    return last.accuracy, numbers(last.learners)


@pytest.mark.parametrize("method", ["packnet", "ewc"])
def test_streamed_and_held_give_the_same_bits(both, method):
    held, streamed = (end(one, method) for one in both)
    np.testing.assert_array_equal(held[0], streamed[0])
    jax.tree.map(np.testing.assert_array_equal, held[1], streamed[1])


def test_the_size_of_a_window_changes_nothing_but_the_program(both, monkeypatch):
    whole = end(both[1])
    monkeypatch.setattr(feed, "WINDOW_BYTES", 2 * 5 * 6 * 6 * 3)  # two steps
    parts = [type(event).__name__ for event in events(both[1])]
    assert parts.count("StepsEnd") > 0
    small = end(both[1])
    jax.tree.map(np.testing.assert_array_equal, whole[1], small[1])


def test_a_stream_goes_on_from_any_event(both, monkeypatch):
    monkeypatch.setattr(feed, "WINDOW_BYTES", 2 * 5 * 6 * 6 * 3)
    whole = end(both[1])
    for event in events(both[1]):
        if type(event).__name__ == "StepsEnd" and event.task == 1:
            kept = jax.tree.map(jnp.copy, event.learners), event.cursor
            break
    learners, cursor = kept
    again = end(both[1], learners=learners, first=cursor)
    jax.tree.map(np.testing.assert_array_equal, whole[1], again[1])


def test_several_processes_read_each_image_once_and_have_every_batch(tmp_path, monkeypatch):
    """Two processes in turn: what each gives the other is taken down, and then handed out."""
    pictures(tmp_path / "train"), pictures(tmp_path / "test", each=4, seed=1)
    made = data.load(f"split_folder:{tmp_path},size=6,stream=yes,augment=yes", tasks=2)
    monkeypatch.setattr(feed, "WINDOW_BYTES", 3 * 2 * 6 * 6 * 3)  # three steps, an odd number
    options = recipes.Options(hidden=(8,), batch=2, order="one")
    one = recipes.studies("finetune", made, options, seeds=[0])[0]
    read = []
    opened = streaming.open_image
    monkeypatch.setattr(streaming, "open_image", lambda file: read.append(file) or opened(file))

    def windows():
        return [part.x for part, _ in feed.windows(one, one.setup, 1, 0, 1, 9)]

    expected = windows()
    alone = sorted(read)
    assert len(expected) == 3
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    given, seen = {0: [], 1: []}, []
    for me in (0, 1):
        read.clear()
        monkeypatch.setattr(jax, "process_index", lambda me=me: me)
        gather = lambda rows, me=me: given[me].append(rows) or np.stack([rows, rows])  # noqa: E731
        monkeypatch.setattr(feed.replicas, "gather", gather)
        windows()
        seen.append(sorted(read))
    assert sorted(seen[0] + seen[1]) == alone and not {*seen[0]} & {*seen[1]}
    for me in (0, 1):
        both = iter(map(np.stack, zip(*given.values())))
        monkeypatch.setattr(jax, "process_index", lambda me=me: me)
        monkeypatch.setattr(feed.replicas, "gather", lambda rows, both=both: next(both))
        jax.tree.map(np.testing.assert_array_equal, windows(), expected)


def test_the_one_order_is_the_first_seeds_own(both):
    own = OPTIONS.__class__(**{**vars(OPTIONS), "order": "each"})
    alone = end(both[0], options=own, seeds=[3]), end(both[0], seeds=[3])
    for a, b in zip(alone[0][1], alone[1][1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    other = end(both[0], options=own, seeds=[4])
    assert any(not np.array_equal(a, b) for a, b in zip(alone[0][1], other[1], strict=True))


def test_what_needs_the_examples_in_another_order_is_refused(both):
    with pytest.raises(ValueError, match="one order for all seeds; choose order one"):
        recipes.studies("finetune", both[1], recipes.Options(hidden=(8,)))
    with pytest.raises(ValueError, match="joint trains on the examples of several tasks at once"):
        recipes.studies("joint", both[0], OPTIONS)


# On the device


def test_crops_move_an_image_and_flips_turn_it():
    x = jnp.arange(1, 4 * 4 + 1, dtype=jnp.uint8).reshape(1, 4, 4, 1)
    x = jnp.tile(x, (64, 1, 1, 1))
    out = np.asarray(crop_and_flip(jax.random.key(0), x, padding=1))
    assert out.dtype == np.uint8 and out.shape == x.shape
    padded = np.pad(np.asarray(x[0]), [(1, 1), (1, 1), (0, 0)])
    cuts = [padded[i : i + 4, j : j + 4] for i in range(3) for j in range(3)]
    possible = {cut.tobytes() for cut in cuts} | {cut[:, ::-1].tobytes() for cut in cuts}
    seen = {image.tobytes() for image in out}
    assert seen <= possible and len(seen) > 9
    still = np.asarray(crop_and_flip(jax.random.key(0), x, padding=1, flip=False))
    assert {image.tobytes() for image in still} <= {cut.tobytes() for cut in cuts}


def test_augmentation_is_in_training_alone_and_off_by_default():
    benchmark = data.load("split_digits", tasks=2, flat=False)
    tiny = {"hidden": (8,), "epochs": 1, "batch": 64}
    plain = end(benchmark, "finetune", recipes.Options(**tiny), seeds=[0])
    moved = end(benchmark, "finetune", recipes.Options(**tiny, augment="crop"), seeds=[0])
    assert any(not np.array_equal(a, b) for a, b in zip(plain[1], moved[1], strict=True))
    with pytest.raises(ValueError, match=r"only images \[H, W, C\] can be augmented"):
        recipes.studies("finetune", data.load("split_digits"), recipes.Options(augment="crop_flip"))
