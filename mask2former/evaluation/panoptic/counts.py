"""The rules of panoptic quality (Kirillov et al., Panoptic Segmentation, section 4) as COCO applies them.

An image's matches are counted per category, counts are added over the data set, and `quality` turns them into
PQ, SQ and RQ. Boundary PQ counts with the lesser of a pair's IoU and its Boundary IoU.

Shapes: `H, W` the image's sides in pixels, `G` true segments, `P` predicted segments, `C` categories, `V`
versions of the metric: the plain one, and the boundary's where it is asked for.
Counts are (V, 4, C) float64; the rows are the sum of the IoUs of the matches, and the numbers of matches
(TP), of predicted segments (FP) and of true segments (FN) left without one.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mask2former.evaluation.common.boundary import boundaries, boundary_distance, check_ratio
from mask2former.evaluation.common.json_files import require, require_number, unique_by
from mask2former.utils.label_maps import MAX_SEGMENT_ID, VOID, Array

UNLISTED = MAX_SEGMENT_ID + 1  # an id that no segment has
PREFIXES = ("", "boundary_")  # of the metrics' names, by version


@dataclass(frozen=True)
class Categories:
    """The categories of a data set, in the order of its JSON file."""

    places: dict[int, int]  # category id -> place in counts
    names: list[str]
    is_thing: Array  # (C,) bool


@dataclass(frozen=True)
class Rules:
    """What may be chosen about the metric.

    Args:
        recount_areas: the area of a true segment is what its map shows, not what its list says; a segment
            that the map does not show is none.
        boundary_ratio: count for Boundary PQ too, with boundaries of this part of the image's diagonal.
    """

    recount_areas: bool = False
    boundary_ratio: float | None = None

    def __post_init__(self) -> None:
        if self.boundary_ratio is not None:
            check_ratio(self.boundary_ratio)

    def empty_counts(self, categories: Categories) -> Array:
        """Counts (V, 4, C) of no image at all."""
        return np.zeros((1 if self.boundary_ratio is None else 2, 4, len(categories.names)))


PLAIN = Rules()


@dataclass(frozen=True)
class Segments:
    """The segments that an image lists: id, place of the category, true area in pixels, whether a crowd."""

    ids: Array
    category: Array
    area: Array
    crowd: Array

    def __len__(self) -> int:
        return len(self.ids)


def read_categories(records: list[dict[str, Any]], where: object) -> Categories:
    """The categories of a panoptic JSON file; a ValueError naming `where` and the key that is wrong."""
    by_id = unique_by(records, "id", f"{where}: categories")
    names = [str(require(record, "name", f"{where}: categories")) for record in records]
    things = [bool(require(record, "isthing", f"{where}: categories")) for record in records]
    return Categories({id: place for place, id in enumerate(by_id)}, names, np.array(things, bool))


def read_segments(
    records: Sequence[Mapping[str, Any]], categories: Categories, where: object, *, truth: bool
) -> Segments:
    """The `segments_info` of an image; of the ground truth, `area` and `iscrowd` are read too.

    Raises:
        ValueError: a key is missing, an id is out of range or listed twice, or a category is unknown.
    """
    unique_by(list(records), "id", where)
    for record in records:
        segment, category = record["id"], require(record, "category_id", where)
        if not isinstance(segment, int) or not VOID < segment <= MAX_SEGMENT_ID:
            raise ValueError(f"{where}: segment id {segment!r} is not in [1, {MAX_SEGMENT_ID}]")
        if not isinstance(category, int) or category not in categories.places:
            raise ValueError(f"{where}: segment {segment} has the unknown category_id {category!r}")
    areas = [require_number(record, "area", where) if truth else 0 for record in records]
    return Segments(
        ids=np.array([record["id"] for record in records], np.int64),
        category=np.array([categories.places[record["category_id"]] for record in records], np.int64),
        area=np.array(areas, np.float64),
        crowd=np.array([truth and bool(record.get("iscrowd", 0)) for record in records], bool),
    )


def places_of(values: Array, ids: Array) -> Array:
    """For each value: 0 if it is void, i + 1 if it is `ids[i]`, len(ids) + 1 if it is neither."""
    known = np.append(VOID, ids)
    order = np.argsort(known)
    rank = np.searchsorted(known, values, sorter=order).clip(max=len(ids))
    return np.where(known[order[rank]] == values, order[rank], len(ids) + 1)


def overlaps(gt_map: Array, gt_ids: Array, pred_map: Array, pred_ids: Array) -> Array:
    """Pixels that each pair shares, (G + 2, P + 2); rows and columns as `places_of` numbers them.

    Both maps (H, W) are runs of equal pixels, some thousands instead of some 100,000; ids are looked up once
    a run.
    """
    gt, pred = gt_map.ravel(), pred_map.ravel()
    changes = (gt[1:] != gt[:-1]) | (pred[1:] != pred[:-1])
    starts = np.append(0, np.flatnonzero(changes) + 1)
    lengths = np.diff(starts, append=gt.size)
    rows, columns = places_of(gt[starts], gt_ids), places_of(pred[starts], pred_ids)
    shape = (len(gt_ids) + 2, len(pred_ids) + 2)
    return np.bincount(rows * shape[1] + columns, lengths, shape[0] * shape[1]).reshape(shape)


def count_matches(
    gt_map: Array,
    gt: Segments,
    pred_map: Array,
    pred: Segments,
    num_categories: int,
    where: object = "image",
    rules: Rules = PLAIN,
) -> Array:
    """The counts (V, 4, C) of one image, from its two maps of segment ids (H, W) and the segments they list.

    Raises:
        ValueError: the maps differ in size, or the predicted map and its list differ.
    """
    if gt_map.shape != pred_map.shape:
        raise ValueError(
            f"{where}: the prediction is {pred_map.shape} pixels, the ground truth {gt_map.shape}"
        )
    shared = overlaps(gt_map, gt.ids, pred_map, pred.ids)
    _check_listing(shared, pred_map, pred, where)
    if rules.recount_areas:
        gt = replace(gt, area=shared[1:-1].sum(1))
    same_category = gt.category[:, None] == pred.category
    pairs = same_category & ~gt.crowd[:, None] & (shared[1:-1, 1:-1] > 0)
    ious = [_ious(shared, gt, pairs, where)]
    if rules.boundary_ratio is not None:
        near = _boundary_overlaps(gt_map, gt.ids, pred_map, pred.ids, rules.boundary_ratio)
        seen = replace(gt, area=near[1:-1].sum(1))
        ious.append(np.minimum(ious[0], _ious(near, seen, pairs, where)))

    forgiven = shared[VOID, 1:-1] + (shared[1:-1, 1:-1] * (same_category & _last_crowds(gt)[:, None])).sum(0)
    counted = ~gt.crowd & ((gt.area > 0) | (not rules.recount_areas))
    charged = forgiven <= 0.5 * shared[:, 1:-1].sum(0)
    return np.stack([_counts(iou, gt, counted, pred, charged, num_categories) for iou in ious])


def _boundary_overlaps(gt_map: Array, gt_ids: Array, pred_map: Array, pred_ids: Array, ratio: float) -> Array:
    """`overlaps` of the segments' boundaries; the whole of the truth's void stays what it is."""
    height, width = gt_map.shape
    distance = boundary_distance(height, width, ratio)
    gt_kept = boundaries(gt_map, distance) | (gt_map == VOID)
    pred_kept = boundaries(pred_map, distance)
    return overlaps(
        np.where(gt_kept, gt_map, UNLISTED), gt_ids, np.where(pred_kept, pred_map, UNLISTED), pred_ids
    )


def _ious(shared: Array, gt: Segments, pairs: Array, where: object) -> Array:
    """IoU (G, P) of the `pairs` (G, P) bool, 0 elsewhere; void in the ground truth is not of the union."""
    inter, pred_void, pred_area = shared[1:-1, 1:-1], shared[VOID, 1:-1], shared[:, 1:-1].sum(0)
    union = pred_area - pred_void + gt.area[:, None] - inter
    if (pairs & (union <= 0)).any():
        small = gt.ids[(pairs & (union <= 0)).any(1)][0]
        raise ValueError(f"{where}: true segment {small} covers more pixels than its area says")
    return np.where(pairs, inter / np.where(pairs, union, 1), 0)


def _counts(
    iou: Array, gt: Segments, counted: Array, pred: Segments, charged: Array, num_categories: int
) -> Array:
    """The counts (4, C) by the IoU (G, P); `counted` (G,), `charged` (P,) bool can be a miss, a surplus."""
    match = iou > 0.5  # at most one in each row and column, as segments do not overlap
    matched_category = gt.category[match.nonzero()[0]]
    return np.stack(
        [
            np.bincount(matched_category, iou[match], num_categories),
            np.bincount(matched_category, minlength=num_categories),
            np.bincount(pred.category[charged & ~match.any(0)], minlength=num_categories),
            np.bincount(gt.category[counted & ~match.any(1)], minlength=num_categories),
        ]
    )


def quality(counts: Array, categories: Categories) -> OrderedDict[str, float]:
    """PQ, SQ, RQ of counts (V, 4, C) in percent: over all categories, things (_th), stuff (_st), and of each.

    Names of the boundary's metrics begin with `boundary_`. A category that is neither in the ground truth nor
    predicted is left out of the means and is NaN itself, as is the mean of no categories; `n`, `n_th`, `n_st`
    are the numbers of categories averaged.
    """
    results: OrderedDict[str, float] = OrderedDict()
    for prefix, version in zip(PREFIXES, counts, strict=False):
        metrics = _quality(version, categories)
        results |= {prefix + name: value for name, value in metrics.items() if not prefix or name[0] != "n"}
    return results


def _quality(counts: Array, categories: Categories) -> dict[str, float]:
    """The metrics of counts (4, C)."""
    iou, tp, fp, fn = counts
    seen = tp + fp + fn > 0
    weight = np.where(seen, tp + fp / 2 + fn / 2, np.nan)
    metrics = {"PQ": iou / weight, "SQ": np.where(seen, iou / np.maximum(tp, 1), np.nan), "RQ": tp / weight}
    everything = np.ones_like(categories.is_thing)
    results: dict[str, float] = {}
    for suffix, group in {"": everything, "_th": categories.is_thing, "_st": ~categories.is_thing}.items():
        chosen = seen & group
        for name, value in metrics.items():
            results[name + suffix] = float(100 * value[chosen].mean()) if chosen.any() else float("nan")
        results["n" + suffix] = int(chosen.sum())
    for place, category in enumerate(categories.names):
        results |= {f"{name}-{category}": float(100 * value[place]) for name, value in metrics.items()}
    return results


def _check_listing(shared: Array, pred_map: Array, pred: Segments, where: object) -> None:
    """A ValueError unless the ids in the predicted map are those that it lists."""
    if shared[:, -1].any():
        unlisted = pred_map[places_of(pred_map, pred.ids) == len(pred) + 1][0]
        raise ValueError(f"{where}: segment id {unlisted} is in the predicted map, not in its segments_info")
    absent = pred.ids[shared[:, 1:-1].sum(0) == 0]
    if absent.size:
        raise ValueError(
            f"{where}: segment id {absent[0]} is in the prediction's segments_info, not in its map"
        )


def _last_crowds(gt: Segments) -> Array:
    """(G,) bool: the last crowd region of each category; the official code overlooks those before it."""
    last = {gt.category[place]: place for place in np.flatnonzero(gt.crowd)}
    return np.isin(np.arange(len(gt)), list(last.values()))
