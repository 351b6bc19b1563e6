"""Images that are read while a network trains: the same ones, in any part of an order."""

import numpy as np
import pytest
from PIL import Image

from jaxcl import data
from jaxcl.data import images
from jaxcl.data.streaming import SHARE, random_part
from tests.data.pictures import pictures


@pytest.fixture
def both(tmp_path):
    """The same folder, held and streamed."""
    pictures(tmp_path / "train"), pictures(tmp_path / "test", each=4, seed=1)
    return data.folder(tmp_path, size=6), data.folder(tmp_path, size=6, stream=True)


def test_streamed_images_are_those_that_are_held(both):
    held, streamed = (one.tasks[0] for one in both)
    assert streamed.train.x.shape == held.train.x.shape and len(streamed.train.x) == 36
    np.testing.assert_array_equal(np.asarray(streamed.train.x), held.train.x)
    for part, same in zip(streamed[:3], held[:3], strict=True):
        np.testing.assert_array_equal(part.y, same.y)
    np.testing.assert_array_equal(streamed.test.x, held.test.x)
    some = held.train.y == 1
    np.testing.assert_array_equal(np.asarray(streamed.train.x[some]), held.train.x[some])


def test_corrupt_images_are_left_out_if_asked(tmp_path):
    pictures(tmp_path / "train", each=3), pictures(tmp_path / "test", each=2)
    bad = tmp_path / "train" / "bee" / "1.png"
    bad.write_bytes(bad.read_bytes()[:60])
    made = data.folder(tmp_path, size=6, stream=True, skip_corrupt=True)
    assert made.left_out == (str(bad),)
    assert len(made.tasks[0].train.y) + len(made.tasks[0].val.y) == 11
    for other in ("0", "2"):
        bad.with_stem(other).write_bytes(b"")
    with pytest.raises(ValueError, match="none of the images of bee can be read, such as"):
        data.folder(tmp_path, size=6, stream=True, skip_corrupt=True)


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp"])
def test_a_file_that_was_cut_is_named_before_anything_is_trained(tmp_path, kind):
    pictures(tmp_path / "train", each=3), pictures(tmp_path / "test", each=2)
    bad = tmp_path / "train" / "bee" / f"1.{kind}"
    Image.fromarray(np.arange(900, dtype=np.uint8).reshape(30, 30)).save(bad)
    assert data.folder(tmp_path, size=6, stream=True).left_out == ()
    bad.write_bytes(bad.read_bytes()[:-20])
    with pytest.raises(ValueError, match=f"the image {bad} cannot be read"):
        data.folder(tmp_path, size=6, stream=True)


def test_a_picture_of_known_format_is_not_decoded_beforehand(tmp_path, monkeypatch):
    for kind in ("png", "jpg"):
        Image.new("L", (4, 4)).save(tmp_path / f"grey.{kind}")
        Image.new("RGB", (4, 4)).save(tmp_path / f"colored.{kind}")
    monkeypatch.setattr(images, "open_image", None)
    assert [images.channels_of(file) for file in sorted(tmp_path.iterdir())] == [3, 3, 1, 1]


def test_grey_and_colored_images_are_brought_to_one_kind(tmp_path):
    pictures(tmp_path / "train", each=3), pictures(tmp_path / "test", each=2)
    Image.new("RGB", (5, 5), (9, 99, 199)).save(tmp_path / "train" / "bee" / "1.png")
    held, streamed = (data.folder(tmp_path, size=6, stream=s).tasks[0] for s in (False, True))
    assert held.train.x.shape[-1] == 3
    np.testing.assert_array_equal(np.asarray(streamed.train.x), held.train.x)
    np.testing.assert_array_equal(streamed.test.x, held.test.x)


def test_sequences_of_them_read_nothing(both, monkeypatch):
    held, streamed = (data.split(one, 2) for one in both)
    for task, same in zip(streamed.tasks, held.tasks, strict=True):
        np.testing.assert_array_equal(np.asarray(task.train.x), same.train.x)
    assert not isinstance(streamed.tasks[1].train.x, np.ndarray)
    for make in (data.permuted, data.rotated):
        with pytest.raises(ValueError, match="streamed images cannot be changed"):
            make(both[1], 2)


def test_batches_come_in_the_order_that_is_given(both):
    x = both[1].tasks[0].train.x
    order = np.random.default_rng(0).permutation(36)
    whole = list(x.batches(order, 9, seed=0))
    np.testing.assert_array_equal(np.concatenate(whole), np.asarray(x)[order])
    rest = list(x.batches(order, 9, seed=0, first=2))
    np.testing.assert_array_equal(rest, whole[2:])


def test_augmented_batches_depend_on_the_seed_and_not_on_where_they_begin(tmp_path):
    pictures(tmp_path / "train"), pictures(tmp_path / "test", each=4)
    made = data.load(f"split_folder:{tmp_path},size=6,stream=yes,augment=yes", tasks=1)
    x, order = made.tasks[0].train.x, np.arange(36)
    first, again, other = (list(x.batches(order, 12, seed=s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other) and not np.array_equal(first[0], np.asarray(x[:12]))
    np.testing.assert_array_equal(list(x.batches(order, 12, seed=1, first=1)), first[1:])


def test_a_random_part_is_a_part():
    rng = np.random.default_rng(0)
    image = np.arange(20 * 30 * 1).reshape(20, 30, 1)
    shares = []
    for _ in range(200):
        part = random_part(image, rng)
        top, left = divmod(int(part[0, 0, 0]), 30)
        height, width = part.shape[:2]
        np.testing.assert_array_equal(part, image[top : top + height, left : left + width])
        shares.append(height * width / 600)
    assert SHARE[0] * 0.8 < min(shares) < 0.4 and max(shares) > 0.8


def test_what_cannot_be_streamed(tmp_path):
    pictures(tmp_path / "a")
    with pytest.raises(ValueError, match="give size, in pixels, and folders train and test"):
        data.folder(tmp_path / "a", stream=True)
    pictures(tmp_path / "b" / "train"), pictures(tmp_path / "b" / "test")
    made = data.folder(tmp_path / "b", size=6, stream=True)
    x = made.tasks[0].train.x
    (tmp_path / "b" / "train" / "ant" / "3.png").write_bytes(b"x")  # since it was looked at
    with pytest.raises(Exception, match=r"ant.3.png cannot be read"):
        list(x.batches(np.arange(36), 9, seed=0))


def test_a_changed_file_is_noticed(both, tmp_path):
    before = both[1].provenance
    assert data.folder(tmp_path, size=6, stream=True).provenance == before
    pictures(tmp_path / "train", seed=9)
    assert data.folder(tmp_path, size=6, stream=True).provenance != before


def test_grain_is_an_extra(both, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ImportError, match=r'grain .*: pip install "jaxcl\[stream\]"'):
        both[1].tasks[0].train.x.batches(np.arange(36), 9, seed=0)
