"""Cityscapes' labels, and the ground truth by which its metrics are measured: images of instance ids.

A pixel of an instance image holds `label id * 1000 + number` if it belongs to a single object. It holds the
label id alone for stuff, and for a group of objects that were not annotated one by one.

Shapes: `H, W` the image's sides in pixels, `I` instance ids of an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mask2former.utils.cityscapes_labels import INSTANCES_PER_LABEL, label_ids_of, label_table
from mask2former.utils.label_maps import Array, read_label_map
from mask2former.utils.storage import PathLike

LABELS = {row["id"]: row for row in label_table() if row["id"] >= 0}  # no image holds a negative id
EVALUATED = [id for id, row in LABELS.items() if not row["ignoreInEval"]]
THINGS = [id for id in EVALUATED if LABELS[id]["hasInstances"]]


@dataclass(frozen=True)
class InstanceMap:
    """Image of instance ids: its pixels (H, W), its ids in order (I,), and their labels (I,)."""

    pixels: Array
    ids: Array
    labels: Array
    file: PathLike

    @property
    def is_object(self) -> Array:
        """Return (I,) bool: True for a single object."""
        return self.ids >= INSTANCES_PER_LABEL

    @cached_property
    def areas(self) -> Array:
        """Return (I,) pixels."""
        return np.bincount(self.pixels.ravel())[self.ids]


def read_instance_map(path: PathLike) -> InstanceMap:
    """Read an image of instance ids.

    Raises:
        ValueError: no readable image, or an id whose label is unknown or has no objects.
    """
    pixels = read_label_map(path)
    ids = np.flatnonzero(np.bincount(pixels.ravel()))
    label_ids = label_ids_of(ids)
    for id, label in zip(ids.tolist(), label_ids.tolist(), strict=True):
        if label not in LABELS:
            raise ValueError(f"{path}: instance id {id} is of label {label}, which is unknown")
        if id >= INSTANCES_PER_LABEL and not LABELS[label]["hasInstances"]:
            raise ValueError(
                f"{path}: instance id {id} is an object of '{LABELS[label]['name']}', which has none"
            )
    return InstanceMap(pixels, ids, label_ids, path)


def check_size(pred: Sequence[int], truth: InstanceMap, where: object) -> None:
    """Raise ValueError unless a prediction (H, W) has the size of the ground truth."""
    if tuple(pred) != truth.pixels.shape:
        raise ValueError(
            f"{where}: the prediction is {tuple(pred)} pixels, {truth.file} {truth.pixels.shape}"
        )
