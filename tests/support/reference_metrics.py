"""Reference implementations of boundaries, average precision, also of tracks, and panoptic quality."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

AREAS = {"": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}
TRACK_AREAS = {"": (0, 1e10), "s": (0, 128**2), "m": (128**2, 256**2), "l": (256**2, 1e10)}
Record = dict[str, Any]
Segmentation = tuple[np.ndarray, list[Record]]  # map of ids, segments_info
Iou = Callable[[np.ndarray, np.ndarray, bool], float]


def reference_boundary(mask, distance):
    """Return the pixels that `distance` erosions by 3 x 3 pixels remove; the mask ends at the image."""
    left = np.pad(mask.astype(bool), 1)
    for _ in range(distance):
        shifted = [np.roll(left, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        left = np.logical_and.reduce(shifted)
        left[[0, -1]] = left[:, [0, -1]] = False
    return mask & ~left[1:-1, 1:-1]


def reference_distance(shape, ratio):
    return max(1, round(ratio * math.sqrt(shape[0] ** 2 + shape[1] ** 2)))


def mask_iou(found, true, crowd):
    shared = (found & true).sum()
    return shared / max(found.sum() if crowd else (found | true).sum(), 1)


def boundary_iou(ratio):
    def iou(found, true, crowd):
        if crowd:
            return mask_iou(found, true, crowd)
        distance = reference_distance(true.shape, ratio)
        edges = reference_boundary(found, distance), reference_boundary(true, distance)
        return min(mask_iou(found, true, False), mask_iou(*edges, False))

    return iou


def reference_average_precision(truth, results, iou=mask_iou, *, lvis=False):
    """Return AP, AP50, AP75, APs, APm, APl, for LVIS APr, APc, APf too, and AP of each category."""
    if lvis:
        results = best_300(results)
    names = {c["id"]: c.get("name") for c in truth["categories"]}
    pairs = {(i["id"], c): compare(truth, results, i, c, iou) for i in truth["images"] for c in names}
    order = sorted(i["id"] for i in truth["images"])
    thresholds = np.linspace(0.5, 0.95, 10)

    def ap(categories, thresholds=thresholds, area=""):
        curves = [
            curve([match(pairs[i, c], t, AREAS[area], lvis) for i in order])
            for c in categories
            for t in thresholds
        ]
        known = [100 * np.mean(points) for points in curves if points is not None]
        return float(np.mean(known)) if known else float("nan")

    scores = {"AP": ap([*names]), "AP50": ap([*names], [0.5]), "AP75": ap([*names], [0.75])}
    scores |= {f"AP{area}": ap([*names], area=area) for area in "sml"}
    for mark in "rcf" if lvis else "":
        scores[f"AP{mark}"] = ap([c["id"] for c in truth["categories"] if c["frequency"] == mark])
    return scores | {f"AP-{name}": ap([c]) for c, name in names.items()}


def reference_track_metrics(truth, results):
    """Return AP, AP50, AP75, APs, APm, APl, AR1, AR10 and AP of each category, on dense masks (T, H, W)."""
    names = {c["id"]: c["name"] for c in truth["categories"]}
    order = sorted(video["id"] for video in truth["videos"])
    videos = {video["id"]: video for video in truth["videos"]}
    pairs = {(v, c): compare_tracks(truth, results, videos[v], c) for v in order for c in names}
    thresholds = np.linspace(0.5, 0.95, 10)

    def mean(score, categories, thresholds, area, most=100):
        known = []
        for c, t in itertools.product(categories, thresholds):
            value = score([match(pairs[v, c], t, TRACK_AREAS[area], False, most) for v in order])
            known += [] if value is None else [100 * value]
        return float(np.mean(known)) if known else float("nan")

    def precision(shares):
        points = curve(shares)
        return None if points is None else points.mean()

    def recall(shares):
        total = sum(wanted for _, wanted in shares)
        return sum(good for share, _ in shares for _, good in share) / total if total else None

    scores = {"AP": mean(precision, names, thresholds, "")}
    scores |= {"AP50": mean(precision, names, [0.5], ""), "AP75": mean(precision, names, [0.75], "")}
    scores |= {f"AP{area}": mean(precision, names, thresholds, area) for area in "sml"}
    scores |= {f"AR{most}": mean(recall, names, thresholds, "", most) for most in (1, 10)}
    return scores | {f"AP-{name}": mean(precision, [c], thresholds, "") for c, name in names.items()}


def compare_tracks(truth, results, video, category):
    """Return what `compare` does for the tracks of a video and category."""
    size = video["height"], video["width"]

    def mask(code):
        if not code:
            return np.zeros(size, bool)
        if isinstance(code, list):
            code = mask_utils.merge(mask_utils.frPyObjects(code, *size))
        elif isinstance(code["counts"], list):
            code = mask_utils.frPyObjects(code, *size)
        return mask_utils.decode(code).astype(bool)

    def own(records):
        return [r for r in records if r["video_id"] == video["id"] and r["category_id"] == category]

    def volume(record):
        return np.stack([mask(code) for code in record["segmentations"]])

    def mean_area(areas):
        shown = [area for area in areas if area]
        return sum(shown) / len(shown) if shown else 0

    objects = [{**record, "area": mean_area(record["areas"])} for record in own(truth["annotations"])]
    found = sorted(own(results), key=lambda result: -result["score"])
    table = [[mask_iou(volume(f), volume(o), bool(o["iscrowd"])) for o in objects] for f in found]
    areas = [mean_area(volume(f).sum((1, 2)).tolist()) for f in found]
    return objects, found, table, areas, video, category


def reference_panoptic_counts(gt, pred, categories, boundary_ratio=None):
    """Return the sum of IoUs, TP, FP and FN of each category, (4, C), for (map, segments) of one image."""
    (gt_map, gt_infos), (pred_map, pred_infos) = gt, pred
    void = gt_map == 0
    counts = {category: [0.0, 0, 0, 0] for category in categories}
    matched = set()
    for g, p in itertools.product(gt_infos, pred_infos):
        true, found = gt_map == g["id"], pred_map == p["id"]
        shared = (true & found).sum()
        if not shared or g["iscrowd"] or g["category_id"] != p["category_id"]:
            continue
        iou = shared / (found.sum() + g["area"] - shared - (void & found).sum())
        if boundary_ratio is not None:
            distance = reference_distance(gt_map.shape, boundary_ratio)
            true, found = reference_boundary(true, distance), reference_boundary(found, distance)
            shared = (true & found).sum()
            iou = min(iou, shared / (true.sum() + found.sum() - shared - (void & found).sum()))
        if iou > 0.5:
            counts[g["category_id"]][0] += iou
            counts[g["category_id"]][1] += 1
            matched |= {("gt", g["id"]), ("pred", p["id"])}
    for p in pred_infos:
        found = pred_map == p["id"]
        crowds = [g["id"] for g in gt_infos if g["iscrowd"] and g["category_id"] == p["category_id"]]
        excused = (void & found).sum() + sum(((gt_map == id) & found).sum() for id in crowds[-1:])
        counts[p["category_id"]][2] += ("pred", p["id"]) not in matched and excused / found.sum() <= 0.5
    for g in gt_infos:
        counts[g["category_id"]][3] += not g["iscrowd"] and ("gt", g["id"]) not in matched
    return np.array([*counts.values()], float).T


def best_300(results):
    kept: list[Record] = []
    for image in {result["image_id"] for result in results}:
        own = [result for result in results if result["image_id"] == image]
        kept += sorted(own, key=lambda result: result["score"], reverse=True)[:300]
    return kept


def compare(truth, results, image, category, iou):
    """Return the objects and results of an image and category, their IoUs, and the image itself."""
    size = image["height"], image["width"]

    def own(records):
        return [r for r in records if r["image_id"] == image["id"] and r["category_id"] == category]

    def mask(record):
        code = record["segmentation"]
        if isinstance(code, list):
            code = mask_utils.merge(mask_utils.frPyObjects(code, *size))
        return mask_utils.decode(code).astype(bool)

    objects = own(truth["annotations"])
    found = sorted(own(results), key=lambda result: -result["score"])
    table = [[iou(mask(f), mask(o), bool(o.get("iscrowd", 0))) for o in objects] for f in found]
    return objects, found, table, [mask(f).sum() for f in found], image, category


def match(compared, threshold, area, lvis, most=100):
    """Return (score, is right) of each of the best `most` results that counts, and the number of objects."""
    objects, found, ious, areas, image, category = compared
    wanted = [not o.get("iscrowd", 0) and area[0] <= o["area"] <= area[1] for o in objects]
    free = [True] * len(objects)
    counted = []
    for place in range(len(found) if lvis else min(len(found), most)):
        fitting = [
            o
            for o in range(len(objects))
            if ious[place][o] >= threshold and (free[o] or objects[o].get("iscrowd", 0))
        ]
        # Objects to find come first, then the higher IoU, then the last object
        best = max(fitting, key=lambda o: (wanted[o], ious[place][o], o), default=None)
        if best is not None:
            free[best] = False
            if wanted[best]:
                counted.append((found[place]["score"], True))
        elif area[0] <= areas[place] <= area[1] and not (lvis and forgiven(objects, image, category)):
            counted.append((found[place]["score"], False))
    return counted, sum(wanted)


def forgiven(objects, image, category):
    """Return True if LVIS ignores a false positive, as the image was not searched (exhaustively)."""
    searched = bool(objects) or category in image["neg_category_ids"]
    return not searched or category in image["not_exhaustive_category_ids"]


def curve(shares):
    """Return the precision at 101 recalls; None if there is nothing to find."""
    total = sum(wanted for _, wanted in shares)
    if not total:
        return None
    counted = sorted((c for share, _ in shares for c in share), key=lambda c: -c[0])
    right = np.cumsum([good for _, good in counted])
    recall, precision = right / total, right / np.arange(1, len(counted) + 1)
    return np.array(
        [max(precision[recall >= wanted], default=0.0) for wanted in np.linspace(0, 1, 101)], np.float64
    )
