"""Sets in files of one's own: an archive of arrays, images in a folder for each class."""

import zipfile

import numpy as np
import pytest
from PIL import Image

from jaxcl import data


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def images(root, classes=("ant", "bee"), each=6, shape=(5, 4, 3), kind="png"):
    """A folder of images, each full of its class's number."""
    for label, name in enumerate(classes):
        for i in range(each):
            write(root / name / f"{i}.{kind}", np.full(shape, label))
    return root


def test_a_folder_of_classes_is_divided(tmp_path):
    made = data.folder(images(tmp_path / "insects", each=10))
    (task,) = made.tasks
    assert made.name == "insects" and made.shape == (5, 4, 3) and task.names == ("ant", "bee")
    assert [len(part.y) for part in task[:3]] == [12, 4, 4]
    for part in task[:3]:
        assert part.x.dtype == np.uint8 and (part.x == part.y[:, None, None, None]).all()


def test_a_folder_with_parts_keeps_them(tmp_path):
    images(tmp_path / "train", each=20), images(tmp_path / "test", each=3)
    made = data.folder(tmp_path, validation=0.25)
    assert made.provenance[0].sizes == (30, 10, 6)
    images(tmp_path / "val", each=2)
    assert data.folder(tmp_path).provenance[0].sizes == (40, 4, 6)
    images(tmp_path / "test", classes=("cow",))
    with pytest.raises(ValueError, match="test: the class cow is not in each of train, val, test"):
        data.folder(tmp_path)


def test_deeper_folders_are_alphabets(tmp_path):
    images(tmp_path, ("greek/a", "greek/b", "latin/a", "latin/b"), each=5)
    made = data.load(f"alphabets_folder:{tmp_path}")
    assert [task.names for task in made.tasks] == [("greek/a", "greek/b"), ("latin/a", "latin/b")]
    assert made.tasks[1].train.x.min() == 2


def test_grey_images_stay_grey_and_turn_colored_among_colored_ones(tmp_path):
    images(tmp_path / "grey", shape=(4, 4))
    assert data.folder(tmp_path / "grey").shape == (4, 4, 1)
    images(tmp_path / "both", ("ant",)), images(tmp_path / "both", ("bee",), shape=(5, 4))
    assert data.folder(tmp_path / "both").shape == (5, 4, 3)


def test_what_is_no_image_is_no_class(tmp_path):
    images(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "read.txt").write_text("x")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "a.png").write_bytes(b"x")
    (tmp_path / "cover.png").write_bytes(b"x")
    assert data.folder(tmp_path).tasks[0].classes == 2


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_a_corrupt_image_is_named_and_skipped_only_if_asked(tmp_path, content):
    images(tmp_path)
    file = tmp_path / "bee" / "3.png"
    file.write_bytes(file.read_bytes()[:40] if content is None else content)
    with pytest.raises(ValueError, match=f"the image {file} cannot be read"):
        data.folder(tmp_path)
    made = data.load(f"split_folder:{tmp_path},skip_corrupt=yes", tasks=1)
    assert made.left_out == (str(file),)
    assert sum(made.provenance[0].sizes) == 11


def test_images_of_different_sizes_need_a_size(tmp_path):
    images(tmp_path)
    write(tmp_path / "bee" / "9.png", np.ones((7, 4, 3)))
    with pytest.raises(ValueError, match=r"bee/9.png has 4 x 7 pixels, .*ant/0.png has 4 x 5"):
        data.folder(tmp_path)
    made = data.load(f"split_folder:{tmp_path},size=6", tasks=1)
    assert made.shape == (6, 6, 3)


def test_folders_that_hold_no_set(tmp_path):
    with pytest.raises(ValueError, match="nowhere is no folder"):
        data.folder(tmp_path / "nowhere")
    images(tmp_path, ("ant",))
    with pytest.raises(ValueError, match="holds 1 folder with images; it needs one for each"):
        data.folder(tmp_path)
    images(tmp_path, ("bee",), each=2)
    with pytest.raises(ValueError, match="class 1 has 2 examples, too few for 3 parts"):
        data.folder(tmp_path)


def test_no_image_of_a_part_can_be_read(tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"none of the images of ant can be read, such as .*ant"):
        data.folder(tmp_path, skip_corrupt=True)


def test_no_image_of_a_class_can_be_read(tmp_path):
    images(tmp_path)
    for file in (tmp_path / "bee").iterdir():
        file.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"none of the images of bee can be read, such as .*bee"):
        data.folder(tmp_path, skip_corrupt=True)


def test_linked_folders_are_classes(tmp_path):
    images(tmp_path / "store"), images(tmp_path / "set", ("cow",))
    for name in ("ant", "bee"):
        (tmp_path / "set" / name).symlink_to(tmp_path / "store" / name)
    (tmp_path / "set" / "cow" / "round").symlink_to(tmp_path / "set")  # read only once
    assert data.folder(tmp_path / "set").tasks[0].names == ("ant", "bee", "cow")


@pytest.mark.parametrize("kind", ["png", "tif", "pgm"])
def test_sixteen_bits_of_grey_become_eight(tmp_path, kind):
    values = np.array([[0, 300], [32000, 65535]])
    for i in range(20):
        file = tmp_path / "ab"[i % 2] / f"{i}.{kind}"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(values.astype(np.uint16)).save(file)
    made = data.folder(tmp_path)
    np.testing.assert_array_equal(made.tasks[0].train.x[0, ..., 0], [[0, 1], [124, 255]])


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_of_32_bits_are_refused(tmp_path, dtype):
    images(tmp_path)
    Image.fromarray(np.ones((5, 4), dtype)).save(tmp_path / "bee" / "9.tif")
    with pytest.raises(ValueError, match=r"bee/9.tif cannot be read: a pixel has 32 bits"):
        data.folder(tmp_path)


def test_augment_is_for_streams(tmp_path):
    with pytest.raises(ValueError, match="augment is for images that are streamed"):
        data.folder(images(tmp_path), augment=True)


# Archives


def test_half_of_a_validation_set(tmp_path):
    x, y = arrays()
    np.savez(tmp_path / "half.npz", x_train=x, y_train=y, x_test=x, y_test=y, x_val=x)
    with pytest.raises(ValueError, match=r"half.npz holds x_val alone; it needs both x_val and"):
        data.npz(tmp_path / "half.npz")


def test_integers_of_the_other_byte_order(tmp_path):
    x, y = arrays()
    np.savez(tmp_path / "big.npz", x=x.astype(">i2"), y=y.astype(">i8"))
    (task,) = data.npz(tmp_path / "big.npz").tasks
    assert task.train.x.dtype.isnative and task.train.y.dtype.isnative
    assert task.train.x.max() < 256


def arrays(n=40, classes=4):
    return np.arange(n * 4, dtype=np.uint8).reshape(n, 2, 2), np.arange(n) % classes


def test_archives(tmp_path):
    x, y = arrays()
    np.savez(tmp_path / "one.npz", x=x, y=y)
    made = data.npz(tmp_path / "one.npz")
    assert made.name == "one" and made.provenance[0].sizes == (24, 8, 8) and made.shape == (2, 2)
    np.savez(tmp_path / "two.npz", x_train=x, y_train=y, x_test=x, y_test=y, other=y)
    assert data.npz(tmp_path / "two.npz", validation=0.5).provenance[0].sizes == (20, 20, 40)
    np.savez(tmp_path / "three.npz", x_train=x, y_train=y, x_test=x, y_test=y, x_val=x, y_val=y)
    assert data.npz(tmp_path / "three.npz").provenance[0].sizes == (40, 40, 40)


def objects(path):
    np.savez(path, x=np.array([{}, "a"], object), y=np.arange(2))


def short(path):
    np.savez(path, x=arrays()[0], y=arrays()[1])
    path.write_bytes(path.read_bytes()[:150])


def of_shape(shape):
    """Writes an archive whose header of x says another shape than x has."""

    def make(path):
        x, y = arrays()
        np.savez(path, y=y)
        header = np.lib.format.header_data_from_array_1_0(x) | {"shape": shape}
        with zipfile.ZipFile(path, "a") as archive, archive.open("x.npy", "w") as file:
            np.lib.format.write_array_header_1_0(file, header)
            file.write(x.tobytes())

    return make


def flipped(marker, offset):
    """Writes a packed archive, and flips the bits of one byte behind a marker."""

    def make(path):
        np.savez_compressed(path, x=arrays()[0], y=arrays()[1])
        content = bytearray(path.read_bytes())
        content[content.index(marker) + offset] ^= 255
        path.write_bytes(content)

    return make


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (of_shape((40, 2)), "'x' holds what numpy cannot read"),
        (of_shape((40, 10**14)), "'x' is said to be larger than the memory"),
        (flipped(b"PK\x03\x04", 55), "is no archive of arrays"),  # x itself, which zlib refuses
        (flipped(b"PK\x01\x02", 10), "is no archive of arrays"),  # how x is packed
        (objects, "'x' holds Python objects; save arrays of numbers"),
        (lambda path: np.savez(path, x=arrays()[0]), "holds x; it needs x and y, or x_train, y_"),
        (
            lambda path: np.savez(path, x_train=arrays()[0], y_train=arrays()[1]),
            "holds x_train, y_train; it needs x and y, or x_test, y_test",
        ),
        (lambda path: np.savez(path), "holds nothing; it needs"),
        (lambda path: path.write_bytes(b""), "is no archive of arrays"),
        (lambda path: path.write_bytes(b"no archive"), "is no archive of arrays"),
        (lambda path: path.write_bytes(b"PK\x03\x04no archive"), "is no archive of arrays"),
        (short, "is no archive of arrays"),
        (lambda path: None, "cannot be read: No such file"),
        (lambda path: path.mkdir(), "cannot be read: Is a directory"),
        (lambda path: np.savez(path, x=np.ones((9, 2)), y=np.ones(9)), "the labels are floats"),
        (
            lambda path: np.savez(
                path, x_train=np.ones((9, 2)), y_train=np.arange(8), x_test=1, y_test=1
            ),
            "train: 9 examples and 8 labels",
        ),
    ],
)
def test_archives_that_hold_no_set(tmp_path, make, words):
    path = tmp_path / "mine.npz"
    make(path)
    with pytest.raises(ValueError, match=words) as caught:
        data.load(f"split_npz:{path}")
    assert "mine" in str(caught.value) and "\n" not in str(caught.value)


def test_one_array_is_no_archive(tmp_path):
    np.save(tmp_path / "one.npy", np.ones(3))
    with pytest.raises(ValueError, match="is one array, not an archive"):
        data.npz(tmp_path / "one.npy")
