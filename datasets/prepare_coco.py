"""COCO 2017: semantic labels from the panoptic annotations.

Makes coco/panoptic_semseg_{train,val}2017/*.png: 0..132, the index among COCO's 133 panoptic classes, also
for crowds; 255 where there is no segment.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mask2former.data import preparation
from mask2former.data.datasets.files import load_json, table
from mask2former.data.errors import DatasetError
from mask2former.utils.label_maps import (
    IGNORE_LABEL,
    read_segment_ids,
    semantic_from_panoptic,
    write_label_map,
)

SPLITS = ("train", "val")
Job = tuple[Path, list[dict[str, int]]]  # the panoptic PNG; id and class of its segments


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and prepare."""
    preparation.run(preparation.argument_parser(__doc__), prepare, arguments)


def prepare(arguments: Namespace) -> None:
    """Prepare the splits whose annotations exist."""
    folder = arguments.root / "coco"
    files = {split: folder / "annotations" / f"panoptic_{split}2017.json" for split in SPLITS}
    for split in preparation.present(files):
        jobs = semantic_jobs(files[split], folder / f"panoptic_{split}2017")
        target = folder / f"panoptic_semseg_{split}2017"
        preparation.make_folder(target, jobs, write_semantic, workers=arguments.workers)


def semantic_jobs(json_file: Path, folder: Path) -> dict[str, Job]:
    """Return PNG name -> job for each PNG of a panoptic JSON."""
    classes = {category["id"]: i for i, category in enumerate(table("coco_panoptic_133"))}
    jobs = {}
    for row in load_json(json_file, "annotations")["annotations"]:
        try:
            jobs[row["file_name"]] = folder / row["file_name"], _segments(row, classes)
        except KeyError as key:
            raise DatasetError(f"{json_file}, image id {row.get('image_id')!r}: no {key}") from key
        except DatasetError as error:
            raise DatasetError(f"{json_file}, image id {row['image_id']!r}: {error}") from error
    return jobs


def _segments(row: dict[str, Any], classes: dict[int, int]) -> list[dict[str, int]]:
    for segment in row["segments_info"]:
        if segment["category_id"] not in classes:
            raise DatasetError(f"category_id {segment['category_id']!r} is not one of COCO's")
    return [{"id": row["id"], "category_id": classes[row["category_id"]]} for row in row["segments_info"]]


def write_semantic(job: Job, path: Path) -> None:
    """Write the semantic PNG of a panoptic PNG."""
    panoptic, segments = job
    labels = semantic_from_panoptic(read_segment_ids(panoptic), segments, IGNORE_LABEL)
    write_label_map(path, labels.astype(np.uint8))


if __name__ == "__main__":
    main()
