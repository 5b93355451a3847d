"""Semantic datasets: a folder of images, and a folder of label PNGs with the same names."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping
from functools import partial

from mask2former.data.catalog import Metadata, Record
from mask2former.data.datasets.files import require_path
from mask2former.data.datasets.registration import Facts, register
from mask2former.data.errors import DatasetError, examples
from mask2former.data.load_context import LoadContext
from mask2former.utils.image_io import EXTENSIONS
from mask2former.utils.label_maps import IGNORE_LABEL
from mask2former.utils.storage import PathLike, contents_of, files_below, only_alike, to_path

logger = logging.getLogger(__name__)
MASK = "_mask"  # end of the names of labels that lie beside their images
LABEL_EXTENSIONS = (".png", ".tif", ".tiff")  # formats that keep every value
SEMANTIC_FACTS: Facts = {"evaluator_type": "sem_seg", "ignore_label": IGNORE_LABEL}


def register_semantic(
    name: str,
    metadata: Facts,
    image_root: PathLike,
    label_root: PathLike,
    label_ids: Mapping[int, int] | None = None,
    *,
    load: Callable[..., list[Record]] | None = None,
) -> None:
    """Register a folder of images and a folder of label PNGs as `name`.

    An image and its label PNG have the same path below their folders, except for the suffix. Images without
    labels are left out with a warning; labels without an image are an error. In one folder for both, labels
    are called as their image with `_mask` added.

    Args:
        name: the new dataset.
        metadata: further facts: `stuff_classes`, the names in the order of contiguous ids; optionally
            `stuff_colors` and `ignore_label` (default: 255).
        image_root: images, also in folders below it.
        label_root: PNGs or TIFFs of up to 16 bits: gray values or indices of a palette.
        label_ids: value -> contiguous id or ignore label; None: the values are contiguous ids.
        load: reads the records; the default is `load_semantic`.
    """
    read = partial(load or load_semantic, label_ids=label_ids)
    roots = {"image_root": str(image_root), "sem_seg_root": str(label_root)}
    facts = {**roots, **SEMANTIC_FACTS, **metadata}
    register(name, facts, lambda context: {}, read)


def load_semantic(
    metadata: Metadata, context: LoadContext, label_ids: Mapping[int, int] | None = None
) -> list[Record]:
    """Return the records of `image_root` and `sem_seg_root`, sorted by name; `image_id` is the name.

    Raises:
        DatasetError: a folder is missing, two files share a name, labels have no image, or nothing is left.
    """
    labels = find_labels(metadata.image_root, metadata.sem_seg_root)  # first: a script may have to make them
    images = files_by_name(metadata.image_root, EXTENSIONS)
    if is_same_folder(metadata.image_root, metadata.sem_seg_root):
        images = {name: file for name, file in images.items() if not name.endswith(MASK)}
    labels = _named_as_images(labels, images, metadata.sem_seg_root)
    names = paired_names(images, labels, metadata.image_root, metadata.sem_seg_root, context)
    table = {} if label_ids is None else {"sem_seg_label_ids": dict(label_ids)}
    return [
        {"file_name": images[name], "image_id": name, "sem_seg_file_name": labels[name], **table}
        for name in names
    ]


def _named_as_images(labels: dict[str, str], images: Collection[str], label_root: PathLike) -> dict[str, str]:
    """Return the labels under the names of their images, from which they may differ in letter case.

    Warns of those that do. A name that several images or labels may mean stays as it is.
    """
    lone = [name for name in labels if name not in images]
    renamed = only_alike(lone, (name for name in images if name not in labels) if lone else ())
    if renamed:
        pairs = examples([f"{name} = {image}" for name, image in renamed.items()])
        message = "%s: %d label files are taken for those of images of another letter case: %s"
        logger.warning(message, label_root, len(renamed), pairs)
    return {renamed.get(name, name): file for name, file in labels.items()}


def find_labels(image_root: PathLike, label_root: PathLike) -> dict[str, str]:
    """Return the label files, sorted: path below `label_root` without suffix -> whole path.

    In a folder of both images and labels, the label of `x.jpg` is `x_mask.png`, as Roboflow exports it.

    Raises:
        DatasetError: the folder is missing, two files have the same name, or images are given as labels.
    """
    labels = files_by_name(label_root, LABEL_EXTENSIONS)
    if not is_same_folder(image_root, label_root):
        return labels
    masks = {name.removesuffix(MASK): file for name, file in labels.items() if name.endswith(MASK)}
    if not masks:
        what = f"is the folder of both images and labels, but no PNG's name ends with {MASK}"
        raise DatasetError(f"{label_root}: {what}; give labels in a folder of their own")
    return dict(sorted(masks.items()))


def is_same_folder(first: PathLike, second: PathLike) -> bool:
    """Return True if both paths lead to one folder."""
    return os.path.realpath(to_path(first)) == os.path.realpath(to_path(second))


def files_by_name(root: PathLike, extensions: Collection[str]) -> dict[str, str]:
    """Return the files at any depth below `root`, sorted: path below it without suffix -> whole path.

    Raises:
        DatasetError: the folder is missing, or two files have the same name.
    """
    found: dict[str, str] = {}
    folder = require_path(root)
    for path in files_below(folder, extensions):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise DatasetError(f"{found[name]} and {path} have the same name")
        found[name] = str(path)
    return dict(sorted(found.items()))


def paired_names(
    images: Collection[str], labels: Collection[str], image_root: str, label_root: str, context: LoadContext
) -> list[str]:
    """Return the names that have both an image and labels. Warn of images without labels.

    Raises:
        DatasetError: there are no images or no labels, or labels without an image.
    """
    for root, names, what in ((image_root, images, "images"), (label_root, labels, "label files")):
        if not names:
            raise DatasetError(f"{root}: there are no {what}; {contents_of(root)}")
    if unpaired := [name for name in labels if name not in images]:
        what = f"{len(unpaired)} of {len(labels)} label files have no image in {image_root}"
        there = f"(one that is there: {next(iter(images))})"
        context.report(DatasetError(f"{label_root}: {what}: {examples(unpaired)} {there}"))
    if unlabeled := [name for name in images if name not in labels]:
        counts = f"{len(unlabeled)} of {len(images)} images"
        message = "%s: left out %s, which have no labels in %s: %s"
        logger.warning(message, image_root, counts, label_root, examples(unlabeled))
    return [name for name in images if name in labels]
