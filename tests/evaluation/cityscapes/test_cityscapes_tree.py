"""Cityscapes' three metrics on a synthetic dataset, compared with cityscapesscripts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic_cityscapes import CLASSES, CityscapesScripts, metadata
from synthetic_datasets import cityscapes

from mask2former.evaluation.cityscapes.ap import CityscapesInstanceEvaluator
from mask2former.evaluation.cityscapes.ground_truth import THINGS
from mask2former.evaluation.cityscapes.iou import CityscapesSemSegEvaluator
from mask2former.evaluation.evaluator import DatasetEvaluators
from mask2former.evaluation.panoptic.quality import COCOPanopticEvaluator
from mask2former.structures import Instances
from mask2former.utils.cityscapes_labels import label_ids_of


@pytest.fixture
def gt_fine(tmp_path: Path) -> Path:
    """Return the folder of the ground truth, with panoptic files made by cityscapesscripts."""
    script = pytest.importorskip("cityscapesscripts.preparation.createPanopticImgs")
    cityscapes.draw(tmp_path)
    folder = tmp_path / "cityscapes/gtFine"
    script.convert2panoptic(str(folder), str(folder), setNames=["val"])
    return folder


def images(gt_fine: Path) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Yield the dataset dict and instance ids of each image."""
    for file in sorted((gt_fine / "val").rglob("*_instanceIds.png")):
        record = {"image_id": file.name.removesuffix("_gtFine_instanceIds.png")}
        yield {**record, "instance_ids_file_name": str(file)}, np.array(Image.open(file), np.int32)


def output_of(ids: np.ndarray) -> dict[str, Any]:
    """Return what a model would for instance ids; groups are objects."""
    label_of = {value: value // 1000 if value >= 1000 else value for value in np.unique(ids).tolist()}
    values = [value for value, label in label_of.items() if label in CLASSES]
    things = [value for value in values if label_of[value] in THINGS]
    classes = np.full(34, 255)
    classes[CLASSES] = np.arange(19)
    segments = [{"id": v, "category_id": int(classes[label_of[v]]), "isthing": v in things} for v in values]
    return {
        "instances": Instances(
            ids.shape,
            pred_masks=torch.from_numpy(np.array([ids == v for v in things]).reshape(-1, *ids.shape)),
            pred_classes=torch.tensor([int(classes[label_of[v]]) for v in things]).long(),
            scores=torch.linspace(1, 0.5, len(things)),
        ),
        "label_map": torch.from_numpy(classes[label_ids_of(ids)]),
        "panoptic_seg": (torch.from_numpy(np.where(np.isin(ids, values), ids, 0)), segments),
    }


def evaluate(gt_fine: Path, outputs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    facts = metadata(range(11, 19))
    facts.panoptic_json = str(gt_fine / "cityscapes_panoptic_val.json")
    facts.panoptic_root = str(gt_fine / "cityscapes_panoptic_val")
    facts.stuff_dataset_id_to_contiguous_id = {label: place for place, label in enumerate(CLASSES)}
    evaluators = [
        CityscapesInstanceEvaluator(metadata=facts, output_dir=gt_fine, save_predictions=True),
        CityscapesSemSegEvaluator(metadata=facts, output_dir=gt_fine, save_predictions=True),
        COCOPanopticEvaluator(metadata=facts, output_dir=gt_fine),
    ]
    evaluator = DatasetEvaluators(evaluators)
    evaluator.process([record for record, _ in images(gt_fine)], outputs)
    return evaluator.evaluate()


def test_all_metrics_equal_cityscapesscripts(gt_fine, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    disturbed = [np.roll(ids, rng.integers(-3, 4, 2), (0, 1)) for _, ids in images(gt_fine)]
    results = evaluate(gt_fine, [output_of(ids) for ids in disturbed])
    submission = gt_fine / "submission"
    official = CityscapesScripts(tmp_path / "official", monkeypatch)

    objects = official.instances(gt_fine / "val", submission / "instance")["averages"]
    assert 5 < results["segm"]["AP"] == pytest.approx(100 * objects["allAp"])
    pixels = official.pixels(gt_fine / "val", submission / "semantic")
    assert 5 < results["sem_seg"]["IoU"] == pytest.approx(100 * pixels["averageScoreClasses"])

    truth, saved = gt_fine / "cityscapes_panoptic_val", gt_fine / "panoptic/predictions"
    panoptic = official.panoptic(*(path for p in (truth, saved) for path in (p.with_suffix(".json"), p)))
    for suffix in ("", "_th", "_st"):
        assert 5 < results["panoptic_seg"][f"PQ{suffix}"] == pytest.approx(panoptic[f"PQ{suffix}"])
