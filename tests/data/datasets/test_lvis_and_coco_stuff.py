"""Synthetic LVIS v1 and COCO-Stuff 10k."""

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from scipy.io import loadmat
from script_runs import run
from synthetic_datasets import coco_stuff, lvis

from mask2former.data import DatasetCatalog, DatasetError, MetadataCatalog
from mask2former.data.ground_truth.geometry import Geometry
from mask2former.data.ground_truth.readers import read_instances, semantic_map


def test_lvis_records(root):
    lvis.draw(root)
    metadata, records = MetadataCatalog.get("lvis_v1_val"), DatasetCatalog.get("lvis_v1_val")
    official = COCO(metadata.json_file)
    assert len(metadata.thing_classes) == 1203
    assert metadata.thing_dataset_id_to_contiguous_id[1203] == 1202
    assert len(records) == lvis.COUNTS["val"]
    assert {Path(record["file_name"]).parent.name for record in records} == {"train2017", "val2017"}
    for record in records:
        size = record["height"], record["width"]
        assert Path(record["file_name"]).is_file()
        annotations = official.loadAnns(official.getAnnIds(record["image_id"]))
        segments = read_instances(record, metadata, size)
        which, masks = segments.visible(Geometry.identity(*size))
        expected = [official.annToMask(annotation).astype(bool) for annotation in annotations]
        assert [mask.tobytes() for mask in masks] == [expected[i].tobytes() for i in which]
        assert list(segments.classes) == [a["category_id"] - 1 for a in annotations]


def test_an_lvis_image_without_url_is_an_error(root):
    lvis.draw(root)
    path = root / "lvis/lvis_v1_val.json"
    content = json.loads(path.read_text())
    del content["images"][1]["coco_url"]
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=rf"image id {content['images'][1]['id']}: no 'coco_url'"):
        DatasetCatalog.get("lvis_v1_val")


def test_coco_stuff_records(root):
    coco_stuff.draw(root)
    run("prepare_coco_stuff", root)
    name = "coco_2017_test_stuff_10k_sem_seg"
    metadata, records = MetadataCatalog.get(name), DatasetCatalog.get(name)
    assert len(records) == coco_stuff.COUNTS["test"]
    for record in records:
        content = loadmat(root / "coco/coco_stuff_10k/annotations" / f"{record['image_id']}.mat")
        names = np.array(["ignored", *(name.item() for name in content["names"].ravel()[1:])])
        found = semantic_map(record, metadata, content["S"].shape)
        classes = np.array([*metadata.stuff_classes, *["ignored"] * 85])
        assert len(classes) == 256
        np.testing.assert_array_equal(classes[found], names[content["S"]])
