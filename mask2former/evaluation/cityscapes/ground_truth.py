"""What Cityscapes' metrics share: the table of labels, the images of instance ids, and how files are found.

A pixel of an instance image holds the id of a label, or that id * 1000 + a number for one object of it.
Where a label that has objects stands alone, it is a group of them that nobody separated.

Shapes: `H, W` the image's sides in pixels, `I` ids that occur in it.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mask2former.evaluation.common.json_files import require, unique_by
from mask2former.evaluation.common.metadata import required_attribute
from mask2former.utils.cityscapes_labels import INSTANCES_PER_LABEL, label_ids_of, label_table
from mask2former.utils.label_maps import Array, read_label_map
from mask2former.utils.storage import PathLike, files_below

logger = logging.getLogger(__name__)

TRUTH_ENDING = "_instanceIds.png"


@dataclass(frozen=True)
class Label:
    """A row of Cityscapes' table of labels."""

    id: int
    name: str
    category: str
    has_objects: bool
    is_ignored: bool


Labels = dict[int, Label]  # by id


@dataclass(frozen=True)
class InstanceMap:
    """An image of instance ids: its pixels (H, W), the ids in it (I,) in order, and their labels (I,)."""

    pixels: Array
    ids: Array
    labels: Array
    file: PathLike

    @property
    def is_object(self) -> Array:
        """(I,) bool: whether it is one object."""
        return self.ids >= INSTANCES_PER_LABEL

    @cached_property
    def areas(self) -> Array:
        """(I,) pixels."""
        return np.bincount(self.pixels.ravel())[self.ids]

    def places(self) -> Array:
        """(H, W): the place in `ids` of each pixel's id."""
        table = np.zeros(self.ids[-1] + 1, np.int64)
        table[self.ids] = np.arange(len(self.ids))
        return table[self.pixels]


def read_labels(records: Sequence[Mapping[str, Any]], where: object) -> Labels:
    """The labels by id; those below 0 are left out, as no image holds them.

    Raises:
        ValueError: a record lacks a key, or two have the same id.
    """
    keys = ("id", "name", "category", "hasInstances", "ignoreInEval")
    labels = (Label(*(require(record, key, where) for key in keys)) for record in records)
    unique_by(list(records), "id", where)
    return {label.id: label for label in labels if label.id >= 0}


def labels_of(metadata: Any) -> Labels:
    """The labels that a data set's metadata tells."""
    name = getattr(metadata, "name", "?")
    return read_labels(required_attribute(metadata, "labels"), f"metadata of '{name}': labels")


def published_labels() -> Labels:
    """Cityscapes' own labels, for files without metadata."""
    return read_labels(label_table(), "Cityscapes' label table")


def object_labels(labels: Labels) -> list[Label]:
    """Those whose objects are evaluated."""
    return [label for label in labels.values() if label.has_objects and not label.is_ignored]


def read_instance_map(path: PathLike, labels: Labels) -> InstanceMap:
    """The instance ids of an image.

    Raises:
        ValueError: no readable image, or an id whose label is unknown or has no objects.
    """
    pixels = read_label_map(path)
    ids = np.flatnonzero(np.bincount(pixels.ravel()))
    label_ids = label_ids_of(ids)
    for id, label in zip(ids.tolist(), label_ids.tolist(), strict=True):
        if label not in labels:
            raise ValueError(f"{path}: instance id {id} is of label {label}, which is unknown")
        if id >= INSTANCES_PER_LABEL and not labels[label].has_objects:
            raise ValueError(
                f"{path}: instance id {id} is an object of '{labels[label].name}', which has none"
            )
    return InstanceMap(pixels, ids, label_ids, path)


def truth_of(record: Mapping[str, Any], labels: Labels, *, needed: bool) -> InstanceMap | None:
    """The instance ids of a dataset dict's image; None where it tells no file and none is needed.

    Raises:
        ValueError: it tells none, or one that is missing or broken.
    """
    if not needed and "instance_ids_file_name" not in record:
        return None
    file = require(record, "instance_ids_file_name", f"image {record.get('image_id')}")
    return read_instance_map(file, labels)


def tell_unscored(scored: int, unscored: int) -> None:
    """A warning where images without a ground truth were saved only."""
    if unscored:
        logger.warning("%d of %d images have no ground truth: saved, not scored", unscored, scored + unscored)


def check_size(pred: Sequence[int], truth: InstanceMap, where: object) -> None:
    """A ValueError unless a prediction (H, W) has the size of the truth."""
    if tuple(pred) != truth.pixels.shape:
        raise ValueError(
            f"{where}: the prediction is {tuple(pred)} pixels, {truth.file} {truth.pixels.shape}"
        )


def truth_files(folder: PathLike) -> dict[str, Path]:
    """The instance images at any depth below a folder, by the image's id `<city>_<sequence>_<frame>`.

    Raises:
        ValueError: there is none, or two of one image.
    """
    files: dict[str, Path] = {}
    for path in _files_ending(folder, TRUTH_ENDING):
        image_id = path.name.removesuffix(TRUTH_ENDING).rpartition("_")[0]  # less "_gtFine" or "_gtCoarse"
        if image_id in files:
            raise ValueError(f"{path} and {files[image_id]} are of the same image")
        files[image_id] = path
    if not files:
        raise ValueError(f"{folder}: no files *{TRUTH_ENDING}")
    return files


def prediction_files(folder: PathLike, image_ids: Iterable[str], suffix: str) -> dict[str, Path]:
    """The one file `<image id>*<suffix>` of each image, at any depth below a folder.

    Raises:
        ValueError: an image has none, or several.
    """
    files = _files_ending(folder, suffix)
    found: dict[str, Path] = {}
    for image_id in image_ids:
        own = [path for path in files if path.name.startswith(image_id)]
        if len(own) != 1:
            several = f"several files, {own[0]} and {own[1]}" if own else "no file"
            raise ValueError(f"{folder}: {several} of the name {image_id}*{suffix}")
        found[image_id] = own[0]
    return found


def _files_ending(folder: PathLike, ending: str) -> list[Path]:
    files = files_below(folder, {"." + ending.rpartition(".")[2]})
    return sorted(path for path in files if path.name.endswith(ending))
