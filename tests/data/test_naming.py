"""Benchmarks by name: what a name may say, and that its identifier makes it again."""

import jax
import numpy as np
import pytest

from jaxcl import data
from jaxcl.data import sources


@pytest.fixture
def archive(tmp_path):
    x = np.random.default_rng(0).integers(0, 200, (60, 4, 4, 1)).astype(np.uint8)
    np.savez(tmp_path / "mine.npz", x=x, y=np.arange(60) % 6)
    return tmp_path / "mine.npz"


@pytest.mark.parametrize(
    "name",
    [
        "split_digits",
        "split_digits,tasks=2,seed=3",
        "split_digits,classes=0-1/2+5/9,flat=no",
        "permuted_digits,tasks=2,seed=4,normalize=first",
        "mixture_digits,digits,size=6,order=1",
        "subsets_digits,npz:{archive},size=8,tasks=4",
        "split_npz:{archive},order=1,normalize=each",
    ],
)
def test_the_identifier_makes_the_benchmark_again(name, archive):
    made = data.load(name.format(archive=archive))
    again = data.load(made.identifier)
    assert again.identifier == made.identifier and again.provenance == made.provenance
    jax.tree.map(np.testing.assert_array_equal, again._asdict(), made._asdict())


def test_options_of_the_name_and_beside_it_are_the_same():
    beside = data.load("split_digits", classes=[[0, 1], [2, 5]], seed=2)
    within = data.load("split_digits,classes=0-1/2+5,seed=2")
    assert beside.identifier == within.identifier
    jax.tree.map(np.testing.assert_array_equal, beside.tasks, within.tasks)
    with pytest.raises(ValueError, match="says seed=2, but 3 is asked for"):
        data.load("split_digits,seed=2", seed=3)


def test_a_set_of_ones_own_is_normalized_by_its_first_task(archive):
    made = data.load(f"split_npz:{archive}", tasks=3)
    x = np.asarray(data.normalize(made)(made.tasks[0].train.x))
    np.testing.assert_allclose([x.mean(), x.std()], [0, 1], atol=1e-5)
    assert made.name == "split_mine" and made.provenance[0].set == "mine"


def test_tokens_of_ones_own_are_left_as_they_are(tmp_path):
    np.savez(tmp_path / "words.npz", x=np.arange(120).reshape(60, 2), y=np.arange(60) % 6)
    made = data.load(f"split_npz:{tmp_path}/words.npz")
    assert (made.mean, made.std) == (0, 1)


def test_five_thousand_images_of_mnist():
    made = data.load("split_mnist5k")
    assert made.shape == (784,) and len(made.tasks) == 5
    assert made.provenance[0].sizes == (3000, 1000, 1000)
    assert made.provenance[0].checksum == "2007f7273d88bc74"
    for task in made.tasks:
        assert [len(part.y) for part in task[:3]] == [600, 200, 200]


def test_the_eight_sets_are_those_at_hand_and_the_others_are_named(monkeypatch):
    def absent(*_, **__):
        raise ValueError("svhn is not prepared in here.")

    def small(**_):
        x = np.arange(40 * 12, dtype=np.uint8).reshape(40, 2, 2, 3)
        return data.from_arrays("small", [(x, np.arange(40) % 4)])

    for name, one in sources.SETS.items():
        read = small if name in ("cifar100", "mnist") else absent
        monkeypatch.setitem(sources.SETS, name, one._replace(read=read))
    made = data.load("mixture_eight")
    assert len(made.tasks) == 2
    assert set(made.left_out) == {
        "cifar10", "facescrub", "fashion_mnist", "notmnist", "svhn_cropped",
        "visual_domain_decathlon/gtsrb",
    }  # fmt: skip
    monkeypatch.setitem(sources.SETS, "mnist", sources.SETS["digits"])
    monkeypatch.setitem(sources.SETS, "cifar100", sources.SETS["digits"])
    with pytest.raises(ValueError, match="none of its sets is prepared: cifar10, "):
        data.load("mixture_eight")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("split", "unknown benchmark 'split'; .* A name is SEQUENCE_SET: of split, permuted"),
        ("split_nothing", "unknown benchmark 'split_nothing'"),
        ("split_digits,mnist", "split takes one set, got 2"),
        ("split_digits:x", "expected digits, got 'digits:x'"),
        ("split_npz", "expected npz:PATH, got 'npz'"),
        ("split_digits,task=2", "no option 'task'; the nearest are 'tasks'"),
        ("split_digits,tasks=two", "tasks must be a whole number, got 'two'"),
        ("split_digits,tasks=2,mnist", "'mnist' is no option; the sets stand before the options"),
        ("split_digits,classes=0-x", r"classes must be labels .*such as 0-1/2\+4/5-9, got '0-x'"),
        ("split_digits,classes=0-9999999999999", "classes must be labels up to 99,999"),
        ("split_digits,tasks=5,tasks=2", "tasks is given twice"),
        ("split_digits,flat=maybe", "flat must be yes or no, got 'maybe'"),
        ("split_digits,classes=0/0", "class 0 is listed twice, in tasks 0 and 1"),
        ("split_digits,validation=0.1", "validation has no effect on it"),
        ("split_digits,skip_corrupt=yes", "skip_corrupt has no effect on it"),
        ("permuted_digits,order=1", "order has no effect on it"),
        ("split_mnist,validation=1.5", "validation must be at most 0.9, got 1.5"),
        ("split_digits,seed=-1", "seed must be at least 0, got -1"),
        ("split_digits,size=0", "size must be a whole number from 1 to 4096, got 0"),
        ("mixture_digits,mnist5k", r"differ in size \(digits 8 x 8, mnist5k 28 x 28\); give size"),
        ("split_digits,normalize=last", "normalize must be one of 'first', 'each', got 'last'"),
    ],
)
def test_names_that_make_nothing(name, words):
    with pytest.raises(ValueError, match=words):
        data.load(name)


def test_options_that_do_not_exist():
    with pytest.raises(ValueError, match="there is no option 'ordr'; the nearest are 'order'"):
        data.load("split_digits", ordr=1)


def test_every_published_name_is_one():
    for name in data.BENCHMARKS:
        assert data.parse(name).sequence in data.SEQUENCES
