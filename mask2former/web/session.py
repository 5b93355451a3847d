"""What the page keeps of each visitor, in memory only: an image, its prediction, and what is shown of it.

The network runs once for each image. Other thresholds and hidden classes only change what is made of its
prediction.

Shapes: `H, W` the image's sides in pixels, `h, w` those of the image as it is shown, `K` classes.
"""

import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from fvcore.common.config import CfgNode
from PIL import Image

from mask2former.modeling.mask_former import MaskFormer
from mask2former.result import Panoptic, Result, Thresholds
from mask2former.utils.image_io import Array

SHOWN_SIDE = 1280  # pixels; larger images are shown shrunk to this side, and segmented at that size
MOST_SESSIONS = 16
MOST_PIXELS = 400e6  # of the images of all sessions


class Model(Protocol):
    """What the page needs of a `Predictor`."""

    cfg: CfgNode
    model: MaskFormer
    mapper: Any

    @property
    def thresholds(self) -> Thresholds:
        """Return the thresholds that sliders begin with."""

    def result(self, image: Array, output: Mapping[str, Any], thresholds: Thresholds | None = None) -> Result:
        """Return the result of an image from what `post_process` returns."""


class Session:
    """An image (H, W, 3) uint8 RGB with its prediction, and the results at the present thresholds.

    Attributes:
        name: of the image's file.
        seconds: that the network took.
        thresholds: those of `shown` and `full_result`.
        shown: the result at the size (h, w) in which the page shows the image, with all classes.
        segment_scores: of the panoptic segments of `shown`, by id.
        hidden: ids of the classes that are left out by `visible`.
    """

    def __init__(self, predictor: Model, image: Array, name: str, thresholds: Thresholds) -> None:
        self.predictor, self.image, self.name = predictor, image, name
        self.thresholds = thresholds
        self.hidden: frozenset[int] = frozenset()
        start = time.perf_counter()
        (self._prediction,) = predictor.model.predict_images([predictor.mapper.inputs(image)])
        self.seconds = time.perf_counter() - start
        self._shown_image = _shrunk(image)
        self._output = self._post_process(self._shown_image, predictor.model.tasks)
        self.apply(thresholds)

    def apply(self, thresholds: Thresholds) -> None:
        """Renew the result for other thresholds, without the network."""
        before, self.thresholds = self.thresholds, thresholds
        # Of post-processing, only panoptic segments depend on thresholds
        if "panoptic_seg" in self._output and _of_segments(before) != _of_segments(thresholds):
            self._output |= self._post_process(self._shown_image, ("panoptic",))
        self._full: Result | None = None
        self.shown = self.predictor.result(self._shown_image, self._output, thresholds)
        self.segment_scores = self._segment_scores()

    def full_result(self) -> Result:
        """Return the result at the image's own size, with all classes."""
        if self._shown_image is self.image:
            return self.shown
        if self._full is None:
            output = self._post_process(self.image, self.predictor.model.tasks)
            self._full = self.predictor.result(self.image, output, self.thresholds)
        return self._full

    def visible(self, result: Result) -> Result:
        """Return the result without the hidden classes."""
        return without_classes(result, self.hidden)

    def _segment_scores(self) -> dict[int, float]:
        """Return the class probability of the query of each panoptic segment, by the segment's id."""
        if self.shown.panoptic is None:
            return {}
        segments, queries = self.shown.panoptic.segments, self._output["segment_queries"]
        probabilities = self._prediction.probabilities
        return {
            segment["id"]: float(probabilities[query, segment["category_id"]])
            for segment, query in zip(segments, queries, strict=True)
        }

    def _post_process(self, image: Array, tasks: Collection[str]) -> dict[str, Any]:
        """Return the outputs of some tasks at the size of an image."""
        sizes = self._prediction.sizes._replace(output=(image.shape[0], image.shape[1]))
        options = replace(
            self.predictor.model.inference,
            tasks=tuple(tasks),
            object_mask_threshold=self.thresholds.object_mask,
            overlap_threshold=self.thresholds.overlap,
        )
        prediction = self._prediction._replace(sizes=sizes)
        return self.predictor.model.post_process(prediction, options, compact=True)


class Sessions:
    """The sessions of all visitors by key; when they become too many or too large, the oldest are dropped."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def get(self, key: str | None) -> Session | None:
        """Return a session, or None if it has been dropped."""
        return self._sessions.get(key or "")

    def put(self, key: str | None, session: Session) -> None:
        """Keep a session in place of an earlier one of that key."""
        with self._lock:
            self._sessions.pop(key or "", None)
            self._sessions[key or ""] = session
            while len(self._sessions) > 1 and self._are_too_many():
                del self._sessions[next(iter(self._sessions))]

    def drop(self, key: str | None) -> None:
        """Forget a session, if it is there."""
        with self._lock:
            self._sessions.pop(key or "", None)

    def __len__(self) -> int:
        return len(self._sessions)

    def _are_too_many(self) -> bool:
        pixels = sum(session.image[..., 0].size for session in self._sessions.values())
        return len(self._sessions) > MOST_SESSIONS or pixels > MOST_PIXELS


def without_classes(result: Result, hidden: Collection[int]) -> Result:
    """Return a result without some classes; their pixels have the label K in semantic results."""
    if not hidden:
        return result
    fields: dict[str, Any] = {}
    if result.semantic is not None:
        is_hidden = np.isin(result.semantic, list(hidden))
        fields["semantic"] = np.where(is_hidden, len(result.class_names), result.semantic)
    if result.panoptic is not None:
        ids, segments = result.panoptic
        kept = [segment for segment in segments if segment["category_id"] not in hidden]
        fields["panoptic"] = Panoptic(np.where(np.isin(ids, [s["id"] for s in kept]), ids, 0), kept)
    if result.instances is not None:
        classes = result.instances.pred_classes.tolist()
        fields["instances"] = result.instances[[i for i, k in enumerate(classes) if k not in hidden]]
    return replace(result, **fields)


def _of_segments(thresholds: Thresholds) -> tuple[float, float]:
    return thresholds.object_mask, thresholds.overlap


def _shrunk(image: Array) -> Array:
    """Return an image (H, W, 3) as it is shown: at most SHOWN_SIDE pixels wide and high."""
    scale = SHOWN_SIDE / max(image.shape[:2])
    if scale >= 1:
        return image
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))
