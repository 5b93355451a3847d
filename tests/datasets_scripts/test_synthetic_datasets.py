"""The synthetic datasets are the same for a seed, and consistent."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from script_runs import contents
from synthetic_datasets import ade20k, ade20k_full, cityscapes, coco, coco_stuff, lvis, mapillary
from synthetic_datasets.drawing import check_segments, read, read_ids

TREES = [ade20k, ade20k_full, cityscapes, coco, coco_stuff, lvis, mapillary]


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.__name__)
def test_files_depend_on_the_seed_alone(tmp_path, tree):
    for folder, seed in (("first", 0), ("again", 0), ("other", 1)):
        tree.draw(tmp_path / folder, seed=seed)
    first, again, other = (contents(tmp_path / name) for name in ("first", "again", "other"))
    assert first == again and first != other and first.keys() == other.keys()


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.__name__)
def test_counts_set_the_number_of_images(tmp_path, tree):
    split = "test" if tree is coco_stuff else "val"
    tree.draw(tmp_path, counts={"train": 2, split: 1})
    assert len([*tmp_path.rglob("*.jpg"), *tmp_path.rglob("*_leftImg8bit.png")]) == 3


MAPILLARY = "mapillary_vistas/training/panoptic"
PANOPTIC = [
    (coco, "coco/annotations/panoptic_train2017.json", "coco/panoptic_train2017"),
    (mapillary, f"{MAPILLARY}/panoptic_2018.json", MAPILLARY),
]


@pytest.mark.parametrize(("tree", "json_file", "folder"), PANOPTIC)
def test_panoptic_rows_describe_the_png(tmp_path, tree, json_file, folder):
    tree.draw(tmp_path)
    content = json.loads((tmp_path / json_file).read_text())
    categories, crowds = {row["id"] for row in content["categories"]}, 0
    for row in content["annotations"]:
        ids = read_ids(tmp_path / folder / row["file_name"])
        assert (ids == 0).any()
        check_segments(ids, row["segments_info"])
        assert {segment["category_id"] for segment in row["segments_info"]} <= categories
        crowds += sum(segment["iscrowd"] for segment in row["segments_info"])
    assert crowds == 1


def test_coco_instances_are_the_things_of_the_panoptic_png(tmp_path):
    coco.draw(tmp_path)
    folder = tmp_path / "coco"
    instances = COCO(str(folder / "annotations" / "instances_val2017.json"))
    panoptic = json.loads((folder / "annotations" / "panoptic_val2017.json").read_text())
    things = set(instances.getCatIds())
    for row in panoptic["annotations"]:
        ids = read_ids(folder / "panoptic_val2017" / row["file_name"])
        annotations = instances.loadAnns(instances.getAnnIds(imgIds=row["image_id"]))
        ours = [segment for segment in row["segments_info"] if segment["category_id"] in things]
        assert len(ours) == len(annotations)
        for segment, annotation in zip(ours, annotations, strict=True):
            for key in ("category_id", "iscrowd"):
                assert segment[key] == annotation[key]
            assert np.array_equal(ids == segment["id"], instances.annToMask(annotation) > 0)
            assert coco_mask.area(instances.annToRLE(annotation)) == annotation["area"]


def test_cityscapes_labels_equal_those_of_its_tools(tmp_path):
    annotation = pytest.importorskip("cityscapesscripts.helpers.annotation")
    labels = pytest.importorskip("cityscapesscripts.preparation.json2labelImg")
    instances = pytest.importorskip("cityscapesscripts.preparation.json2instanceImg")
    cityscapes.draw(tmp_path)
    files = sorted((tmp_path / "cityscapes" / "gtFine").glob("*/*/*_polygons.json"))
    assert len(files) == sum(cityscapes.COUNTS.values())
    for path in files:
        content = annotation.Annotation()
        content.fromJsonFile(str(path))
        for name, expected in (
            ("labelIds", labels.createLabelImage(content, "ids")),
            ("color", labels.createLabelImage(content, "color")),
            ("instanceIds", instances.createInstanceImage(content, "ids")),
        ):
            image = Image.open(str(path).replace("polygons.json", f"{name}.png"))
            assert np.array_equal(np.asarray(image), np.asarray(expected)), (path, name)


def test_the_first_cityscapes_image_has_all_special_cases(tmp_path):
    cityscapes.draw(tmp_path)
    folder = tmp_path / "cityscapes" / "gtFine" / "val" / "frankfurt"
    objects = json.loads((folder / "frankfurt_000000_000019_gtFine_polygons.json").read_text())["objects"]
    assert {"cargroup", "license plate", "ego vehicle", "caravan"} <= {row["label"] for row in objects}
    image = Image.open(folder / "frankfurt_000000_000019_gtFine_instanceIds.png")
    values, areas = np.unique(np.asarray(image), return_counts=True)
    assert image.mode == "I;16" and {26, 33, 29000} <= set(values.tolist())  # groups of cars and bicycles
    assert ((values // 1000 == 24) & (areas < 100)).any()
    assert ((values >= 24000) & (areas >= 100)).sum() >= 5


def test_ade20k_labels_and_instances_disagree_as_in_the_real_dataset(tmp_path):
    ade20k.draw(tmp_path)
    folder = tmp_path / "ADEChallengeData2016"
    name = "training/ADE_train_00000001"
    labels = read(folder / f"annotations/{name}.png")
    instances = read(folder / f"annotations_instance/{name}.png")
    stuff = np.isin(labels, [value + 1 for value in ade20k.STUFF])
    things = np.isin(labels, [value + 1 for value in ade20k.THINGS])
    assert (stuff & (instances[..., 1] > 0)).any() and (things & (instances[..., 1] == 0)).any()
    assert (labels == 0).any() and not instances[..., 2].any()
    modes = {Image.open(path).mode for path in (folder / "images" / "training").iterdir()}
    assert modes == {"L", "RGB"}
