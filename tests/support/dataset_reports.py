"""Reports of `mask2former check-dataset` on a copy of the drawn dataset."""

import json
import shutil

import pytest

from mask2former.data.datasets.shapes import CATEGORIES
from mask2former.tools.check_dataset import main

TRAIN = "shapes_panoptic_train"
NAMES = {category["id"]: category["name"] for category in CATEGORIES}


@pytest.fixture
def shapes(tiny_shapes, tmp_path, monkeypatch):
    """A copy of the shapes dataset that a test may break; samples are written beside it."""
    shutil.copytree(tiny_shapes / "shapes", tmp_path / "datasets" / "shapes")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "datasets" / "shapes"


def report_of(capsys, *arguments, code=0):
    assert main([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def annotations(shapes, split="train"):
    return json.loads((shapes / "annotations" / f"panoptic_{split}.json").read_text())["annotations"]


def check_classes(found, names, images):
    """Compare the classes of a report with `names` (id -> name) and the ids counted in each image."""
    assert found == [
        {"name": name, "images": sum(k in image for image in images), "objects": sum(i[k] for i in images)}
        for k, name in names.items()
    ]
