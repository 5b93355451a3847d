"""Cityscapes' metrics in two processes equal those in one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from synthetic_cityscapes import IDS, SIZE, draw_ids, instances, metadata, predict, records, save_truth

from mask2former.evaluation.cityscapes.ap import CityscapesInstanceEvaluator
from mask2former.evaluation.cityscapes.iou import CityscapesSemSegEvaluator
from mask2former.evaluation.evaluator import DatasetEvaluators, Results


def evaluate_share(folder: Path, rank: int, world_size: int) -> Results:
    """Draw the images, evaluate every `world_size`-th of them from `rank` on, and save the predictions."""
    rng = np.random.default_rng(0)
    images = {image_id: draw_ids(rng) for image_id in IDS}
    outputs = [
        {**instances(predict(ids, rng)), "label_map": torch.from_numpy(rng.integers(0, 19, SIZE))}
        for ids in images.values()
    ]
    inputs = records(save_truth(folder / f"truth{rank}", images), images)
    options = {"metadata": metadata(), "output_dir": folder, "save_predictions": True}
    evaluator = DatasetEvaluators(
        [CityscapesInstanceEvaluator(boundary=True, **options), CityscapesSemSegEvaluator(**options)]
    )
    evaluator.process(inputs[rank::world_size], outputs[rank::world_size])
    return evaluator.evaluate()


def process(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    (folder / f"rank{rank}.json").write_text(json.dumps(evaluate_share(folder, rank, 2)))
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    mp.spawn(process, (tmp_path / "two",), nprocs=2)
    alone = evaluate_share(tmp_path / "one", 0, 1)
    together = json.loads((tmp_path / "two/rank0.json").read_text())
    assert json.loads((tmp_path / "two/rank1.json").read_text()) == {}
    assert together.keys() == alone.keys() == {"segm", "sem_seg"}
    for task, metrics in alone.items():
        assert together[task] == pytest.approx(metrics, nan_ok=True)
    one, two = (
        sorted(path.relative_to(tmp_path / name) for path in (tmp_path / name / "submission").rglob("*.*"))
        for name in ("one", "two")
    )
    assert one == two and len(one) > len(IDS)
