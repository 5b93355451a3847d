"""Test sets without public ground truth: predictions are saved in the official formats and not scored."""

import json

import numpy as np
import pytest
from dataset_cases import BY_NAME
from oracle_predictions import CITYSCAPES_LABELS
from PIL import Image
from synthetic_datasets import cityscapes, coco, lvis

from mask2former.config import load_config
from mask2former.engine.build import build_model
from mask2former.engine.evaluate import evaluate
from mask2former.engine.setup.dataset_facts import with_dataset_facts

BERLIN = "berlin_000000_000019_pred"
TEST_SETS = {  # name -> case; how to make it; the JSON with ground truth, and the one to put in its place
    "coco_2017_test-dev": (
        "coco-instance",
        coco.draw,
        "coco/annotations/instances_test2017.json",
        "coco/annotations/image_info_test-dev2017.json",
    ),
    "lvis_v1_test_dev": (
        "lvis-instance",
        lvis.draw,
        "lvis/lvis_v1_test.json",
        "lvis/lvis_v1_image_info_test_dev.json",
    ),
}


def saved(case, name, root, monkeypatch):
    """Evaluate an untrained model and return the folder of its submission."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    options = case.options(DATASETS__TEST=(name,), TEST__SAVE_PREDICTIONS=True)
    cfg = with_dataset_facts(load_config(case.config, options))
    assert evaluate(cfg, build_model(cfg), root / "out") == {}
    return root / "out/submission"


@pytest.mark.parametrize("name", TEST_SETS)
def test_instances_are_saved_and_not_scored(name, tmp_path, monkeypatch):
    case, draw, truth, target = TEST_SETS[name]
    draw(tmp_path, counts={"train": 1, "test": 2})
    content = json.loads((tmp_path / truth).read_text())
    del content["annotations"]
    (tmp_path / target).write_text(json.dumps(content))
    found = json.loads((saved(BY_NAME[case], name, tmp_path, monkeypatch) / "instance.json").read_text())
    assert {item["image_id"] for item in found} == {image["id"] for image in content["images"]}
    assert {item["category_id"] for item in found} <= {row["id"] for row in content["categories"]}


def test_cityscapes_label_maps_are_saved_and_not_scored(tmp_path, monkeypatch):
    cityscapes.draw(tmp_path)
    folder = saved(BY_NAME["cityscapes-semantic"], "cityscapes_fine_sem_seg_test", tmp_path, monkeypatch)
    labels = np.asarray(Image.open(folder / f"semantic/{BERLIN}.png"))
    assert labels.shape == cityscapes.SIZE and set(np.unique(labels).tolist()) <= set(CITYSCAPES_LABELS)


def test_cityscapes_instances_are_saved_and_not_scored(tmp_path, monkeypatch):
    cityscapes.draw(tmp_path)
    case = BY_NAME["cityscapes-instance"]
    folder = saved(case, "cityscapes_fine_instance_seg_test", tmp_path, monkeypatch) / "instance"
    lines = (folder / f"{BERLIN}.txt").read_text().splitlines()
    for line in lines:
        mask, label, score = line.split()
        assert Image.open(folder / mask).size == cityscapes.SIZE[::-1]
        assert int(label) in CITYSCAPES_LABELS[11:] and 0 <= float(score) <= 1
    assert lines
