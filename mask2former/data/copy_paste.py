"""Copy-paste augmentation: objects of another training image, the donor, are pasted onto an augmented image.

The donor is augmented as any sample, and a random number of its objects is taken, without blending. Pixels
that they cover are lost to the segments below; what is covered entirely is gone. Pixels without a label stay
so where nothing covers them. There are two ways to place an object:

- where it is in its own image ("Simple Copy-Paste", Ghiasi et al., CVPR 2021);
- several times, at random places where it covers no other object, which multiplies small objects
  ("Augmentation for small object detection", Kisantal et al., 2019; without their scaling and rotation).

An object is pasted as it is seen in its own image: what others hide of it, or the border cuts off, is
missing. Padding of an image can be covered like all else.

Cost: a sample with pasted objects reads and augments a second image, which doubles the mapper's time.

Shapes: `N` segments of the image, `M` objects to paste; `H, W` the sides of the augmented donor, `h, w` of
the augmented image, `b, d` of a cutout, in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mask2former.data.augmentation import Rng
from mask2former.data.catalog import Metadata, Record
from mask2former.data.ground_truth.readers import Reader, read_instances, read_panoptic
from mask2former.data.mapper import MAPPERS, TrainMapper
from mask2former.structures import Instances

KEY = "INPUT.COPY_PASTE"
STREAM = 1  # with the seed, of the random numbers drawn here; the mapper's own come from the seed alone
ATTEMPTS = 10  # places drawn for a copy before it is left out
THINGS: dict[Reader, Callable[[Metadata], Iterable[int]]] = {  # classes whose segments are objects
    read_instances: lambda metadata: range(len(metadata.thing_classes)),
    read_panoptic: lambda metadata: metadata.get("thing_dataset_id_to_contiguous_id", {}).values(),
}


class Segments(NamedTuple):
    """An image (3, h, w) uint8, and the classes (N,) and masks (N, h, w) bool of segments in it."""

    image: Tensor
    classes: Tensor
    masks: Tensor

    @classmethod
    def of(cls, sample: dict[str, Any]) -> Segments:
        """Return the image and the segments of a sample."""
        return cls(sample["image"], sample["instances"].gt_classes, sample["instances"].gt_masks)

    @property
    def size(self) -> tuple[int, int]:
        """Return (h, w) in pixels."""
        return self.image.shape[1], self.image.shape[2]

    def select(self, index: Any) -> Segments:
        """Return the segments at `index`, in the same image."""
        return Segments(self.image, self.classes[index], self.masks[index])


class Cutout(NamedTuple):
    """The bounding box of an object: its class, pixels (3, b, d), and which of them it covers (b, d) bool."""

    label: int
    pixels: Tensor
    mask: Tensor


@dataclass(frozen=True, kw_only=True)
class CopyPaste:
    """The samples of a mapper, some of them with objects of other samples pasted on.

    A sample's seed decides everything about it: whether there is a donor, which, and how that is augmented.

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
        other = self.records[int(rng.integers(len(self.records)))]
        donor = self.mapper(other, int(rng.integers(2**63)))
        target = Segments.of(sample)
        pasted = paste(self._objects(Segments.of(donor), target, rng), target)
        instances = Instances(target.size, gt_classes=pasted.classes, gt_masks=pasted.masks)
        return {**sample, "image": pasted.image, "instances": instances}

    def _objects(self, donor: Segments, target: Segments, rng: Rng) -> Segments:
        """Return what to paste, in an image of the target's size."""
        objects = draw_objects(donor, self.things, self.max_size, rng)
        room = max(0, self.most - len(target.classes))
        if not self.copies:
            return at_own_places(objects.select(slice(room)), target.size)
        occupied = target.masks[torch.isin(target.classes, self.things)].any(0)
        return at_random_places(objects, self.copies, occupied, room, rng)


def draw_objects(donor: Segments, things: Tensor, max_size: float, rng: Rng) -> Segments:
    """Return a random number of the objects of at most `max_size` in random order, at least one if any."""
    fits = torch.isin(donor.classes, things)
    if max_size:
        fits &= donor.masks.sum((1, 2)) <= max_size**2
    candidates = rng.permutation(fits.nonzero()[:, 0].numpy())
    count = rng.integers(min(1, len(candidates)), len(candidates), endpoint=True)
    return donor.select(torch.from_numpy(candidates[:count]))


def at_own_places(objects: Segments, size: tuple[int, int]) -> Segments:
    """Return the objects in an image cropped or padded at the bottom and right to `size` (h, w)."""
    height, width = objects.size
    change = (0, size[1] - width, 0, size[0] - height)
    return Segments(F.pad(objects.image, change), objects.classes, F.pad(objects.masks, change))


def at_random_places(objects: Segments, copies: int, occupied: Tensor, room: int, rng: Rng) -> Segments:
    """Return each object `copies` times, or as often as there is a place, in an image of `occupied`'s size.

    Args:
        occupied: (h, w) bool, pixels that no copy may cover; copies do not cover each other either.
        room: the most copies of all objects together.
    """
    image = objects.image.new_zeros(3, *occupied.shape)
    masks: list[Tensor] = []
    labels: list[int] = []
    occupied = occupied.clone()
    cutouts = [cut_out(objects, number) for number in range(len(objects.classes))]
    for label, pixels, shape in cutouts * copies:
        place = free_place(shape, occupied, rng) if len(masks) < room else None
        if place:
            rows, cols = place
            masks.append(torch.zeros_like(occupied))
            masks[-1][place] = shape
            labels.append(label)
            image[:, rows, cols][:, shape] = pixels[:, shape]
            occupied[place] |= shape
    stacked = torch.stack(masks) if masks else occupied.new_zeros(0, *occupied.shape)
    return Segments(image, objects.classes.new_tensor(labels), stacked)


def cut_out(objects: Segments, number: int) -> Cutout:
    """Return the bounding box of an object."""
    mask = objects.masks[number]
    rows, cols = (mask.any(axis).nonzero()[[0, -1], 0].tolist() for axis in (1, 0))
    box = slice(rows[0], rows[1] + 1), slice(cols[0], cols[1] + 1)
    return Cutout(int(objects.classes[number]), objects.image[:, box[0], box[1]], mask[box])


def free_place(mask: Tensor, occupied: Tensor, rng: Rng) -> tuple[slice, slice] | None:
    """Draw the rows and columns of a mask (b, d) so that it covers nothing of `occupied` (h, w).

    None if it does not fit into the image, or if all places drawn are occupied.
    """
    (height, width), sides = mask.shape, occupied.shape
    if height > sides[0] or width > sides[1]:
        return None
    for _ in range(ATTEMPTS):
        top, left = (int(rng.integers(room, endpoint=True)) for room in (sides[0] - height, sides[1] - width))
        place = slice(top, top + height), slice(left, left + width)
        if not (occupied[place] & mask).any():
            return place
    return None


def paste(objects: Segments, target: Segments) -> Segments:
    """Return the target with objects of an image of its size (h, w) pasted onto it.

    Segments of the target lose the covered pixels. Objects do not cover each other: where they overlap, they
    share pixels as they did in their own image. Segments without a pixel are left out.
    """
    covered = objects.masks.any(0)
    image = torch.where(covered, objects.image, target.image)
    masks = torch.cat([target.masks & ~covered, objects.masks])
    classes = torch.cat([target.classes, objects.classes])
    return Segments(image, classes, masks).select(masks.flatten(1).any(1))


def with_copy_paste(cfg: Any, mapper: Any, records: Sequence[Record]) -> Any:
    """Return a training mapper that pastes as `INPUT.COPY_PASTE` says; the same mapper if that is off.

    Raises:
        ValueError: it is on, but samples are clips of videos, have no separate objects or draw a task, or no
            class of the dataset is a thing.
    """
    options, name = cfg.INPUT.COPY_PASTE, cfg.INPUT.DATASET_MAPPER_NAME
    if not options.PROBABILITY:
        return mapper
    if not isinstance(mapper, TrainMapper):
        raise ValueError(f"{KEY} is for images, and DATASETS.TRAIN holds videos; set {KEY}.PROBABILITY to 0")
    if mapper.draw_task is not None:
        raise ValueError(
            f"{KEY} pastes segments of one kind; set {KEY}.PROBABILITY to 0, or SOLVER.TASKS to ()"
        )
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
