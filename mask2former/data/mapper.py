"""The one mapper: a record of any dataset -> what the model takes.

INPUT.DATASET_MAPPER_NAME keeps the published names; each stands for how the ground truth is read and which
augmentations it goes through. Everything after that is the same for all.

Shapes: `N` segments left after augmentation, `H, W` the original image's sides, `h, w` the new one's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mask2former.data.augmentation import (
    Augmentation,
    Resize,
    Scene,
    augment,
    large_scale_jitter,
    resize_shortest_edge,
    shortest_edge_crop,
)
from mask2former.data.catalog import Metadata, Record
from mask2former.data.errors import broken_record
from mask2former.data.ground_truth.geometry import View
from mask2former.data.ground_truth.readers import Reader, read_instances, read_panoptic, read_semantic
from mask2former.structures import Instances
from mask2former.utils.image_io import ImageError, read_image

MAPPERS: dict[str, tuple[Reader, Callable[[Any], list[Augmentation]]]] = {
    "coco_instance_lsj": (read_instances, large_scale_jitter),
    "coco_panoptic_lsj": (read_panoptic, large_scale_jitter),
    "mask_former_instance": (read_instances, shortest_edge_crop),
    "mask_former_panoptic": (read_panoptic, shortest_edge_crop),
    "mask_former_semantic": (read_semantic, shortest_edge_crop),
}
CHANNEL_ORDER = {"RGB": slice(None), "BGR": slice(None, None, -1)}


class TrainMapper:
    """Record -> {"image" (3, h, w) uint8, "instances" with gt_classes and gt_masks (N, h, w) bool, ...}.

    Masks that augmentation emptied are dropped; no mask at all is a legal result.
    """

    def __init__(
        self, *, reader: Reader, augmentations: Sequence[Augmentation], metadata: Metadata, image_format: str
    ) -> None:
        self.reader = reader
        self.augmentations = augmentations
        self.metadata = metadata
        self.image_format = image_format

    def __call__(self, record: Record, seed: int) -> dict[str, Any]:
        """The sample that `seed` decides; the same seed is handed on for the random points of the losses.

        Raises:
            DatasetError: the record is broken; the message names the file, the image id and the value.
        """
        image = record_image(record)
        height, width = image.shape[:2]
        segments = self.reader(record, self.metadata, (height, width))
        scene = Scene(image, View.whole(height, width), segments)
        scene = augment(scene, self.augmentations, np.random.default_rng(seed))
        return {
            "file_name": record["file_name"],
            "image_id": record.get("image_id"),  # semantic datasets may do without
            "height": height,
            "width": width,
            "image": to_tensor(scene.image, self.image_format),
            "instances": visible_instances(scene),
            "seed": seed,
        }


class TestMapper:
    """Record -> the same without its annotations, and "image" (3, h, w) uint8 resized for testing.

    Args:
        edges: lengths in pixels that the shorter side is resized to.
        max_size: what the longer side may be at most.
        image_format: the order of the channels.
        as_views: give "views", the image at every one of `edges`, instead of "image" at the first.
    """

    __test__ = False  # not a test case, whatever its name suggests to pytest

    def __init__(
        self, *, edges: Sequence[int], max_size: int, image_format: str, as_views: bool = False
    ) -> None:
        self.edges = edges if as_views else edges[:1]
        self.max_size = max_size
        self.image_format = image_format
        self.as_views = as_views

    def __call__(self, record: Record) -> dict[str, Any]:
        """The sample; `height` and `width` are those of the original image, in pixels."""
        kept = {key: value for key, value in record.items() if key != "annotations"}
        return {**kept, **self.inputs(record_image(record))}

    def inputs(self, image: np.ndarray) -> dict[str, Any]:
        """What the model takes of an image (H, W, 3) uint8 RGB."""
        height, width = image.shape[:2]
        views = [
            to_tensor(step.apply_image(image), self.image_format) for step in self.resizes((height, width))
        ]
        shown = {"views": views} if self.as_views else {"image": views[0]}
        return {**shown, "height": height, "width": width}

    def resizes(self, size: tuple[int, int]) -> list[Resize]:
        """How an image (H, W) is resized, one for each of its views."""
        return [resize_shortest_edge(size, edge, self.max_size) for edge in self.edges]


def build_train_mapper(cfg: Any, metadata: Metadata) -> TrainMapper:
    """The mapper that INPUT.DATASET_MAPPER_NAME names.

    A dataset that tells no ignore label has that of MODEL.SEM_SEG_HEAD.IGNORE_VALUE.
    """
    name = cfg.INPUT.DATASET_MAPPER_NAME
    if name not in MAPPERS:
        raise ValueError(f"INPUT.DATASET_MAPPER_NAME is '{name}'; it can be one of {', '.join(MAPPERS)}")
    reader, augmentations = MAPPERS[name]
    facts = metadata.snapshot()
    facts.ignore_label = facts.get("ignore_label", cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)
    return TrainMapper(
        reader=reader,
        augmentations=augmentations(cfg),
        metadata=facts,
        image_format=_checked_format(cfg.INPUT.FORMAT),
    )


def build_test_mapper(cfg: Any) -> TestMapper:
    """The mapper for evaluation: shortest side INPUT.MIN_SIZE_TEST, longest at most MAX_SIZE_TEST.

    With TEST.AUG it makes a view for each of its MIN_SIZES, of the original image as well.
    """
    augmented = cfg.TEST.AUG.ENABLED
    return TestMapper(
        edges=tuple(cfg.TEST.AUG.MIN_SIZES) if augmented else (cfg.INPUT.MIN_SIZE_TEST,),
        max_size=cfg.TEST.AUG.MAX_SIZE if augmented else cfg.INPUT.MAX_SIZE_TEST,
        image_format=_checked_format(cfg.INPUT.FORMAT),
        as_views=augmented,
    )


def record_image(record: Record) -> np.ndarray:
    """The record's image (H, W, 3) uint8 RGB, upright by its EXIF tag.

    Raises:
        DatasetError: no such file, not an image, or not of the record's height and width.
    """
    if "file_name" not in record:
        raise broken_record(record, f"no 'file_name' among {sorted(record)}")
    path = record["file_name"]
    try:
        image = read_image(path)
    except ImageError as error:
        raise broken_record(record, str(error).removeprefix(f"{path}: ")) from error
    expected = record.get("height", image.shape[0]), record.get("width", image.shape[1])
    if image.shape[:2] != expected:
        raise broken_record(record, f"(height, width) is {image.shape[:2]}, the annotations say {expected}")
    return image


def to_tensor(image: np.ndarray, image_format: str) -> Tensor:
    """(h, w, 3) uint8 RGB -> (3, h, w) uint8 in the order of `image_format`."""
    channels_first = image[..., CHANNEL_ORDER[image_format]].transpose(2, 0, 1)
    return torch.from_numpy(np.require(channels_first, requirements=["C", "W"]))


def visible_instances(scene: Scene) -> Instances:
    """The segments of which the scene shows at least one pixel."""
    which, masks = scene.segments.visible(scene.view)
    classes = torch.from_numpy(scene.segments.classes[which])
    return Instances(scene.size, gt_classes=classes, gt_masks=torch.from_numpy(masks))


def _checked_format(image_format: str) -> str:
    if image_format not in CHANNEL_ORDER:
        raise ValueError(f"INPUT.FORMAT is '{image_format}'; it can be one of {', '.join(CHANNEL_ORDER)}")
    return image_format
