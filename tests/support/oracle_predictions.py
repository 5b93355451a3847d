"""Oracle predictions: the output of a model that predicts the ground truth, read from the downloaded files.

The files are read with numpy, Pillow, json, scipy and pycocotools alone, by the rules of the authors.
Images are identified by file name; classes have the contiguous ids of the semantic and panoptic datasets.
Crowds and what the authors leave out are not predicted.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pycocotools.coco import COCO
from scipy.io import loadmat
from synthetic_datasets.drawing import read, read_ids, read_table
from torch import nn

from mask2former.structures import Instances

ADE20K_STUFF = [*range(7), 9, 11, 13, 16, 17, 21, 25, 26, 28, 29, 34, 40, 46, 48, 51, 52, 54, 59, 60, 61]
ADE20K_STUFF += [63, 68, 77, 79, 84, 91, 94, 96, *range(99, 102), 105, 106, 109, 113, 114, 117, 122, 128, 131]
ADE20K_STUFF += [140, 141, 145]
ADE20K_THINGS = [number for number in range(150) if number not in ADE20K_STUFF]
CITYSCAPES_LABELS = [7, 8, *range(11, 14), 17, *range(19, 29), *range(31, 34)]  # of the 19 classes
MAPILLARY_THINGS = [0, 1, 8, *range(19, 24), *range(32, 43), *range(44, 58), *range(59, 63)]
COCO_STUFF_UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}
COCO_STUFF_LABELS = [number for number in range(1, 183) if number not in COCO_STUFF_UNUSED]
THINGS: dict[str, Sequence[int]] = {  # the classes that are things, in the order of instance datasets
    "ade20k": ADE20K_THINGS,
    "cityscapes": range(11, 19),
    "coco": range(80),
    "lvis": range(1203),
    "mapillary": MAPILLARY_THINGS,
    "mapillary_flat": MAPILLARY_THINGS,
    "mapillary_v2": MAPILLARY_THINGS,  # the synthetic images have no others
}
Row = dict[str, Any]


class Region(NamedTuple):
    """Pixels (H, W) bool of a class."""

    category: int
    mask: np.ndarray


class GroundTruth(NamedTuple):
    """One image's labels (H, W), -1 for none; its segments, which do not overlap; and its objects."""

    labels: np.ndarray
    segments: list[Region]
    objects: list[Region]


GroundTruths = dict[str, GroundTruth]  # by the names of images


def numbers(labels, official):
    """Return the index of each label in the list `official`, -1 for others."""
    indices = np.full(max(labels.max(), *official) + 1, -1)
    indices[list(official)] = np.arange(len(official))
    return indices[labels]


def ade20k(root):
    """Paste instances over stuff; things in the labels without an instance belong to no segment."""
    folder, truths = root / "ADEChallengeData2016", {}
    for path in sorted((folder / "annotations/validation").iterdir()):
        labels = numbers(read(path), range(1, 151))
        rgb = read(folder / "annotations_instance/validation" / path.name)
        objects = [
            Region(ADE20K_THINGS[rgb[rgb[..., 1] == number][0, 0] - 1], rgb[..., 1] == number)
            for number in np.unique(rgb[..., 1])
            if number
        ]
        stuff = [Region(c, (labels == c) & (rgb[..., 1] == 0)) for c in ADE20K_STUFF]
        truths[path.stem] = GroundTruth(labels, [*stuff, *objects], objects)
    return truths


def ade20k_full(root):
    classes = [row["full_ade20k_index"] for row in read_table("ade20k_full_847.json")]
    truths = {}
    for path in (root / "ADE20K_2021_17_01/images/ADE/validation").rglob("*_seg.png"):
        rgb = read(path)
        labels = numbers(rgb[..., 0] // 10 * 256 + rgb[..., 1], classes)
        truths[path.stem.removesuffix("_seg")] = GroundTruth(labels, [], [])
    return truths


def cityscapes(root):
    """Take numbered things as objects; a thing without a number is a group."""
    truths = {}
    for path in (root / "cityscapes/gtFine/val").rglob("*_instanceIds.png"):
        ids = read(path)
        labels = numbers(np.where(ids < 1000, ids, ids // 1000), CITYSCAPES_LABELS)
        values = np.unique(ids).tolist()
        regions = {value: Region(int(labels[ids == value][0]), ids == value) for value in values}
        objects = [region for value, region in regions.items() if value >= 1000 and region.category >= 11]
        stuff = [region for region in regions.values() if 0 <= region.category < 11]
        name = path.name.replace("gtFine_instanceIds.png", "leftImg8bit")
        truths[name] = GroundTruth(labels, stuff + objects, objects)
    return truths


def panoptic(json_file, folder, official):
    """Return the segments of each PNG of a panoptic JSON, whose classes have the ids `official`."""
    found = {}
    for row in json.loads(json_file.read_text())["annotations"]:
        ids = read_ids(folder / row["file_name"])
        found[Path(row["file_name"]).stem] = [
            (segment, Region(official.index(segment["category_id"]), ids == segment["id"]))
            for segment in row["segments_info"]
        ]
    return found


def mapillary(root, nested="v1.2", year=2018, classes=65):
    folder = root / "mapillary_vistas/validation" / nested
    truths = {}
    found = panoptic(folder / f"panoptic/panoptic_{year}.json", folder / "panoptic", range(1, classes + 1))
    for name, rows in found.items():
        segments = [region for row, region in rows if not row["iscrowd"]]
        labels = numbers(read(folder / f"labels/{name}.png"), range(classes))
        truths[name] = GroundTruth(labels, segments, [])
    return truths


def instances(json_file):
    """Return the objects of an instance JSON, without labels."""
    truth = COCO(json_file)
    indices = {number: index for index, number in enumerate(sorted(truth.getCatIds()))}
    truths = {}
    for image in truth.loadImgs(truth.getImgIds()):
        rows = [row for row in truth.imgToAnns[image["id"]] if not row.get("iscrowd")]
        objects = [Region(indices[row["category_id"]], truth.annToMask(row) > 0) for row in rows]
        labels = np.full((image["height"], image["width"]), -1)
        truths[f"{image['id']:012d}"] = GroundTruth(labels, [], objects)
    return truths


def coco(root):
    folder = root / "coco/annotations"
    categories = json.loads((folder / "panoptic_val2017.json").read_text())["categories"]
    official = sorted(category["id"] for category in categories)
    truths = instances(folder / "instances_val2017.json")
    found = panoptic(folder / "panoptic_val2017.json", root / "coco/panoptic_val2017", official)
    for name, rows in found.items():
        for _, (category, mask) in rows:
            truths[name].labels[mask] = category
        truths[name].segments.extend(region for row, region in rows if not row["iscrowd"])
    return truths


def coco_stuff(root):
    folder = root / "coco/coco_stuff_10k"
    truths = {}
    for name in (folder / "imageLists/test.txt").read_text().split():
        labels = loadmat(folder / f"annotations/{name}.mat")["S"].astype(np.int64)
        truths[name] = GroundTruth(numbers(labels, COCO_STUFF_LABELS), [], [])
    return truths


GROUND_TRUTHS: dict[str, Callable[[Path], GroundTruths]] = {
    "ade20k": ade20k,
    "ade20k_full": ade20k_full,
    "cityscapes": cityscapes,
    "coco": coco,
    "coco_stuff": coco_stuff,
    "lvis": lambda root: instances(root / "lvis/lvis_v1_val.json"),
    "mapillary": mapillary,
    "mapillary_flat": lambda root: mapillary(root, ""),
    "mapillary_v2": lambda root: mapillary(root, "v2.0", 2020, 123),
}


def oracle_prediction(truth, things, *, renumbered):
    """Return all kinds of output; if `renumbered`, classes of instances are indices among the things."""
    ids, infos = np.zeros(truth.labels.shape, np.int64), []
    for number, (category, mask) in enumerate((r for r in truth.segments if r.mask.any()), start=1):
        ids[mask] = number
        infos.append({"id": number, "category_id": category, "isthing": category in things})
    size = truth.labels.shape
    masks = np.array([region.mask for region in truth.objects], bool).reshape(-1, *size)
    classes = [things.index(c) if renumbered else c for c, _ in truth.objects]
    return {
        "label_map": torch.from_numpy(np.maximum(truth.labels, 0)),  # others are not scored
        "panoptic_seg": (torch.from_numpy(ids), infos),
        "instances": Instances(
            size,
            pred_masks=torch.from_numpy(masks),
            pred_classes=torch.tensor(classes, dtype=torch.int64),
            scores=torch.linspace(1, 0.5, len(classes)),
        ),
    }


def empty_prediction(prediction, wrong):
    """Return the output without segments and instances, with all pixels of the class `wrong`."""
    return {
        "label_map": torch.full_like(prediction["label_map"], wrong),
        "panoptic_seg": (torch.zeros_like(prediction["panoptic_seg"][0]), []),
        "instances": prediction["instances"][:0],
    }


class OracleModel(nn.Module):
    """A model that returns given predictions by the names of images."""

    def __init__(self, predictions):
        super().__init__()
        self.predictions = predictions

    def forward(self, inputs):
        return [self.predictions[Path(record["file_name"]).stem] for record in inputs]
