"""If data is missing, training stops at once; the error says what is missing and which command makes it."""

import shutil
from pathlib import Path

import pytest
from dataset_cases import BY_NAME, CASES, RUNS, TREES, each_of

from mask2former.config import load_config
from mask2former.engine.evaluate import TASKS, Evaluation
from mask2former.tools.train import main

FOLDERS = {  # below the root of all datasets
    "ade20k": "ADEChallengeData2016",
    "ade20k_full": "ADE20K_2021_17_01",
    "cityscapes": "cityscapes",
    "coco": "coco",
    "coco_stuff": "coco/coco_stuff_10k",
    "lvis": "lvis",
    **dict.fromkeys(("mapillary", "mapillary_flat", "mapillary_v2"), "mapillary_vistas"),
}
NEEDS_SCRIPT = [
    case
    for case in CASES
    if case.tree in {"ade20k", "ade20k_full", "coco_stuff"} or str(case) == "cityscapes-panoptic"
]


def error_of(case, config, root, monkeypatch, capsys):
    """Return the error of training. The weights are no checkpoint either, but data is checked first."""
    (root / "empty.pkl").touch()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    options = case.options(OUTPUT_DIR=root / "run", MODEL__WEIGHTS=root / "empty.pkl")
    assert main(["--config-file", config, *options]) == 1
    return capsys.readouterr().err.rpartition("error: ")[2]


@each_of(RUNS)
def test_missing_data_is_named_with_folder_and_command(case, config, tmp_path, monkeypatch, capsys):
    error = error_of(case, config, tmp_path, monkeypatch, capsys)
    place = error.split(" does not exist")[0]
    assert Path(place).is_relative_to(tmp_path / FOLDERS[case.tree]), error
    assert f"$DETECTRON2_DATASETS, which is {tmp_path}" in error
    command = f"python datasets/{TREES[case.tree].script}.py --root {tmp_path}"
    assert (command if case in NEEDS_SCRIPT else "datasets/README.md") in error


@pytest.mark.parametrize("case", NEEDS_SCRIPT, ids=str)
def test_unprepared_data_is_named_with_its_script(case, tmp_path, monkeypatch, capsys):
    TREES[case.tree].draw(tmp_path)
    error = error_of(case, case.config, tmp_path, monkeypatch, capsys)
    assert " does not exist" in error
    assert f"python datasets/{TREES[case.tree].script}.py --root {tmp_path}" in error


@pytest.mark.parametrize("case", [case for case in CASES if case not in NEEDS_SCRIPT], ids=str)
def test_data_that_is_usable_as_downloaded_needs_no_script(case, tmp_path, monkeypatch):
    TREES[case.tree].draw(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert main(["--config-file", case.config, *case.options(OUTPUT_DIR=tmp_path / "run")]) == 0


@pytest.fixture
def incomplete_cityscapes(roots, tmp_path, monkeypatch):
    """Remove the instance ids of the val split."""
    shutil.copytree(roots("cityscapes"), tmp_path, dirs_exist_ok=True)
    for file in tmp_path.rglob("gtFine/val/*/*_instanceIds.png"):
        file.unlink()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))


@pytest.mark.usefixtures("incomplete_cityscapes")
@pytest.mark.parametrize("case", [case for case in CASES if case.tree == "cityscapes"], ids=str)
def test_missing_ground_truth_is_an_error_before_training(case, tmp_path, capsys):
    options = case.options(OUTPUT_DIR=tmp_path / "run")
    assert main(["--config-file", case.config, *options]) == 1
    assert "_leftImg8bit.png has no *_gtFine_instanceIds.png" in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("*.pth"))
    assert main(["--config-file", case.config, *options, "TEST.SAVE_PREDICTIONS", "True"]) == 0


@pytest.mark.usefixtures("incomplete_cityscapes")
def test_outputs_that_are_not_measured_need_no_ground_truth(tmp_path):
    """PQ needs the panoptic files alone, so it is measured where Cityscapes' metrics cannot be."""
    case = BY_NAME["cityscapes-panoptic"]
    panoptic = {f"MODEL__MASK_FORMER__TEST__{task}_ON": task == "PANOPTIC" for task in map(str.upper, TASKS)}
    Evaluation(load_config(case.config, case.options(**panoptic)), tmp_path)


def test_evaluation_needs_no_training_files(roots, tmp_path, monkeypatch):
    """This holds for LVIS too, whose classes are only known from its JSON files."""
    case = BY_NAME["lvis-instance"]
    shutil.copytree(roots(case.tree), tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    options = case.options(OUTPUT_DIR=tmp_path / "run")
    assert main(["--config-file", case.config, *options]) == 0
    (tmp_path / "lvis/lvis_v1_train.json").unlink()
    weights = ["MODEL.WEIGHTS", str(tmp_path / "run/model_final.pth")]
    assert main(["--config-file", case.config, "--eval-only", *options, *weights]) == 0
