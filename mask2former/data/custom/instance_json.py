"""A COCO instance JSON with the things of panoptic annotations, as ground truth for AP."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from pycocotools import mask as rle

from mask2former.data.catalog import Metadata, Record
from mask2former.data.datasets.coco import Row
from mask2former.data.ground_truth.readers import panoptic_segments


def instance_json(records: Sequence[Record], metadata: Metadata) -> dict[str, list[Row]]:
    """Return the content of a COCO instance JSON with all things of panoptic `records`; read all PNGs.

    Raises:
        DatasetError: as `panoptic_segments`.
    """
    category_ids = {number: id_ for id_, number in metadata.thing_dataset_id_to_contiguous_id.items()}
    with ThreadPoolExecutor() as pool:
        num_classes = len(metadata.stuff_classes)
        by_record = pool.map(lambda record: _things(record, category_ids, num_classes), records)
        things = list(itertools.chain.from_iterable(by_record))
    return {
        "images": [
            {"id": record["image_id"], **{key: record[key] for key in ("file_name", "height", "width")}}
            for record in records
        ],
        "annotations": [{"id": number, **thing} for number, thing in enumerate(things, start=1)],
        "categories": [
            {"id": id_, "name": metadata.stuff_classes[number]}
            for number, id_ in sorted(category_ids.items())
        ],
    }


def _things(record: Record, category_ids: dict[int, int], num_classes: int) -> list[Row]:
    png, segments = panoptic_segments(record, num_classes, (record["height"], record["width"]))
    things = []
    for segment in segments:
        if segment["category_id"] in category_ids:
            mask = png == segment["id"]
            code = rle.encode(np.asfortranarray(mask, np.uint8))
            things.append(
                {
                    "image_id": record["image_id"],
                    "category_id": category_ids[segment["category_id"]],
                    "iscrowd": segment["iscrowd"],
                    "area": int(mask.sum()),
                    "bbox": rle.toBbox(code).tolist(),
                    "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
                }
            )
    return things
