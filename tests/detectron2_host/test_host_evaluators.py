"""Detectron2's evaluators and ours on our results in its loop: equal to 1e-4."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog as HostMetadata
from detectron2.evaluation import (
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    SemSegEvaluator,
    inference_on_dataset,
)
from detectron2.utils.visualizer import Visualizer
from torch import nn

from mask2former import InstanceSegEvaluator  # as existing scripts import it
from mask2former.data import DatasetCatalog, MetadataCatalog, build_test_loader, register_coco_panoptic
from mask2former.data.datasets.shapes import write_shapes
from mask2former.detectron2_host import build_evaluator
from mask2former.detectron2_host.type_conversion import output_to_detectron2
from mask2former.structures import Instances
from mask2former.utils.label_maps import read_segment_ids, semantic_from_panoptic, write_label_map

NAME = "shapes_with_sem_seg"
TOLERANCE = {"abs": 1e-4, "nan_ok": True}


@pytest.fixture(scope="session")
def shapes_with_sem_seg(tmp_path_factory):
    """Write six images of shapes, with the label maps that Detectron2's SemSegEvaluator reads."""
    root = write_shapes(tmp_path_factory.mktemp("evaluated"), {"val": 6})
    annotations = root / "annotations"
    for row in json.loads((annotations / "panoptic_val.json").read_text())["annotations"]:
        segments = [{"id": s["id"], "category_id": s["category_id"] - 1} for s in row["segments_info"]]
        ids = read_segment_ids(root / "panoptic_val" / row["file_name"])
        labels = semantic_from_panoptic(ids, segments, 255)
        (root / "semantic_val").mkdir(exist_ok=True)
        write_label_map(root / "semantic_val" / row["file_name"], labels.astype(np.uint8))
    panoptic = (root / "panoptic_val", annotations / "panoptic_val.json")
    others = {"sem_seg_root": root / "semantic_val", "instances_json": annotations / "instances_val.json"}
    register_coco_panoptic(NAME, {}, root / "val", *panoptic, **others)
    yield NAME
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


class HalfRight(nn.Module):
    """Predicts shifted ground truth with random scores; some masks are missing or of a wrong class."""

    def forward(self, batch):
        return [output_to_detectron2(self._predict(record)) for record in batch]

    def _predict(self, record):
        rng = np.random.default_rng(record["image_id"])
        truth, segments = read_segment_ids(record["pan_seg_file_name"]), record["segments_info"]
        seen = np.roll(truth, int(rng.integers(0, 5)), axis=int(rng.integers(0, 2)))
        ids, kept = np.zeros(truth.shape, np.int32), []
        for number, segment in enumerate(s for s in segments if rng.random() < 0.85):
            ids[seen == segment["id"]] = number + 1
            swapped = segment["isthing"] and rng.random() < 0.2
            category = (segment["category_id"] + 1) % 3 if swapped else segment["category_id"]
            kept.append({"id": number + 1, "isthing": segment["isthing"], "category_id": category})
        labels = semantic_from_panoptic(ids, kept, 0)
        things = [segment for segment in kept if segment["isthing"]]
        masks = [torch.from_numpy(ids == segment["id"]) for segment in things]
        instances = Instances(
            ids.shape,
            pred_masks=torch.stack(masks),
            pred_boxes=torch.zeros(len(things), 4),
            scores=torch.from_numpy(rng.random(len(things))),
            pred_classes=torch.tensor([s["category_id"] for s in things], dtype=torch.int64),
        )
        scores = nn.functional.one_hot(torch.from_numpy(labels).long(), 5).permute(2, 0, 1).float()
        return {"sem_seg": scores, "panoptic_seg": (torch.from_numpy(ids), kept), "instances": instances}


@pytest.fixture
def ours(shapes_with_sem_seg, host_cfg, tmp_path):
    """Return the results of our evaluators in Detectron2's loop."""
    cfg = host_cfg(DATASETS__TEST=(NAME,))
    evaluator = build_evaluator(cfg, NAME, tmp_path / "ours")
    assert isinstance(evaluator, DatasetEvaluator)
    return inference_on_dataset(HalfRight(), build_test_loader(cfg, NAME), evaluator)


@pytest.fixture
def score(shapes_with_sem_seg, host_cfg):
    """Return a function that returns the results of another evaluator on the same predictions."""
    return lambda evaluator: inference_on_dataset(HalfRight(), build_test_loader(host_cfg(), NAME), evaluator)


@pytest.mark.parametrize(
    ("task", "headline", "make"),
    [
        ("segm", "AP", partial(COCOEvaluator, tasks=("segm",), use_fast_impl=False)),
        ("segm", "AP", partial(COCOEvaluator, tasks=("segm",), use_fast_impl=True)),
        ("sem_seg", "mIoU", partial(SemSegEvaluator, distributed=False)),
        ("panoptic_seg", "PQ", COCOPanopticEvaluator),
    ],
)
def test_metrics_agree_with_detectron2s(ours, score, tmp_path, task, headline, make):
    theirs = score(make(NAME, output_dir=str(tmp_path)))[task]
    if task == "sem_seg":  # Detectron2 also measures boundaries
        theirs = {key: value for key, value in theirs.items() if key in ours[task]}
        assert {"mIoU", "fwIoU", "mACC", "pACC", "IoU-circle", "ACC-checks"} <= theirs.keys()
    assert 10 < theirs[headline] < 95
    assert {key: ours[task][key] for key in theirs} == pytest.approx(theirs, **TOLERANCE)


def test_evaluators_of_both_sides_work_together(ours, score, tmp_path):
    evaluators = [
        SemSegEvaluator(NAME, distributed=False),
        InstanceSegEvaluator(NAME, output_dir=str(tmp_path)),
        COCOPanopticEvaluator(NAME, str(tmp_path)),
    ]
    together = score(DatasetEvaluators(evaluators))
    assert together["segm"] == pytest.approx(ours["segm"], **TOLERANCE)
    for task, metric in (("sem_seg", "mIoU"), ("panoptic_seg", "PQ")):
        assert together[task][metric] == pytest.approx(ours[task][metric], **TOLERANCE)


def test_detectron2s_visualizer_draws_our_results(shapes_with_sem_seg):
    record = DatasetCatalog.get(NAME)[0]
    result = HalfRight()([record])[0]
    plain = np.full((record["height"], record["width"], 3), 128, np.uint8)

    def draw(method, *results):
        image = getattr(Visualizer(plain, HostMetadata.get(NAME)), method)(*results).get_image()
        assert image.shape == plain.shape and (image != 128).any()

    draw("draw_instance_predictions", result["instances"])
    draw("draw_sem_seg", result["sem_seg"].argmax(0))
    draw("draw_panoptic_seg", *result["panoptic_seg"])
