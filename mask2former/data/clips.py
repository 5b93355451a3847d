"""Mappers from a record of a video to a clip: a few frames in training, all of them in evaluation.

A record is that of the published code: `file_names`, `height`, `width`, `length`, `video_id`, and in
`annotations` a list for each frame, of the objects that can be seen in it. `id` tells which object it is.

Shapes: `T` frames of a clip, `N` tracks of a clip, `H, W` the sides of the video, `h, w` those of an
augmented frame, in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from mask2former.data.augmentation import Rng, Scene
from mask2former.data.catalog import Metadata, Record
from mask2former.data.clip_augmentation import ROTATION, ClipStep, augment_clip, clip_steps, random_rotation
from mask2former.data.errors import broken_record
from mask2former.data.ground_truth.geometry import Geometry
from mask2former.data.ground_truth.readers import read_instances
from mask2former.data.mapper import TestMapper, image_format_of, record_image, to_tensor
from mask2former.structures import Instances

VIDEOS = "ytvis"  # the evaluator type of datasets of videos
ABSENT = -1  # the id of a track in a frame without it


def holds_videos(metadata: Metadata) -> bool:
    """Return True if the records of a dataset are videos."""
    return metadata.get("evaluator_type") == VIDEOS


def frame_record(record: Record, frame: int) -> Record:
    """Return one frame of a video's record as the record of an image."""
    kept: Record = {key: record[key] for key in ("height", "width", "video_id") if key in record}
    if "annotations" in record:
        kept["annotations"] = record["annotations"][frame]
    return {**kept, "file_name": record["file_names"][frame]}


def frame_records(records: Sequence[Record]) -> list[Record]:
    """Return the frames of all videos among the records, and other records as they are."""
    return [
        *chain.from_iterable(
            [frame_record(record, frame) for frame in range(len(record["file_names"]))]
            if "file_names" in record
            else [record]
            for record in records
        )
    ]


def sample_frames(length: int, count: int, reach: int, shuffle: bool, rng: Rng) -> list[int]:
    """Draw the frames of a training clip: one of the video, and others at most `reach` frames from it.

    As published, the others are drawn with replacement and all are in order, unless `shuffle`. A video of one
    frame gives the same frame again and again.
    """
    first = int(rng.integers(length))
    near = [
        frame for frame in range(first - reach, first + reach + 1) if 0 <= frame < length and frame != first
    ]
    chosen = sorted([first, *rng.choice(near or [first], count - 1).tolist()])
    return rng.permutation(chosen).tolist() if shuffle else chosen


@dataclass(frozen=True, kw_only=True)
class ClipTrainMapper:
    """Maps a video to {"image": T tensors (3, h, w) uint8, "instances": T with the same N tracks, ...}.

    Instances have gt_classes (N,), gt_masks (N, h, w) bool, and gt_ids (N,): -1 and an empty mask where a
    track is absent. Tracks that no frame shows are left out; N may be 0.

    Args:
        steps: augmentations of the clip.
        rotate: rotate each frame after them.
        metadata: has `thing_classes`.
        image_format: the order of the channels.
        count: T.
        reach: the most frames between the one drawn first and another one.
        shuffle: frames are in random order.
    """

    steps: Sequence[ClipStep]
    rotate: bool
    metadata: Metadata
    image_format: str
    count: int
    reach: int
    shuffle: bool

    def __call__(self, record: Record, seed: int) -> dict[str, Any]:
        """Return the clip drawn and augmented by `seed`, which is also for the random points of the losses.

        Raises:
            DatasetError: the record is broken; the message names the file, the video id and the value.
        """
        rng = np.random.default_rng(seed)
        chosen = sample_frames(record["length"], self.count, self.reach, self.shuffle, rng)
        frames = [_without_crowds(frame_record(record, frame)) for frame in chosen]
        scenes = augment_clip([self._scene(frame) for frame in frames], self.steps, rng)
        images, shown = zip(*(self._view(scene, rng) for scene in scenes), strict=True)
        ids = [[annotation["id"] for annotation in frame["annotations"]] for frame in frames]
        classes = [scene.ground_truth.classes.tolist() for scene in scenes]
        return {
            "file_names": [frame["file_name"] for frame in frames],
            "video_id": record.get("video_id"),
            "height": record["height"],
            "width": record["width"],
            "length": record["length"],
            "frame_indices": chosen,
            "image": [*images],
            "instances": _tracks(scenes[0].size, ids, classes, shown),
            "seed": seed,
        }

    def _scene(self, frame: Record) -> Scene:
        image = record_image(frame)
        size = image.shape[0], image.shape[1]
        return Scene(image, Geometry.identity(*size), read_instances(frame, self.metadata, size))

    def _view(self, scene: Scene, rng: Rng) -> tuple[Tensor, tuple[np.ndarray, np.ndarray]]:
        """Return the image of a frame (3, h, w), and which of its objects (n,) are visible, with masks."""
        image, (indices, masks) = scene.image, scene.ground_truth.visible(scene.geometry)
        if self.rotate:
            rotation = random_rotation(scene.size, rng)
            image, masks = rotation.apply_image(image), rotation.apply_masks(masks)
        return to_tensor(image, self.image_format), (indices, masks)


def _without_crowds(frame: Record) -> Record:
    if "annotations" not in frame:
        raise broken_record(frame, "the video has no 'annotations' to train on")
    return {**frame, "annotations": [a for a in frame["annotations"] if not a.get("iscrowd", 0)]}


def _tracks(
    size: tuple[int, int],
    ids: Sequence[Sequence[int]],
    classes: Sequence[Sequence[int]],
    shown: Sequence[tuple[np.ndarray, np.ndarray]],
) -> list[Instances]:
    """Return the instances of each frame: the tracks that some frame shows, in the same order.

    Args:
        size: (h, w) of the frames.
        ids: of each frame's objects.
        classes: of the same.
        shown: of each frame the indices of objects with pixels, and their masks.
    """
    visible = {
        (frame, ids[frame][index]): (mask, classes[frame][index])
        for frame, (indices, masks) in enumerate(shown)
        for index, mask in zip(indices.tolist(), masks, strict=True)
        if mask.any()
    }
    labels = {track: label for (_, track), (_, label) in visible.items()}
    instances = []
    for frame in range(len(ids)):
        masks = torch.zeros(len(labels), *size, dtype=torch.bool)
        present = torch.full((len(labels),), ABSENT)
        for row, track in enumerate(labels):
            if (frame, track) in visible:
                masks[row] = torch.from_numpy(visible[frame, track][0])
                present[row] = track
        tracks = {"gt_classes": torch.tensor([*labels.values()], dtype=torch.int64), "gt_ids": present}
        instances.append(Instances(size, **tracks, gt_masks=masks))
    return instances


class Frames(Sequence[Tensor]):
    """Frames (T, 3, h, w) of a clip as a sequence; a worker process sends them as one tensor."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Frames: ...
    def __getitem__(self, index: int | slice) -> Tensor | Frames:
        return Frames(self.images[index]) if isinstance(index, slice) else self.images[index]


@dataclass(frozen=True, kw_only=True)
class ClipTestMapper:
    """Replaces a video's annotations by "image", all of its frames (3, h, w) uint8 resized for testing.

    `frames` resizes an image. Frames are kept at their new size only: 36 of 360 x 640 pixels take 25 MB.
    """

    frames: TestMapper

    def __call__(self, record: Record) -> dict[str, Any]:
        """Return the clip; `height` and `width` are those of the video, in pixels."""
        kept = {key: value for key, value in record.items() if key != "annotations"}
        images = [
            self.frames.inputs(record_image(frame_record(kept, frame)))["image"]
            for frame in range(len(record["file_names"]))
        ]
        return {**kept, "image": Frames(torch.stack(images))}


def build_clip_train_mapper(cfg: Any, metadata: Metadata) -> ClipTrainMapper:
    """Build the mapper of training clips: INPUT.SAMPLING_FRAME_NUM frames of each video."""
    return ClipTrainMapper(
        steps=clip_steps(cfg),
        rotate=ROTATION in cfg.INPUT.AUGMENTATIONS,
        metadata=metadata.snapshot(),
        image_format=image_format_of(cfg),
        count=cfg.INPUT.SAMPLING_FRAME_NUM,
        reach=cfg.INPUT.SAMPLING_FRAME_RANGE,
        shuffle=cfg.INPUT.SAMPLING_FRAME_SHUFFLE,
    )


def first_frame(sample: dict[str, Any]) -> dict[str, Any]:
    """Return the sample of an image as it is, and of a clip its first frame with the tracks seen there."""
    if isinstance(sample["image"], Tensor):
        return sample
    frame = {**sample, "image": sample["image"][0], "file_name": sample["file_names"][0]}
    if "instances" in sample:
        tracks = sample["instances"][0]
        frame["instances"] = tracks[tracks.gt_ids != ABSENT]
    return frame
