"""YOLO's and labelme's folders by flags: the same losses, scores and reports as with COCO's JSON."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny_runs import CONFIG, tiny_options

from mask2former.engine.metrics_log import read_metrics
from mask2former.tools import check_dataset
from mask2former.tools.train import main

SIDE, NAMES = 64, ["ball", "box"]
COUNTS = {"train": 4, "val": 2}
EQUAL = ("total_loss", "segm/AP", "segm/AP50", "segm/AP-ball", "segm/AP-box")


def objects(number, split):
    """Return the class, left, top and side of two squares; all are exact as fractions of the image."""
    offset = 4 * number + 2 * (split == "val")
    return [(0, offset, 8, 16), (1, 32, 16 + offset, 24)]


def corners(left, top, side):
    return [left, top, left + side, top, left + side, top + side, left, top + side]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The same images and objects in the three formats."""
    root = tmp_path_factory.mktemp("formats")
    for split, count in COUNTS.items():
        for kind in ("images", "labels", "labelme"):
            (root / kind / split).mkdir(parents=True)
        images, annotations = [], []
        for number in range(1, count + 1):
            shown, found = np.full((SIDE, SIDE, 3), 90, np.uint8), objects(number, split)
            for category, left, top, side in found:
                shown[top : top + side, left : left + side, category] = 240
                row = {"id": len(annotations) + 1, "image_id": number, "category_id": category, "iscrowd": 0}
                polygon = corners(left, top, side)
                annotations.append({**row, "area": side**2, "segmentation": [polygon]})
            name = f"{number}.png"
            Image.fromarray(shown).save(root / "images" / split / name)
            images.append({"id": number, "file_name": name, "height": SIDE, "width": SIDE})
            lines = [
                " ".join(map(str, [category, *(value / SIDE for value in corners(*place))]))
                for category, *place in found
            ]
            (root / "labels" / split / f"{number}.txt").write_text("\n".join(lines))
            shapes = [
                {
                    "label": NAMES[category],
                    "points": np.reshape(corners(*place), (-1, 2)).tolist(),
                    "group_id": None,
                    "shape_type": "polygon",
                }
                for category, *place in found
            ]
            content = {"shapes": shapes, "imagePath": f"../../images/{split}/{name}", "imageData": None}
            size = {"imageHeight": SIDE, "imageWidth": SIDE}
            (root / "labelme" / split / f"{number}.json").write_text(json.dumps({**content, **size}))
        categories = [{"id": number, "name": name} for number, name in enumerate(NAMES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"{split}.json").write_text(json.dumps(content))
    (root / "data.yaml").write_text("names: [ball, box]\n")
    return root


ANNOTATIONS = {
    "coco": "{}.json",
    "yolo": "data.yaml",
    "yolo folder": "labels/{}",
    "labelme": "labelme/{}",
}


def flags(data, kind, split, prefix=""):
    annotations = data / ANNOTATIONS[kind].format(split)
    return [f"--{prefix}images", str(data / "images" / split), f"--{prefix}annotations", str(annotations)]


def trained(data, kind, folder, *more):
    given = flags(data, kind, "train", "train-")
    if not more:
        given += flags(data, kind, "val", "val-")
    options = tiny_options(SOLVER__MAX_ITER=2, OUTPUT_DIR=folder, SEED=3)
    assert main(["--config-file", str(CONFIG), *given, *more, *options]) == 0
    merged = {key: value for row in read_metrics(folder / "metrics.json") for key, value in row.items()}
    return [merged[key] for key in EQUAL]


@pytest.fixture(scope="module")
def by_coco(data, tmp_path_factory):
    return trained(data, "coco", tmp_path_factory.mktemp("coco"))


@pytest.mark.parametrize("kind", ["yolo", "yolo folder", "labelme"])
def test_losses_and_scores_are_those_of_a_coco_json(data, by_coco, tmp_path, kind):
    np.testing.assert_array_equal(trained(data, kind, tmp_path), by_coco)
    truth = json.loads((tmp_path / "custom_val_instances.json").read_text())
    assert [row["area"] for row in truth["annotations"]] == [16**2, 24**2] * 2


@pytest.mark.parametrize("kind", ["yolo", "labelme", "coco"])
def test_overfitting(data, tmp_path, kind):
    if kind == "coco":  # with a byte order mark
        (data / "train.json").write_text((data / "train.json").read_text(), encoding="utf-8-sig")
    trained(data, kind, tmp_path, "--overfit", "2")


@pytest.mark.parametrize("kind", ["yolo", "yolo folder", "labelme"])
def test_check_dataset_reports_the_same(data, tmp_path, capsys, kind):
    reports = []
    for one in ("coco", kind):
        output = ["--output", str(tmp_path), "--workers", "1", "--json"]
        assert check_dataset.main([*flags(data, one, "train"), *output]) == 0
        reports.append(json.loads(capsys.readouterr().out))
    assert reports[0] == reports[1]
    assert reports[0]["objects_in_an_image"]["most"] == 2


def test_check_dataset_reports_every_broken_file(data, tmp_path, capsys):
    for name in ("1", "2"):
        (tmp_path / f"{name}.txt").write_text("0 0.5 x")
    (tmp_path / "3.txt").write_text((data / "labels/train/3.txt").read_text())
    output = ["--output", str(tmp_path / "samples"), "--workers", "1", "--json"]
    arguments = ["--images", str(data / "images/train"), "--annotations", str(tmp_path)]
    assert check_dataset.main([*arguments, "--classes", str(data / "data.yaml"), *output]) == 1
    broken = json.loads(capsys.readouterr().out)["broken"]
    assert broken["count"] == 2
    assert [error.endswith("line 1: 'x' is not a number") for error in broken["first"]] == [True, True]
