"""ADE20K: recorded outputs of the published scripts, and the rules on the synthetic dataset."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from script_runs import run
from synthetic_datasets import ade20k
from synthetic_datasets.drawing import read, read_ids

FOLDER = "ADEChallengeData2016"


@pytest.fixture
def sample(shared: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The folder with our outputs for the sample, and that with the recorded ones."""
    origin = shared / "data" / "samples" / "ade20k_challenge_derived"
    shutil.copytree(origin / FOLDER, tmp_path / FOLDER)
    run("prepare_ade20k", tmp_path)
    return tmp_path / FOLDER, origin / "golden_from_mask2former_scripts"


def test_the_recorded_labels_are_reproduced(sample):
    ours, recorded = sample
    files = sorted(recorded.glob("annotations_detectron2/*/*.png"))
    assert len(files) == 3 == len(list(ours.glob("annotations_detectron2/*/*.png")))
    for path in files:
        made = Image.open(ours / path.relative_to(recorded))
        assert made.mode == "L" and np.array_equal(np.asarray(made), read(path))


def contents_of(sample: tuple[Path, Path], name: str) -> list[dict]:
    return [json.loads((folder / f"{name}.json").read_text()) for folder in sample]


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_recorded_instances_are_reproduced(sample, split):
    ours, recorded = contents_of(sample, f"ade20k_instance_{split}")
    assert ours == recorded


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_recorded_panoptic_annotations_are_reproduced_but_for_ids(sample, split):
    ours, recorded = contents_of(sample, f"ade20k_panoptic_{split}")
    assert ours["images"] == recorded["images"]
    for key in ("id", "isthing"):
        assert [row[key] for row in ours["categories"]] == [row[key] for row in recorded["categories"]]
    for made, expected in zip(ours["annotations"], recorded["annotations"], strict=True):
        assert [made[key] for key in ("image_id", "file_name")] == [
            expected["image_id"],
            expected["file_name"],
        ]
        pngs = [read_ids(folder / f"ade20k_panoptic_{split}" / made["file_name"]) for folder in sample]
        for row, other in zip(made["segments_info"], expected["segments_info"], strict=True):
            assert {**row, "id": 0} == {**other, "id": 0}
            assert np.array_equal(pngs[0] == row["id"], pngs[1] == other["id"])
        assert np.array_equal(pngs[0] == 0, pngs[1] == 0)


def test_the_area_of_stuff_is_measured_before_things_are_pasted(tmp_path):
    ade20k.draw(tmp_path)
    run("prepare_ade20k", tmp_path)
    folder, name = tmp_path / FOLDER, "ADE_train_00000001.png"
    labels = read(folder / "annotations" / "training" / name) - 1
    numbers = read(folder / "annotations_instance" / "training" / name)[..., 1]
    content = json.loads((folder / "ade20k_panoptic_train.json").read_text())
    things = {row["id"] for row in content["categories"] if row["isthing"]}
    rows = content["annotations"][0]["segments_info"]
    ids = read_ids(folder / "ade20k_panoptic_train" / name)
    stuff = [row for row in rows if row["category_id"] not in things]
    for row in stuff:
        assert row["area"] == (labels == row["category_id"]).sum()
        assert np.array_equal(ids == row["id"], (labels == row["category_id"]) & (numbers == 0))
    assert any(row["area"] > (ids == row["id"]).sum() for row in stuff)
    for number, row in enumerate((row for row in rows if row["category_id"] in things), start=1):
        mask = numbers == number
        assert np.array_equal(ids == row["id"], mask) and row["area"] == mask.sum()
    lonely = np.isin(labels, list(things)) & (numbers == 0)
    assert lonely.any() and not ids[lonely].any()
    assert 0 not in {row["id"] for row in rows} and len({row["id"] for row in rows}) == len(rows)


def test_images_without_things_are_listed(tmp_path):
    ade20k.draw(tmp_path)
    run("prepare_ade20k", tmp_path)
    content = json.loads((tmp_path / FOLDER / "ade20k_instance_val.json").read_text())
    assert [row["id"] for row in content["images"]] == ["ADE_val_00000001", "ADE_val_00000002"]
    assert {row["image_id"] for row in content["annotations"]} == {"ADE_val_00000001"}
    masks = rle.decode([row["segmentation"] for row in content["annotations"]])
    numbers = read(tmp_path / FOLDER / "annotations_instance" / "validation" / "ADE_val_00000001.png")[..., 1]
    assert np.array_equal(masks.argmax(2) + masks.any(2), numbers)


def test_labels_are_made_without_the_archive_of_instances(tmp_path):
    ade20k.draw(tmp_path)
    shutil.rmtree(tmp_path / FOLDER / "annotations_instance")
    run("prepare_ade20k", tmp_path)
    assert (tmp_path / FOLDER / "annotations_detectron2" / "validation").is_dir()
    assert not list((tmp_path / FOLDER).glob("ade20k_*"))
    with pytest.raises(SystemExit):
        run("prepare_ade20k", tmp_path, "--only", "panoptic")


@pytest.mark.parametrize(
    ("folder", "value", "message"),
    [
        ("annotations", 151, "label 151, but there are only 0..150"),
        ("annotations_instance", (101, 77, 0), "instance 77 has the class 101, which is not in 1..100"),
        ("annotations_instance", (0, 77, 0), "instance 77 has the class 0"),
    ],
)
def test_unknown_values_are_errors(tmp_path, capsys, folder, value, message):
    ade20k.draw(tmp_path)
    path = tmp_path / FOLDER / folder / "training" / "ADE_train_00000002.png"
    image = np.array(Image.open(path))
    image[0, 0] = value
    Image.fromarray(image).save(path)
    with pytest.raises(SystemExit, match="1"):
        run("prepare_ade20k", tmp_path, "--only", "panoptic")
    assert f"{path}: {message}" in capsys.readouterr().err
    assert not (tmp_path / FOLDER / "ade20k_panoptic_train").exists()


def test_missing_instances_and_other_sizes_are_errors(tmp_path, capsys):
    ade20k.draw(tmp_path)
    path = tmp_path / FOLDER / "annotations_instance" / "training" / "ADE_train_00000002.png"
    Image.open(path).resize((5, 7), Image.Resampling.NEAREST).save(path)
    with pytest.raises(SystemExit):
        run("prepare_ade20k", tmp_path)
    assert f"{path}: (7, 5) (height, width), but" in capsys.readouterr().err
    path.unlink()
    with pytest.raises(SystemExit):
        run("prepare_ade20k", tmp_path, "--only", "instance")
    assert "only one of them has ADE_train_00000002.png" in capsys.readouterr().err
