"""Training of one model for several tasks, as `mask2former train` runs it."""

import shutil

import pytest
import torch
from process_runs import assert_same_weights, curve
from tiny_runs import run_train

from mask2former.engine.checkpoint.run_folder import FINAL, POINTER

FIRST = "model_0000001.pth"  # after two steps of four
RUN = {
    "SOLVER__TASKS": "('semantic','instance','panoptic')",
    "SOLVER__BASE_LR": 0.01,
    "SOLVER__CHECKPOINT_PERIOD": 2,
    "SOLVER__EMA_DECAY": 0.3,
    "MODEL__ACTIVATION_CHECKPOINTING": True,
    "MODEL__MASK_FORMER__DECODER__PILOT_GROUPS": 1,
}
EMBEDDINGS = [f"sem_seg_head.predictor.task_{kind}.weight" for kind in ("feat", "embed")]


@pytest.fixture(scope="module")
def run(tiny_shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("joint")
    assert run_train(folder, **RUN) == 0
    return folder


def test_tasks_are_learned_averaged_saved_and_measured(run):
    saved = torch.load(run / FINAL, weights_only=True)
    for name in EMBEDDINGS:
        assert saved["model"][name].any() and saved["unaveraged"][name].any()
    assert {"sem_seg/mIoU", "segm/AP", "panoptic_seg/PQ"} <= curve(run)[-1].keys()


def test_a_resumed_run_equals_an_uninterrupted_one(run, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(run / FIRST, folder)
    shutil.copy(run / "metrics.json", folder)
    (folder / POINTER).write_text(FIRST)
    assert run_train(folder, "--resume", **RUN) == 0
    assert_same_weights(folder, run)
    assert str(curve(folder)) == str(curve(run))


def test_export_after_training_is_refused_before_it(tmp_path, capsys):
    assert run_train(tmp_path / "run", "--export", "torch", **RUN) == 1
    assert "`mask2former export CHECKPOINT --format torch --task TASK` afterwards" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
