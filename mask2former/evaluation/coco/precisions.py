"""COCO's table of precisions, computed by hotcoco or, for boundaries, by faster-coco-eval.

Shapes, of the table of precisions: `T` IoU thresholds, `R` recalls, `K` categories, `A` area ranges.
"""

import gc
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import hotcoco
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


def with_numbers(truth: GroundTruth, results: Sequence[JsonObject]) -> tuple[JsonObject, list[JsonObject]]:
    """Return the content of a COCO JSON and results for the libraries, with all ids numbered from 1 on.

    Images are numbered in the order of their ids, since this order decides between equal scores. Only the
    keys that AP needs are kept: others may hold anything.
    """
    images, categories = (
        {id: number for number, id in enumerate(sorted(by_id, key=id_order), 1)}
        for by_id in (truth.images, truth.categories)
    )

    def ids(row: JsonObject, number: int) -> JsonObject:
        return {
            "id": number,
            "image_id": images[row["image_id"]],
            "category_id": categories[row["category_id"]],
        }

    content = {
        "images": [_image(image, images, categories) for image in truth.images.values()],
        "categories": [_category(row, categories) for row in truth.categories.values()],
        "annotations": [{**row, **ids(row, number)} for number, row in enumerate(truth.annotations, 1)],
    }
    return content, [
        {**ids(row, number), "score": row["score"], "segmentation": row["segmentation"]}
        for number, row in enumerate(results, 1)
    ]


def id_order(id: Any) -> tuple[bool, Any]:
    """Return the key that sorts ids: numbers before texts."""
    return isinstance(id, str), id


def _image(image: JsonObject, images: Mapping[Any, int], categories: Mapping[Any, int]) -> JsonObject:
    """Return an image with numbers instead of ids, in LVIS' lists of categories too."""
    lists = {
        key: [categories[id] for id in image[key] if id in categories] for key in LVIS_KEYS if key in image
    }
    sides = {key: int(image[key]) for key in ("height", "width")}
    return {**sides, **lists, "id": images[image["id"]]}


def _category(category: JsonObject, numbers: Mapping[Any, int]) -> JsonObject:
    """Return a category with its number instead of the id, and LVIS' mark of its frequency."""
    marks = {"frequency": category["frequency"]} if "frequency" in category else {}
    return {"id": numbers[category["id"]], "name": str(category["id"]), **marks}


def precisions(
    truth: JsonObject,
    results: list[JsonObject],
    *,
    boundary_ratio: float | None = None,
    lvis_style: bool = False,
    area_limits: AreaLimits = COCO_AREA_LIMITS,
) -> Array:
    """Return the table of precisions (T, R, K, A) of masks or, with a ratio, of masks and boundaries.

    It is NaN where the ground truth has no object. `area_limits` divide small, medium and large objects.
    """
    if boundary_ratio is None:
        evaluation = mask_evaluation(truth, results, lvis_style=lvis_style)
    else:
        evaluation = BoundaryEvaluation(truth, results, boundary_ratio, lvis_style=lvis_style)
    params = evaluation.params
    params.maxDets = [MAX_LVIS_RESULTS if lvis_style else MAX_RESULTS]
    small, medium = area_limits
    whole = params.areaRng[0]
    params.areaRng = [whole, [whole[0], small], [small, medium], [medium, whole[1]]]
    if not truth["images"] or not truth["categories"]:
        shape = len(params.iouThrs), len(params.recThrs), len(truth["categories"]), len(params.areaRng)
        return np.full(shape, np.nan)
    evaluation.evaluate()
    evaluation.accumulate()
    table = np.asarray(evaluation.eval["precision"])[..., -1]
    return np.where(table > -1, table, np.nan)


def class_agnostic_recall(truth: JsonObject, results: list[JsonObject]) -> float:
    """Return the mean recall in [0, 1] over IoU thresholds, if classes do not matter; NaN without objects.

    At most `MAX_RESULTS` results of an image count: it is the paper's AR@100.
    """
    if not truth["annotations"]:
        return math.nan
    evaluation = mask_evaluation(truth, results)
    evaluation.params.useCats = False
    evaluation.params.maxDets = [MAX_RESULTS]
    evaluation.evaluate()
    evaluation.accumulate()
    recalls = np.asarray(evaluation.eval["recall"])[:, 0, 0, 0]  # (T, K, A, maxDets)
    return float(recalls.mean()) if (recalls > -1).all() else math.nan


def mask_evaluation(truth: JsonObject, results: list[JsonObject], *, lvis_style: bool = False) -> Any:
    """Return hotcoco's evaluation of masks, which gives pycocotools' figures to the last digit."""
    ground = hotcoco.COCO(truth)
    return hotcoco.COCOeval(ground, ground.load_res(results), "segm", lvis_style=lvis_style)


class BoundaryEvaluation(COCOeval_faster):
    """faster-coco-eval's evaluation by boundaries, with the boundary width of the authors' code.

    The library always rounds half pixels down, such as the 13.5 of images of 405 x 540.
    """

    def __init__(
        self, truth: JsonObject, results: list[JsonObject], ratio: float, *, lvis_style: bool
    ) -> None:
        # The library's `loadRes` would compute the areas one by one
        areas = area([result["segmentation"] for result in results]).tolist() if results else []
        found = [
            {**result, "area": pixels, "iscrowd": 0} for result, pixels in zip(results, areas, strict=True)
        ]
        inputs = COCO(truth), COCO({**truth, "annotations": found})
        super().__init__(*inputs, "boundary", lvis_style=lvis_style, boundary_dilation_ratio=ratio)
        # In threads, as later versions compute IoUs by default, it would take longer
        self.rle_iou_max_workers = 1

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
