"""Sets that tensorflow-datasets has prepared: how they are found, read, and kept."""

import io
import json
import os
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxcl import data
from jaxcl.data import tfds


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "jaxcl"


def prepare(root, name="mnist", shape=(28, 28, 1), classes=10, version="3.0.1"):
    """Writes a small set as tensorflow-datasets does; a label is its image's first pixel."""
    tfds = pytest.importorskip("tensorflow_datasets")
    writer = pytest.importorskip("array_record.python.array_record_module").ArrayRecordWriter
    image = pytest.importorskip("PIL.Image")
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=shape),
            "label": tfds.features.ClassLabel(num_classes=classes),
        }
    )
    folder = root / name / version
    folder.mkdir(parents=True)
    features.save_config(folder)
    splits = []
    for part, count in (("train", 4 * classes), ("test", 2 * classes)):
        records = writer(str(folder / f"{name}-{part}.array_record-00000-of-00001"), "group_size:1")
        for index in range(count):
            pixels = np.full(shape, index % classes, np.uint8)
            png = io.BytesIO()
            image.fromarray(pixels.squeeze()).save(png, "png")
            png.seek(0)
            example = {"image": png, "label": index % classes}
            records.write(features.serialize_example(example))
        records.close()
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        splits.append({"name": part, "shardLengths": [str(count)], "filepathTemplate": template})
    write_info(folder, name=name, version=version, fileFormat="array_record", splits=splits)
    return folder


def write_info(folder, **changes):
    file = folder / "dataset_info.json"
    info = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(info | changes))


def test_prepared_set_is_read_and_kept(tmp_path, own_cache, monkeypatch):
    folder = prepare(tmp_path)
    made = data.load("split_mnist", data_dir=tmp_path)
    assert made.shape == (784,) and made.scale == 255 and len(made.tasks) == 5
    for index, task in enumerate(made.tasks):
        assert [len(part.y) for part in task[:3]] == [6, 2, 4]
        for part in task[:3]:
            np.testing.assert_array_equal(part.x[:, 0], part.y + 2 * index)
    (kept,) = folder.glob("*.npz")
    assert not own_cache.exists()
    # the next read needs neither the records nor tensorflow-datasets
    monkeypatch.setattr(tfds, "decode", None)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    again = data.load("split_mnist")
    jax.tree.map(np.testing.assert_array_equal, again, made)
    assert data.load("permuted_mnist", tasks=2, flat=False).shape == (28, 28, 1)
    assert list(folder.glob("jaxcl*")) == [kept]


def test_other_sets(tmp_path):
    prepare(tmp_path, "fashion_mnist")
    prepare(tmp_path, "cifar100", (32, 32, 3), 100, "3.0.2")
    made = data.load("permuted_fashion_mnist", tasks=2, data_dir=tmp_path)
    assert made.name == "permuted_fashion_mnist" and len(made.tasks) == 2
    assert data.load("split_fashion_mnist", tasks=2, data_dir=tmp_path).tasks[0].classes == 5
    made = data.load("split_cifar100", data_dir=tmp_path, tasks=20)
    assert made.shape == (32, 32, 3) and made.tasks[19].classes == 5
    assert (made.tasks[19].test.x[:, 0, 0, 0] == made.tasks[19].test.y + 95).all()


@pytest.mark.parametrize("where", ["read-only", "unwritable"])
def test_cache_goes_to_the_user_when_the_set_cannot_hold_it(
    tmp_path, own_cache, monkeypatch, where
):
    folder = prepare(tmp_path)
    if where == "read-only":  # holds for root too
        folder.chmod(0o555)
    else:
        save = tfds.save

        def refuse(path, arrays):
            if path.parent == folder:
                raise OSError("no space")
            save(path, arrays)

        monkeypatch.setattr(tfds, "save", refuse)
    made = data.mnist(data_dir=tmp_path)
    folder.chmod(0o755)
    assert not list(folder.glob("*.npz")) and len(list(own_cache.iterdir())) == 1
    monkeypatch.setattr(tfds, "decode", None)
    jax.tree.map(np.testing.assert_array_equal, data.mnist(data_dir=tmp_path), made)


def test_nothing_is_kept_when_nothing_can_be_written(tmp_path, monkeypatch):
    folder = prepare(tmp_path)
    folder.chmod(0o555)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(data.mnist(data_dir=tmp_path).tasks[0].test.y) == 20
    folder.chmod(0o755)


def stored(x_train, y_train, x_test, y_test):
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


OTHER_CACHES = {
    "other names": lambda x, y, v, w: {"x": x, "y": y},
    "fewer examples": lambda x, y, v, w: stored(x[1:], y[1:], v, w),
    "fewer labels": lambda x, y, v, w: stored(x, y[1:], v, w),
    "another type": lambda x, y, v, w: stored(x / 255, y, v, w),
    "labels of another type": lambda x, y, v, w: stored(x, y, v, w.astype(float)),
    "vectors": lambda x, y, v, w: stored(x.reshape(len(x), -1), y, v, w),
    "splits exchanged": lambda x, y, v, w: stored(v, w, x, y),
    "objects": lambda x, y, v, w: stored(x.astype(object), y, v, w),
}


@pytest.mark.parametrize("damage", ["empty", "short", "flipped", "garbage", *OTHER_CACHES])
def test_broken_cache_is_made_again(tmp_path, damage):
    folder = prepare(tmp_path)
    made = data.mnist(data_dir=tmp_path)
    (kept,) = folder.glob("*.npz")
    content = whole = kept.read_bytes()
    half = len(content) // 2
    if damage == "empty":
        content = b""
    elif damage == "short":
        content = content[:half]
    elif damage == "flipped":
        content = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
    elif damage == "garbage":
        content = b"not an archive"
    else:
        with np.load(kept) as file:
            arrays = OTHER_CACHES[damage](*file.values())
        np.savez(kept, **arrays)
        content = kept.read_bytes()
    kept.write_bytes(content)
    with pytest.warns(UserWarning, match=f"{kept.name} does not hold what the set does; it is"):
        again = data.mnist(data_dir=tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again, made)
    assert len(kept.read_bytes()) == len(whole)
    assert list(folder.glob("jaxcl*")) == [kept]


def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    folder = prepare(tmp_path)

    def stop(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", stop)
    with pytest.raises(KeyboardInterrupt):
        data.mnist(data_dir=tmp_path)
    assert not list(folder.glob("jaxcl*"))


def test_cache_of_another_set_is_not_read(tmp_path):
    """The same folder, prepared again with other examples: its description tells."""
    folder = prepare(tmp_path)
    made = data.mnist(data_dir=tmp_path)
    for file in folder.glob("[!j]*"):
        file.unlink()
    (moved,) = folder.glob("jaxcl*")
    other = prepare(tmp_path / "other", "mnist", classes=5)
    for file in other.iterdir():
        file.rename(folder / file.name)
    again = data.mnist(data_dir=tmp_path)
    assert again.tasks[0].classes == 5 != made.tasks[0].classes
    assert len(list(folder.glob("jaxcl*"))) == 2 and moved.exists()


def test_a_user_without_a_home_keeps_nothing_and_reads_all_the_same(tmp_path, monkeypatch):
    folder = prepare(tmp_path)
    folder.chmod(0o555)
    monkeypatch.delenv("XDG_CACHE_HOME")

    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    expand = Path.expanduser
    monkeypatch.setattr(
        Path, "expanduser", lambda path: homeless(path) if "~" in str(path) else expand(path)
    )
    assert len(data.mnist(data_dir=tmp_path).tasks[0].test.y) == 20
    folder.chmod(0o755)
    assert not list(folder.glob("jaxcl*"))


def test_newest_version_is_read_and_unfinished_ones_are_not(tmp_path):
    for version in ("3.0.1", "3.0.10", "incomplete.ABC_4.0.0"):
        prepare(tmp_path, version=version)
    assert tfds.folder("mnist", tmp_path).name == "3.0.10"


def test_set_that_is_not_prepared(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    (tmp_path / "mnist" / "3.0.1").mkdir(parents=True)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(ValueError, match="mnist") as caught:
        data.load("split_mnist")
    message = str(caught.value)
    assert f"mnist is not prepared in {tmp_path / 'mnist'};" in message
    _, code, _ = message.split("`")
    assert code.endswith(tfds.RECIPE.format("mnist", str(tmp_path)))
    compile(code, "recipe", "exec")


def test_home_folder_is_the_last_resort(tmp_path, monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setattr(Path, "expanduser", lambda path: tmp_path / str(path).removeprefix("~/"))
    prepare(tmp_path / "tensorflow_datasets")
    assert tfds.folder("mnist", None) == tmp_path / "tensorflow_datasets" / "mnist" / "3.0.1"


def json_without(*keys):
    """Takes one entry out of a JSON file."""

    def damage(file):
        content = fields = json.loads(file.read_text())
        for key in keys[:-1]:
            fields = fields[key]
        del fields[keys[-1]]
        file.write_text(json.dumps(content))

    return damage


INFO, FEATURES = "dataset_info.json", "features.json"
TRAIN, TEST = (f"mnist-{part}.array_record-00000-of-00001" for part in ("train", "test"))


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        (INFO, lambda file: file.write_text("{not json"), "Expecting property name"),
        (INFO, lambda file: file.write_text(""), "Expecting value"),
        (INFO, lambda file: file.write_text(file.read_text()[:40]), "Expecting|Unterminated"),
        (INFO, lambda file: file.write_text("[]"), "list indices"),
        (INFO, lambda file: file.write_bytes(b"\xff\xfe\x00"), "can't decode"),
        (INFO, json_without("splits"), "it has no 'splits'"),
        (INFO, json_without("splits", 1), "it has no 'test'"),
        (INFO, json_without("splits", 0, "shardLengths"), "it has no 'shardLengths'"),
        (FEATURES, Path.unlink, "there is no such file"),
        (FEATURES, lambda file: file.write_text("{"), "Expecting property name"),
        (FEATURES, json_without("featuresDict", "features", "label"), "it has no 'label'"),
        (TRAIN, Path.unlink, "No such file"),
        (TEST, Path.unlink, "No such file"),
        (TEST, lambda file: file.write_bytes(b"x"), "64KB"),
        (TRAIN, lambda file: file.write_bytes(file.read_bytes()[:-100]), ""),
        (TRAIN, lambda file: file.write_bytes(file.read_bytes()[: 2**16]), ""),
    ],
)
def test_damaged_set(tmp_path, name, damage, words):
    folder = prepare(tmp_path)
    damage(folder / name)
    with pytest.raises(ValueError, match=f"^mnist in {folder} is damaged .* it again.$") as caught:
        data.mnist(data_dir=tmp_path)
    part = name.partition(".")[0] + ".*" if name in (TRAIN, TEST) else name
    assert caught.match(f"{re.escape(part)}: .*({words})") and "\n" not in str(caught.value)
    assert not list(folder.glob("*.npz"))


def test_description_that_cannot_be_opened(tmp_path):
    file = prepare(tmp_path) / INFO
    file.unlink()
    file.mkdir()
    with pytest.raises(ValueError, match=f"mnist cannot be read: .*{file}"):
        data.mnist(data_dir=tmp_path)


def test_tfrecord_needs_tensorflow(tmp_path, monkeypatch):
    folder = prepare(tmp_path)
    write_info(folder, fileFormat="tfrecord")
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ImportError, match=f"tfrecord files in {folder} need TensorFlow"):
        data.mnist(data_dir=tmp_path)


def test_tfrecord_is_read_through_tensorflow(tmp_path, monkeypatch):
    folder = prepare(tmp_path)
    expected = tfds.decode("mnist", folder)
    write_info(folder, fileFormat="tfrecord")
    tensorflow_datasets = pytest.importorskip("tensorflow_datasets")
    stored = {"train": expected[:2], "test": expected[2:]}

    def as_dataset(self, split, batch_size):
        assert batch_size == -1
        return {"image": stored[split][0], "label": stored[split][1].astype(np.int64)}

    monkeypatch.setitem(sys.modules, "tensorflow", sys)
    monkeypatch.setattr(tensorflow_datasets.core.DatasetBuilder, "as_dataset", as_dataset)
    monkeypatch.setattr(tensorflow_datasets, "as_numpy", lambda records: records)
    found = tfds.decode("mnist", folder)
    assert [v.dtype for v in found] == [v.dtype for v in expected]
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(
    ("name", "package"),
    [("split_mnist", "tensorflow_datasets"), ("split_digits", "sklearn.datasets")],
)
def test_missing_extra(tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'{package} .*: pip install "jaxcl\[experiments\]"'):
        data.load(name, data_dir=tmp_path)


@pytest.mark.skipif("TFDS_DATA_DIR" not in os.environ, reason="TFDS_DATA_DIR is not set")
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar100"])
def test_real_set(tmp_path, name):
    try:
        folder = tfds.folder(name, None)
    except ValueError:
        pytest.skip(f"{name} is not prepared in TFDS_DATA_DIR")
    linked = tmp_path / name / folder.name  # so that the test writes nothing beside the user's set
    linked.mkdir(parents=True)
    for file in folder.iterdir():
        if file.suffix != ".npz":
            (linked / file.name).symlink_to(file)
    made = getattr(data, name)(data_dir=tmp_path)
    (task,) = made.tasks
    train = 50000 if name == "cifar100" else 60000
    assert len(task.train.y) + len(task.val.y) == train and len(task.test.y) == 10000
    assert abs(len(task.val.y) - train // 10) <= 10
    assert made.shape == ((32, 32, 3) if name == "cifar100" else (784,))
    x = np.concatenate([task.train.x, task.val.x]) / np.float32(255)
    axes = (0, 1, 2) if name == "cifar100" else None
    mean, std = x.mean(axes, dtype=np.float64), x.std(axes, dtype=np.float64)
    np.testing.assert_allclose(mean, made.mean, atol=2e-4)
    np.testing.assert_allclose(std, made.std, atol=2e-4)
    assert set(task.val.y) == set(task.test.y) == set(range(task.classes))
