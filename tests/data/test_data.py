"""Task sequences: what they hold, and what is refused."""

import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxcl
from jaxcl import data, models, study, train

PARTS = ("train", "val", "test")


def rows(task):
    return np.concatenate([getattr(task, part).x[:, 0] for part in PARTS])


def pair(n=30, classes=3, shape=(4,), dtype=np.float32):
    x = np.random.default_rng(0).integers(0, 200, (n, *shape)).astype(dtype)
    return x, np.arange(n) % classes


def test_targets_of_a_regression():
    x, y = pair()
    made = data.from_arrays("curve", [(x, y * 0.5), (x, y[:, None] * 0.25)])
    assert made.regression and [task.classes for task in made.tasks] == [1, 1]
    for task in made.tasks:
        assert [len(part.y) for part in task[:3]] == [18, 6, 6]
        assert task.train.y.shape == (18, 1) and task.train.y.dtype == np.float32
    assert data.permuted(made._replace(tasks=made.tasks[:1]), 2).regression
    with pytest.raises(ValueError, match="there are no classes, as the labels are floats"):
        data.split(made._replace(tasks=made.tasks[:1]), 2)
    with pytest.raises(ValueError, match="task 1, train: 2 targets in a benchmark of 1"):
        data.from_arrays("curve", [(x, y * 0.5), (x, np.stack([y, y], 1) * 0.5)])
    with pytest.raises(ValueError, match="the targets hold NaN"):
        data.from_arrays("curve", [(x, y * np.nan)])
    with pytest.raises(ValueError, match="2 examples are too few for 3 parts"):
        data.from_arrays("curve", [(x[:2], y[:2] * 0.5)])


# Sequences


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(3, 30), min_size=1, max_size=5), seed=st.integers(0, 2**32 - 1))
def test_division_is_a_partition_with_every_class_everywhere(counts, seed):
    y = np.repeat(np.arange(len(counts)), counts)
    x = np.arange(len(y), dtype=np.float32)[:, None]
    (task,) = data.from_arrays("mine", [(x, y)], seed=seed).tasks
    assert sorted(rows(task)) == list(range(len(y)))
    for part in (task.train, task.val, task.test):
        np.testing.assert_array_equal(y[part.x[:, 0].astype(int)], part.y)
        assert set(part.y) == set(range(len(counts)))


@settings(max_examples=20, deadline=None)
@given(tasks=st.sampled_from([1, 2, 3, 6]), seed=st.integers(0, 100))
def test_split_gives_every_example_to_one_task(tasks, seed):
    y = np.repeat(np.arange(12), 5)
    x = np.arange(60, dtype=np.float32)[:, None]
    made = data.split(data.from_arrays("mine", [(x, y)], seed=seed), tasks)
    assert sorted(np.concatenate([rows(task) for task in made.tasks])) == list(range(60))
    for index, task in enumerate(made.tasks):
        assert task.classes == 12 // tasks
        for part in (task.train, task.val, task.test):
            original = y[part.x[:, 0].astype(int)]
            np.testing.assert_array_equal(original, part.y + index * task.classes)


def test_permuted_moves_the_same_pixels_in_every_split():
    base = data.digits()
    made = data.permuted_digits(4)
    np.testing.assert_array_equal(made.tasks[0].train.x, base.tasks[0].train.x)
    for task in made.tasks[1:]:
        for part, old in zip(task[:3], base.tasks[0][:3], strict=True):
            assert not np.array_equal(part.x, old.x)
            np.testing.assert_array_equal(np.sort(part.x), np.sort(old.x))
            np.testing.assert_array_equal(part.y, old.y)
    assert not np.array_equal(made.tasks[1].train.x, made.tasks[2].train.x)
    # each column of a task is one column of the base, the same one in every split
    columns = {task: {} for task in PARTS}
    for part in PARTS:
        old, new = getattr(base.tasks[0], part).x, getattr(made.tasks[1], part).x
        columns[part] = [[j for j in range(64) if (old[:, j] == c).all()] for c in new.T]
    assert all(set.intersection(*map(set, found)) for found in zip(*columns.values(), strict=True))


def test_permuted_depends_on_the_seed_and_not_on_the_number_of_tasks():
    few, many, other = (data.permuted_digits(n, seed=s) for n, s in ((2, 0), (3, 0), (2, 1)))
    np.testing.assert_array_equal(few.tasks[1].test.x, many.tasks[1].test.x)
    assert not np.array_equal(few.tasks[1].test.x, other.tasks[1].test.x)


def test_permuted_images_keep_their_channels_together():
    x, y = pair(shape=(3, 3, 2), dtype=np.uint8)
    base = data.from_arrays("mine", [(x, y)])
    new = data.permuted(base, 2).tasks[1].train.x.reshape(-1, 9, 2)
    old = base.tasks[0].train.x.reshape(-1, 9, 2)
    for before, after in zip(old, new, strict=True):
        assert sorted(map(tuple, before)) == sorted(map(tuple, after))


def test_digits():
    made = data.split_digits()
    assert (made.name, made.shape, made.scale, len(made.tasks)) == ("split_digits", (64,), 16.0, 5)
    for task in made.tasks:
        assert task.classes == 2
        assert task.train.x.dtype == np.uint8 and task.train.y.dtype == np.int32
        assert len(task.train.y) > 200 and {len(task.val.y), len(task.test.y)} <= set(range(69, 75))
    assert data.split_digits(flat=False).shape == (8, 8, 1)
    everything = np.concatenate([part.x for part in data.digits().tasks[0][:3]]) / 16
    assert everything.shape == (1797, 64)
    np.testing.assert_allclose([everything.mean(), everything.std()], [made.mean, made.std], 1e-3)


def test_the_same_arguments_give_the_same_arrays():
    again = data.load("split_digits"), data.load("split_digits", tasks=5, seed=0)
    jax.tree.map(np.testing.assert_array_equal, again[0].tasks, again[1].tasks)
    other = data.load("split_digits", seed=1)
    assert not np.array_equal(other.tasks[0].test.x, again[0].tasks[0].test.x)


def test_normalize():
    made = data.digits()
    x = made.tasks[0].train.x[:5]
    np.testing.assert_allclose(
        jax.jit(data.normalize(made))(x), (x / 16 - made.mean) / made.std, rtol=1e-5, atol=1e-6
    )
    mean, std = (0.5, 0.4), (0.2, 0.1)
    made = data.from_arrays("mine", [pair(shape=(3, 3, 2), dtype=np.uint8)], mean=mean, std=std)
    x = made.tasks[0].train.x
    out = data.normalize(made)(x)
    assert out.dtype == np.float32 and made.scale == 255
    np.testing.assert_allclose(out, (x / 255 - mean) / std, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(data.normalize(made)(x[0]), out[0])


# Tokens


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.uint32, np.int64])
def test_tokens_stay_what_they_are(dtype):
    x, y = pair(dtype=np.int32)
    x = (x - 100 * (np.iinfo(dtype).min < 0)).clip(0, 100).astype(dtype)
    made = data.from_arrays("words", [(x, y)] * 2)
    assert made.scale == 1 and made.shape == (4,)
    for task in [*made.tasks, *data.permuted(data.from_arrays("words", [(x, y)]), 3).tasks]:
        assert all(part.x.dtype == dtype for part in task[:3])
    np.testing.assert_array_equal(np.sort(rows(made.tasks[0])), np.sort(x[:, 0]))
    batch = jax.numpy.asarray(made.tasks[0].train.x)
    prepared = jax.jit(data.normalize(made))(batch)
    assert prepared.dtype == batch.dtype
    np.testing.assert_array_equal(prepared, batch)


@pytest.mark.parametrize(
    ("field", "value"), [("mean", 0.5), ("std", (1, 1, 2, 1)), ("scale", 255.0)]
)
def test_tokens_are_not_normalized(field, value):
    x, y = pair(dtype=np.int32)
    with pytest.raises(ValueError, match=f"words: x is int32, so holds tokens.*{field} must be"):
        data.from_arrays("words", [(x, y)], **{field: value})
    data.from_arrays("pixels", [(x.astype(np.uint8), y)], **{field: value})


def test_tokens_are_learned_from():
    """A study on int64 tokens: the class is the token, and is learned."""
    y = np.arange(60) % 3
    made = data.from_arrays("words", [(np.stack([y, y], 1), y)])
    params = {"embed": np.eye(4, 6, dtype="f4"), "head": np.zeros((6, 3), "f4")}
    model = models.from_function(lambda p, x: p["embed"][x].sum(1) @ p["head"], params)
    setup = train.Setup(
        jaxcl.finetune(), model, optax.sgd(1.0), prepare=data.normalize(made), batch=16
    )
    *_, end = study.run(study.build(setup, made, seeds=[0], epochs=6))
    assert end.accuracy[0, 0] == 1


# Refusals


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("split_digit", {}, "unknown benchmark 'split_digit'; the nearest names are split_digits"),
        ("nonsense", {}, "the nearest names are"),
        (None, {}, "the nearest names are"),
        ("split_digits", {"tasks": 3}, r"one of \[1, 2, 5\], got 3"),
        ("split_digits", {"tasks": 10}, r"one of \[1, 2, 5\], got 10"),
        ("split_digits", {"tasks": 0}, "tasks must be a whole number from 1 to 254, got 0"),
        ("split_digits", {"tasks": 2.0}, "tasks must be a whole number from 1 to 254, got 2.0"),
        ("permuted_digits", {"tasks": -1}, "from 1 to 254, got -1"),
        ("permuted_mnist", {"tasks": 255}, "from 1 to 254, got 255"),
        ("split_cifar100", {"flat": True}, "images only"),
    ],
)
def test_load_refuses(name, options, words):
    with pytest.raises(ValueError, match=words):
        data.load(name, **options)


def bad(change, task=1):
    """Two tasks, each (train, val, test), of which one split of one task is changed."""
    tasks = [[pair() for _ in PARTS] for _ in range(2)]
    tasks[task][2] = change(*tasks[task][2])
    return tasks


def with_value(x, value):
    x = x.copy()
    x[0, 0] = value
    return x


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, y: (x, y.astype(float)), "integers and floats as labels do not mix"),
        (lambda x, y: (x, y > 1), "labels must be integers, or floats for regression, got bool"),
        (lambda x, y: (x, y - 1), "labels must count from 0, got -1"),
        (lambda x, y: (x, y + 1), "label 3 in a task of 3 classes"),
        (lambda x, y: (x, y + 2**40), "labels must count from 0"),
        (lambda x, y: (x[:0], y[:0]), "x is empty"),
        (lambda x, y: (with_value(x, np.nan), y), "NaN or infinite"),
        (lambda x, y: (with_value(x, -np.inf), y), "NaN or infinite"),
        (lambda x, y: (with_value(x.astype(float), 1e300), y), "NaN or infinite"),
        (lambda x, y: (x[1:], y), r"got \(29, 4\) and \(30,\)"),
        (lambda x, y: (x[:, 0], y), r"expected x \[N, ...\]"),
        (lambda x, y: (x, y[:, None]), r"and y \[N\]"),
        (lambda x, y: (x.astype(np.uint8), y), "x is uint8, but float32 in the first task"),
        (lambda x, y: (x.astype(int), y), "x is int64, but float32 in the first task"),
        (lambda x, y: (x.astype(np.int64) + 2**31, y), "tokens must fit int32, got 21474836"),
        (lambda x, y: (x > 0, y), "x must be integers .*for tokens.* or floating point, got bool"),
        (lambda x, y: (x[:, :3], y), r"x has shape \(3,\), expected \(4,\)"),
        (lambda x, y: ([[1.0], [1.0, 2.0]], y), "expected a pair of arrays"),
        (lambda x, y: x, "expected a pair of arrays"),
    ],
)
def test_from_arrays_names_task_and_split(change, words):
    with pytest.raises(ValueError, match=f"mine, task 1, test: .*{words}"):
        data.from_arrays("mine", bad(change))


def test_from_arrays_refuses_what_cannot_be_a_benchmark():
    with pytest.raises(ValueError, match="tasks must be a whole number from 1 to 254, got 0"):
        data.from_arrays("mine", [])
    with pytest.raises(ValueError, match="from 1 to 254, got 255"):
        data.from_arrays("mine", [pair()] * 255)
    with pytest.raises(ValueError, match=r"task 0: expected \(x, y\) or \(train, val, test\)"):
        data.from_arrays("mine", [[pair()]])
    with pytest.raises(ValueError, match="task 0, data: class 1 has 2 examples, too few"):
        data.from_arrays("mine", [(np.ones((5, 1)), [0, 0, 0, 1, 1])])
    with pytest.raises(ValueError, match="task 0, train: label 2 in a task of 2 classes"):
        data.from_arrays("mine", [pair()], classes=2)
    for option in ({"std": 0.0}, {"mean": np.nan}, {"scale": -1.0}, {"std": (1.0, 1.0)}):
        with pytest.raises(ValueError, match=f"mine: {next(iter(option))} must be one finite"):
            data.from_arrays("mine", [pair()], **option)


def test_from_arrays_takes_what_a_user_has():
    x, y = pair(dtype=np.float64)
    made = data.from_arrays("mine", [(x, list(y)), [(x, y.astype(np.uint8))] * 3], classes=4)
    assert [task.classes for task in made.tasks] == [4, 4] and made.scale == 1
    for leaf in (made.tasks[0].val, made.tasks[1].val):
        assert leaf.x.dtype == np.float32 and leaf.y.dtype == np.int32
    assert data.from_arrays("mine", [(jax.numpy.ones((30, 2)), y)]).shape == (2,)


def test_split_and_permuted_start_from_one_task():
    with pytest.raises(ValueError, match="split_digits: expected one task, got 5"):
        data.permuted(data.split_digits(), 2)
    made = data.from_arrays("mine", [pair()], mean=(1.0,) * 4)
    with pytest.raises(ValueError, match="do not fit permuted pixels"):
        data.permuted(made, 2)
