"""The small DETR from the command line: each stage trains, resumes, evaluates and predicts."""

import shutil

import pytest
import torch
from process_runs import assert_same_weights
from tiny_runs import OPTIONS, random_sample, tiny_shapes

from mask2former import Predictor
from mask2former.engine.metrics_log import read_metrics
from mask2former.tools.evaluate import main as evaluate
from mask2former.tools.train import main as train

__all__ = ["tiny_shapes"]

CONFIG = "shapes/panoptic-segmentation/detr_R18_bs8_shapes.yaml"
TINY = {
    **OPTIONS,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 128,  # the mask head divides it
    "MODEL.RESNETS.NORM": "BN",
    "INPUT.DATASET_MAPPER_NAME": "detr_panoptic",  # crops leave segments without a pixel
    "INPUT.MIN_SIZE_TRAIN": [48, 64],
    "INPUT.CROP.ENABLED": True,
    "INPUT.CROP.TYPE": "absolute_range",
    "INPUT.CROP.SIZE": [40, 60],
    "MODEL.MASK_FORMER.SIZE_DIVISIBILITY": 0,
    "SOLVER.CHECKPOINT_PERIOD": 2,
}
METRICS = [("segm", "AP"), ("panoptic_seg", "PQ")]
MASK_HEAD = ("sem_seg_head.bbox_attention.", "sem_seg_head.mask_head.")


def run(command, folder, *flags, **changes):
    """Run `mask2former train` or `evaluate` on the config, made tiny."""
    values = {**TINY, "OUTPUT_DIR": folder, **changes}
    return command(
        ["--config-file", CONFIG, *flags, *(str(part) for item in values.items() for part in item)]
    )


def check_stage(folder, **stage):
    """Train; the resumed run ends as the undisturbed one; evaluate as in training; predict."""
    whole, resumed = folder / "whole", folder / "resumed"
    assert run(train, whole, **stage) == 0
    resumed.mkdir()
    shutil.copy(whole / "model_0000001.pth", resumed)
    (resumed / "last_checkpoint").write_text("model_0000001.pth")
    assert run(train, resumed, "--resume", **stage) == 0
    assert_same_weights(resumed, whole)

    results = read_metrics(whole / "metrics.json")[-1]
    expected = [[*name, results["/".join(name)], 1e-6] for name in METRICS]
    weights = str(whole / "model_final.pth")
    checked = {**stage, "MODEL.WEIGHTS": weights, "TEST.EXPECTED_RESULTS": expected}
    assert run(evaluate, folder / "evaluated", **checked) == 0

    predictor = Predictor(weights, score_threshold=0.0)
    result = predictor(random_sample(0, 1)["image"].permute(1, 2, 0).numpy())
    assert result.panoptic.ids.shape == (64, 64) and result.semantic is None
    assert result.instances.pred_boxes.shape == (len(result.instances), 4)
    return torch.load(weights)["model"]


@pytest.mark.usefixtures("tiny_shapes")
def test_both_stages(tmp_path):
    boxes = check_stage(tmp_path / "boxes")
    first = str(tmp_path / "boxes/whole/model_final.pth")
    masks = check_stage(tmp_path / "masks", **{"MODEL.DETR.STAGE": "masks", "MODEL.WEIGHTS": first})
    added = {name for name in masks if name.startswith(MASK_HEAD)}
    frozen = {name for name in masks.keys() - added if "num_batches_tracked" not in name}
    assert added and boxes.keys() >= frozen and len(frozen) > 100
    assert all(torch.equal(masks[name], boxes[name]) for name in frozen)


@pytest.mark.usefixtures("tiny_shapes")
def test_a_detector_is_no_model_of_masks(tmp_path, capsys):
    assert run(train, tmp_path / "boxes", **{"SOLVER.MAX_ITER": 1}) == 0
    first = {"MODEL.WEIGHTS": str(tmp_path / "boxes/model_final.pth")}
    assert run(evaluate, tmp_path / "masks", **first, **{"MODEL.DETR.STAGE": "masks"}) == 1
    assert "holds no trained head" in capsys.readouterr().err
