"""A COCO instance JSON of the objects in records: ground truth of AP where the dataset has no such file."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from pycocotools import mask as rle

from mask2former.data.catalog import Metadata, Record
from mask2former.data.datasets.coco import Row
from mask2former.data.ground_truth.readers import panoptic_segments


def instance_json(records: Sequence[Record], metadata: Metadata) -> dict[str, list[Row]]:
    """Return the content of a COCO instance JSON with all annotations of `records`, or all their things.

    All PNGs of panoptic records are read.

    Raises:
        DatasetError: as `panoptic_segments`.
    """
    category_ids = {number: id_ for id_, number in metadata.thing_dataset_id_to_contiguous_id.items()}
    names = metadata.get("stuff_classes") or metadata.thing_classes
    with ThreadPoolExecutor() as pool:
        by_record = pool.map(lambda record: _objects(record, category_ids, len(names)), records)
        objects = list(itertools.chain.from_iterable(by_record))
    return {
        "images": [
            {"id": record["image_id"], **{key: record[key] for key in ("file_name", "height", "width")}}
            for record in records
        ],
        "annotations": [{"id": number, **thing} for number, thing in enumerate(objects, start=1)],
        "categories": [{"id": id_, "name": names[number]} for number, id_ in sorted(category_ids.items())],
    }


def _objects(record: Record, category_ids: dict[int, int], num_classes: int) -> list[Row]:
    found = _annotated(record) if "annotations" in record else _segments(record, num_classes)
    return [
        {
            "image_id": record["image_id"],
            "category_id": category_ids[row["category_id"]],
            "iscrowd": int(row["iscrowd"]),
            "area": int(rle.area(code)),
            "bbox": rle.toBbox(code).tolist(),
            "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
        }
        for row, code in found
        if row["category_id"] in category_ids
    ]


def _segments(record: Record, num_classes: int) -> Iterator[tuple[Row, Row]]:
    """Yield the segments of a panoptic PNG and their RLEs."""
    png, segments = panoptic_segments(record, num_classes, (record["height"], record["width"]))
    for segment in segments:
        yield segment, rle.encode(np.asfortranarray(png == segment["id"], np.uint8))


def _annotated(record: Record) -> Iterator[tuple[Row, Row]]:
    """Yield the annotations of a record and their RLEs."""
    size = record["height"], record["width"]
    for annotation in record["annotations"]:
        mask = annotation["segmentation"]
        if isinstance(mask, list):
            mask = rle.merge(rle.frPyObjects(mask, *size))
        elif isinstance(mask["counts"], list):
            mask = rle.frPyObjects(mask, *size)
        else:
            mask = {**mask, "counts": mask["counts"].encode()}
        yield annotation, mask
