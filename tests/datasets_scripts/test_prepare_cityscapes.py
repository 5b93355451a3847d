"""Cityscapes: outputs equal those of cityscapesscripts on the synthetic dataset."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from script_runs import run
from synthetic_datasets import cityscapes

FOLDER = Path("cityscapes", "gtFine")


def test_labels_equal_those_of_create_train_id_label_images(tmp_path):
    official = pytest.importorskip("cityscapesscripts.preparation.json2labelImg")
    cityscapes.draw(tmp_path)
    run("prepare_cityscapes", tmp_path, "--only", "semantic")
    files = sorted((tmp_path / FOLDER).glob("*/*/*_polygons.json"))
    for path in files:
        official.json2labelImg(str(path), str(tmp_path / "official.png"), "trainIds")
        ours = Image.open(str(path).replace("_polygons.json", "_labelTrainIds.png"))
        assert ours.mode == "L"
        assert np.array_equal(np.asarray(ours), np.asarray(Image.open(tmp_path / "official.png")))
    assert len(files) == 7 and not list((tmp_path / FOLDER).glob("cityscapes_panoptic*"))


def test_panoptic_annotations_equal_those_of_create_panoptic_images(tmp_path):
    official = pytest.importorskip("cityscapesscripts.preparation.createPanopticImgs")
    cityscapes.draw(tmp_path)
    (tmp_path / "official").mkdir()
    official.convert2panoptic(str(tmp_path / FOLDER), str(tmp_path / "official"))
    run("prepare_cityscapes", tmp_path)
    for split, count in cityscapes.COUNTS.items():
        name = f"cityscapes_panoptic_{split}"
        ours, theirs = tmp_path / FOLDER / name, tmp_path / "official" / name
        rows = [json.loads(folder.with_suffix(".json").read_text()) for folder in (ours, theirs)]
        assert rows[0] == rows[1] and len(rows[0]["annotations"]) == count
        assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}
        for path in ours.iterdir():
            assert np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(theirs / path.name)))


def test_groups_are_crowds_and_ignored_labels_are_void(tmp_path):
    cityscapes.draw(tmp_path)
    run("prepare_cityscapes", tmp_path, "--only", "panoptic")
    content = json.loads((tmp_path / FOLDER / "cityscapes_panoptic_val.json").read_text())
    rows = content["annotations"][0]["segments_info"]
    assert {row["id"] for row in rows if row["iscrowd"]} == {26, 33}
    assert not {1, 29, 29000} & {row["id"] for row in rows}  # ego vehicle, caravan
    assert not any(row["iscrowd"] for row in rows if row["category_id"] not in (26, 33))
    assert content["annotations"][2]["image_id"] == "munster_000001_000019"


@pytest.mark.parametrize(("kind", "only"), [("labelIds", "semantic"), ("instanceIds", "panoptic")])
def test_unknown_labels_are_errors(tmp_path, capsys, kind, only):
    cityscapes.draw(tmp_path)
    path = tmp_path / FOLDER / "val" / "munster" / f"munster_000001_000019_gtFine_{kind}.png"
    values = np.array(Image.open(path))
    values[3, 3] = 77
    Image.fromarray(values).save(path)
    with pytest.raises(SystemExit, match="1"):
        run("prepare_cityscapes", tmp_path, "--only", only)
    error = capsys.readouterr().err
    assert str(path) in error and "77" in error
    assert not (tmp_path / FOLDER / "cityscapes_panoptic_val").exists()


def test_missing_splits_are_skipped(tmp_path, caplog):
    cityscapes.draw(tmp_path, counts={"val": 1})
    with caplog.at_level("INFO"):
        run("prepare_cityscapes", tmp_path)
    assert f"{tmp_path / FOLDER / 'train'} does not exist: train is left out" in caplog.messages
    assert (tmp_path / FOLDER / "cityscapes_panoptic_val.json").exists()
