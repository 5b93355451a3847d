"""The ground truth that AP is measured against, from panoptic annotations: their things, as a COCO instance
JSON.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from pycocotools import mask as rle

from mask2former.data.catalog import Metadata, Record
from mask2former.data.datasets.registration import Facts
from mask2former.data.ground_truth.readers import read_panoptic_png


def instance_truth(records: Sequence[Record], metadata: Metadata) -> dict[str, list[Facts]]:
    """The content of a COCO instance JSON with all things of panoptic `records`; all PNGs are read.

    Raises:
        DatasetError: a PNG is missing, broken, or of another size than its image.
    """
    ids = {number: category for category, number in metadata.thing_dataset_id_to_contiguous_id.items()}
    with ThreadPoolExecutor() as pool:
        by_record = list(pool.map(lambda record: _things(record, ids), records))
    things = [
        {"id": number, **thing} for number, thing in enumerate(itertools.chain.from_iterable(by_record), 1)
    ]
    images = [
        {"id": record["image_id"], **{key: record[key] for key in ("file_name", "height", "width")}}
        for record in records
    ]
    categories = [{"id": ids[number], "name": metadata.stuff_classes[number]} for number in sorted(ids)]
    return {"images": images, "annotations": things, "categories": categories}


def _things(record: Record, ids: dict[int, int]) -> list[Facts]:
    png = read_panoptic_png(record, (record["height"], record["width"]))
    listed = [segment for segment in record["segments_info"] if segment["category_id"] in ids]
    return [_thing(record, segment, ids, png == segment["id"]) for segment in listed]


def _thing(record: Record, segment: Facts, ids: dict[int, int], mask: np.ndarray[Any, Any]) -> Facts:
    code = rle.encode(np.asfortranarray(mask, np.uint8))
    return {
        "image_id": record["image_id"],
        "category_id": ids[segment["category_id"]],
        "iscrowd": int(segment["iscrowd"]),
        "area": int(mask.sum()),
        "bbox": rle.toBbox(code).tolist(),
        "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
    }
