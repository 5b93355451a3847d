"""COCO's semantic labels: recorded outputs, and the synthetic dataset."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from script_runs import run
from synthetic_datasets import coco
from synthetic_datasets.drawing import read_ids


def test_the_recorded_labels_are_reproduced(shared, tmp_path):
    sample = shared / "data" / "samples" / "panopticapi_sample"
    folder = tmp_path / "coco"
    (folder / "annotations").mkdir(parents=True)
    shutil.copy(sample / "panoptic_examples.json", folder / "annotations" / "panoptic_val2017.json")
    shutil.copytree(sample / "panoptic_examples", folder / "panoptic_val2017")
    run("prepare_coco", tmp_path)
    expected = sorted((sample / "golden_semseg").iterdir())
    made = sorted((folder / "panoptic_semseg_val2017").iterdir())
    assert [path.name for path in made] == [path.name for path in expected] and len(made) == 2
    for ours, theirs in zip(made, expected, strict=True):
        assert np.array_equal(np.asarray(Image.open(ours)), np.asarray(Image.open(theirs)))


def test_segments_become_their_class_and_other_pixels_are_ignored(tmp_path):
    coco.draw(tmp_path)
    run("prepare_coco", tmp_path)
    content = json.loads((tmp_path / "coco/annotations/panoptic_train2017.json").read_text())
    order = [category["id"] for category in content["categories"]]
    for row in content["annotations"]:
        ids = read_ids(tmp_path / "coco/panoptic_train2017" / row["file_name"])
        labels = Image.open(tmp_path / "coco/panoptic_semseg_train2017" / row["file_name"])
        assert labels.mode == "L"
        classes = {0: 255, **{part["id"]: order.index(part["category_id"]) for part in row["segments_info"]}}
        assert np.array_equal(np.asarray(labels), np.vectorize(classes.__getitem__)(ids))


@pytest.mark.parametrize(
    ("key", "message"), [("category_id", "category_id 91"), ("segments_info", "no 'seg")]
)
def test_a_broken_annotation_is_an_error(tmp_path, capsys, key, message):
    coco.draw(tmp_path)
    path = tmp_path / "coco/annotations/panoptic_train2017.json"
    content = json.loads(path.read_text())
    if key == "category_id":
        content["annotations"][1]["segments_info"][0]["category_id"] = 91
    else:
        del content["annotations"][1]["segments_info"]
    path.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="1"):
        run("prepare_coco", tmp_path)
    assert f"{path}, image id 1017: {message}" in capsys.readouterr().err
