"""The command `mask2former train`: training, evaluation, resuming, and its error messages."""

import json
import os
import re
import signal

import pytest
import torch
from PIL import Image
from tiny_runs import CONFIG, tiny_options
from train_command import run_command, start_command

from mask2former.data.datasets.shapes import write_shapes
from mask2former.drawing.overlay import LEGIBLE_SIDE
from mask2former.engine.metrics_log import read_metrics
from mask2former.tools.train import main, parse_arguments


def arguments(folder, *flags, **changes):
    return ["--config-file", str(CONFIG), *flags, *tiny_options(OUTPUT_DIR=folder, **changes)]


def results_of(folder):
    """Return the last evaluation in the metrics, without its iteration."""
    line = [line for line in read_metrics(folder / "metrics.json") if "segm/AP" in line][-1]
    return {name: value for name, value in line.items() if name != "iteration"}


PERIODS = {"VIS_PERIOD": 2, "SOLVER__CHECKPOINT_PERIOD": 2, "TEST__EVAL_PERIOD": 2}


@pytest.fixture(scope="module")
def trained(tiny_shapes, tmp_path_factory):
    """Train four steps, and return the run folder."""
    folder = tmp_path_factory.mktemp("run")
    assert main(arguments(folder, **PERIODS)) == 0
    return folder


def test_the_run_folder_is_complete(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"config.yaml", "log.txt", "metrics.json", "last_checkpoint", "inference", "images"} <= names
    assert {"model_0000001.pth", "model_0000003.pth", "model_final.pth"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert (trained / "last_checkpoint").read_text() == "model_final.pth"
    assert (trained / "inference" / "coco_instances_results.json").exists()
    log = (trained / "log.txt").read_text()
    for fact in ("commit", torch.__version__, "THING_IDS: [0, 1, 2], as dataset", "step 4/4", "eta"):
        assert fact in log


def test_the_metrics_have_losses_and_two_evaluations(trained):
    lines = read_metrics(trained / "metrics.json")
    assert [line["iteration"] for line in lines] == [1, 3, 3]
    losses = next(line for line in lines if "total_loss" in line)
    total = sum(value for name, value in losses.items() if name.startswith("loss_"))
    assert losses["total_loss"] == pytest.approx(total)
    assert {"loss_ce", "loss_mask_0", "lr", "time", "data_time", "memory_mb", "grad_norm"} <= losses.keys()
    assert {"panoptic_seg/PQ", "segm/AP", "sem_seg/mIoU"} <= lines[0].keys()


def test_images_show_target_and_prediction(trained):
    images = sorted((trained / "images").iterdir())
    assert [path.name for path in images] == ["step_0000001.jpg", "step_0000003.jpg"]
    scale = LEGIBLE_SIDE // 64  # of images of 64 x 64 pixels, two side by side
    assert Image.open(images[0]).size == (2 * 64 * scale, 64 * scale)


def test_the_checkpoint_holds_config_and_classes(trained):
    saved = torch.load(trained / "model_final.pth", weights_only=True)
    assert saved["iteration"] == 3 and saved["seed"] == 3
    assert "NUM_OBJECT_QUERIES: 6" in saved["config"]
    assert saved["metadata"]["stuff_classes"] == ["circle", "square", "triangle", "stripes", "checks"]
    assert saved["metadata"]["thing_ids"] == [0, 1, 2]


def test_evaluating_the_checkpoint_gives_the_same(trained, tmp_path, capsys):
    assert main(arguments(tmp_path, "--eval-only", MODEL__WEIGHTS=trained / "model_final.pth")) == 0
    name = "coco_instances_results.json"
    found, expected = ((path / "inference" / name) for path in (tmp_path, trained))
    assert json.loads(found.read_text()) == json.loads(expected.read_text())
    assert not (tmp_path / "metrics.json").exists()
    assert "AP50" in capsys.readouterr().out


def test_expected_results_decide_the_exit_code(trained, tmp_path, capsys):
    weights = trained / "model_final.pth"
    value = results_of(trained)["sem_seg/mIoU"]
    for expected, code in ((value + 0.4, 0), (value - 0.6, 1)):
        rows = [["sem_seg", "mIoU", expected, 0.5]]
        options = arguments(tmp_path, "--eval-only", MODEL__WEIGHTS=weights, TEST__EXPECTED_RESULTS=rows)
        assert main(options) == code
    assert f"sem_seg/mIoU is {value}, expected {value - 0.6} +- 0.5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("part", "flags", "tensor"),
    [
        ("model", ["--resume"], r"[\w.]+"),
        ("model", ["--resume", "--eval-only"], r"[\w.]+"),
        ("optimizer", ["--resume"], "optimizer/0/exp_avg"),
    ],
)
def test_resuming_from_values_that_are_not_finite_names_file_and_tensor(
    trained, tmp_path, capsys, part, flags, tensor
):
    file = tmp_path / "model_0000001.pth"
    saved = torch.load(trained / file.name, weights_only=True)
    values = next(iter(saved["model"].values())) if part == "model" else saved[part]["state"][0]["exp_avg"]
    values.flatten()[-1] = torch.nan
    torch.save(saved, file)
    assert main(arguments(tmp_path, *flags)) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "holds nan" in line]
    assert re.search(rf"{file}: '{tensor}' holds nan \(1 of \d+ values are not finite\)$", line)


def test_resume_continues_a_run_and_a_fresh_run_moves_it_aside(tiny_shapes, tmp_path):
    assert main(arguments(tmp_path, SOLVER__MAX_ITER=1)) == 0
    assert main(arguments(tmp_path, "--resume", SOLVER__MAX_ITER=2)) == 0
    assert [line["iteration"] for line in read_metrics(tmp_path / "metrics.json")] == [0, 0, 1, 1]
    assert main(arguments(tmp_path, "--resume", "--eval-only")) == 0

    weights = tmp_path / "model_final.pth"  # fine-tuning in the same folder starts from the file moved aside
    before = torch.load(weights, weights_only=True)["model"]
    assert main(arguments(tmp_path, SOLVER__MAX_ITER=1, SOLVER__BASE_LR="0.0", MODEL__WEIGHTS=weights)) == 0
    after = torch.load(weights, weights_only=True)["model"]
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert (tmp_path / "earlier_run_1" / "model_final.pth").exists()
    assert [line["iteration"] for line in read_metrics(tmp_path / "metrics.json")] == [0, 0]


@pytest.mark.parametrize(
    ("argv", "changes", "message"),
    [
        (["--num-gpus", "3"], {}, "--num-gpus 3, but this machine has 0"),
        (["--eval-only"], {}, "--eval-only needs weights"),
        ([], {"SOLVER.MAX_ITR": 4}, "SOLVER.MAX_ITER"),
        (
            [],
            {"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 7},
            "NUM_CLASSES was given as 7, but dataset 'shapes_panoptic_train' says 5",
        ),
        ([], {"MODEL.DEVICE": "cuda"}, "MODEL.DEVICE is 'cuda', but this machine has 0 GPUs"),
        ([], {"MODEL.DEVICE": "abacus"}, "MODEL.DEVICE is 'abacus', which is not a device"),
        ([], {"DATASETS.TRAIN": ("shapes_train",)}, "no dataset is called 'shapes_train'"),
        ([], {"MODEL.WEIGHTS": "nowhere.pth"}, "nowhere.pth"),
        ([], {"MODEL.META_ARCHITECTURE": "MaskRCNN"}, "MODEL.META_ARCHITECTURE is 'MaskRCNN'"),
        ([], {"SOLVER.ACCUMULATION_STEPS": 3}, "SOLVER.IMS_PER_BATCH 2 is too small"),
        ([], {"SOLVER.ACCUMULATION_STEPS": 0}, "SOLVER.ACCUMULATION_STEPS is 0; it must be at least 1"),
        ([], {"SOLVER.MAX_ITER": 0}, "SOLVER.MAX_ITER is 0; it must be at least 1"),
        ([], {"TEST.EXPECTED_RESULTS": [["segm", "AP", 40.0]]}, "EXPECTED_RESULTS has ['segm', 'AP', 40.0]"),
        ([], {"OUTPUT_DIR": __file__}, __file__),
    ],
)
def test_user_errors_are_one_line_that_names_the_cause(
    tiny_shapes, tmp_path, capsys, monkeypatch, argv, changes, message
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    options = [str(item) for pair in changes.items() for item in pair]
    assert main([*arguments(tmp_path, *argv), *options]) == 1
    *log, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and message in error and "Traceback" not in "".join(log)


@pytest.mark.parametrize("flags", [(), ("--num-processes", "2")])
def test_a_broken_image_found_by_a_worker_is_named_in_one_line(tmp_path, monkeypatch, flags):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write_shapes(tmp_path, {"train": 2, "val": 2})
    for image in (tmp_path / "shapes/train").iterdir():
        image.write_bytes(b"no image")
    done = run_command(*arguments(tmp_path / "run", *flags, DATALOADER__NUM_WORKERS=1))
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and "shapes/train/00000" in last
    assert last.endswith("is not an image that Pillow can read")


def test_a_missing_config_file_is_named(capsys):
    assert main(["--config-file", "coco/nothing.yaml"]) == 1
    assert "coco/nothing.yaml" in capsys.readouterr().err


def test_a_config_of_detectron2s_model_is_one_line_that_says_how_to_train_it(tmp_path, capsys):
    file = "comparators/mask_rcnn/mask_rcnn_R50_bs64_400ep.yaml"
    assert main(["--config-file", file, "OUTPUT_DIR", str(tmp_path / "run"), "MODEL.DEVICE", "cpu"]) == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert "GeneralizedRCNN, a model of Detectron2" in line and "--host detectron2" in line
    assert not (tmp_path / "run").exists()


def test_flags_can_precede_and_follow_keys():
    args = parse_arguments(["--config-file", "x", "SEED", "-1", "--resume", "OUTPUT_DIR", "y"])
    assert args.resume and args.opts == ["SEED", "-1", "OUTPUT_DIR", "y"]


@pytest.mark.parametrize("argv", [[], ["--config-file"], ["--config-file", "x", "--num-gpus", "two"]])
def test_wrong_flags_exit_with_two(argv, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(argv)
    assert exit_info.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_two_processes_train_and_evaluate_like_one(trained, tmp_path):
    done = run_command(*arguments(tmp_path, "--num-processes", "2", **PERIODS))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "step 4/4" in done.stderr and "step" not in done.stdout
    assert re.search("^panoptic_seg on .*\n +PQ ", done.stdout, re.MULTILINE)
    together, alone = (read_metrics(folder / "metrics.json") for folder in (tmp_path, trained))
    for found, expected in zip(together, alone, strict=True):
        losses = {name: value for name, value in expected.items() if "loss" in name}
        assert {name: found[name] for name in losses} == pytest.approx(losses, rel=1e-3)
    assert results_of(tmp_path).keys() == results_of(trained).keys()
    written = [{path.name for path in folder.iterdir()} for folder in (tmp_path, trained)]
    assert {name for name in written[0] ^ written[1] if "events" not in name} == set()


@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_ends_all_processes_in_one_line(tiny_shapes, tmp_path, processes):
    changes = {"SOLVER__MAX_ITER": 5000, "DATALOADER__NUM_WORKERS": 1}  # ends, even if this test does not
    process = start_command(*arguments(tmp_path, "--num-processes", str(processes), **changes))
    assert any("step 20/" in line for line in process.stderr)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    # "Traceback" may appear: a thread of multiprocessing can fail when its pipe closes.
    assert "KeyboardInterrupt" not in err
    assert "stopped; --resume continues from the last checkpoint" in err.splitlines()
