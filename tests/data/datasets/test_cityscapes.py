"""Synthetic Cityscapes: records of the three tasks and broken files, compared with cityscapesscripts."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco_mask
from script_runs import run
from synthetic_datasets import cityscapes

from mask2former.data import DatasetCatalog, DatasetError, MetadataCatalog
from mask2former.data.datasets.cityscapes import annotations_of, draw_instance_ids
from mask2former.data.ground_truth.readers import read_panoptic, semantic_map
from mask2former.utils.cityscapes_labels import label_table

TRAIN_IDS = {row["id"]: row["trainId"] for row in label_table()}
THINGS = {label: i for i, label in enumerate((24, 25, 26, 27, 28, 31, 32, 33))}


@pytest.fixture
def tree(root):
    cityscapes.draw(root)
    return root / "cityscapes"


def slow_instances(ids):
    """(category, is crowd, mask) by one comparison for each value."""
    for value in np.unique(ids):
        label = value // 1000 if value >= 1000 else value
        if label in THINGS:
            yield THINGS[label], int(value < 1000), ids == value


def check_instances(annotations, ids):
    expected = list(slow_instances(ids))
    assert [(a["category_id"], a["iscrowd"]) for a in annotations] == [row[:2] for row in expected]
    for annotation, (_, _, mask) in zip(annotations, expected, strict=True):
        np.testing.assert_array_equal(coco_mask.decode(annotation["segmentation"]), mask)
        rows, columns = np.nonzero(mask)
        width, height = np.ptp(columns) + 1, np.ptp(rows) + 1
        assert annotation["bbox"] == [columns.min(), rows.min(), width, height]


def test_instance_records(tree):
    records = DatasetCatalog.get("cityscapes_fine_instance_seg_val")
    assert len(records) == cityscapes.COUNTS["val"]
    crowds = 0
    for record in records:
        ids = np.asarray(Image.open(record["instance_ids_file_name"])).astype(int)
        assert record["image_id"].split("_")[0] in cityscapes.CITIES["val"]
        assert record["file_name"].endswith(f"{record['image_id']}_leftImg8bit.png")
        assert (record["height"], record["width"]) == ids.shape
        check_instances(record["annotations"], ids)
        crowds += sum(a["iscrowd"] for a in record["annotations"])
    assert crowds == 2  # a group of cars and one of bicycles


def test_polygons_serve_where_instance_ids_are_missing(tree):
    with_ids = DatasetCatalog.get("cityscapes_fine_instance_seg_val")
    for path in tree.rglob("*_instanceIds.png"):
        path.unlink()
    without = DatasetCatalog.get("cityscapes_fine_instance_seg_val")
    assert [r["annotations"] for r in without] == [r["annotations"] for r in with_ids]
    assert all("instance_ids_file_name" not in record for record in without)


def test_polygons_are_rasterized_as_by_the_official_tool(tree):
    annotation = pytest.importorskip("cityscapesscripts.helpers.annotation")
    official = pytest.importorskip("cityscapesscripts.preparation.json2instanceImg")
    for path in tree.rglob("*_polygons.json"):
        content = annotation.Annotation()
        content.fromJsonFile(str(path))
        expected = np.asarray(official.createInstanceImage(content, "ids"))
        np.testing.assert_array_equal(draw_instance_ids(json.loads(path.read_text())), expected)


IDS = st.sampled_from([0, 7, 24, 26, 24000, 24001, 26003, 29001, 33000])


@given(arrays(np.int32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=IDS))
def test_run_lengths_of_any_map(ids):
    check_instances(annotations_of(ids), ids)


def test_semantic_records_before_and_after_preparation(tree):
    metadata = MetadataCatalog.get("cityscapes_fine_sem_seg_train")
    raw = DatasetCatalog.get("cityscapes_fine_sem_seg_train")
    assert all(record["sem_seg_file_name"].endswith("_labelIds.png") for record in raw)
    run("prepare_cityscapes", tree.parent)
    prepared = DatasetCatalog.get("cityscapes_fine_sem_seg_train")
    assert all(record["sem_seg_file_name"].endswith("_labelTrainIds.png") for record in prepared)
    for before, after in zip(raw, prepared, strict=True):
        size = before["height"], before["width"]
        label_ids = np.asarray(Image.open(before["sem_seg_file_name"]))
        expected = np.vectorize(TRAIN_IDS.get)(label_ids)
        np.testing.assert_array_equal(semantic_map(before, metadata, size), expected)
        np.testing.assert_array_equal(semantic_map(after, metadata, size), expected)


def test_panoptic_records(tree):
    run("prepare_cityscapes", tree.parent)
    metadata = MetadataCatalog.get("cityscapes_fine_panoptic_val")
    records = DatasetCatalog.get("cityscapes_fine_panoptic_val")
    assert len(records) == cityscapes.COUNTS["val"]
    for record in records:
        ids = np.asarray(Image.open(record["instance_ids_file_name"])).astype(int)
        assert Image.open(record["file_name"]).size == ids.shape[::-1]
        for segment in record["segments_info"]:
            label = segment["id"] // 1000 if segment["id"] >= 1000 else segment["id"]
            assert segment["category_id"] == TRAIN_IDS[label]
            assert segment["isthing"] == (label in THINGS)
            assert segment["iscrowd"] == int(label in THINGS and segment["id"] < 1000)
        segments = read_panoptic(record, metadata, ids.shape)
        assert len(segments.classes) == sum(not s["iscrowd"] for s in record["segments_info"])
        assert "sem_seg_file_name" in record


def test_the_test_set_has_images_alone(tree):
    for name in ("cityscapes_fine_sem_seg_test", "cityscapes_fine_instance_seg_test"):
        (record,) = DatasetCatalog.get(name)
        assert record.keys() == {"file_name", "image_id", "height", "width"}


BROKEN_IMAGES = [  # file, content, message
    ("instanceIds.png", b"", r"_instanceIds\.png: not a readable image"),
    ("leftImg8bit.png", b"no", r"leftImg8bit\.png: not a readable image"),
    ("instanceIds.png", np.full((4, 4), 60001, np.uint16), r"instance id 60001 is of label 60, "),
]
BROKEN_POLYGONS = [  # content besides the size, message
    ({}, r"_polygons\.json has no 'objects'"),
    ({"objects": [{"label": "unicorn", "polygon": []}]}, r"json: there is no label 'unicorn'"),
    ({"objects": [{"label": "car"}]}, r"json: an object has no 'polygon'"),
]


@pytest.mark.parametrize(("file", "content", "message"), BROKEN_IMAGES)
def test_broken_images_are_named(tree, file, content, message):
    path = min(tree.rglob(f"*/val/*/*{file}"))
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        Image.fromarray(content).save(path)
    with pytest.raises(DatasetError, match=message):
        DatasetCatalog.get("cityscapes_fine_instance_seg_val")


@pytest.mark.parametrize(("content", "message"), BROKEN_POLYGONS)
def test_broken_polygons_are_named(tree, content, message):
    path = min(tree.rglob("*/val/*/*polygons.json"))
    path.with_name(path.name.replace("polygons.json", "instanceIds.png")).unlink()
    path.write_text(json.dumps({"imgHeight": 4, "imgWidth": 4, **content}))
    with pytest.raises(DatasetError, match=message):
        DatasetCatalog.get("cityscapes_fine_instance_seg_val")


WANTED = {
    "sem_seg": r"\*_gtFine_labelTrainIds\.png or \*_gtFine_labelIds\.png",
    "instance_seg": r"\*_gtFine_instanceIds\.png or \*_gtFine_polygons\.json",
}


@pytest.mark.parametrize(("task", "wanted"), WANTED.items())
def test_missing_kinds_of_annotations_are_named(tree, task, wanted):
    for path in (tree / "gtFine/train").rglob("*_gtFine_*"):
        if "color" not in path.name:
            path.unlink()
    with pytest.raises(DatasetError, match=f"gtFine/train: there are no files {wanted}$"):
        DatasetCatalog.get(f"cityscapes_fine_{task}_train")


def test_an_image_of_the_panoptic_json_that_is_not_there(tree):
    run("prepare_cityscapes", tree.parent)
    shutil.rmtree(tree / "leftImg8bit/val/munster")
    shutil.rmtree(tree / "gtFine/val/munster")
    with pytest.raises(DatasetError, match=r"panoptic_val\.json, image id 'munster_.*': no such image"):
        DatasetCatalog.get("cityscapes_fine_panoptic_val")


def test_the_layout_of_another_tool(shared, monkeypatch, tmp_path):
    """Datumaro's sample: an image of one row, whose files of instance ids have 8 or 16 bits."""
    sample = shared / "data/samples/datumaro_synthetic/cityscapes_dataset"
    for folder, crowds in (("dataset", [1]), ("train_dataset", [0])):  # 24 and 24001
        root = tmp_path / folder
        root.mkdir()
        (root / "cityscapes").symlink_to(sample / folder)
        monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
        (record,) = DatasetCatalog.get("cityscapes_fine_instance_seg_train")
        ids = np.asarray(Image.open(record["instance_ids_file_name"])).astype(int)
        check_instances(record["annotations"], ids)
        assert [a["iscrowd"] for a in record["annotations"]] == crowds
