"""All of ADE20K: classes by the index that *_seg.png and JSON share, and sizes as published."""

import json

import numpy as np
import pytest
from PIL import Image
from script_runs import load, run
from synthetic_datasets import ade20k_full
from synthetic_datasets.drawing import read_table

FOLDER = "ADE20K_2021_17_01"


def test_labels_are_the_classes_of_the_objects(tmp_path):
    ade20k_full.draw(tmp_path)
    run("prepare_ade20k_full", tmp_path)
    classes = {row["full_ade20k_index"]: row["trainId"] for row in read_table("ade20k_full_847.json")}
    seen = set()
    for path in (tmp_path / FOLDER / "images").rglob("*.json"):
        split = path.relative_to(tmp_path / FOLDER / "images" / "ADE").parts[0]
        made = Image.open(tmp_path / FOLDER / "annotations_detectron2" / split / f"{path.stem}.tif")
        labels, values = np.asarray(made), np.asarray(Image.open(path.with_name(f"{path.stem}_seg.png")))
        assert made.mode == "I;16" and labels.shape == values.shape[:2]
        for number, row in enumerate(json.loads(path.read_text())["annotation"]["object"], start=1):
            found = set(labels[values[..., 2] == number].tolist())
            assert found <= {classes.get(row["name_ndx"], 65535)}
            seen |= found
        stuff = set(labels[values[..., 2] == 0].tolist())
        assert stuff <= {65535, *(classes[index] for index in ade20k_full.STUFF)} and len(stuff) >= 2
    assert {classes[165], classes[1831], classes[401], 65535} == seen


def test_images_are_written_beside_their_labels(tmp_path):
    ade20k_full.draw(tmp_path)
    run("prepare_ade20k_full", tmp_path)
    for kind, suffix in (("images", "jpg"), ("annotations", "tif")):
        names = sorted(path.name for path in (tmp_path / FOLDER / f"{kind}_detectron2").rglob("*.*"))
        expected = [*(f"ADE_train_0000000{i}" for i in (1, 2, 3)), *(f"ADE_val_0000000{i}" for i in (1, 2))]
        assert names == [f"{name}.{suffix}" for name in expected]


SIZES = {(300, 700): (300, 700), (600, 512): (600, 512), (1100, 1650): (512, 768), (777, 601): (662, 512)}


@pytest.mark.parametrize(("size", "reduced"), SIZES.items())
def test_large_images_are_reduced(tmp_path, size, reduced):
    seg = np.zeros((*size, 3), np.uint8)
    seg[: size[0] // 2] = (110, 2855 % 256, 1)  # tree
    Image.fromarray(seg).save(tmp_path / "a_seg.png")
    Image.new("L", size[::-1], 90).save(tmp_path / "a.jpg")
    script = load("prepare_ade20k_full")
    script.write_labels(tmp_path / "a_seg.png", tmp_path / "a.tif")
    script.write_resized_image(tmp_path / "a_seg.png", tmp_path / "b.jpg")
    labels = np.asarray(Image.open(tmp_path / "a.tif"))
    assert labels.shape == reduced and Image.open(tmp_path / "b.jpg").size == reduced[::-1]
    assert set(np.unique(labels)) == {3, 65535}  # nothing between them
    assert set(np.unique(labels[: reduced[0] // 2 - 1])) == {3}
    assert set(np.unique(labels[reduced[0] // 2 + 1 :])) == {65535}


def test_an_image_of_another_size_is_an_error(tmp_path, capsys):
    ade20k_full.draw(tmp_path)
    path = next((tmp_path / FOLDER).rglob("ADE_val_00000001.jpg"))
    Image.new("RGB", (9, 5)).save(path)
    with pytest.raises(SystemExit):
        run("prepare_ade20k_full", tmp_path)
    assert f"{path}: (5, 9) (height, width)" in capsys.readouterr().err
    path.write_bytes(b"no image")
    with pytest.raises(SystemExit):
        run("prepare_ade20k_full", tmp_path)
    assert f"{path}: not a readable image" in capsys.readouterr().err
