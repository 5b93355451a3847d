"""Copy-paste augmentation: objects of another training image, the donor, are pasted onto an augmented image.

The donor is augmented as any sample, and a random number of its objects is taken, without blending. Pixels
that they cover are lost to the segments below; what is covered entirely is gone. Pixels without a label stay
so where nothing covers them. There are two ways to place an object:

- where it is in its own image ("Simple Copy-Paste", Ghiasi et al., CVPR 2021);
- several times, at random places where it covers no other object, which multiplies small objects
  ("Augmentation for small object detection", Kisantal et al., 2019; without their scaling and rotation).

An object is pasted as it is seen in its own image: what others hide of it, or the border cuts off, is
missing. Padding of an image can be covered like all else.

Cost: a sample with a donor reads and augments a second image, and its masks are allocated anew. Processor
time of the mapper: 7 ms instead of 3 on `scenes` at 192 pixels; on COCO at 1024, 63 instead of 14 for
panoptic samples of 30 segments, 30 instead of 9 for instances.

Shapes: `N` segments of the image, `M` objects to paste; `H, W` the sides of the augmented donor, `h, w` of
the augmented image, `b, d` of a cutout, in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from mask2former.data.augmentation import Rng
from mask2former.data.catalog import Metadata, Record
from mask2former.data.ground_truth.readers import Reader, read_instances, read_panoptic
from mask2former.data.mapper import MAPPERS, READERS, TrainMapper
from mask2former.structures import Instances

KEY = "INPUT.COPY_PASTE"
STREAM = 1  # with the seed, of the random numbers drawn here; the mapper's own come from the seed alone
ATTEMPTS = 10  # places drawn for a copy before it is left out
THINGS: dict[Reader, Callable[[Metadata], Iterable[int]]] = {  # classes whose segments are objects
    read_instances: lambda metadata: range(len(metadata.thing_classes)),
    read_panoptic: lambda metadata: metadata.get("thing_dataset_id_to_contiguous_id", {}).values(),
}
# Of SOLVER.TASKS: merged masks of a class have no objects
DONOR_READERS: dict[str, Reader] = {**READERS, "semantic": read_panoptic}


class Cutout(NamedTuple):
    """The bounding box of an object, and where it is in an image.

    Attributes:
        label: class.
        pixels: (3, b, d) uint8.
        mask: (b, d) bool, which of the pixels are the object's.
        top: row of the image.
        left: column of the image.
    """

    label: int
    pixels: Tensor
    mask: Tensor
    top: int
    left: int

    def box_of(self, images: Tensor) -> Tensor:
        """Return a view of what the box covers in `images` (n, h, w): (n, b, d), or less at the border."""
        height, width = self.mask.shape
        return images[:, self.top : self.top + height, self.left : self.left + width]


@dataclass(frozen=True, kw_only=True)
class CopyPaste:
    """The samples of a mapper, some of them with objects of other samples pasted on.

    A sample's seed decides everything about it: whether there is a donor, which, and how that is augmented.
    A donor has the targets of the sample's task; for semantic ones it has panoptic segments, and what is
    pasted joins the mask of its class.

    Args:
        mapper: maps the record and the donor.
        records: what donors are drawn from, each record with the same probability.
        things: the classes (n,) whose segments are objects.
        probability: share of the samples that get a donor.
        max_size: square root of the area, in pixels of the augmented donor, of the largest objects that are
            pasted; 0 takes all.
        copies: how often each is pasted at random places; 0 pastes it once, where it is in its own image.
        most: segments of a sample up to which objects are added, the number of the model's queries.
    """

    mapper: TrainMapper
    records: Sequence[Record]
    things: Tensor
    probability: float
    max_size: float
    copies: int
    most: int

    def __call__(self, record: Record, seed: int) -> dict[str, Any]:
        """Return the sample of the mapper for `seed`, perhaps with pasted objects.

        Raises:
            DatasetError: the record or its donor is broken; the message names the file of that one.
        """
        sample = self.mapper(record, seed)
        rng = np.random.default_rng([seed, STREAM])
        if rng.random() >= self.probability:
            return sample
        reader = DONOR_READERS.get(sample.get("task", ""), self.mapper.reader)
        other = self.records[int(rng.integers(len(self.records)))]
        donor = replace(self.mapper, reader=reader, draw_task=None)(other, int(rng.integers(2**63)))
        objects = draw_objects(donor["image"], donor["instances"], self.things, self.max_size, rng)
        room = max(0, self.most - len(sample["instances"]))
        instances = sample["instances"]
        if self.copies:
            things = torch.isin(instances.gt_classes, self.things).nonzero()[:, 0].tolist()
            occupied = union((instances.gt_masks[index] for index in things), instances.image_size)
            objects = at_random_places(objects * self.copies, occupied, room, rng)
        image, instances = paste(objects[:room], sample["image"], instances)
        if sample.get("task") == "semantic":
            instances = merged_by_class(instances)
        return {**sample, "image": image, "instances": instances}


def union(masks: Iterable[Tensor], size: tuple[int, int]) -> Tensor:
    """Return where any of the masks (h, w) is; in turns, which is far faster than `torch.any`."""
    covered = torch.zeros(size, dtype=torch.bool)
    for mask in masks:
        covered |= mask
    return covered


def draw_objects(
    image: Tensor, instances: Instances, things: Tensor, max_size: float, rng: Rng
) -> list[Cutout]:
    """Return a random number of objects of at most `max_size` in random order, at least one if any.

    Args:
        image: (3, H, W) uint8.
        instances: with gt_classes (N,) and gt_masks (N, H, W) bool.
        things: classes (n,) of objects.
        max_size: square root of an area in pixels; 0 takes all.
        rng: draws the number, and which.
    """
    fits = torch.isin(instances.gt_classes, things).numpy()
    if max_size:
        areas = [np.count_nonzero(mask) for mask in instances.gt_masks.numpy()]
        fits &= np.array(areas) <= max_size**2
    candidates = rng.permutation(np.flatnonzero(fits))
    count = rng.integers(min(1, len(candidates)), len(candidates), endpoint=True)
    return [
        cut_out(image, int(instances.gt_classes[index]), instances.gt_masks[index])
        for index in candidates[:count].tolist()
    ]


def cut_out(image: Tensor, label: int, mask: Tensor) -> Cutout:
    """Return the bounding box of an object of class `label`, which has the pixels of `mask` (H, W) bool."""
    left, top, width, height = cv2.boundingRect(mask.numpy().view(np.uint8))
    box = slice(top, top + height), slice(left, left + width)
    return Cutout(label, image[:, box[0], box[1]], mask[box], top, left)


def at_random_places(objects: Sequence[Cutout], occupied: Tensor, room: int, rng: Rng) -> list[Cutout]:
    """Return the first `room` objects that find a place where they cover neither others nor `occupied`.

    Args:
        objects: each is tried at up to `ATTEMPTS` places, all of them inside the image.
        occupied: (h, w) bool.
        room: the most objects.
        rng: draws the places.
    """
    placed: list[Cutout] = []
    taken = occupied.clone()
    for one in objects:
        rows, cols = (whole - side for whole, side in zip(taken.shape, one.mask.shape, strict=True))
        for _ in range(ATTEMPTS if min(rows, cols) >= 0 and len(placed) < room else 0):
            moved = one._replace(
                top=int(rng.integers(rows, endpoint=True)), left=int(rng.integers(cols, endpoint=True))
            )
            below = moved.box_of(taken[None])[0]
            if not (below & one.mask).any():
                below |= one.mask
                placed.append(moved)
                break
    return placed


def paste(objects: Sequence[Cutout], image: Tensor, instances: Instances) -> tuple[Tensor, Instances]:
    """Return an image (3, h, w) with objects on it, and what can be seen of its instances and the objects.

    Segments of the image lose the covered pixels, and are left out if none remains. Objects do not cover each
    other: where they overlap, they share pixels as they did in their own image. What is beyond the border is
    cut off.
    """
    below, size = len(instances), instances.image_size
    image = image.clone()
    masks = torch.zeros(below + len(objects), *size, dtype=torch.bool)
    masks[:below] = instances.gt_masks
    for number, one in enumerate(objects, start=below):
        box = one.box_of(masks)
        shape = one.mask[: box.shape[1], : box.shape[2]]
        box[:below] &= ~shape
        box[number] = shape
        pixels = one.pixels[:, : box.shape[1], : box.shape[2]]
        one.box_of(image)[:, shape] = pixels[:, shape]
    labels = instances.gt_classes.new_tensor([one.label for one in objects])
    classes = torch.cat([instances.gt_classes, labels])
    visible = np.array([mask.any() for mask in masks.numpy()], bool)
    pasted = Instances(size, gt_classes=classes, gt_masks=masks)
    return image, pasted if visible.all() else pasted[visible]


def merged_by_class(instances: Instances) -> Instances:
    """Return one instance for each class, in order: the union of its masks."""
    classes, size = instances.gt_classes.unique(), instances.image_size
    masks = torch.zeros(len(classes), *size, dtype=torch.bool)
    for row, mask in zip(torch.searchsorted(classes, instances.gt_classes), instances.gt_masks, strict=True):
        masks[row] |= mask
    return Instances(size, gt_classes=classes, gt_masks=masks)


def with_copy_paste(cfg: Any, mapper: Any, records: Sequence[Record]) -> Any:
    """Return a training mapper that pastes as `INPUT.COPY_PASTE` says; the same mapper if that is off.

    Raises:
        ValueError: it is on, but samples are clips of videos or have no separate objects, or no class of the
            dataset is a thing.
    """
    options, name = cfg.INPUT.COPY_PASTE, cfg.INPUT.DATASET_MAPPER_NAME
    if not options.PROBABILITY:
        return mapper
    if not isinstance(mapper, TrainMapper):
        raise ValueError(f"{KEY} is for images, and DATASETS.TRAIN holds videos; set {KEY}.PROBABILITY to 0")
    fitting = [key for key, recipe in MAPPERS.items() if recipe.reader in THINGS and not recipe.keep_empty]
    if name not in fitting:
        raise ValueError(
            f"{KEY} needs one of {', '.join(fitting)} as INPUT.DATASET_MAPPER_NAME, not {name}; else set "
            f"{KEY}.PROBABILITY to 0"
        )
    things = sorted({*THINGS[mapper.reader](mapper.metadata)})
    if not things:
        raise ValueError(f"{KEY} pastes things, but dataset '{mapper.metadata.name}' has none")
    return CopyPaste(
        mapper=mapper,
        records=records,
        things=torch.tensor(things),
        probability=options.PROBABILITY,
        max_size=options.MAX_SIZE,
        copies=options.COPIES,
        most=cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES,
    )
