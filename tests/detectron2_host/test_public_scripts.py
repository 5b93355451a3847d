"""The public project's own train_net.py and demo/demo.py, unmodified, on its own YAML files.

$MASK2FORMER_PUBLIC is its checkout. The scripts are copied out of it, because it contains a package with the
name of ours.
"""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from synthetic_datasets import ade20k, cityscapes, coco, mapillary
from tiny_runs import OPTIONS

ROOT = Path(__file__).parents[2]
PUBLIC = Path(os.environ["MASK2FORMER_PUBLIC"])
WEIGHTS = "model_final.pth"
TINY = {
    **OPTIONS,
    "MODEL.WEIGHTS": "",
    "MODEL.RESNETS.DEPTH": 18,
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "INPUT.CROP.SIZE": (64, 64),
    "INPUT.SIZE_DIVISIBILITY": 64,
    "SOLVER.MAX_ITER": 3,
    "SOLVER.AMP.ENABLED": False,
}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Draw synthetic datasets, and prepare them by our scripts."""
    root = tmp_path_factory.mktemp("public_datasets")
    for tree in (ade20k, cityscapes, coco, mapillary):
        tree.draw(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "datasets"))
        for name in ("prepare_coco", "prepare_ade20k", "prepare_cityscapes"):
            importlib.import_module(name).main(["--root", str(root)])
    return root


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """Copy the scripts to a folder of their own."""
    folder = tmp_path_factory.mktemp("public_scripts")
    shutil.copy(PUBLIC / "train_net.py", folder)
    shutil.copytree(PUBLIC / "demo", folder / "demo")
    return folder


@pytest.fixture
def run(scripts, datasets, tmp_path):
    """Return a function that runs a script on the tiny model, with OUTPUT_DIR tmp_path."""
    environment = {**os.environ, "DETECTRON2_DATASETS": str(datasets), "PYTHONPATH": str(ROOT)}

    def run_script(script, config, *flags, **changes):
        changed = {key.replace("__", "."): value for key, value in changes.items()}
        options = {**TINY, "OUTPUT_DIR": str(tmp_path), **changed}
        opts = [str(part) for pair in options.items() for part in pair]
        command = [sys.executable, script, "--config-file", str(PUBLIC / "configs" / config), *flags, *opts]
        done = subprocess.run(command, cwd=scripts, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        return done.stdout + done.stderr

    return run_script


def metrics_of(folder):
    """Return the last value of each metric of a run."""
    lines = (folder / "metrics.json").read_text().splitlines()
    return {name: value for line in lines for name, value in json.loads(line).items()}


def test_panoptic_training_evaluation_and_demo(run, datasets, tmp_path):
    config = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
    assert "HostMaskFormer(" in run("train_net.py", config)  # the model printed is ours
    metrics = metrics_of(tmp_path)
    assert {"panoptic_seg/PQ", "sem_seg/mIoU", "segm/AP", "loss_dice_0", "total_loss"} <= metrics.keys()
    images = sorted((datasets / "coco" / "val2017").glob("*.jpg"))
    (tmp_path / "drawn").mkdir()
    flags = ["--input", *map(str, images), "--output", str(tmp_path / "drawn"), "--opts"]
    run("demo/demo.py", config, *flags, MODEL__WEIGHTS=str(tmp_path / WEIGHTS))
    for image in images:
        assert Image.open(tmp_path / "drawn" / image.name).size == Image.open(image).size


def test_instance_training_resumed(run, tmp_path):
    config = "coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml"
    run("train_net.py", config, SOLVER__MAX_ITER=2)
    assert "Starting training from iteration 2" in run("train_net.py", config, "--resume")
    assert {"segm/AP", "bbox/AP", "loss_mask"} <= metrics_of(tmp_path).keys()


def test_semantic_training_and_augmented_evaluation(run, tmp_path):
    config = "ade20k/semantic-segmentation/maskformer2_R50_bs16_160k.yaml"
    run("train_net.py", config)
    assert {"sem_seg/mIoU", "loss_ce"} <= metrics_of(tmp_path).keys()
    augmentation = {"TEST__AUG__ENABLED": True, "TEST__AUG__MIN_SIZES": (64, 96)}
    weights = str(tmp_path / WEIGHTS)
    printed = run("train_net.py", config, "--eval-only", MODEL__WEIGHTS=weights, **augmentation)
    assert "Running inference with test-time augmentation" in printed
    assert printed.count("copypaste: mIoU") == 2  # without and with it
    assert (tmp_path / "inference_TTA").is_dir()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("ade20k/panoptic-segmentation/maskformer2_R50_bs16_160k.yaml", {"segm/AP"}),  # by our evaluator
        ("mapillary-vistas/panoptic-segmentation/maskformer_R50_bs16_300k.yaml", {"loss_mask"}),
    ],
)
def test_panoptic_training_on_other_datasets(run, tmp_path, config, expected):
    run("train_net.py", config)
    assert expected | {"panoptic_seg/PQ", "sem_seg/mIoU"} <= metrics_of(tmp_path).keys()


@pytest.mark.parametrize("task", ["panoptic", "semantic"])  # Detectron2 cannot read the instances
def test_cityscapes_training(run, tmp_path, task):
    config = f"cityscapes/{task}-segmentation/maskformer2_R50_bs16_90k.yaml"
    run("train_net.py", config, DATASETS__TEST=())  # the public script evaluates it on GPUs only
    assert "loss_mask" in metrics_of(tmp_path)
