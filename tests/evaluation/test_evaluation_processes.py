"""Metrics and saved files of two processes equal those of one."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from synthetic_cityscapes import IDS, SIZE, draw_images, instances, metadata, predict, records, save_truth
from synthetic_evaluation import Replay, SyntheticDataset

from mask2former.evaluation.cityscapes.ap import CityscapesInstanceEvaluator
from mask2former.evaluation.cityscapes.iou import CityscapesSemSegEvaluator
from mask2former.evaluation.coco.ap import COCOEvaluator
from mask2former.evaluation.evaluator import DatasetEvaluators, Results, inference_on_dataset
from mask2former.evaluation.panoptic.quality import COCOPanopticEvaluator
from mask2former.evaluation.semantic.miou import SemSegEvaluator

IMAGE_IDS = (5, 2, 11, 7, 3)
Share = Callable[[Path, int, int], Results]


def coco_share(folder: Path, rank: int, world_size: int, image_ids: tuple[int, ...]) -> Results:
    """Draw a dataset, and evaluate every `world_size`-th image of it from `rank` on."""
    dataset = SyntheticDataset(folder / f"data{rank}", image_ids)
    shared = {"metadata": dataset.metadata, "output_dir": folder / "inference", "save_predictions": True}
    evaluators = DatasetEvaluators(
        [
            COCOPanopticEvaluator(boundary=True, **shared),
            COCOEvaluator(boundary=True, **shared),
            SemSegEvaluator(**shared),
        ]
    )
    share = dataset.records(dataset.disturbed)[rank::world_size]
    return inference_on_dataset(Replay(), [[record] for record in share], evaluators)


def cityscapes_share(folder: Path, rank: int, world_size: int) -> Results:
    """Draw Cityscapes' images, and evaluate every `world_size`-th of them from `rank` on."""
    rng = np.random.default_rng(0)
    images = draw_images(rng)
    outputs = [
        {**instances(predict(ids, rng)), "label_map": torch.from_numpy(rng.integers(0, 19, SIZE))}
        for ids in images.values()
    ]
    inputs = records(save_truth(folder / f"truth{rank}", images), images)
    shared = {"metadata": metadata(), "output_dir": folder / "inference", "save_predictions": True}
    evaluator = DatasetEvaluators(
        [CityscapesInstanceEvaluator(boundary=True, **shared), CityscapesSemSegEvaluator(**shared)]
    )
    evaluator.process(inputs[rank::world_size], outputs[rank::world_size])
    return evaluator.evaluate()


def process(rank: int, folder: Path, evaluate_share: Share) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    (folder / f"rank{rank}.json").write_text(json.dumps(evaluate_share(folder, rank, 2)))
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("evaluate_share", "tasks"),
    [
        (partial(coco_share, image_ids=IMAGE_IDS), {"panoptic_seg", "segm", "sem_seg"}),
        (partial(coco_share, image_ids=IMAGE_IDS[:1]), {"panoptic_seg", "segm", "sem_seg"}),
        (cityscapes_share, {"segm", "sem_seg"}),
    ],
    ids=["coco", "fewer images than processes", "cityscapes"],
)
def test_two_processes_equal_one(tmp_path, evaluate_share, tasks):
    (tmp_path / "two").mkdir()
    mp.spawn(process, (tmp_path / "two", evaluate_share), nprocs=2)
    alone = evaluate_share(tmp_path / "one", 0, 1)
    together = json.loads((tmp_path / "two/rank0.json").read_text())
    assert json.loads((tmp_path / "two/rank1.json").read_text()) == {}
    assert together.keys() == alone.keys() == tasks
    for task, metrics in alone.items():
        assert together[task] == pytest.approx(metrics, nan_ok=True)
    saved, expected = (
        sorted(path.relative_to(tmp_path / name) for path in (tmp_path / name / "inference").rglob("*.*"))
        for name in ("two", "one")
    )
    assert saved == expected and len(saved) >= len(IDS)
