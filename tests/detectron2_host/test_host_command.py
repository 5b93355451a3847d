"""`mask2former train --host detectron2`: the same flags, which work or are an error."""

import json

import pytest
import torch
from process_runs import slurm_variables
from tiny_runs import CONFIG, EOMT, tiny_options

from mask2former.detectron2_host import running
from mask2former.tools.train import main as train_net
from mask2former.tools.train import parse_arguments


def run(*flags):
    return running.main(parse_arguments(["--config-file", str(CONFIG), *flags]))


TASKS = {"SOLVER__TASKS": ["semantic", "instance", "panoptic"]}


@pytest.mark.parametrize("changes", [{}, TASKS, EOMT], ids=["Mask2Former", "joint", "EoMT"])
def test_training_and_evaluation(tiny_shapes, tmp_path, changes):
    options = tiny_options(OUTPUT_DIR=str(tmp_path), SOLVER__MAX_ITER=2, **changes)
    assert train_net(["--host", "detectron2", "--config-file", str(CONFIG), *options]) == 0
    curve = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert {"total_loss", "loss_mask_0", "panoptic_seg/PQ"} <= {key for line in curve for key in line}
    trained = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    embeddings = [value for name, value in trained.items() if ".task_" in name]
    expected = [True, True] if changes is TASKS else []  # they are zero at the start
    assert [bool(value.any()) for value in embeddings] == expected
    flags = ["--eval-only", *options, "MODEL.WEIGHTS", str(tmp_path / "model_final.pth")]
    assert run(*flags) == 0
    with pytest.raises(SystemExit) as failure:
        run(*flags, "TEST.EXPECTED_RESULTS", "[['panoptic_seg', 'PQ', 1000.0, 0.1]]")
    assert failure.value.code == 1


def test_a_custom_dataset_with_resume_and_saved_predictions(tiny_shapes, tmp_path):
    folder = tiny_shapes / "shapes"
    data = []
    for split in ("train", "val"):
        images, annotations = folder / split, folder / "annotations" / f"instances_{split}.json"
        data += [f"--{split}-images", str(images), f"--{split}-annotations", str(annotations)]
    flags = ("--num-gpus", "0", *data, *tiny_options(OUTPUT_DIR=str(tmp_path), SOLVER__MAX_ITER=1))
    assert run(*flags) == 0
    assert run("--resume", *flags, "SOLVER.MAX_ITER", "2") == 0
    assert run("--resume", "--eval-only", "--save-predictions", *flags) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "total_loss" in line] == [0, 1]
    assert {"segm/AP"} <= {key for line in lines for key in line}
    assert list((tmp_path / "inference" / "submission").iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--eval-only",), "--eval-only needs weights"),
        (("--num-processes", "2"), "on GPUs only"),
        (("OUTPUT_DIR", "shelf://run"), "OUTPUT_DIR is shelf://run"),
        (("--max-restarts", "1"), "--max-restarts is not for --host detectron2"),
    ],
)
def test_unsupported_flags_are_an_error(tiny_shapes, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        run(*tiny_options(OUTPUT_DIR=str(tmp_path)), *flags)


SRUN = slurm_variables(JOB_ID=1, STEP_ID=0, STEP_NUM_TASKS=2, PROCID=1, LOCALID=0, NODEID=1)
SRUN |= slurm_variables(STEP_NODELIST="node[3-4]", STEP_TASKS_PER_NODE="1(x2)")


@pytest.mark.parametrize("variables", [{"RANK": "1", "WORLD_SIZE": "2"}, SRUN], ids=["torchrun", "srun"])
def test_processes_of_other_launchers_are_an_error(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="one command per machine"):
        run()


def test_a_slurm_task_is_a_machine(monkeypatch):
    for name, value in SRUN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    launched = []
    monkeypatch.setattr(running, "launch", lambda *given, **named: launched.append((given, named)))
    assert run("--num-gpus", "8") == 0
    (_, per_machine), named = launched[0]
    assert (per_machine, named["num_machines"], named["machine_rank"]) == (8, 2, 1)
    assert named["dist_url"].startswith("tcp://node3:")
