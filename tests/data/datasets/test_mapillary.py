"""Synthetic Mapillary Vistas, in both layouts and both versions."""

import json

import numpy as np
import pytest
from PIL import Image
from synthetic_datasets import mapillary

from mask2former.data import DatasetCatalog, MetadataCatalog
from mask2former.data.ground_truth.readers import read_panoptic, read_semantic, semantic_map

LAYOUTS = {"flat": "", "v1.2": "v1.2"}


@pytest.fixture(params=LAYOUTS)
def layout(request, root):
    mapillary.draw(root, layout=request.param)
    return root / "mapillary_vistas/validation" / LAYOUTS[request.param]


def test_semantic_records(layout):
    metadata = MetadataCatalog.get("mapillary_vistas_sem_seg_val")
    records = DatasetCatalog.get("mapillary_vistas_sem_seg_val")
    assert len(records) == mapillary.COUNTS["val"]
    for record in records:
        raw = np.asarray(Image.open(layout / "labels" / f"{record['image_id']}.png"))
        np.testing.assert_array_equal(semantic_map(record, metadata, raw.shape), raw)
        classes = read_semantic(record, metadata, raw.shape).classes
        assert set(classes) == set(np.unique(raw)) - {65}


def test_panoptic_records(layout):
    content = json.loads((layout / "panoptic/panoptic_2018.json").read_text())
    rows = {row["image_id"]: row["segments_info"] for row in content["annotations"]}
    things = {category["id"] for category in content["categories"] if category["isthing"]}
    metadata = MetadataCatalog.get("mapillary_vistas_panoptic_val")
    assert metadata.thing_ids == [thing - 1 for thing in sorted(things)]
    for record in DatasetCatalog.get("mapillary_vistas_panoptic_val"):
        listed = rows[record["image_id"]]
        expected = [(s["id"], s["category_id"] - 1, s["category_id"] in things, s["iscrowd"]) for s in listed]
        keys = ("id", "category_id", "isthing", "iscrowd")
        assert [tuple(map(segment.get, keys)) for segment in record["segments_info"]] == expected
        size = record["height"], record["width"]
        assert len(read_panoptic(record, metadata, size).classes) == sum(not s["iscrowd"] for s in listed)
        assert record["sem_seg_file_name"] == str(layout / "labels" / f"{record['image_id']}.png")


def test_version_2_takes_its_classes_from_its_files(root):
    mapillary.draw(root, layout="v1.2")
    folder = root / "mapillary_vistas/validation/v2.0"
    labels = json.loads((root / "mapillary_vistas/config_v2.0.json").read_text())["labels"]
    semantic = MetadataCatalog.get("mapillary_vistas_v2_sem_seg_val")
    assert semantic.stuff_classes == [label["readable"] for label in labels if label["evaluate"]]
    assert labels[semantic.official_ignore_label]["name"] == "void--unlabeled"
    for record in DatasetCatalog.get("mapillary_vistas_v2_sem_seg_val"):
        raw = np.asarray(Image.open(folder / "labels" / f"{record['image_id']}.png")).astype(int)
        expected = [[labels[v]["readable"] if labels[v]["evaluate"] else None for v in row] for row in raw]
        found = semantic_map(record, semantic, raw.shape)
        names = [[None if v == 255 else semantic.stuff_classes[v] for v in row] for row in found]
        assert names == expected
    content = json.loads((folder / "panoptic/panoptic_2020.json").read_text())
    panoptic = MetadataCatalog.get("mapillary_vistas_v2_panoptic_val")
    assert panoptic.stuff_classes == [category["name"] for category in content["categories"]]
    assert panoptic.stuff_classes == semantic.stuff_classes  # one name a class, whatever is measured
    for record in DatasetCatalog.get("mapillary_vistas_v2_panoptic_val"):
        assert read_panoptic(record, panoptic, (record["height"], record["width"])).classes.size


def test_the_layout_of_another_tool(shared, root):
    """Datumaro's sample, whose folders of splits have shorter names."""
    sample = shared / "data/samples/datumaro_synthetic/mapillary_vistas_dataset"
    folder = root / "mapillary_vistas"
    folder.mkdir()
    for name in ("config_v1.2.json", "config_v2.0.json"):
        (folder / name).symlink_to(sample / name)
    (folder / "training").symlink_to(sample / "train")
    (folder / "validation").symlink_to(sample / "val")
    assert [r["image_id"] for r in DatasetCatalog.get("mapillary_vistas_sem_seg_val")] == ["0", "1"]
    (record,) = DatasetCatalog.get("mapillary_vistas_panoptic_train")
    assert [s["category_id"] for s in record["segments_info"]] == [0, 9, 0, 9, 0]  # ids 1 and 10
    records = DatasetCatalog.get("mapillary_vistas_v2_panoptic_val")
    assert [[s["iscrowd"] for s in r["segments_info"]] for r in records] == [[1, 0], [0, 0, 1]]
