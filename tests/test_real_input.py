"""Training for a few steps and evaluation on real COCO images, with crowds and void."""

import json
import math

import pytest
from tiny_runs import CONFIG, restored_log, tiny_options

from mask2former.engine.metrics_log import read_metrics
from mask2former.tools.train import main

__all__ = ["restored_log"]

SPLITS = ("train", "val")


@pytest.fixture
def coco(tmp_path, monkeypatch):
    """Provide the folders of a COCO dataset."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "coco/annotations").mkdir(parents=True)
    return tmp_path / "coco"


@pytest.fixture
def instances(shared, coco):
    """Provide 32 images to train on and 6 to evaluate."""
    source = shared / "data" / "samples" / "super_gradients_tinycoco"
    for split in SPLITS:
        annotations = f"annotations/instances_{split}2017.json"
        (coco / annotations).symlink_to(source / annotations)
        (coco / f"{split}2017").symlink_to(source / "images" / f"{split}2017")


@pytest.fixture
def panoptic(shared, coco):
    """Provide two images, to train on and to evaluate; instance files have things only, as COCO's."""
    source = shared / "data" / "samples" / "panopticapi_sample"
    categories = json.loads((source / "panoptic_examples.json").read_text())["categories"]
    things = {category["id"] for category in categories if category["isthing"]}
    content = json.loads((source / "panoptic_coco_detection_format.json").read_text())
    content["categories"] = [item for item in content["categories"] if item["id"] in things]
    content["annotations"] = [item for item in content["annotations"] if item["category_id"] in things]
    for split in SPLITS:
        (coco / f"annotations/panoptic_{split}2017.json").symlink_to(source / "panoptic_examples.json")
        (coco / f"panoptic_{split}2017").symlink_to(source / "panoptic_examples")
        (coco / f"{split}2017").symlink_to(source / "input_images")
        (coco / f"annotations/instances_{split}2017.json").write_text(json.dumps(content))


def run(folder, train, test, mapper, tasks):
    """Train for three steps; return the losses, the results and the instances found."""
    options = {f"MODEL__MASK_FORMER__TEST__{task}_ON": task in tasks for task in ("SEMANTIC", "PANOPTIC")}
    options |= {"DATASETS__TRAIN": (train,), "DATASETS__TEST": (test,), "OUTPUT_DIR": folder}
    options |= {"INPUT__DATASET_MAPPER_NAME": mapper, "SOLVER__MAX_ITER": 3}
    assert main(["--config-file", str(CONFIG), *tiny_options(**options)]) == 0
    losses, results = read_metrics(folder / "metrics.json")
    found = json.loads((folder / "inference" / "coco_instances_results.json").read_text())
    return losses, results, found


def assert_finite(losses):
    values = [value for name, value in losses.items() if "loss" in name]
    assert len(values) > 3 and all(map(math.isfinite, values))


def test_instance_training_on_real_images(instances, tmp_path):
    names = ("coco_2017_train", "coco_2017_val", "coco_instance_lsj")
    losses, results, found = run(tmp_path / "run", *names, ())
    assert_finite(losses)
    assert "left out 2 of 32 images without objects" in (tmp_path / "run" / "log.txt").read_text()
    truth = json.loads((tmp_path / "coco/annotations/instances_val2017.json").read_text())
    ids = {category["id"]: category["name"] for category in truth["categories"]}
    assert {item["image_id"] for item in found} <= {image["id"] for image in truth["images"]}
    assert {item["category_id"] for item in found} <= ids.keys()
    annotated = {ids[item["category_id"]] for item in truth["annotations"] if not item["iscrowd"]}
    assert annotated == {  # a class that no image shows has no AP
        name.removeprefix("segm/AP-")
        for name, value in results.items()
        if name.startswith("segm/AP-") and value is not None and not math.isnan(value)
    }


@pytest.mark.parametrize("tasks", [("PANOPTIC", "SEMANTIC"), ()])
def test_panoptic_training_with_crowds_and_void(panoptic, tmp_path, tasks):
    names = ("coco_2017_train_panoptic", "coco_2017_val_panoptic_with_sem_seg", "coco_panoptic_lsj")
    losses, results, found = run(tmp_path / "run", *names, tasks)
    assert_finite(losses)
    truth = json.loads((tmp_path / "coco/annotations/panoptic_val2017.json").read_text())
    things = {category["id"] for category in truth["categories"] if category["isthing"]}
    assert found and {item["category_id"] for item in found} <= things
    assert ("panoptic_seg/PQ" in results) == ("sem_seg/mIoU" in results) == bool(tasks)
    if tasks:  # the classes of golden_pq; untrained masks may add some
        assert results["panoptic_seg/n_th"] >= 4 and results["panoptic_seg/n_st"] >= 4
        written = json.loads((tmp_path / "run/inference/panoptic/predictions.json").read_text())
        assert [item["image_id"] for item in written["annotations"]] == [142238, 439180]
