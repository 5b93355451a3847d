"""COCO-Stuff 10k: classes in the order of the labels that occur."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat
from script_runs import contents, run
from synthetic_datasets import coco_stuff

FOLDER = Path("coco", "coco_stuff_10k")


def test_used_labels_become_contiguous(tmp_path):
    coco_stuff.draw(tmp_path)
    run("prepare_coco_stuff", tmp_path)
    # By hand: 1 person, 3 car, 13 stop sign (12 is unused), 90 toothbrush is the last of the 80 things, then
    # stuff from 92 on: 106, 124, 149, 182.
    classes = {0: 255, 1: 0, 3: 2, 13: 11, 90: 79, 106: 94, 124: 112, 149: 137, 182: 170}
    seen = set()
    for path in (tmp_path / FOLDER / "annotations").iterdir():
        (made,) = (tmp_path / FOLDER / "annotations_detectron2").glob(f"*/{path.stem}.png")
        labels = loadmat(path)["S"]
        assert np.array_equal(np.asarray(Image.open(made)), np.vectorize(classes.__getitem__)(labels))
        seen |= set(np.unique(labels).tolist())
    assert seen == classes.keys()


def test_images_are_copied_by_split(tmp_path):
    coco_stuff.draw(tmp_path)
    run("prepare_coco_stuff", tmp_path)
    folder = tmp_path / FOLDER
    images = contents(folder / "images")
    for split, count in coco_stuff.COUNTS.items():
        copies = contents(folder / "images_detectron2" / split)
        assert len(copies) == count and copies.items() <= images.items()
        labels = contents(folder / "annotations_detectron2" / split)
        assert {Path(name).stem for name in labels} == {Path(name).stem for name in copies}


VERSION_1_0 = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(512)
UNUSED_LABEL = np.full((4, 4), 12, np.uint8)
BROKEN = {
    "an unused label": (lambda path: savemat(path, {"S": UNUSED_LABEL}), "label 12 is not among"),
    "no labels": (lambda path: savemat(path, {"T": 1}), "no labels can be read"),
    "version 1.0": (lambda path: path.write_bytes(VERSION_1_0), "version 1.1 is needed"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:300]), "no labels can be read"),
    "missing": (Path.unlink, "No such file"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_an_error(tmp_path, capsys, case):
    coco_stuff.draw(tmp_path)
    breaks, message = BROKEN[case]
    path = tmp_path / FOLDER / "annotations" / "COCO_train2014_000000000001.mat"
    breaks(path)
    with pytest.raises(SystemExit, match="1"):
        run("prepare_coco_stuff", tmp_path)
    error = capsys.readouterr().err
    assert str(path) in error and message in error
    assert not (tmp_path / FOLDER / "annotations_detectron2" / "train").exists()
