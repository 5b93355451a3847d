"""The small UperNet from the command line: it trains, resumes, evaluates and predicts."""

import shutil

from process_runs import assert_same_weights
from tiny_runs import OPTIONS, random_sample, tiny_shapes

from mask2former import Predictor
from mask2former.engine.metrics_log import read_metrics
from mask2former.tools.evaluate import main as evaluate
from mask2former.tools.train import main as train

__all__ = ["tiny_shapes"]

CONFIG = "shapes/semantic-segmentation/upernet_R18_bs8_shapes.yaml"


def run(command, folder, *flags, **changes):
    """Run `mask2former train` or `evaluate` on the config, made tiny."""
    values = {**OPTIONS, "SOLVER.CHECKPOINT_PERIOD": 2, "OUTPUT_DIR": folder, **changes}
    return command(
        ["--config-file", CONFIG, *flags, *(str(part) for item in values.items() for part in item)]
    )


def test_it_resumes_evaluates_and_predicts(tiny_shapes, tmp_path):
    """The resumed run ends as the undisturbed one, with dropout and with the statistics of batch norm."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert run(train, whole, **{"MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 1}) == 0
    assert "objects than the" not in (whole / "log.txt").read_text()  # every object counts, without queries
    resumed.mkdir()
    shutil.copy(whole / "model_0000001.pth", resumed)
    (resumed / "last_checkpoint").write_text("model_0000001.pth")
    assert run(train, resumed, "--resume") == 0
    assert_same_weights(resumed, whole)

    *_, losses, results = read_metrics(whole / "metrics.json")
    assert {"loss_sem_seg", "loss_sem_seg_auxiliary"} <= losses.keys()
    weights = str(whole / "model_final.pth")
    expected = [["sem_seg", "mIoU", results["sem_seg/mIoU"], 1e-6]]
    checked = {"MODEL.WEIGHTS": weights, "TEST.EXPECTED_RESULTS": expected}
    assert run(evaluate, tmp_path / "evaluated", **checked) == 0

    result = Predictor(weights)(random_sample(0, 1)["image"].permute(1, 2, 0).numpy())
    assert result.semantic.shape == (64, 64) and result.panoptic is None and result.instances is None
