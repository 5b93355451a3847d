"""The embedded dataset: its images, and files that agree with them."""

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as rle
from synthetic_datasets.drawing import check_segments, read_ids

from mask2former.data.datasets import drawn, shapes

COUNTS = {"train": 3, "val": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shapes.write_shapes(tmp_path, COUNTS)


def test_an_image_follows_from_its_seed_alone():
    first, again, other = (shapes.draw_image(np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert np.array_equal(first.image, again.image) and np.array_equal(first.segment_ids, again.segment_ids)
    assert not np.array_equal(first.segment_ids, other.segment_ids)


def test_every_pixel_belongs_to_a_known_category_and_both_textures_show():
    known = {category["id"] for category in shapes.CATEGORIES}
    for seed in range(20):
        ids = np.unique(shapes.draw_image(np.random.default_rng(seed)).segment_ids)
        categories = set((ids // drawn.LABEL_DIVISOR).tolist())
        assert {4, 5} <= categories <= known
        assert len(ids) <= 9  # two textures, at most seven shapes


def test_panoptic_rows_describe_the_png(folder):
    panoptic = json.loads((folder / "annotations" / "panoptic_train.json").read_text())
    assert [row["image_id"] for row in panoptic["annotations"]] == [1, 2, 3]
    for row in panoptic["annotations"]:
        check_segments(read_ids(folder / "panoptic_train" / row["file_name"]), row["segments_info"])


def test_instance_masks_equal_the_thing_segments(folder):
    instances = json.loads((folder / "annotations" / "instances_val.json").read_text())
    numbers = [row["id"] for row in instances["annotations"]]
    assert numbers == list(range(1, 1 + len(numbers)))
    assert [category["name"] for category in instances["categories"]] == ["circle", "square", "triangle"]
    for image in instances["images"]:
        ids = read_ids(folder / "panoptic_val" / f"{image['id']:06d}.png")
        rows = [row for row in instances["annotations"] if row["image_id"] == image["id"]]
        covered = sum(rle.decode(row["segmentation"]).astype(int) for row in rows)
        assert np.array_equal(covered, ids // drawn.LABEL_DIVISOR <= 3)


def test_train_and_val_differ(folder):
    train, val = (read_ids(folder / f"panoptic_{split}" / "000001.png") for split in ("train", "val"))
    assert not np.array_equal(train, val)


def test_the_same_dataset_is_kept_and_another_replaces_it(folder):
    image = folder / "train" / "000001.jpg"
    before, content = image.stat().st_mtime_ns, image.read_bytes()
    shapes.write_shapes(folder.parent, COUNTS)
    assert image.stat().st_mtime_ns == before
    shapes.write_shapes(folder.parent, COUNTS, seed=1)
    assert image.read_bytes() != content


def test_an_interrupted_run_leaves_no_dataset(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(drawn, "_write_image", fail)
    with pytest.raises(KeyboardInterrupt):
        shapes.write_shapes(tmp_path, COUNTS)
    assert not (tmp_path / "shapes").exists()
    monkeypatch.undo()
    assert (shapes.write_shapes(tmp_path, COUNTS) / "stamp.json").exists()
