"""The table of precisions of tracks: IoU over all frames, then COCO's matching by faster-coco-eval.

Shapes, of the tables: `T` IoU thresholds, `R` recalls, `K` categories, `A` sizes, `M` limits of results.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from pycocotools import mask as rle

from mask2former.evaluation.coco.precisions import id_order
from mask2former.evaluation.video.ground_truth import Track, VideoGroundTruth
from mask2former.utils.label_maps import Array

MAX_RESULTS = [1, 10, 100]  # per video and category
SMALL, MEDIUM, LARGEST = 128**2, 256**2, 1e10  # pixels: the greatest mean area of each size
SIZES = {"small": [0, SMALL], "medium": [SMALL, MEDIUM], "large": [MEDIUM, LARGEST]}
Numbers = Mapping[Any, int]  # ids of videos or categories, numbered from 1 on


def precisions_and_recalls(truth: VideoGroundTruth, results: Sequence[Track]) -> tuple[Array, Array]:
    """Return the precisions (T, R, K, A) of the best 100 results, and the recalls (T, K, A, M).

    They are NaN where the ground truth has no object. `A` is all, small, medium, large.
    """
    videos, categories = (
        {id: number for number, id in enumerate(sorted(by_id, key=id_order), 1)}
        for by_id in (truth.videos, truth.categories)
    )
    evaluation = TrackEvaluation(truth.tracks, results, videos, categories)
    params = evaluation.params
    if not videos or not categories:
        thresholds, rest = len(params.iouThrs), (len(categories), len(params.areaRng))
        precisions = np.full((thresholds, len(params.recThrs), *rest), np.nan)
        return precisions, np.full((thresholds, *rest, len(MAX_RESULTS)), np.nan)
    evaluation.evaluate()
    evaluation.accumulate()
    tables = np.asarray(evaluation.eval["precision"])[..., -1], np.asarray(evaluation.eval["recall"])
    precisions, recalls = (np.where(table > -1, table, np.nan) for table in tables)
    return precisions, recalls


def track_ious(found: Sequence[Track], true: Sequence[Track]) -> Array:
    """Return the IoU over all frames of each result (D,) with each object (G,) of a video: (D, G).

    The union with a crowd is the result's own area, as in COCO.
    """
    shared = np.zeros((len(found), len(true)))
    for frame in range(len(true[0].masks)):
        rows = [place for place, track in enumerate(found) if track.masks[frame] is not None]
        columns = [place for place, track in enumerate(true) if track.masks[frame] is not None]
        if rows and columns:
            masks = [found[place].masks[frame] for place in rows]
            # With crowds, this is the shared part of the first mask; pixels are whole numbers
            parts = rle.iou(masks, [true[place].masks[frame] for place in columns], [1] * len(columns))
            pixels = np.array([found[place].pixels[frame] for place in rows])
            shared[np.ix_(rows, columns)] += np.rint(parts * pixels[:, None])
    own = np.array([track.pixels.sum() for track in found])[:, None]
    others = np.array([track.pixels.sum() for track in true])
    crowd = np.array([track.crowd for track in true], bool)
    union = np.where(crowd, own, own + others - shared)
    return shared / np.maximum(union, 1)


class TrackEvaluation(COCOeval_faster):
    """faster-coco-eval's evaluation with videos for images, and tracks for masks.

    The library is told to compare boxes, so that it asks for no masks; the IoUs are computed here.
    """

    def __init__(
        self, truth: Sequence[Track], results: Sequence[Track], videos: Numbers, categories: Numbers
    ) -> None:
        inputs = (_library_input(tracks, videos, categories) for tracks in (truth, results))
        super().__init__(*inputs, "bbox", ranges=SIZES)
        self.params.maxDets = MAX_RESULTS
        self._tracks = truth, results

    def computeIoU(self, imgId: int, catId: int) -> Any:
        """Return the IoUs (D, G) of a video and category, results by falling score."""
        true, found = (
            [tracks[row["id"] - 1] for row in rows.get_instances([imgId], [catId], True)[0][0]]
            for rows, tracks in zip((self.gt_dataset, self.dt_dataset), self._tracks, strict=True)
        )
        if not true or not found:
            return []
        found = sorted(found, key=lambda track: -track.score)[: self.params.maxDets[-1]]
        return track_ious(found, true)


def _library_input(tracks: Sequence[Track], videos: Numbers, categories: Numbers) -> COCO:
    """Return tracks as the library takes annotations; their ids are their places from 1 on."""
    annotations = [
        {
            "id": number,
            "image_id": videos[track.video_id],
            "category_id": categories[track.category_id],
            "area": track.area,
            "iscrowd": track.crowd,
            "score": track.score,
        }
        for number, track in enumerate(tracks, 1)
    ]
    images, classes = ([{"id": number} for number in numbers.values()] for numbers in (videos, categories))
    return COCO({"images": images, "categories": classes, "annotations": annotations})
