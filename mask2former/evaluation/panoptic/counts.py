"""Rules of panoptic quality (Kirillov et al., Panoptic Segmentation, section 4) as COCO applies them.

An image's matches are counted per category, the counts are summed over the dataset, and `quality` turns them
into PQ, SQ and RQ. Boundary PQ uses the lesser of a pair's IoU and its Boundary IoU.

Shapes: `H, W` the image's sides in pixels, `G` ground-truth segments, `P` predicted segments, `C` categories,
`V` versions of the metric: the plain one and, if asked for, the boundary's.
Counts are (V, 4, C) float64; the rows are the sum of the matches' IoUs, and the numbers of matches (TP), of
unmatched predicted segments (FP) and of unmatched ground-truth segments (FN).
"""

from dataclasses import dataclass, replace

import numpy as np

from mask2former.evaluation.common.boundary import boundaries, boundary_distance, check_ratio
from mask2former.evaluation.common.json_files import JsonObject, index_by
from mask2former.evaluation.evaluator import Metrics
from mask2former.structures import runs
from mask2former.utils import coco_values as values
from mask2former.utils.label_maps import MAX_SEGMENT_ID, VOID, Array
from mask2former.utils.messages import InputError, brief

UNLISTED = MAX_SEGMENT_ID + 1  # an id that no segment has
PREFIXES = ("", "boundary_")  # of the metrics' names, by version


@dataclass(frozen=True)
class Categories:
    """Categories of a dataset, in the order of its JSON file."""

    places: dict[int, int]  # category id -> index in C
    names: list[str]
    is_thing: Array  # (C,) bool


@dataclass(frozen=True)
class Rules:
    """Options of the metric.

    Args:
        recount_areas: count the area of a ground-truth segment in its map instead of reading it from the JSON
            file; ignore segments that the map does not show.
        boundary_ratio: also count for Boundary PQ, with boundaries as wide as this fraction of the image
            diagonal.
    """

    recount_areas: bool = False
    boundary_ratio: float | None = None

    def __post_init__(self) -> None:
        check_ratio(self.boundary_ratio)


PLAIN = Rules()


@dataclass(frozen=True)
class SegmentList:
    """Listed segments of an image: id, index of the category, area in pixels, and crowd flag."""

    ids: Array
    category: Array
    area: Array
    crowd: Array


def read_categories(content: JsonObject, where: object) -> Categories:
    """Return the categories of a panoptic JSON file; raise ValueError if a key is wrong or missing."""
    try:
        rows = [values.category(row, "isthing") for row in values.rows(content, "categories")]
    except ValueError as error:
        raise InputError(f"{where}: categories: {error}") from error
    by_id = index_by(rows, "id", f"{where}: categories")
    places = {id: place for place, id in enumerate(by_id)}
    return Categories(places, [row["name"] for row in rows], np.array([row["isthing"] for row in rows], bool))


def listed_segments(annotation: JsonObject, categories: Categories, where: object) -> list[JsonObject]:
    """Return the checked `segments_info` of an image; raise ValueError as `coco_values.segments`."""
    try:
        return values.segments(values.rows(annotation, "segments_info"), categories.places)
    except KeyError as key:
        raise InputError(f"{where}: no {key} in {brief(annotation)}") from None
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error


def read_segments(annotation: JsonObject, categories: Categories, where: object) -> SegmentList:
    """Return the `segments_info` of an image; an area that is missing, as in predictions, is 0.

    Raises:
        ValueError: it is broken, see `listed_segments`.
    """
    segments = listed_segments(annotation, categories, where)
    return SegmentList(
        ids=np.array([segment["id"] for segment in segments], np.int64),
        category=np.array([categories.places[segment["category_id"]] for segment in segments], np.int64),
        area=np.array([segment.get("area", 0) for segment in segments], np.float64),
        crowd=np.array([segment["iscrowd"] for segment in segments], bool),
    )


def places_of(labels: Array, ids: Array) -> Array:
    """Return, for each label, 0 if it is void, i + 1 if it is `ids[i]`, and len(ids) + 1 otherwise."""
    known = np.append(VOID, ids)
    order = np.argsort(known)
    rank = np.searchsorted(known, labels, sorter=order).clip(max=len(ids))
    return np.where(known[order[rank]] == labels, order[rank], len(ids) + 1)


def overlaps(gt_map: Array, gt_ids: Array, pred_map: Array, pred_ids: Array) -> Array:
    """Return the pixels that each pair shares, (G + 2, P + 2); rows and columns are those of `places_of`."""
    gt, pred = gt_map.ravel(), pred_map.ravel()
    starts, ends = runs(gt, pred).T
    rows, columns = places_of(gt[starts], gt_ids), places_of(pred[starts], pred_ids)
    shape = (len(gt_ids) + 2, len(pred_ids) + 2)
    return np.bincount(rows * shape[1] + columns, ends - starts, shape[0] * shape[1]).reshape(shape)


def count_matches(
    gt_map: Array,
    gt: SegmentList,
    pred_map: Array,
    pred: SegmentList,
    num_categories: int,
    where: object = "image",
    rules: Rules = PLAIN,
) -> Array:
    """Return the counts (V, 4, C) of one image, from its two maps of segment ids (H, W) and their lists.

    Raises:
        ValueError: the maps differ in size, or the predicted map and its list differ.
    """
    if gt_map.shape != pred_map.shape:
        raise InputError(
            f"{where}: the prediction is {pred_map.shape} pixels, the ground truth {gt_map.shape}"
        )
    shared = overlaps(gt_map, gt.ids, pred_map, pred.ids)
    _check_list(shared, pred_map, pred, where)
    if rules.recount_areas:
        gt = replace(gt, area=shared[1:-1].sum(1))
    same_category = gt.category[:, None] == pred.category
    pairs = same_category & ~gt.crowd[:, None] & (shared[1:-1, 1:-1] > 0)
    ious = [_ious(shared, gt, pairs)]
    if rules.boundary_ratio is not None:
        edges = _boundary_overlaps(gt_map, gt.ids, pred_map, pred.ids, rules.boundary_ratio)
        edge_ious = _ious(edges, replace(gt, area=edges[1:-1].sum(1)), pairs)
        ious.append(np.minimum(ious[0], edge_ious))

    # A predicted segment is no FP if most of it lies on void or on a crowd of its category
    # (only the last crowd of each category, as the official code overlooks others)
    last_crowds = {gt.category[place]: place for place in np.flatnonzero(gt.crowd)}
    is_last_crowd = np.isin(np.arange(len(gt.ids)), list(last_crowds.values()))
    excused = shared[VOID, 1:-1] + (shared[1:-1, 1:-1] * (same_category & is_last_crowd[:, None])).sum(0)
    can_be_fp = excused <= 0.5 * shared[:, 1:-1].sum(0)
    can_be_fn = ~gt.crowd & ((gt.area > 0) | (not rules.recount_areas))
    return np.stack([_counts(iou, gt, can_be_fn, pred, can_be_fp, num_categories) for iou in ious])


def _boundary_overlaps(gt_map: Array, gt_ids: Array, pred_map: Array, pred_ids: Array, ratio: float) -> Array:
    """Return `overlaps` of the segments' boundaries; void in the ground truth is kept whole."""
    height, width = gt_map.shape
    distance = boundary_distance(height, width, ratio)
    gt_edges = np.where(boundaries(gt_map, distance) | (gt_map == VOID), gt_map, UNLISTED)
    pred_edges = np.where(boundaries(pred_map, distance), pred_map, UNLISTED)
    return overlaps(gt_edges, gt_ids, pred_edges, pred_ids)


def _ious(shared: Array, gt: SegmentList, pairs: Array) -> Array:
    """Return the IoU (G, P) of the `pairs` (G, P) bool, 0 elsewhere; void is not part of the union."""
    inter, pred_void, pred_area = shared[1:-1, 1:-1], shared[VOID, 1:-1], shared[:, 1:-1].sum(0)
    union = pred_area - pred_void + gt.area[:, None] - inter
    return np.where(pairs, inter / np.where(pairs, union, 1), 0)


def _counts(
    iou: Array, gt: SegmentList, can_be_fn: Array, pred: SegmentList, can_be_fp: Array, num_categories: int
) -> Array:
    """Return the counts (4, C) for IoUs (G, P)."""
    match = iou > 0.5  # at most one in each row and column, as segments do not overlap
    matched_category = gt.category[match.nonzero()[0]]
    return np.stack(
        [
            np.bincount(matched_category, iou[match], num_categories),
            np.bincount(matched_category, minlength=num_categories),
            np.bincount(pred.category[can_be_fp & ~match.any(0)], minlength=num_categories),
            np.bincount(gt.category[can_be_fn & ~match.any(1)], minlength=num_categories),
        ]
    )


def quality(counts: Array, categories: Categories) -> Metrics:
    """Return PQ, SQ, RQ in percent over all categories, things (_th), stuff (_st), and of each category.

    The names of boundary metrics begin with `boundary_`. A category that is neither in the ground truth nor
    predicted is NaN, and is left out of the means; a mean over no category is NaN. `n`, `n_th`, `n_st` are
    the numbers of categories in the means.
    """
    results: Metrics = {}
    for prefix, version in zip(PREFIXES, counts, strict=False):
        metrics = _quality(version, categories)
        results |= {prefix + name: value for name, value in metrics.items() if not prefix or name[0] != "n"}
    return results


def _quality(counts: Array, categories: Categories) -> dict[str, float]:
    iou, tp, fp, fn = counts
    seen = tp + fp + fn > 0
    weight = np.where(seen, tp + fp / 2 + fn / 2, np.nan)
    metrics = {"PQ": iou / weight, "SQ": np.where(seen, iou / np.maximum(tp, 1), np.nan), "RQ": tp / weight}
    results: dict[str, float] = {}
    for suffix, group in {
        "": seen,
        "_th": seen & categories.is_thing,
        "_st": seen & ~categories.is_thing,
    }.items():
        for name, value in metrics.items():
            results[name + suffix] = float(100 * value[group].mean()) if group.any() else float("nan")
        results["n" + suffix] = int(group.sum())
    for place, category in enumerate(categories.names):
        results |= {f"{name}-{category}": float(100 * value[place]) for name, value in metrics.items()}
    return results


def _check_list(shared: Array, pred_map: Array, pred: SegmentList, where: object) -> None:
    """Raise ValueError unless the predicted map has exactly the ids of its list."""
    if shared[:, -1].any():
        unlisted = pred_map[places_of(pred_map, pred.ids) == len(pred.ids) + 1][0]
        raise InputError(f"{where}: segment id {unlisted} is in the predicted map, not in its segments_info")
    absent = pred.ids[shared[:, 1:-1].sum(0) == 0]
    if absent.size:
        raise InputError(
            f"{where}: segment id {absent[0]} is in the prediction's segments_info, not in its map"
        )
