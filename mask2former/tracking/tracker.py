"""Tracks: which object of a frame is which object of the frames before.

A frame's objects are compared with all tracks seen within the last frames, not with the frame before alone,
so that an object that was hidden, or outside of the image, comes back with its id. Two rounds of assignment:

1. Tracks of the frame before: the IoU of masks and the cosine of the queries' embeddings, as MinVIS has it.
2. Tracks and objects that are left: the embeddings alone, within the reach of what moves.

The embedding of a track is an average that follows the object: one object can be found by several queries,
whose embeddings differ. Its class is that of the mean probabilities of all its frames.

Shapes: `N` objects of a frame, `C` channels, `K` classes, `h, w` the sides of masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mask2former.options import MAX_ABSENT
from mask2former.tracking.matching import assign, cosines, mask_centers, mask_ious, unit
from mask2former.utils.label_maps import Array

IOU_WEIGHT = 2 / 3  # of the IoU of neighboring frames; the cosine has the rest
NEIGHBOR_SIMILARITY = 0.3  # least in the first round
COSINE = 0.4  # least in the second round
REACH = 0.1  # of the image's sides, that an object may move a frame in the second round
FRESHNESS = 0.4  # weight of the current frame in a track's embedding


class Objects(NamedTuple):
    """The objects of a frame: embeddings (N, C), class probabilities (N, K), and masks (N, h, w) bool."""

    embeddings: Array
    probabilities: Array
    masks: Array


@dataclass
class Track:
    """An object that is followed.

    Args:
        id: from 1, in the order of first appearance.
        embedding: (C,) of length 1, an average of the frames.
        probabilities: (K,), their mean over the frames in which it was seen.
        frames: their number.
        last_frame: the last of them.
        mask: (h, w) bool, in that frame.
    """

    id: int
    embedding: Array
    probabilities: Array
    frames: int
    last_frame: int
    mask: Array

    def class_among(self, classes: Sequence[int]) -> int:
        """Return the most probable of some classes."""
        return classes[int(self.probabilities[list(classes)].argmax())]

    def update(self, frame: int, embedding: Array, probabilities: Array, mask: Array) -> None:
        """Add a frame in which the object was seen."""
        self.embedding = unit(self.embedding + FRESHNESS * (embedding - self.embedding))
        self.frames += 1
        self.probabilities = self.probabilities + (probabilities - self.probabilities) / self.frames
        self.last_frame, self.mask = frame, mask


class Tracker:
    """The tracks of one film, fed frame by frame.

    Args:
        max_absent: a track that was not seen for this many frames ends; 0 compares neighboring frames alone.

    Raises:
        ValueError: `max_absent` is not a number of at least 0.
    """

    def __init__(self, max_absent: int = MAX_ABSENT) -> None:
        if not isinstance(max_absent, int) or max_absent < 0:
            raise ValueError(f"max_absent is {max_absent!r}; it must be a number of frames, at least 0")
        self.max_absent = max_absent
        self.frame = -1
        self.count = 0
        self.tracks: list[Track] = []

    def update(self, objects: Objects) -> list[Track]:
        """Return the track of each object of the next frame."""
        self.frame += 1
        self.tracks = [track for track in self.tracks if self._absent(track) <= self.max_absent]
        objects = objects._replace(embeddings=unit(objects.embeddings))
        found = self._match(objects)
        for number, observation in enumerate(zip(*objects, strict=True)):
            if number in found:
                found[number].update(self.frame, *observation)
            else:
                found[number] = self._begin(*observation)
        return [found[number] for number in range(len(objects.masks))]

    def _absent(self, track: Track) -> int:
        """Return the number of frames since the track was seen, without the current one."""
        return self.frame - track.last_frame - 1

    def _begin(self, embedding: Array, probabilities: Array, mask: Array) -> Track:
        self.count += 1
        track = Track(self.count, embedding, probabilities, 1, self.frame, mask)
        self.tracks.append(track)
        return track

    def _match(self, objects: Objects) -> dict[int, Track]:
        """Return the tracks that go on, by the number of their object."""
        numbers = list(range(len(objects.masks)))
        if numbers and self.tracks and objects.masks.shape[1:] != self.tracks[0].mask.shape:
            self.tracks = []  # a frame of another size begins anew
        recent = [track for track in self.tracks if not self._absent(track)]
        found = _pairs(recent, numbers, _neighbor_similarity(recent, objects), NEIGHBOR_SIMILARITY)
        matched = {track.id for track in found.values()}
        rest = [track for track in self.tracks if track.id not in matched]
        numbers = [number for number in numbers if number not in found]
        left = Objects(*(values[numbers] for values in objects))
        return found | _pairs(rest, numbers, self._reachable_cosines(rest, left), COSINE)

    def _reachable_cosines(self, tracks: list[Track], objects: Objects) -> Array:
        """Return cosines (T, N), -1 where an object is farther away than its track can have moved."""
        if not tracks or not len(objects.masks):
            return np.zeros((len(tracks), len(objects.masks)))
        centers = mask_centers(np.stack([track.mask for track in tracks]))
        distances = np.linalg.norm(centers[:, None] - mask_centers(objects.masks), axis=-1)
        reach = np.array([REACH * (self._absent(track) + 2) for track in tracks])
        similarity = cosines(np.stack([track.embedding for track in tracks]), objects.embeddings)
        return np.where(distances <= reach[:, None], similarity, -1)


def _neighbor_similarity(tracks: list[Track], objects: Objects) -> Array:
    """Return the similarities (T, N) of tracks seen in the frame before and objects."""
    if not tracks or not len(objects.masks):
        return np.zeros((len(tracks), len(objects.masks)))
    ious = mask_ious(np.stack([track.mask for track in tracks]), objects.masks)
    similarity = cosines(np.stack([track.embedding for track in tracks]), objects.embeddings)
    return IOU_WEIGHT * ious + (1 - IOU_WEIGHT) * similarity.clip(0)


def _pairs(tracks: list[Track], numbers: list[int], similarity: Array, minimum: float) -> dict[int, Track]:
    """Return the assigned tracks by the numbers of their objects."""
    return {numbers[n]: tracks[t] for t, n in assign(similarity, minimum)}
