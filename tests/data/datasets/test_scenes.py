"""The drawn scenes: what they promise of sizes, voids and outlines, and that training reads them."""

import json

import numpy as np
import pytest
from pycocotools import mask as rle
from synthetic_datasets.drawing import read_ids

from mask2former.data import DatasetCatalog, MetadataCatalog
from mask2former.data.datasets import scenes
from mask2former.data.datasets.drawn import LABEL_DIVISOR

IMAGES = 60


def ids_of(seed):
    return scenes.draw_scene(np.random.default_rng([0, seed])).segment_ids


@pytest.fixture(scope="module")
def areas():
    """Return the visible areas of the things of some images."""
    counted = [np.unique(ids_of(seed), return_counts=True) for seed in range(IMAGES)]
    numbers, areas = (np.concatenate(part) for part in zip(*counted, strict=True))
    return areas[np.isin(numbers // LABEL_DIVISOR, [thing["id"] for thing in scenes.THINGS])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return scenes.SCENES.write(tmp_path_factory.mktemp("drawn"), {"train": 3, "val": 2})


def test_an_image_follows_from_its_seed_alone():
    assert np.array_equal(ids_of(1), ids_of(1))
    assert not np.array_equal(ids_of(1), ids_of(2))


def test_objects_come_in_all_sizes_and_no_sliver_is_an_object(areas):
    small, medium = scenes.AREA_LIMITS
    assert areas.min() >= scenes.VISIBLE
    assert np.mean(areas < small) > 1 / 3
    assert np.mean((areas >= small) & (areas < medium)) > 1 / 4
    assert np.mean(areas >= medium) > 1 / 20


def test_a_new_version_replaces_an_old_one(tmp_path):
    counts, file = {"val": 1}, tmp_path / "scenes" / "annotations" / "instances_val.json"
    old = scenes.SCENES._replace(version=scenes.SCENES.version - 1)
    for dataset, remains in ((old, False), (old, True), (scenes.SCENES, False), (scenes.SCENES, True)):
        before = file.stat().st_ino if file.exists() else None
        dataset.write(tmp_path, counts)
        assert (file.stat().st_ino == before) == remains


def test_every_class_occurs():
    categories = set()
    for seed in range(IMAGES):
        categories |= set((np.unique(ids_of(seed)) // LABEL_DIVISOR).tolist())
    assert categories - {0} == {category["id"] for category in scenes.CATEGORIES}


def test_a_third_of_the_drawn_objects_is_smaller_than_12_pixels():
    sizes = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        sizes += [one.size for one in scenes.draw_objects(rng)]
    assert min(sizes) >= 5 and max(sizes) <= 90
    assert np.mean(np.array(sizes) < 12) == pytest.approx(1 / 3, abs=0.05)


def test_forms_lie_in_their_box_and_a_ring_has_a_hole():
    assert all(np.abs(outline).max() <= 1 + 1e-9 for form in scenes.FORMS.values() for outline in form)
    ring = scenes.fill([50 + 20 * outline for outline in scenes.FORMS["ring"]])
    assert not ring[50, 50] and ring[50, 50 + 15]


def test_instance_outlines_are_a_little_looser_than_the_visible_masks():
    overlaps, larger = [], []
    for seed in range(10):
        ids = ids_of(seed)
        for number in np.unique(ids[(ids > 0) & (ids < 9 * LABEL_DIVISOR)]):
            mask = ids == number
            loose = rle.decode(scenes.loose_instance(mask).segmentation) > 0
            overlaps.append((mask & loose).sum() / (mask | loose).sum())
            larger.append(loose.sum() / mask.sum())
    assert np.mean(larger) > 1
    assert 0.85 < np.mean(overlaps) < 0.98
    assert min(overlaps) > 0.6


def test_files_agree_with_each_other(folder, monkeypatch):
    panoptic = json.loads((folder / "annotations" / "panoptic_train.json").read_text())
    for row in panoptic["annotations"]:
        ids = read_ids(folder / "panoptic_train" / row["file_name"])
        counted = {segment["id"]: segment["area"] for segment in row["segments_info"]}
        numbers, areas = np.unique(ids[ids > 0], return_counts=True)
        assert counted == dict(zip(numbers.tolist(), areas.tolist(), strict=True))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder.parent))
    records = DatasetCatalog.get("scenes_panoptic_val")
    assert [len(record["segments_info"]) > 3 for record in records] == [True, True]
    assert MetadataCatalog.get("scenes_panoptic_val").area_limits == scenes.AREA_LIMITS
