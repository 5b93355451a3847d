"""Checks of videos, tracks and results in YouTube-VIS' JSON before AP is computed.

Masks follow the rules of training data (`utils.coco_values`), so the same forms are read.

Shapes: `T` frames of a video, `H, W` its sides in pixels.
"""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as rle

from mask2former.evaluation.coco.ground_truth import Table, errors_named, known_ids
from mask2former.evaluation.common.json_files import JsonObject, get_value, index_by
from mask2former.utils.coco_masks import checked_rle, pixel_counts
from mask2former.utils.coco_values import flag, frame_names, per_frame, sides, track_areas, track_masks
from mask2former.utils.label_maps import Array
from mask2former.utils.messages import InputError, brief

logger = logging.getLogger(__name__)

Code = dict[str, Any]  # compressed RLE for pycocotools


@dataclass(frozen=True)
class Track:
    """One object of the ground truth or of the results through a video.

    Args:
        video_id, category_id: as in the ground truth.
        masks: of each frame (T,), None where it has no pixel.
        pixels: (T,) float64, areas of the masks.
        area: mean area by which it counts as small, medium or large.
        crowd: 1 for a crowd, which is not to be found but excuses results.
        score: of a result.
    """

    video_id: Any
    category_id: Any
    masks: list[Code | None]
    pixels: Array
    area: float
    crowd: int = 0
    score: float = 0.0


@dataclass(frozen=True)
class VideoGroundTruth:
    """Checked content of YouTube-VIS' JSON."""

    videos: Table
    categories: Table
    tracks: list[Track]


def checked_ground_truth(truth: Mapping[str, Any], where: object) -> VideoGroundTruth:
    """Return the content of YouTube-VIS' JSON for AP; warn of tracks that no result can match.

    Raises:
        ValueError: a key is missing, a value has the wrong type, a video or category is unknown, or a mask
            is broken; the message names `where`, the annotation and the frame.
    """
    videos = index_by(get_value(truth, "videos", where, list), "id", where)
    categories = index_by(get_value(truth, "categories", where, list), "id", where)
    for id, video in videos.items():
        with errors_named(f"{where}: video {brief(id)}"):
            sides(video)
            frame_names(video)
    assumed: Counter[str] = Counter()
    tracks = [
        _true_track(row, videos, categories, f"{where}: annotations[{place}]", assumed)
        for place, row in enumerate(get_value(truth, "annotations", where, list))
    ]
    if empty := sum(not track.pixels.any() for track in tracks):
        logger.warning("%s: %d tracks have no mask in any frame; they count as missed", where, empty)
    for form, count in assumed.items():
        logger.warning("%s: %d masks in 'segmentations' are %s", where, count, form)
    return VideoGroundTruth(videos, categories, tracks)


def checked_results(results: Sequence[Any], truth: VideoGroundTruth, where: object) -> list[Track]:
    """Return results with the ids of the ground truth and checked masks.

    Raises:
        ValueError: a key is missing, a video or category unknown, the number of masks is not that of the
            frames, or a mask does not cover its frame; the message names `where`, the item and the frame.
    """
    return [_result(row, truth, f"{where}: item {place}") for place, row in enumerate(results)]


def _size(video: JsonObject) -> tuple[int, int]:
    return int(video["height"]), int(video["width"])


def _true_track(row: Any, videos: Table, categories: Table, where: str, assumed: Counter[str]) -> Track:
    ids = known_ids(row, {"video_id": videos, "category_id": categories}, where)
    video = videos[ids["video_id"]]
    size, frames = _size(video), len(video["file_names"])
    with errors_named(f"{where} (id {brief(row.get('id'))}, video {brief(ids['video_id'])})"):
        masks, forms = track_masks(row, size, frames)
        crowd = flag({"iscrowd": 0, **row}, "iscrowd")
        areas = track_areas(row, frames)
    assumed.update(forms)
    codes, pixels = _drop_empty([None if mask is None else _compressed(mask, size) for mask in masks])
    return Track(**ids, masks=codes, pixels=pixels, area=_mean_area(areas), crowd=crowd)


def _result(row: Any, truth: VideoGroundTruth, where: str) -> Track:
    ids = known_ids(row, {"video_id": truth.videos, "category_id": truth.categories}, where)
    video = truth.videos[ids["video_id"]]
    score = get_value(row, "score", where, float)
    get_value(row, "segmentations", where)
    where += f", video {brief(ids['video_id'])}"
    with errors_named(where):
        found = per_frame(row, "segmentations", len(video["file_names"]))
    _check_codes(found, _size(video), where)
    codes, pixels = _drop_empty([{**code} if code else None for code in found])
    return Track(**ids, masks=codes, pixels=pixels, area=_mean_area(pixels), score=score)


def _check_codes(found: Sequence[Any], size: tuple[int, int], where: str) -> None:
    """Raise ValueError, which names the frame, unless all are compressed RLEs of this size or empty."""
    for frame, code in enumerate(found):
        if code and not (isinstance(code, Mapping) and isinstance(code.get("counts"), (str, bytes))):
            what = f"{brief(code)} is not null or a compressed RLE with 'size' and 'counts'"
            raise InputError(f"{where}, frame {frame}: {what}")
    given = [(frame, code) for frame, code in enumerate(found) if code]
    totals = pixel_counts([code["counts"] for _, code in given])
    for (frame, code), total in zip(given, totals, strict=True):
        if total != math.prod(size) or code.get("size") != list(size):
            with errors_named(f"{where}, frame {frame}"):
                checked_rle(code, size)  # which says what is wrong


def _compressed(mask: Any, size: tuple[int, int]) -> Code:
    """Return polygons or an RLE of a list as compressed RLE."""
    if isinstance(mask, list):
        code: Code = rle.merge(rle.frPyObjects(mask, *size))
        return code
    return rle.frPyObjects(mask, *size) if isinstance(mask["counts"], list) else mask


def _drop_empty(codes: Sequence[Code | None]) -> tuple[list[Code | None], Array]:
    """Return the masks, None for those without a pixel, and the areas (T,)."""
    pixels = np.zeros(len(codes))
    shown = [frame for frame, code in enumerate(codes) if code is not None]
    pixels[shown] = rle.area([codes[frame] for frame in shown]) if shown else 0
    return [code if count else None for code, count in zip(codes, pixels, strict=True)], pixels


def _mean_area(areas: Any) -> float:
    """Return the mean of the areas that are not 0; 0 if all are."""
    shown = [value for value in areas if value]
    return float(np.mean(shown)) if shown else 0.0
