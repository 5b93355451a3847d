"""Cityscapes: labels of the 19 classes, and panoptic annotations.

Makes below cityscapes/gtFine/
  semantic: {train,val,test}/CITY/*_gtFine_labelTrainIds.png: 0..18, 255 ignored; from *_labelIds.png
  panoptic: cityscapes_panoptic_{train,val,test}/*.png and .json; from *_instanceIds.png

Their pixels equal those of csCreateTrainIdLabelImgs and csCreatePanopticImgs of cityscapesscripts.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mask2former.data import preparation
from mask2former.data.datasets.cityscapes import TRAIN_IDS
from mask2former.data.datasets.coco import Row
from mask2former.data.errors import DatasetError
from mask2former.utils.cityscapes_labels import INSTANCES_PER_LABEL, label_ids_of, label_table
from mask2former.utils.label_maps import VOID, read_label_map, relabel, write_label_map, write_segment_ids

SPLITS = ("train", "val", "test")
LABEL_IDS, INSTANCE_IDS = "_gtFine_labelIds.png", "_gtFine_instanceIds.png"


class ImageRows(NamedTuple):
    """The rows of one image in the JSON."""

    image: Row
    annotation: Row


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and prepare."""
    parser = preparation.argument_parser(__doc__)
    parser.add_argument("--only", choices=KINDS, nargs="+", default=KINDS, help="what to make (default: all)")
    preparation.run(parser, prepare, arguments)


def prepare(arguments: Namespace) -> None:
    """Prepare the chosen kinds of all splits that exist."""
    folder = arguments.root / "cityscapes" / "gtFine"
    splits = preparation.present({split: folder / split for split in SPLITS})
    for split in splits:
        for kind in arguments.only:
            KINDS[kind](folder, split, arguments.workers)


def make_semantic(folder: Path, split: str, workers: int) -> None:
    """Make `labelTrainIds.png` beside `labelIds.png`."""
    files = preparation.files_in(folder / split, f"*/*{LABEL_IDS}")
    jobs = {path.with_name(path.name.replace("_labelIds", "_labelTrainIds")): path for path in files}
    preparation.make_files(jobs, write_train_ids, workers=workers, what=f"{folder / split}, labelTrainIds")


def make_panoptic(folder: Path, split: str, workers: int) -> None:
    """Make `cityscapes_panoptic_*`, JSON and PNGs."""
    target = folder / f"cityscapes_panoptic_{split}"
    files = preparation.files_in(folder / split, f"*/*{INSTANCE_IDS}")
    jobs = {path.name.replace("_instanceIds", "_panoptic"): path for path in files}
    preparation.make_annotations(
        target.with_suffix(".json"), target, jobs, write_panoptic, panoptic_content, workers=workers
    )


KINDS: dict[str, Callable[[Path, str, int], None]] = {"semantic": make_semantic, "panoptic": make_panoptic}


def write_train_ids(label_ids: Path, path: Path) -> None:
    """Write a PNG of train ids."""
    try:
        labels = relabel(read_label_map(label_ids), TRAIN_IDS)
    except ValueError as error:
        raise DatasetError(f"{label_ids}: {error}") from error
    write_label_map(path, labels.astype(np.uint8))


def write_panoptic(instance_ids: Path, path: Path) -> ImageRows:
    """Write a panoptic PNG and return its rows; ids are those of `instance_ids`, ignored labels are void."""
    values = read_label_map(instance_ids).astype(np.int64)
    labels = {row["id"]: row for row in label_table()}
    ids, segments = np.full_like(values, VOID), []
    present = np.unique(values)
    for value, label_id in zip(present.tolist(), label_ids_of(present).tolist(), strict=True):
        label = labels.get(label_id)
        if label is None:
            raise DatasetError(f"{instance_ids}: value {value} does not belong to a label of Cityscapes")
        if not label["ignoreInEval"]:
            ids[values == value] = value
            group = value < INSTANCES_PER_LABEL and label["hasInstances"]
            extent = preparation.extent(values == value)
            segments.append({"id": value, "category_id": label["id"], **extent, "iscrowd": int(group)})
    write_segment_ids(path, ids)
    return _rows(instance_ids.name, values.shape, segments)


def _rows(name: str, size: tuple[int, ...], segments: list[Row]) -> ImageRows:
    """Return rows with the names of the published JSON; its image names are not names of files."""
    image_id = name.removesuffix(INSTANCE_IDS)
    stem = name.replace("_instanceIds", "_leftImg8bit")
    image = {"id": image_id, "width": size[1], "height": size[0], "file_name": stem}
    file_name = name.replace("_instanceIds", "_panoptic")
    return ImageRows(image, {"image_id": image_id, "file_name": file_name, "segments_info": segments})


def panoptic_content(found: list[ImageRows]) -> Row:
    """Return the content of the panoptic JSON."""
    categories = [
        {
            **{key: row[key] for key in ("id", "name", "color")},
            "supercategory": row["category"],
            "isthing": int(row["hasInstances"]),
        }
        for row in label_table()
        if not row["ignoreInEval"]
    ]
    annotations = [image.annotation for image in found]
    return {"images": [image.image for image in found], "annotations": annotations, "categories": categories}


if __name__ == "__main__":
    main()
