"""Any image set of tensorflow-datasets by its name; alphabets of Omniglot; on small stand-ins."""

import io
import json

import numpy as np
import pytest

from jaxcl import data
from jaxcl.data import tfds

PARTS = {"train": 40, "test": 20}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def prepare(root, name, shape=(6, 5, 3), classes=4, parts=PARTS, numbers=(), label="label"):
    """A set as tensorflow-datasets writes it; every pixel of an image is its label.

    A side that is None differs from image to image. `numbers` are features beside the label: of the
    label's value, divided by 2.
    """
    sets = pytest.importorskip("tensorflow_datasets")
    writer = pytest.importorskip("array_record.python.array_record_module").ArrayRecordWriter
    image = pytest.importorskip("PIL.Image")
    features = sets.features.FeaturesDict(
        {
            "image": sets.features.Image(shape=shape),
            **{key: sets.features.ClassLabel(num_classes=classes) for key in (label, *numbers)},
        }
    )
    folder = root / name / "1.0.0"
    folder.mkdir(parents=True)
    features.save_config(folder)
    splits, short = [], name.split("/")[0]
    for part, count in parts.items():
        records = writer(
            str(folder / f"{short}-{part}.array_record-00000-of-00001"), "group_size:1"
        )
        for index in range(count):
            own = index % classes
            sides = [side or 5 + index % 3 for side in shape[:2]]
            png = io.BytesIO()
            image.fromarray(np.full((*sides, 3), own, np.uint8)).save(png, "png")
            png.seek(0)
            extra = dict.fromkeys(numbers, own // 2)
            records.write(features.serialize_example({"image": png, label: own, **extra}))
        records.close()
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        splits.append({"name": part, "shardLengths": [str(count)], "filepathTemplate": template})
    info = {"name": short, "version": "1.0.0", "fileFormat": "array_record", "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def test_any_set_of_images_by_its_name(tmp_path):
    prepare(tmp_path, "birds")
    made = data.load("split_tfds:birds", tasks=2, data_dir=tmp_path)
    assert made.name == "split_birds" and made.shape == (6, 5, 3)
    assert made.provenance[0][:3] == ("birds", "1.0.0", (36, 4, 20))
    for number, task in enumerate(made.tasks):
        np.testing.assert_array_equal(task.test.x[:, 0, 0, 0], task.test.y + 2 * number)
    again = data.load(made.identifier, data_dir=tmp_path)
    assert again.provenance == made.provenance
    wider = data.load("split_tfds:birds,validation=0.2", tasks=2, data_dir=tmp_path)
    assert wider.provenance[0].sizes == (32, 8, 20)


def test_images_of_different_sizes_need_a_size_and_are_kept_at_it(tmp_path):
    folder = prepare(tmp_path, "birds", shape=(None, None, 3))
    with pytest.raises(ValueError, match="tfds:birds has images of different sizes; give size"):
        data.load("split_tfds:birds", data_dir=tmp_path)
    assert not list(folder.glob("*.npz"))
    made = data.load("split_tfds:birds,size=8", data_dir=tmp_path)
    assert made.shape == (8, 8, 3)
    (kept,) = folder.glob("*-8.npz")
    other = data.load("split_tfds:birds,size=4", data_dir=tmp_path)
    assert other.shape == (4, 4, 3) and kept.exists()


def test_sets_that_are_not_of_labelled_images(tmp_path):
    prepare(tmp_path, "boxes", label="box")
    with pytest.raises(ValueError, match="tfds:boxes has the features box, image; it takes sets"):
        data.load("split_tfds:boxes", data_dir=tmp_path)
    prepare(tmp_path, "whole", parts={"train": 8})
    with pytest.raises(ValueError, match="tfds:whole has the splits train; it takes train and"):
        data.load("split_tfds:whole", data_dir=tmp_path)
    with pytest.raises(ValueError, match="nowhere is not prepared in"):
        data.load("split_tfds:nowhere", data_dir=tmp_path)


def test_omniglot_is_one_task_for_each_alphabet(tmp_path):
    prepare(tmp_path, "omniglot", shape=(9, 9, 3), classes=6, numbers=("alphabet",))
    made = data.load("alphabets_omniglot", data_dir=tmp_path)
    assert made.shape == (28, 28, 1)
    assert [task.names for task in made.tasks] == [
        ("00/0000", "00/0001"), ("01/0002", "01/0003"), ("02/0004", "02/0005"),
    ]  # fmt: skip
    for number, task in enumerate(made.tasks):  # ink was dark: 255 less the label
        np.testing.assert_array_equal(task.train.x[:, 0, 0, 0], 255 - task.train.y - 2 * number)
    assert sum(made.provenance[0].sizes) == 60
    assert len(data.load("alphabets_omniglot,size=9", tasks=2, data_dir=tmp_path).tasks) == 2


def test_a_configuration_lies_in_a_folder_of_its_own(tmp_path):
    prepare(tmp_path, "many/small")
    assert tfds.folder("many/small", tmp_path).parent.name == "small"
