"""`train_net.py --host detectron2`: the same flags, which work there or say why not."""

import json

import pytest
from tiny_runs import CONFIG, tiny_options

from mask2former.detectron2_host import main, running
from mask2former.tools.train import main as train_net
from mask2former.tools.train import parse_arguments

WEIGHTS = "model_final.pth"


def arguments(*flags):
    return parse_arguments(["--config-file", str(CONFIG), *flags])


def test_the_host_flag_trains_and_evaluates(tiny_shapes, tmp_path):
    options = tiny_options(OUTPUT_DIR=str(tmp_path), SOLVER__MAX_ITER=2)
    assert train_net(["--host", "detectron2", "--config-file", str(CONFIG), *options]) == 0
    curve = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert {"total_loss", "loss_mask_0", "panoptic_seg/PQ"} <= {key for line in curve for key in line}
    weights = ["MODEL.WEIGHTS", str(tmp_path / WEIGHTS)]
    again = parse_arguments(["--config-file", str(CONFIG), "--eval-only", *options, *weights])
    assert main(again) == 0
    wrong = ["TEST.EXPECTED_RESULTS", "[['panoptic_seg', 'PQ', 1000.0, 0.1]]"]
    with pytest.raises(SystemExit) as failure:
        main(parse_arguments(["--config-file", str(CONFIG), "--eval-only", *options, *weights, *wrong]))
    assert failure.value.code == 1


def test_evaluating_without_weights_is_an_error(tiny_shapes, tmp_path):
    options = tiny_options(OUTPUT_DIR=str(tmp_path))
    with pytest.raises(ValueError, match="--eval-only needs weights"):
        main(parse_arguments(["--config-file", str(CONFIG), "--eval-only", *options]))


def test_somebodys_custom_data_resumed_and_saved(tiny_shapes, tmp_path):
    folder = tiny_shapes / "shapes"
    data = []
    for split in ("train", "val"):
        images, annotations = folder / split, folder / "annotations" / f"instances_{split}.json"
        data += [f"--{split}-images", str(images), f"--{split}-annotations", str(annotations)]
    flags = ("--num-gpus", "0", *data, *tiny_options(OUTPUT_DIR=str(tmp_path), SOLVER__MAX_ITER=1))
    assert main(arguments(*flags)) == 0
    assert main(arguments("--resume", *flags, "SOLVER.MAX_ITER", "2")) == 0
    assert main(arguments("--resume", "--eval-only", "--save-predictions", *flags)) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "total_loss" in line] == [0, 1]
    assert {"segm/AP"} <= {key for line in lines for key in line}
    assert list((tmp_path / "inference" / "submission").iterdir())


def test_processes_on_the_cpu_are_the_standalone_hosts():
    with pytest.raises(ValueError, match="on GPUs only"):
        main(parse_arguments(["--config-file", str(CONFIG), "--num-processes", "2"]))


def test_a_run_is_kept_on_this_machine(tiny_shapes):
    with pytest.raises(ValueError, match="OUTPUT_DIR is shelf://run"):
        main(arguments("OUTPUT_DIR", "shelf://run"))


def test_detectron2s_launcher_starts_nothing_again():
    with pytest.raises(ValueError, match="--max-restarts is not for --host detectron2"):
        main(arguments("--max-restarts", "1"))


SRUN = {
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "node[3-4]",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}


@pytest.mark.parametrize("variables", [{"RANK": "1", "WORLD_SIZE": "2"}, SRUN], ids=["torchrun", "srun"])
def test_processes_of_other_launchers_are_refused(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="one command a machine"):
        main(arguments())


def test_a_task_of_srun_is_a_machine(monkeypatch):
    for name, value in SRUN.items():
        monkeypatch.setenv(name, value)
    args = arguments("--num-gpus", "8")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    launched = []
    monkeypatch.setattr(running, "launch", lambda *given, **named: launched.append((given, named)))
    assert main(args) == 0
    (_, per_machine), named = launched[0]
    assert (per_machine, named["num_machines"], named["machine_rank"]) == (8, 2, 1)
    assert named["dist_url"].startswith("tcp://node3:")
