"""Metrics in two processes equal those in one."""

import json
from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp
from synthetic_evaluation import Replay, SyntheticDataset

from mask2former.evaluation.coco.ap import COCOEvaluator
from mask2former.evaluation.evaluator import DatasetEvaluators, Results, inference_on_dataset
from mask2former.evaluation.panoptic.quality import COCOPanopticEvaluator
from mask2former.evaluation.semantic.miou import SemSegEvaluator

IMAGE_IDS = (5, 2, 11, 7, 3)
BOUNDARY = {"boundary": True}
KINDS = {COCOPanopticEvaluator: BOUNDARY, COCOEvaluator: BOUNDARY, SemSegEvaluator: {}}


def evaluate_share(folder: Path, rank: int, world_size: int, image_ids: tuple[int, ...]) -> Results:
    """Draw the dataset, and evaluate every `world_size`-th image of it from `rank` on."""
    dataset = SyntheticDataset(folder / f"data{rank}", image_ids)
    records = dataset.records(dataset.disturbed)[rank::world_size]
    evaluators = DatasetEvaluators(
        kind(metadata=dataset.metadata, output_dir=folder / "inference", save_predictions=True, **options)
        for kind, options in KINDS.items()
    )
    return inference_on_dataset(Replay(), [[record] for record in records], evaluators)


def process(rank: int, folder: Path, image_ids: tuple[int, ...]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results = evaluate_share(folder, rank, 2, image_ids)
    (folder / f"rank{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


@pytest.mark.parametrize("image_ids", [IMAGE_IDS, IMAGE_IDS[:1]], ids=["five", "fewer images than processes"])
def test_two_processes_equal_one(tmp_path: Path, image_ids: tuple[int, ...]) -> None:
    (tmp_path / "two").mkdir()
    mp.spawn(process, (tmp_path / "two", image_ids), nprocs=2)
    alone = evaluate_share(tmp_path / "one", 0, 1, image_ids)
    together = json.loads((tmp_path / "two/rank0.json").read_text())
    assert json.loads((tmp_path / "two/rank1.json").read_text()) == {}
    assert together.keys() == alone.keys() == {"panoptic_seg", "segm", "sem_seg"}
    for task, metrics in alone.items():
        assert together[task] == pytest.approx(metrics, nan_ok=True)
    saved = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one/inference").rglob("*.*"))
    assert saved == sorted(p.relative_to(tmp_path / "two") for p in (tmp_path / "two/inference").rglob("*.*"))
