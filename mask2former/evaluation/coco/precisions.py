"""COCO's table of precisions, by faster-coco-eval: what it wants of its input, and how we set it up.

Letters, of the table of precisions: `T` IoU thresholds, `R` recalls, `K` categories, `A` areas.
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
from mask2former.utils.label_maps import Array

Record = dict[str, Any]

MOST_RESULTS = 100  # of an image and category
MOST_LVIS_RESULTS = 300  # of an image
BOUNDARY_THREADS = 4


def with_numbers(
    images: Mapping[Any, Record],
    categories: list[Record],
    annotations: list[Record],
    results: Sequence[Record],
) -> tuple[COCO, COCO]:
    """Truth and results with images and annotations numbered from 1, as the library wants them.

    Images are numbered in the order of their ids, for that order decides between equal scores.
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
    # Not by `loadRes`, which takes areas and boxes one by one
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
    """The table of precisions (T, R, K, A) at the most results; -1 where the ground truth has no object."""
    evaluation = evaluation_of(truth, found, boundary_ratio=boundary_ratio, lvis_style=lvis_style)
    if not truth.imgs or not truth.cats:
        params = evaluation.params
        return np.full((len(params.iouThrs), len(params.recThrs), len(truth.cats), len(params.areaRng)), -1.0)
    evaluation.evaluate()
    evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"])[..., -1]


def evaluation_of(
    truth: COCO, found: COCO, *, boundary_ratio: float | None = None, lvis_style: bool = False
) -> COCOeval_faster:
    """The library's evaluation of masks, as we use it."""
    evaluation = (
        COCOeval_faster(truth, found, "segm", lvis_style=lvis_style)
        if boundary_ratio is None
        else BoundaryEvaluation(
            truth, found, "boundary", lvis_style=lvis_style, boundary_dilation_ratio=boundary_ratio
        )
    )
    evaluation.params.maxDets = [MOST_LVIS_RESULTS if lvis_style else MOST_RESULTS]
    # Later versions compute IoUs in threads; those of an image and category take too little to gain by it
    evaluation.rle_iou_max_workers = 1
    return evaluation


class BoundaryEvaluation(COCOeval_faster):
    """The library's evaluation by boundaries, with their published width.

    Of a half pixel the library always takes the lower number, as of the 13.5 for images of 405 x 540.
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
def uncollected() -> Iterator[None]:
    """No search for garbage meanwhile: it would go through all records again and again, and find none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
