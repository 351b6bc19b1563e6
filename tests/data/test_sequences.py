"""Sequences beyond equal shares and permutations: what they hold, and what they refuse."""

import jax
import numpy as np
import pytest

from jaxcl import data

PARTS = ("train", "val", "test")


def base(classes=6, each=10, shape=(2,), name="mine", dtype=np.uint8):
    """A set whose examples hold their label in every place."""
    y = np.repeat(np.arange(classes), each)
    x = np.broadcast_to(y.reshape(-1, *[1] * len(shape)), (len(y), *shape)).astype(dtype)
    return data.from_arrays(name, [(x, y)])


def originals(task):
    """For each label of a task the labels of the set that its examples had."""
    found = {}
    for part in (task.train, task.val, task.test):
        for x, y in zip(part.x.reshape(len(part.x), -1)[:, 0], part.y, strict=True):
            found.setdefault(int(y), set()).add(int(x))
    return found


def test_listed_classes_make_tasks_of_unequal_size():
    made = data.split(base(), classes=[[5, 0], [1], [2, 3]])
    assert [task.classes for task in made.tasks] == [2, 1, 2]
    assert [originals(task) for task in made.tasks] == [
        {0: {5}, 1: {0}},
        {0: {1}},
        {0: {2}, 1: {3}},
    ]
    assert made.tasks[0].names == ("5", "0")
    assert made.provenance == base().provenance


def test_an_order_shuffles_the_classes_and_is_a_seed():
    orders = [
        tuple(task.names for task in data.split(base(), 3, order=order).tasks) for order in range(6)
    ]
    assert orders[3] == tuple(task.names for task in data.split(base(), 3, order=3).tasks)
    assert len(set(orders)) > 3
    assert {name for order in orders for task in order for name in task} == set("012345")
    for task in data.split(base(), 3, order=3).tasks:
        assert originals(task) == {i: {int(name)} for i, name in enumerate(task.names)}


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ([[0, 1], [2, 0]], "the class 0 is listed twice, in tasks 0 and 1"),
        ([[0, 1, 1]], "the class 1 is listed twice, in task 0"),
        ([[0], []], "task 1 has no class"),
        ([[0, 6]], "task 0 lists the class 6; they are 0 to 5"),
        ([[0, -1]], "lists the class -1"),
        ([[0, 1.0]], "lists the class 1.0"),
        ([], "tasks must be a whole number from 1 to 254, got 0"),
    ],
)
def test_split_refuses_lists_that_make_no_tasks(classes, words):
    with pytest.raises(ValueError, match=f"split mine: .*{words}"):
        data.split(base(), classes=classes)


def test_split_refuses_both_and_a_task_without_validation_examples():
    with pytest.raises(ValueError, match="give classes, or tasks and order, not both"):
        data.split(base(), 2, classes=[[0], [1], [2]])
    x, y = np.ones((9, 2)), np.arange(9) % 3
    made = data.from_arrays("mine", [((x, y), (x[:2], y[:2]), (x, y))])
    with pytest.raises(ValueError, match="task 1 has no validation examples"):
        data.split(made, classes=[[0, 1], [2]])


@pytest.mark.parametrize(("classes", "tasks"), [(10, 5), (100, 10), (6, 3), (7, 1), (22, 2)])
def test_the_usual_number_of_tasks_shares_the_classes_equally(classes, tasks):
    assert len(data.split(base(classes, 5)).tasks) == tasks


def test_rotated_turns_all_images_of_a_task_by_one_angle():
    image = np.zeros((9, 9, 1), np.uint8)
    image[4, 4:] = 200  # a bar from the middle outwards
    made = data.from_arrays("bars", [(np.stack([image] * 20), np.arange(20) % 2)])
    turned = data.rotated(made, 4, seed=1)
    np.testing.assert_array_equal(turned.tasks[0].train.x, made.tasks[0].train.x)
    for task in turned.tasks:
        every = np.concatenate([part.x for part in task[:3]])
        assert (every == every[0]).all() and every.dtype == np.uint8
    bars = {task.train.x[0].tobytes() for task in turned.tasks}
    assert len(bars) == 4
    for task in turned.tasks:  # each is the bar at one angle: it leaves the middle
        assert task.train.x[0, 4, 4] == 200 and 300 < task.train.x[0].sum() < 1200
    few, other = data.rotated(made, 2, seed=1), data.rotated(made, 2, seed=2)
    np.testing.assert_array_equal(few.tasks[1].test.x, turned.tasks[1].test.x)
    assert not np.array_equal(few.tasks[1].test.x, other.tasks[1].test.x)
    with pytest.raises(ValueError, match="only images"):
        data.rotated(base(), 2)


def test_alphabets_are_the_groups_of_the_names():
    one = base(5)
    names = ("greek/b", "latin/a", "greek/a", "latin/b", "runes/old/a")
    one = one._replace(tasks=(one.tasks[0]._replace(names=names),))
    made = data.alphabets(one)
    assert [task.names for task in made.tasks] == [names[:3:2], names[1:4:2], names[4:]]
    assert originals(made.tasks[0]) == {0: {0}, 1: {2}}
    assert len(data.alphabets(one, 2).tasks) == 2
    assert {t.names for t in data.alphabets(one, order=2).tasks} == {t.names for t in made.tasks}
    with pytest.raises(ValueError, match="from 1 to 3, got 4"):
        data.alphabets(one, 4)
    with pytest.raises(ValueError, match="the classes have no groups"):
        data.alphabets(base())


def two_sets(shape=(4, 4, 1), other=(4, 4, 3)):
    return [base(4, 10, shape, "grey"), base(6, 10, other, "colored")]


def test_mixture_brings_sets_to_one_kind():
    made = data.mixture(two_sets())
    assert made.shape == (4, 4, 3) and [task.classes for task in made.tasks] == [4, 6]
    grey = made.tasks[0].train.x
    assert (grey == grey[..., :1]).all()
    assert made.tasks[1].names[0] == "colored: 0"
    assert [source.set for source in made.provenance] == ["grey", "colored"]
    orders = {
        tuple(task.classes for task in data.mixture(two_sets(), order=order).tasks)
        for order in range(8)
    }
    assert orders == {(4, 6), (6, 4)}
    assert len(data.mixture(two_sets(), 1, order=0).tasks) == 1
    sixteen = two_sets()[0]._replace(scale=16.0)
    first = data.mixture([sixteen, two_sets()[1]]).tasks[0]
    assert {int(v) for v in np.unique(first.train.x)} == {0, 16, 32, 48}  # of 255


def test_mixture_refuses_different_sizes_unless_they_are_resized():
    sets = two_sets(other=(8, 8, 3))
    with pytest.raises(
        ValueError, match=r"differ in size \(grey 4 x 4, colored 8 x 8\); give size"
    ):
        data.mixture(sets)
    made = data.mixture([data.resized(one, 6) for one in sets])
    assert made.shape == (6, 6, 3)
    for task in made.tasks:  # of one value each, which stays
        assert originals(task) == {label: {label} for label in range(task.classes)}
    with pytest.raises(ValueError, match="mine holds no images"):
        data.mixture([*sets, base()])
    with pytest.raises(ValueError, match="size is for images"):
        data.resized(base(), 6)


def test_subsets_mix_the_tasks_of_several_sets():
    made = data.subsets(two_sets(), 4, order=0)
    assert sorted(task.classes for task in made.tasks) == [2, 2, 3, 3]
    assert made.tasks[0].names[0].startswith(("grey: ", "colored: "))
    assert [task.names for task in made.tasks] != [
        task.names for task in data.subsets(two_sets(), 4, order=None).tasks
    ]
    with pytest.raises(ValueError, match="a multiple of its 2 sets, got 3"):
        data.subsets(two_sets(), 3)


def test_normalized_by_the_first_task_or_by_each():
    one = data.split(base(4, 30, (2, 2, 3)), 2)
    first = data.normalized(one)
    x = [np.asarray(data.normalize(first)(task.train.x)) for task in first.tasks]
    np.testing.assert_allclose(x[0].mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(x[0].std((0, 1, 2)), 1, atol=1e-5)
    assert x[1].mean() > 3 and len(first.mean) == 3 and first.tasks[0].train.x.dtype == np.uint8
    each = data.normalized(one, "each")
    for task in each.tasks:
        seen = np.asarray(data.normalize(each)(task.train.x))
        np.testing.assert_allclose([seen.mean(), seen.std()], [0, 1], atol=1e-5)
    with pytest.raises(ValueError, match="normalize must be one of 'first', 'each', got 'last'"):
        data.normalized(one, "last")
    constant = data.from_arrays("same", [(np.ones((10, 2), np.uint8), np.arange(10) % 2)])
    assert np.isfinite(data.normalize(data.normalized(constant))(constant.tasks[0].test.x)).all()


def test_provenance_tells_arrays_apart_and_not_their_division():
    x, y = np.arange(40, dtype=np.uint8).reshape(20, 2), np.arange(20) % 2
    (one,), (again,) = (data.from_arrays("a", [(x, y)], seed=s).provenance for s in (0, 1))
    assert one == again and one.sizes == (12, 4, 4) and len(one.checksum) == 16
    changed = x.copy()
    changed[7, 1] += 1
    others = [(changed, y), (x, y[::-1]), (x.reshape(20, 1, 2), y), (x.astype(np.float32), y)]
    sums = {data.from_arrays("a", [pair]).provenance[0].checksum for pair in others}
    assert len(sums | {one.checksum}) == 5
    about = data.about(data.split(data.from_arrays("a", [(x, y)]), 1))
    assert about["sets"][0]["checksum"] == one.checksum


def test_the_same_arguments_give_the_same_sequences():
    for name in ("split_digits,order=2", "rotated_digits,tasks=3", "mixture_digits,digits,order=1"):
        both = data.load(name), data.load(name)
        jax.tree.map(np.testing.assert_array_equal, both[0].tasks, both[1].tasks)
