"""`mask2former check-dataset` on files that two flags name."""

import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from catalogs import restored_catalogs
from dataset_reports import NAMES, TRAIN, annotations, check_classes, report_of, shapes
from PIL import Image

from mask2former.tools.check_dataset import main
from mask2former.utils.label_maps import read_segment_ids

__all__ = ["restored_catalogs", "shapes"]


def custom(shapes, path, *flags):
    return ["--images", str(shapes / "train"), "--annotations", str(path), *flags, "--workers", "1"]


@pytest.mark.parametrize("kind", ["panoptic", "instances"])
def test_a_custom_dataset_is_checked_by_its_files(shapes, capsys, kind):
    path = shapes / "annotations" / f"{kind}_train.json"
    report = report_of(capsys, *custom(shapes, path))
    assert report.pop("dataset") == "custom"
    assert report.pop("samples")[0] == "output/check_dataset/custom/sample_1_000001.png"
    if kind == "panoptic":
        registered = report_of(capsys, TRAIN, "--workers", "1")
        assert report == {key: value for key, value in registered.items() if key in report}
    rows = json.loads(path.read_text())["annotations"]
    segments = [row for image in rows for row in image["segments_info"]] if kind == "panoptic" else rows
    assert sum(entry["objects"] for entry in report["classes"]) == len(segments)


def test_a_folder_without_images_is_one_error_that_says_what_it_holds(shapes, tmp_path, capsys):
    for name in ["000001.heic", "000002.heic", "a.txt"]:
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / name).touch()
    annotations = shapes / "annotations" / "instances_train.json"
    flags = ["--images", str(tmp_path / "other"), "--annotations", str(annotations), "--workers", "1"]
    assert main(flags) == 2
    assert capsys.readouterr().err.endswith("other: there are no images; it holds 2 .heic, 1 .txt\n")


def test_custom_label_maps_are_checked(shapes, capsys):
    """One file is no image, and one holds a label that has no name."""
    (shapes / "labels").mkdir()
    for path in sorted((shapes / "panoptic_train").iterdir()):
        labels = (read_segment_ids(path) // 1000).astype(np.uint8)
        Image.fromarray(labels).save(shapes / "labels" / path.name)
    (shapes / "labels" / "000002.png").write_bytes(b"no image")
    Image.fromarray(np.full((128, 128), 77, np.uint8)).save(shapes / "labels" / "000004.png")
    classes = shapes / "classes.txt"
    classes.write_text("".join(f"{number} {name}\n" for number, name in NAMES.items()))
    report = report_of(capsys, *custom(shapes, shapes / "labels", "--classes", str(classes)), code=1)
    first, second = report["broken"]["first"]
    assert "labels/000002.png" in first and "not a readable image" in first
    assert "labels/000004.png" in second and "label 77" in second
    sound = [row for row in annotations(shapes) if row["image_id"] not in (2, 4)]
    present = [Counter({segment["category_id"] for segment in row["segments_info"]}) for row in sound]
    check_classes(report["classes"], NAMES, present)  # one region for each class in an image


def test_broken_custom_datasets_are_reported(shapes, capsys):
    (shapes / "train" / "000005.jpg").unlink()
    report = report_of(capsys, *custom(shapes, shapes / "annotations" / "instances_train.json"), code=1)
    assert report["broken"]["count"] == 1
    assert main(custom(shapes, shapes / "train")) == 2
    assert "expected one of: a COCO instance JSON" in capsys.readouterr().err


def set_crowds(annotation):
    annotation["iscrowd"] = 1


def set_no_mask(annotation):
    annotation["segmentation"] = []


def set_odd_polygon(annotation):
    annotation["segmentation"] = [[1, 1, 9, 1, 9, 9, 5]]


REFUSED = [
    (set_crowds, "masks are crowd regions"),
    (set_no_mask, "no annotation has a mask"),
    (set_odd_polygon, "odd number of coordinates, 7"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_custom_data_that_training_refuses_is_reported(shapes, capsys, change, message):
    path = shapes / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        change(annotation)
    path.write_text(json.dumps(content))
    files = ["--images", str(shapes / "train"), "--annotations", str(path), "--workers", "1"]
    report = report_of(capsys, *files, code=1)
    assert message in report["broken"]["first"][0]
    if change is set_crowds:
        assert report_of(capsys, *files, "--crowds-as-objects")["crowd_regions"] == 0


def test_names_of_any_characters_are_read_and_escaped_where_the_locale_has_none_of_them(tmp_path):
    images = ["a\U0001f600\u00e9.png", "b\x1b[31m\n.png"]
    (tmp_path / "images").mkdir()
    for name in images:
        Image.new("RGB", (64, 48)).save(tmp_path / "images" / name)
    square = [[5, 5, 45, 5, 45, 45, 5, 45]]
    content = {
        "images": [{"id": i, "file_name": name, "height": 48, "width": 64} for i, name in enumerate(images)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": i, "area": 1600, "segmentation": square} for i in (0, 1)
        ],
        "categories": [{"id": 0, "name": "cat\U0001f600"}, {"id": 1, "name": "dog\x1b[31m\n"}],
    }
    annotations = tmp_path / "set\U0001f600.json"
    annotations.write_text(json.dumps(content))
    command = [sys.executable, "-m", "mask2former", "check-dataset", "--output", tmp_path / "drawn\U0001f600"]
    command += ["--images", tmp_path / "images", "--annotations", annotations, "--workers", "1"]
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "", "PYTHONCOERCECLOCALE": "0"}
    result = subprocess.run(command, capture_output=True, env={**os.environ, **locale})
    out, err = result.stdout.decode("ascii"), result.stderr.decode("ascii")
    assert result.returncode == 0, err
    assert r"cat\U0001f600" in out and r"dog\x1b[31m\n" in out and "\x1b" not in out + err
    assert len([*(tmp_path / "drawn\U0001f600").iterdir()]) == 2
