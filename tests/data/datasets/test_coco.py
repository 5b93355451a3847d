"""COCO's formats: the records, the metadata, the built-in names, and broken files."""

import functools
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from synthetic_coco import BIG_ID, all_masks, write_json

from mask2former.data import DatasetCatalog, DatasetError, MetadataCatalog, register_coco_instances
from mask2former.data.ground_truth.geometry import Geometry
from mask2former.data.ground_truth.readers import read_instances, read_panoptic, semantic_map

SPLITS = ("train", "val")
COCO_NAMES = {
    f"coco_2017_{split}{kind}" for split in SPLITS for kind in ("", "_panoptic", "_panoptic_with_sem_seg")
}
COCO_NAMES |= {"coco_2017_test-dev", "shapes_panoptic_train", "shapes_panoptic_val"}


def test_coco_classes_are_known_without_files():
    instance, panoptic = MetadataCatalog.get("coco_2017_val"), MetadataCatalog.get("coco_2017_val_panoptic")
    assert len(instance.thing_classes) == len(instance.thing_colors) == 80
    assert (instance.thing_classes[0], instance.thing_classes[79]) == ("person", "toothbrush")
    assert instance.thing_dataset_id_to_contiguous_id[90] == 79
    assert len(panoptic.stuff_classes) == len(panoptic.stuff_colors) == 133
    assert panoptic.thing_classes == instance.thing_classes
    assert panoptic.thing_dataset_id_to_contiguous_id == instance.thing_dataset_id_to_contiguous_id
    assert panoptic.thing_ids == list(range(80))
    assert panoptic.stuff_dataset_id_to_contiguous_id[200] == 132
    assert (panoptic.ignore_label, panoptic.label_divisor) == (255, 1000)
    assert (instance.evaluator_type, panoptic.evaluator_type) == ("coco", "coco_panoptic_seg")


def test_paths_follow_the_environment_when_used(monkeypatch, root):
    metadata = MetadataCatalog.get("coco_2017_val_panoptic_with_sem_seg")
    assert metadata.panoptic_json == f"{root}/coco/annotations/panoptic_val2017.json"
    assert metadata.json_file == f"{root}/coco/annotations/instances_val2017.json"
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/sets")
    monkeypatch.setenv("HOME", "/home/someone")
    assert metadata.image_root == "/home/someone/sets/coco/val2017"
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert metadata.panoptic_root == "datasets/coco/panoptic_val2017"


@pytest.mark.parametrize("name", sorted(COCO_NAMES))
def test_a_missing_folder_is_an_error_with_advice(name, root):
    with pytest.raises(DatasetError, match=rf"{root}.*export DETECTRON2_DATASETS="):
        DatasetCatalog.get(name)


def test_instance_records(names, synthetic):
    first, second, third, fourth = DatasetCatalog.get(names["instance"])
    facts = {"file_name": str(synthetic.images / "0001.png"), "image_id": 1, "height": 24, "width": 32}
    assert {key: first[key] for key in facts} == facts
    assert [(a["category_id"], a["iscrowd"]) for a in first["annotations"]] == [(0, 0), (1, 0)]
    assert first["annotations"][0]["bbox_mode"] == 1
    assert [(a["category_id"], a["iscrowd"]) for a in second["annotations"]] == [(1, 0), (0, 1)]
    assert [a["iscrowd"] for a in third["annotations"]] == [1]
    assert fourth["annotations"] == []


def test_instance_classes_come_from_the_file(names):
    metadata = MetadataCatalog.get(names["instance"])
    assert metadata.thing_classes == ["donut", "box"]
    assert metadata.thing_dataset_id_to_contiguous_id == {0: 0, 7: 1}
    assert metadata.thing_colors == [[200, 0, 0], [0, 0, 200]]
    assert metadata.thing_ids == [0, 1]
    assert metadata.get("stuff_classes") is None


def test_panoptic_records_and_classes(names, synthetic):
    records = DatasetCatalog.get(names["panoptic"])
    assert [record["image_id"] for record in records] == [1, 2, 3, 5]
    assert records[1]["pan_seg_file_name"] == str(synthetic.panoptic_root / "0002.png")
    assert records[1]["segments_info"] == [
        {"id": 1 * BIG_ID, "category_id": 2, "isthing": False, "iscrowd": 0, "area": 1},
        {"id": 2 * BIG_ID, "category_id": 3, "isthing": False, "iscrowd": 0, "area": 1},
        {"id": 3 * BIG_ID, "category_id": 1, "isthing": True, "iscrowd": 0, "area": 1},
        {"id": 4 * BIG_ID, "category_id": 0, "isthing": True, "iscrowd": 1, "area": 1},
    ]
    assert all("sem_seg_file_name" not in record for record in records)
    metadata = MetadataCatalog.get(names["panoptic"])
    assert metadata.stuff_classes == ["donut", "box", "sky", "ground"]
    assert metadata.stuff_dataset_id_to_contiguous_id == {0: 0, 7: 1, 90: 2, 200: 3}
    assert metadata.thing_dataset_id_to_contiguous_id == {0: 0, 7: 1}
    assert metadata.thing_ids == [0, 1]


def test_registering_reads_nothing_and_given_facts_win(tmp_path):
    register_coco_instances("later", {"thing_colors": [[1, 2, 3]]}, tmp_path / "later.json", tmp_path)
    assert MetadataCatalog.get("later").evaluator_type == "coco"
    with pytest.raises(DatasetError, match=r"later\.json does not exist"):
        DatasetCatalog.get("later")
    category = {"id": 3, "name": "c", "color": [9, 9, 9]}
    write_json(tmp_path / "later.json", {"images": [], "annotations": [], "categories": [category]})
    assert MetadataCatalog.get("later").thing_classes == ["c"]
    assert MetadataCatalog.get("later").thing_colors == [[1, 2, 3]]
    assert DatasetCatalog.get("later") == []


def test_a_json_of_images_alone_gives_records_without_annotations(names, synthetic):
    content = json.loads(synthetic.instances_json.read_text())
    del content["annotations"]
    write_json(synthetic.instances_json, content)
    records = DatasetCatalog.get(names["instance"])
    assert len(records) == 4
    assert all("annotations" not in record for record in records)


def test_degenerate_polygons_are_left_out_with_a_warning(names, synthetic, caplog):
    content = json.loads(synthetic.instances_json.read_text())
    content["annotations"][1]["segmentation"].append([1, 2, 3, 4])
    content["annotations"][2]["segmentation"] = [[1, 2, 3, 4]]
    write_json(synthetic.instances_json, content)
    with caplog.at_level(logging.WARNING):
        first, second, *_ = DatasetCatalog.get(names["instance"])
    assert len(first["annotations"][1]["segmentation"]) == 1
    assert len(second["annotations"]) == 1
    assert "left out 1 annotations" in caplog.text


BROKEN = [  # task, place in the JSON, new value (None: removed), what the message says
    ("instance", ("images",), None, r"instances\.json has no 'images'"),
    ("instance", ("images", 1, "height"), None, r"instances\.json, image id 2: no 'height'"),
    ("instance", ("images", 0, "file_name"), None, r"instances\.json, image id 1: no 'file_name'"),
    ("instance", ("annotations", 2, "category_id"), None, r"image id 2: no 'category_id'"),
    ("instance", ("annotations", 0, "category_id"), 5, r"image id 1: category_id 5 is not among"),
    ("instance", ("annotations", 0, "image_id"), 4, r"image id 4: no such id among 'images'"),
    ("instance", ("categories", 0, "name"), None, r"instances\.json, categories: no 'name' in"),
    ("instance", ("categories", 1, "id"), None, r"instances\.json, categories: no 'id' in"),
    ("instance", ("categories", 1, "id"), 0, r"instances\.json, categories: the id 0 occurs twice"),
    ("panoptic", ("categories", 2, "isthing"), None, r"panoptic\.json, categories: no 'isthing' in"),
    ("panoptic", ("annotations",), None, r"panoptic\.json has no 'annotations'"),
    ("panoptic", ("categories",), None, r"panoptic\.json has no 'categories'"),
    ("panoptic", ("annotations", 3, "image_id"), 4, r"image id 4: no such id among 'images'"),
    ("panoptic", ("annotations", 1, "segments_info"), None, r"image id 2: no 'segments_info'"),
    ("panoptic", ("annotations", 1, "segments_info", 0, "id"), None, r"image id 2: no 'id'"),
    (
        "panoptic",
        ("annotations", 0, "segments_info", 0, "category_id"),
        1,
        r"id 1: segment 70000: category_id 1",
    ),
]


@pytest.mark.parametrize(("task", "place", "value", "message"), BROKEN)
def test_a_broken_file_is_an_error_with_image_and_value(names, synthetic, task, place, value, message):
    path = {"instance": synthetic.instances_json, "panoptic": synthetic.panoptic_json}[task]
    content = json.loads(path.read_text())
    *parents, last = place
    container = functools.reduce(lambda part, step: part[step], parents, content)
    if value is None:
        del container[last]
    else:
        container[last] = value
    write_json(path, content)
    with pytest.raises(DatasetError, match=message):
        DatasetCatalog.get(names[task])


def test_a_file_that_is_not_json_is_an_error(names, synthetic):
    synthetic.instances_json.write_text("{")
    with pytest.raises(DatasetError, match=r"instances\.json is not JSON"):
        DatasetCatalog.get(names["instance"])


def test_nesting_beyond_the_parser_is_an_error(names, synthetic):
    synthetic.instances_json.write_text("[" * 100_000)
    with pytest.raises(DatasetError, match=r"instances\.json is not a usable JSON: its brackets"):
        DatasetCatalog.get(names["instance"])


def test_a_byte_order_mark_is_skipped(names, synthetic):
    synthetic.instances_json.write_text("\ufeff" + synthetic.instances_json.read_text(), encoding="utf-8")
    assert len(DatasetCatalog.get(names["instance"])) == 4


def test_backslashes_in_file_names_separate_folders(synthetic, restored_catalogs):
    content = json.loads(synthetic.instances_json.read_text())
    for image in content["images"]:
        image["file_name"] = f"{synthetic.images.name}\\{image['file_name']}"
    (synthetic.root / f"{synthetic.images.name}\\0002.png").write_bytes(b"")  # a file of exactly this name
    write_json(synthetic.instances_json, content)
    register_coco_instances("backslashes", {}, synthetic.instances_json, synthetic.root)
    files = [record["file_name"] for record in DatasetCatalog.get("backslashes")]
    assert files[0] == str(synthetic.images / "0001.png")
    assert files[1].endswith("\\0002.png")


def test_a_semantic_folder_is_used_if_it_exists(root, synthetic):
    folder, name = root / "coco", "coco_2017_val_panoptic_with_sem_seg"
    shutil.copytree(synthetic.images, folder / "val2017")
    shutil.copytree(synthetic.panoptic_root, folder / "panoptic_val2017")
    (folder / "annotations").mkdir()
    content = json.loads(synthetic.panoptic_json.read_text())
    for annotation in content["annotations"]:
        annotation["segments_info"] = []
    write_json(folder / "annotations/panoptic_val2017.json", content)
    assert "sem_seg_file_name" not in DatasetCatalog.get(name)[0]
    (folder / "panoptic_semseg_val2017").mkdir()
    expected = str(folder / "panoptic_semseg_val2017/0001.png")
    assert DatasetCatalog.get(name)[0]["sem_seg_file_name"] == expected


def test_real_panoptic_annotations(root):
    """Two official samples in COCO's layout: areas as annotated, labels as the public script has them."""
    sample = Path(__file__).parents[2] / "golden_files/panoptic_sample"
    annotations = sample / "panoptic.json"
    (root / "coco/annotations").mkdir(parents=True)
    (root / "coco/val2017").mkdir()
    (root / "coco/panoptic_val2017").symlink_to(sample / "ids")
    (root / "coco/annotations/panoptic_val2017.json").symlink_to(annotations)
    name = "coco_2017_val_panoptic_with_sem_seg"
    records, metadata = DatasetCatalog.get(name), MetadataCatalog.get(name)
    truth = {a["image_id"]: a for a in json.loads(annotations.read_text())["annotations"]}
    assert len(records) == 2
    for record in records:
        size = (record["height"], record["width"])
        segments = read_panoptic(record, metadata, size)
        areas = all_masks(segments, Geometry.identity(*size)).sum((1, 2))
        listed = [s for s in truth[record["image_id"]]["segments_info"] if not s["iscrowd"]]
        assert areas.tolist() == [segment["area"] for segment in listed]
        golden = Image.open(sample / "semseg" / f"{record['image_id']:012d}.png")
        np.testing.assert_array_equal(semantic_map(record, metadata, size), np.asarray(golden))


@pytest.mark.parametrize(("split", "images"), [("train", 32), ("val", 6)])
def test_real_instances_agree_with_pycocotools(shared, split, images, root):
    sample = shared / "data/samples/super_gradients_tinycoco"
    (root / "coco").mkdir()
    (root / "coco/annotations").symlink_to(sample / "annotations")
    (root / f"coco/{split}2017").symlink_to(sample / f"images/{split}2017")
    name = f"coco_2017_{split}"
    records, metadata = DatasetCatalog.get(name), MetadataCatalog.get(name)
    official = COCO(metadata.json_file)
    assert len(records) == images
    for record in records:
        annotations = official.loadAnns(official.getAnnIds(record["image_id"], iscrowd=False))
        segments = read_instances(record, metadata, (record["height"], record["width"]))
        masks = all_masks(segments, Geometry.identity(record["height"], record["width"]))
        assert len(masks) == len(annotations)
        for mask, label, annotation in zip(masks, segments.classes, annotations, strict=True):
            np.testing.assert_array_equal(mask, official.annToMask(annotation))
            assert metadata.thing_classes[label] == official.cats[annotation["category_id"]]["name"]
