"""COCO's table of precisions, computed by faster-coco-eval: its input and its settings.

Shapes, of the table of precisions: `T` IoU thresholds, `R` recalls, `K` categories, `A` area ranges.
"""

import gc
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core.mask import area, calculateRleForAllAnnotations

from mask2former.evaluation.common.boundary import boundary_distance
from mask2former.evaluation.common.json_files import JsonObject
from mask2former.utils.label_maps import Array

MAX_RESULTS = 100  # per image and category
MAX_LVIS_RESULTS = 300  # per image
BOUNDARY_THREADS = 4


def with_numbers(
    images: Mapping[Any, JsonObject],
    categories: list[JsonObject],
    annotations: list[JsonObject],
    results: Sequence[JsonObject],
) -> tuple[COCO, COCO]:
    """Return ground truth and results for the library, with image and annotation ids from 1 on.

    Images are numbered in the order of their ids, since this order decides between equal scores.
    """
    in_order = sorted(images, key=lambda image: (isinstance(image, str), image))
    numbers = {image: number for number, image in enumerate(in_order, 1)}
    truth = {
        "images": [{**image, "id": numbers[image["id"]]} for image in images.values()],
        "categories": categories,
        "annotations": [
            {"iscrowd": 0, **annotation, "id": number, "image_id": numbers[annotation["image_id"]]}
            for number, annotation in enumerate(annotations, 1)
        ],
    }
    # The library's `loadRes` would compute the areas one by one
    areas = area([result["segmentation"] for result in results]).tolist() if results else []
    found = [
        {
            "id": number,
            "image_id": numbers[result["image_id"]],
            "area": pixels,
            "iscrowd": 0,
            **{key: result[key] for key in ("category_id", "segmentation", "score")},
        }
        for number, (result, pixels) in enumerate(zip(results, areas, strict=True), 1)
    ]
    return COCO(truth), COCO({**truth, "annotations": found})


def precisions(
    truth: COCO, found: COCO, *, boundary_ratio: float | None = None, lvis_style: bool = False
) -> Array:
    """Return the table of precisions (T, R, K, A) of masks or, with a ratio, of masks and boundaries.

    It is NaN where the ground truth has no object.
    """
    if boundary_ratio is None:
        evaluation = COCOeval_faster(truth, found, "segm", lvis_style=lvis_style)
    else:
        options = {"lvis_style": lvis_style, "boundary_dilation_ratio": boundary_ratio}
        evaluation = BoundaryEvaluation(truth, found, "boundary", **options)
    params = evaluation.params
    params.maxDets = [MAX_LVIS_RESULTS if lvis_style else MAX_RESULTS]
    # Later versions compute IoUs in threads, which does not pay for the few masks of an image and category
    evaluation.rle_iou_max_workers = 1
    if not truth.imgs or not truth.cats:
        shape = len(params.iouThrs), len(params.recThrs), len(truth.cats), len(params.areaRng)
        return np.full(shape, np.nan)
    evaluation.evaluate()
    evaluation.accumulate()
    table = np.asarray(evaluation.eval["precision"])[..., -1]
    return np.where(table > -1, table, np.nan)


class BoundaryEvaluation(COCOeval_faster):
    """faster-coco-eval's evaluation by boundaries, with the boundary width of the authors' code.

    The library always rounds half pixels down, such as the 13.5 of images of 405 x 540.
    """

    def _prepare(self) -> None:
        self.params.compute_boundary = False
        super()._prepare()
        self.params.compute_boundary = True
        sizes = {id: (image["height"], image["width"]) for id, image in self.cocoGt.imgs.items()}
        groups = defaultdict(list)
        for annotation in [*self.cocoGt.anns.values(), *self.cocoDt.anns.values()]:
            groups[sizes[annotation["image_id"]]].append(annotation)
        for size, annotations in groups.items():
            ratio = boundary_distance(*size, self.boundary_dilation_ratio) / math.hypot(*size)
            calculateRleForAllAnnotations(annotations, sizes, True, True, ratio, BOUNDARY_THREADS)


@contextmanager
def garbage_collection_off() -> Iterator[None]:
    """Turn off the garbage collector, which would search all records again and again and find nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
