"""--overfit: a few images are training and test set, for each task."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import tiny_file, train_resolved

from mask2former.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_test_loader,
    build_train_loader,
    register_coco_instances,
)
from mask2former.engine.setup.overfit import MAX_STEPS, has_ground_truth
from mask2former.engine.setup.resolve import resolve_config

METRICS = {"SEMANTIC": "sem_seg", "INSTANCE": "segm", "PANOPTIC": "panoptic_seg"}


def task_config(folder, *tasks, **changes):
    on = {f"MODEL__MASK_FORMER__TEST__{task}_ON": task in tasks for task in METRICS}
    return tiny_file("SOLVER.MAX_ITER", 4, OUTPUT_DIR=folder, **on, **changes)


@pytest.fixture
def as_instances(tiny_shapes):
    """Register the synthetic training set as a COCO file whose first image has no objects."""
    root = tiny_shapes / "shapes"
    content = json.loads((root / "annotations/instances_train.json").read_text())
    first = content["images"][0]["id"]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != first]
    file = root / "first_is_empty.json"
    file.write_text(json.dumps(content))
    register_coco_instances("first_is_empty", {}, file, root / "train")
    return "first_is_empty"


def test_the_first_training_images_get_their_part_of_the_ground_truth(tiny_shapes, tmp_path):
    source = DatasetCatalog.get("shapes_panoptic_train")
    cfg = resolve_config(tiny_file(OUTPUT_DIR=tmp_path), overfit=3)
    (name,) = cfg.DATASETS.TRAIN
    assert name == "shapes_panoptic_train_overfit_3" and tuple(cfg.DATASETS.TEST) == (name,)
    assert DatasetCatalog.get(name) == source[:3]
    ids = {record["image_id"] for record in source[:3]}
    metadata, whole = MetadataCatalog.get(name), MetadataCatalog.get("shapes_panoptic_train")
    for key in ("json_file", "panoptic_json"):
        truth, original = (json.loads(Path(facts.get(key)).read_text()) for facts in (metadata, whole))
        assert str(tmp_path) in metadata.get(key)
        assert {image["id"] for image in truth["images"]} == ids
        expected = [row for row in original["annotations"] if row["image_id"] in ids]
        assert truth["annotations"] == expected and truth["categories"] == original["categories"]
    assert metadata.stuff_classes == whole.stuff_classes and metadata.panoptic_root == whole.panoptic_root


@pytest.mark.parametrize(
    "changes",
    [
        {"INPUT__MIN_SCALE": 0.1, "INPUT__MAX_SCALE": 2.0},  # large-scale jitter
        {"INPUT__COPY_PASTE__PROBABILITY": 1.0},
        {
            "INPUT__DATASET_MAPPER_NAME": "mask_former_panoptic",
            "INPUT__MIN_SIZE_TRAIN": (32, 64, 128),
            "INPUT__CROP__ENABLED": True,
            "INPUT__CROP__TYPE": "absolute",
            "INPUT__CROP__SIZE": (48, 64),
            "INPUT__SIZE_DIVISIBILITY": 64,
            "INPUT__COLOR_AUG_SSD": True,
            "INPUT__MIN_SIZE_TEST": 96,
        },
    ],
)
def test_training_shows_the_test_images_unchanged(tiny_shapes, tmp_path, changes):
    cfg = resolve_config(tiny_file(OUTPUT_DIR=tmp_path, **changes), overfit=2)
    tested = {sample["image_id"]: sample["image"] for (sample,) in build_test_loader(cfg, *cfg.DATASETS.TEST)}
    batches = iter(build_train_loader(cfg))
    for sample in [*next(batches), *next(batches)]:
        both = (sample["image"], tested[sample["image_id"]])
        seen, expected = (image.numpy().astype(int) for image in both)
        assert seen.shape == expected.shape
        assert np.abs(seen - expected).max() <= 3  # training resizes by torch, testing by Pillow
    if changes.get("INPUT__CROP__ENABLED"):
        assert seen.shape == (3, 48, 48)


@pytest.mark.parametrize(("task", "metric"), METRICS.items())
def test_each_task_is_trained_and_measured_on_the_chosen_images(tiny_shapes, tmp_path, task, metric, caplog):
    with caplog.at_level(logging.INFO, "mask2former"):
        cfg = resolve_config(task_config(tmp_path, task), overfit=2)
    assert "overfitting on 2 images of 'shapes_panoptic_train'" in caplog.text and "healthy" in caplog.text
    assert list(train_resolved(cfg)) == [metric]


def test_images_without_objects_are_left_out(as_instances, tmp_path):
    cfg = task_config(tmp_path, "INSTANCE", DATASETS__TRAIN=(as_instances,), DATASETS__TEST=())
    cfg.INPUT.DATASET_MAPPER_NAME = "coco_instance_lsj"
    cfg = resolve_config(cfg, overfit=2)
    expected = [record["image_id"] for record in DatasetCatalog.get(as_instances)][1:3]
    assert [record["image_id"] for record in DatasetCatalog.get(*cfg.DATASETS.TRAIN)] == expected
    assert "AP" in train_resolved(cfg)["segm"]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"annotations": []}, False),
        ({"annotations": [{"iscrowd": 1}]}, False),
        ({"annotations": [{"iscrowd": 1}, {}]}, True),
        ({"segments_info": []}, False),
        ({"segments_info": [{"iscrowd": 0}]}, True),
        ({"sem_seg_file_name": "a.png"}, True),
        ({"file_names": ["a.jpg", "b.jpg"], "annotations": [[], [{"iscrowd": 1}]]}, False),
        ({"file_names": ["a.jpg", "b.jpg"], "annotations": [[], [{"iscrowd": 0}]]}, True),
    ],
)
def test_an_image_has_ground_truth_unless_its_record_shows_that_it_has_none(record, expected):
    assert has_ground_truth(record) is expected


def test_the_schedule_is_short_and_typed_keys_stay(tiny_shapes, tmp_path):
    changes = {"SOLVER__MAX_ITER": 1000, "SOLVER__STEPS": (900,), "SOLVER__WARMUP_ITERS": 100}
    changes["SOLVER__VIT_WARMUP_ITERS"] = 200
    changes |= {"SOLVER__EPOCHS": 50, "SOLVER__IMS_PER_BATCH": 16, "OUTPUT_DIR": tmp_path}
    for accumulation, expected in ((8, 4), ("auto", 2)):
        cfg = resolve_config(tiny_file(**changes, SOLVER__ACCUMULATION_STEPS=accumulation), overfit=4)
        solver = cfg.SOLVER
        assert (solver.MAX_ITER, solver.STEPS) == (MAX_STEPS, (MAX_STEPS * 9 // 10,))
        assert (solver.EPOCHS, solver.WARMUP_ITERS) == (0, MAX_STEPS // 10)
        assert solver.VIT_WARMUP_ITERS == MAX_STEPS // 10
        assert (4, expected) == (solver.IMS_PER_BATCH, solver.ACCUMULATION_STEPS)
    assert cfg.source("SOLVER.MAX_ITER") == cfg.source("DATASETS.TEST") == "--overfit 4"
    typed = ["SOLVER.MAX_ITER", 7, "SOLVER.IMS_PER_BATCH", 3, "INPUT.RANDOM_FLIP", "horizontal"]
    cfg = resolve_config(tiny_file(*typed, OUTPUT_DIR=tmp_path), overfit=4)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH, cfg.INPUT.RANDOM_FLIP) == (7, 3, "horizontal")
    typed = ["SOLVER.EPOCHS", 2, "DATASETS.TRAIN", "('shapes_panoptic_train',)"]
    cfg = resolve_config(tiny_file(*typed, OUTPUT_DIR=tmp_path), overfit=4)
    assert (cfg.SOLVER.EPOCHS, cfg.SOLVER.MAX_ITER) == (2, 4)  # 2 images a step
    assert cfg.DATASETS.TRAIN == ("shapes_panoptic_train_overfit_4",)


@pytest.mark.parametrize(
    ("number", "train_on", "message"),
    [
        (0, ("shapes_panoptic_train",), r"--overfit is 0; it takes a number of images"),
        (4, (), r"DATASETS\.TRAIN is empty"),
        (4, ("shapes_panoptic_trian",), r"no dataset is called 'shapes_panoptic_trian'"),
        (4, ("bare",), r"no image of 'bare' has annotations"),
    ],
)
def test_impossible_requests_are_refused(tiny_shapes, tmp_path, number, train_on, message):
    DatasetCatalog.register("bare", lambda: [{"file_name": "a.png", "annotations": []}])
    with pytest.raises(ValueError, match=message):
        resolve_config(tiny_file(OUTPUT_DIR=tmp_path, DATASETS__TRAIN=train_on), overfit=number)
