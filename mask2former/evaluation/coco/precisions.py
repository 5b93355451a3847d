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

from mask2former.evaluation.coco.ground_truth import LVIS_KEYS, GroundTruth
from mask2former.evaluation.common.boundary import boundary_distance
from mask2former.evaluation.common.json_files import JsonObject
from mask2former.utils.label_maps import Array

AreaLimits = tuple[float, float]  # pixels: small below the first, large from the second
COCO_AREA_LIMITS: AreaLimits = (32**2, 96**2)
MAX_RESULTS = 100  # per image and category
MAX_LVIS_RESULTS = 300  # per image
BOUNDARY_THREADS = 4


def with_numbers(truth: GroundTruth, results: Sequence[JsonObject]) -> tuple[COCO, COCO]:
    """Return ground truth and results for the library, with all ids numbered from 1 on.

    Images are numbered in the order of their ids, since this order decides between equal scores.
    """
    images, categories = (
        {id: number for number, id in enumerate(sorted(by_id, key=id_order), 1)}
        for by_id in (truth.images, truth.categories)
    )

    def numbered(row: JsonObject, number: int) -> JsonObject:
        ids = {"image_id": images[row["image_id"]], "category_id": categories[row["category_id"]]}
        return {**row, **ids, "id": number}

    content = {
        "images": [_image(image, images, categories) for image in truth.images.values()],
        "categories": [{**category, "id": categories[id]} for id, category in truth.categories.items()],
        "annotations": [numbered(row, number) for number, row in enumerate(truth.annotations, 1)],
    }
    # The library's `loadRes` would compute the areas one by one
    areas = area([result["segmentation"] for result in results]).tolist() if results else []
    found = [
        {**numbered(result, number), "area": pixels, "iscrowd": 0}
        for number, (result, pixels) in enumerate(zip(results, areas, strict=True), 1)
    ]
    return COCO(content), COCO({**content, "annotations": found})


def id_order(id: Any) -> tuple[bool, Any]:
    """Return the key that sorts ids: numbers before texts."""
    return isinstance(id, str), id


def _image(image: JsonObject, images: Mapping[Any, int], categories: Mapping[Any, int]) -> JsonObject:
    """Return an image with numbers instead of ids, in LVIS' lists of categories too."""
    lists = {
        key: [categories[id] for id in image[key] if id in categories] for key in LVIS_KEYS if key in image
    }
    sides = {key: int(image[key]) for key in ("height", "width")}
    return {**image, **sides, **lists, "id": images[image["id"]]}


def precisions(
    truth: COCO,
    found: COCO,
    *,
    boundary_ratio: float | None = None,
    lvis_style: bool = False,
    area_limits: AreaLimits = COCO_AREA_LIMITS,
) -> Array:
    """Return the table of precisions (T, R, K, A) of masks or, with a ratio, of masks and boundaries.

    It is NaN where the ground truth has no object. `area_limits` divide small, medium and large objects.
    """
    if boundary_ratio is None:
        evaluation = COCOeval_faster(truth, found, "segm", lvis_style=lvis_style)
    else:
        options = {"lvis_style": lvis_style, "boundary_dilation_ratio": boundary_ratio}
        evaluation = BoundaryEvaluation(truth, found, "boundary", **options)
    params = evaluation.params
    params.maxDets = [MAX_LVIS_RESULTS if lvis_style else MAX_RESULTS]
    small, medium = area_limits
    whole = params.areaRng[0]
    params.areaRng = [whole, [whole[0], small], [small, medium], [medium, whole[1]]]
    # Later versions compute IoUs in threads, which does not pay for the few masks of an image and category
    evaluation.rle_iou_max_workers = 1
    if not truth.imgs or not truth.cats:
        shape = len(params.iouThrs), len(params.recThrs), len(truth.cats), len(params.areaRng)
        return np.full(shape, np.nan)
    evaluation.evaluate()
    evaluation.accumulate()
    table = np.asarray(evaluation.eval["precision"])[..., -1]
    return np.where(table > -1, table, np.nan)


def class_agnostic_recall(truth: COCO, found: COCO) -> float:
    """Return the mean recall in [0, 1] over IoU thresholds, if classes do not matter; NaN without objects.

    At most `MAX_RESULTS` results of an image count: it is the paper's AR@100.
    """
    if not truth.anns:
        return math.nan
    evaluation = COCOeval_faster(truth, found, "segm")
    evaluation.params.useCats = 0
    evaluation.params.maxDets = [MAX_RESULTS]
    evaluation.rle_iou_max_workers = 1
    evaluation.evaluate()
    evaluation.accumulate()
    recalls = np.asarray(evaluation.eval["recall"])[:, 0, 0, 0]  # (T, K, A, maxDets)
    return float(recalls.mean()) if (recalls > -1).all() else math.nan


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
