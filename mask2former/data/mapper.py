"""Mappers from a record of any dataset to the input of the model.

INPUT.DATASET_MAPPER_NAME has the published names, and "semantic_lsj"; each stands for a reader of ground
truth and a list of augmentations. Everything else is common to all of them.

Shapes: `N` segments left after augmentation, `H, W` the original image's sides, `h, w` the new one's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mask2former.data.augmentation import Augmentation, Resize, Scene, augment, choice, resize_shortest_edge
from mask2former.data.augmentation_recipes import large_scale_jitter, shortest_edge_crop, zoom_and_crop
from mask2former.data.catalog import Metadata, Record
from mask2former.data.errors import broken_record, wrong_size
from mask2former.data.ground_truth.geometry import Geometry
from mask2former.data.ground_truth.readers import (
    Reader,
    read_instances,
    read_panoptic,
    read_semantic,
    read_things,
)
from mask2former.data.tasks import TaskDraw, build_task_draw
from mask2former.structures import Instances
from mask2former.utils.image_io import ImageError, read_image
from mask2former.utils.messages import reason


class Recipe(NamedTuple):
    """What a name of INPUT.DATASET_MAPPER_NAME stands for; `keep_empty` is that of `TrainMapper`.

    With `all_tasks` SOLVER.TASKS may choose the reader.
    """

    reader: Reader
    augmentations: Callable[[Any], list[Augmentation]]
    keep_empty: bool = False
    all_tasks: bool = False


MAPPERS = {
    "coco_instance_lsj": Recipe(read_instances, large_scale_jitter),
    "coco_panoptic_lsj": Recipe(read_panoptic, large_scale_jitter, all_tasks=True),
    "detr_panoptic": Recipe(read_panoptic, zoom_and_crop, keep_empty=True),
    "mask_former_instance": Recipe(read_instances, shortest_edge_crop),
    "mask_former_panoptic": Recipe(read_panoptic, shortest_edge_crop, all_tasks=True),
    "mask_former_semantic": Recipe(read_semantic, shortest_edge_crop),
    "semantic_lsj": Recipe(read_semantic, large_scale_jitter),
}
# Targets of SOLVER.TASKS, whose class ids are all those of the panoptic classes. Semantic: one mask for each
# class of things and stuff, crowd regions included, as mIoU is measured. Instance: things alone, from the
# instance annotations where there are any. Panoptic: all segments.
READERS: dict[str, Reader] = {
    "semantic": read_semantic,
    "instance": read_things,
    "panoptic": read_panoptic,
}
CHANNEL_ORDER = {"RGB": slice(None), "BGR": slice(None, None, -1)}


@dataclass(frozen=True, kw_only=True)
class TrainMapper:
    """Maps a record to {"image" (3, h, w) uint8, "instances" with gt_classes, gt_masks (N, h, w) bool, ...}.

    Segments without a pixel in the augmented image are dropped; N may be 0. With `keep_empty` they stay, with
    empty masks. With `draw_task` the sample has the "task" that was drawn, whose reader replaces `reader`.
    While no segment is left, the augmentations are drawn again, at most `redraws` times.
    """

    reader: Reader
    augmentations: Sequence[Augmentation]
    metadata: Metadata
    image_format: str
    keep_empty: bool = False
    draw_task: TaskDraw | None = None
    redraws: int = 0

    def __call__(self, record: Record, seed: int) -> dict[str, Any]:
        """Return the sample augmented by `seed`; it also holds the seed, for the random points of the losses.

        Raises:
            DatasetError: the record is broken; the message names the file, the image id and the value.
        """
        image = record_image(record)
        height, width = image.shape[:2]
        drawn = {} if self.draw_task is None else {"task": self.draw_task(seed)}
        read = READERS[drawn["task"]] if drawn else self.reader
        ground_truth = read(record, self.metadata, (height, width))
        scene = Scene(image, Geometry.identity(height, width), ground_truth)
        scene, instances = self._augment(scene, np.random.default_rng(seed))
        return {
            "file_name": record["file_name"],
            "image_id": record.get("image_id"),  # semantic datasets may have none
            "height": height,
            "width": width,
            "image": to_tensor(scene.image, self.image_format),
            "instances": instances,
            "seed": seed,
            **drawn,
        }

    def _augment(self, original: Scene, rng: np.random.Generator) -> tuple[Scene, Instances]:
        segments = all_instances if self.keep_empty else visible_instances
        scene = augment(original, self.augmentations, rng)
        instances = segments(scene)
        for _ in range(self.redraws):
            if len(instances):
                break
            scene = augment(original, self.augmentations, rng)
            instances = segments(scene)
        return scene, instances


@dataclass(frozen=True, kw_only=True)
class TestMapper:
    """Replaces a record's annotations by "image" (3, h, w) uint8, resized for testing.

    Args:
        edges: lengths of the shorter side in pixels.
        max_size: maximal length of the longer side.
        image_format: the order of the channels.
        as_views: return "views", the image at each of `edges`, instead of "image" at the first.
    """

    __test__ = False  # not a pytest class

    edges: Sequence[int]
    max_size: int
    image_format: str
    as_views: bool = False

    def __call__(self, record: Record) -> dict[str, Any]:
        """Return the sample; `height` and `width` are those of the original image, in pixels."""
        kept = {key: value for key, value in record.items() if key != "annotations"}
        return {**kept, **self.inputs(record_image(record))}

    def inputs(self, image: np.ndarray) -> dict[str, Any]:
        """Return the model's inputs for an image (H, W, 3) uint8 RGB."""
        height, width = image.shape[:2]
        views = [
            to_tensor(step.apply_image(image), self.image_format) for step in self.resizes((height, width))
        ]
        shown = {"views": views} if self.as_views else {"image": views[0]}
        return {**shown, "height": height, "width": width}

    def resizes(self, size: tuple[int, int]) -> list[Resize]:
        """Return the resizing of an image (H, W) for each view."""
        edges = self.edges if self.as_views else self.edges[:1]
        return [resize_shortest_edge(size, edge, self.max_size) for edge in edges]


def build_train_mapper(cfg: Any, metadata: Metadata) -> TrainMapper:
    """Build the mapper that INPUT.DATASET_MAPPER_NAME names.

    The default ignore label of a dataset is MODEL.SEM_SEG_HEAD.IGNORE_VALUE.

    Raises:
        ValueError: a key is wrong, or SOLVER.TASKS are set with a mapper that reads no panoptic annotations.
    """
    name, draw_task = cfg.INPUT.DATASET_MAPPER_NAME, build_task_draw(cfg.SOLVER)
    recipe: Recipe = choice("INPUT.DATASET_MAPPER_NAME", name, MAPPERS)
    if draw_task is not None and not recipe.all_tasks:
        usable = " or ".join(known for known in MAPPERS if MAPPERS[known].all_tasks)
        raise ValueError(
            f"INPUT.DATASET_MAPPER_NAME is {name}, but SOLVER.TASKS need panoptic annotations: "
            f"take {usable}, or set SOLVER.TASKS to ()"
        )
    facts = metadata.snapshot()
    facts.ignore_label = facts.get("ignore_label", cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)
    return TrainMapper(
        reader=recipe.reader,
        augmentations=recipe.augmentations(cfg),
        metadata=facts,
        image_format=image_format_of(cfg),
        keep_empty=recipe.keep_empty,
        draw_task=draw_task,
        redraws=cfg.INPUT.EMPTY_REDRAWS,
    )


def build_test_mapper(cfg: Any) -> TestMapper:
    """Build the mapper for evaluation: shorter side INPUT.MIN_SIZE_TEST, longer at most MAX_SIZE_TEST.

    With TEST.AUG it makes one view for each of MIN_SIZES, with TEST.TILE it keeps the image's size.
    """
    if cfg.TEST.TILE.SIZE:
        return TestMapper(edges=(0,), max_size=cfg.INPUT.MAX_SIZE_TEST, image_format=image_format_of(cfg))
    augmented = cfg.TEST.AUG.ENABLED
    return TestMapper(
        edges=tuple(cfg.TEST.AUG.MIN_SIZES) if augmented else (cfg.INPUT.MIN_SIZE_TEST,),
        max_size=cfg.TEST.AUG.MAX_SIZE if augmented else cfg.INPUT.MAX_SIZE_TEST,
        image_format=image_format_of(cfg),
        as_views=augmented,
    )


def build_tile_mapper(cfg: Any) -> TestMapper:
    """Build the mapper of TEST.TILE's tiles, whose channels are in the model's order already."""
    return TestMapper(edges=(cfg.INPUT.MIN_SIZE_TEST,), max_size=cfg.INPUT.MAX_SIZE_TEST, image_format="RGB")


def record_image(record: Record) -> np.ndarray:
    """Read the record's image (H, W, 3) uint8 RGB, upright by its EXIF tag.

    Raises:
        DatasetError: the file is missing, not an image, or not of the record's height and width.
    """
    if "file_name" not in record:
        raise broken_record(record, f"no 'file_name' among {sorted(record)}")
    path = record["file_name"]
    try:
        image = read_image(path)
    except ImageError as error:
        raise broken_record(record, reason(error, path)) from error
    expected = record.get("height", image.shape[0]), record.get("width", image.shape[1])
    if image.shape[:2] != expected:
        raise wrong_size(record, image.shape[:2], expected)
    return image


def to_tensor(image: np.ndarray, image_format: str) -> Tensor:
    """Convert (h, w, 3) uint8 RGB to (3, h, w) uint8 in the order of `image_format`."""
    channels_first = image[..., CHANNEL_ORDER[image_format]].transpose(2, 0, 1)
    return torch.from_numpy(np.require(channels_first, requirements=["C", "W"]))


def visible_instances(scene: Scene) -> Instances:
    """Return the segments that have at least one pixel in the augmented image."""
    indices, masks = scene.ground_truth.visible(scene.geometry)
    classes = torch.from_numpy(scene.ground_truth.classes[indices])
    return Instances(scene.size, gt_classes=classes, gt_masks=torch.from_numpy(masks))


def all_instances(scene: Scene) -> Instances:
    """Return all segments; the masks of those without a pixel in the augmented image are empty."""
    indices, shown = scene.ground_truth.visible(scene.geometry)
    masks = np.zeros((len(scene.ground_truth.classes), *scene.size), dtype=bool)
    masks[indices] = shown
    classes = torch.from_numpy(scene.ground_truth.classes)
    return Instances(scene.size, gt_classes=classes, gt_masks=torch.from_numpy(masks))


def image_format_of(cfg: Any) -> str:
    """Return the order of the channels, INPUT.FORMAT."""
    choice("INPUT.FORMAT", cfg.INPUT.FORMAT, CHANNEL_ORDER)
    return cfg.INPUT.FORMAT
