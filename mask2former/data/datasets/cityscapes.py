"""Cityscapes, finely annotated: semantic, instance and panoptic.

Classes are the 19 labels that the benchmark evaluates, in the order of train ids. A file of instance ids
holds at each pixel the id of its label, or, of a single object, that id times 1000 plus a number; where it is
missing, it is drawn from the polygons. Of the test set, whose ground truth is withheld, there are images
alone.

Shapes: `H, W` the image's sides in pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from tqdm import tqdm

from mask2former.data.catalog import Metadata, Record
from mask2former.data.datasets.coco import (
    PANOPTIC_FACTS,
    XYWH,
    instance_categories,
    load_panoptic,
    panoptic_categories,
)
from mask2former.data.datasets.files import read_json
from mask2former.data.datasets.registration import Facts, register_below_root
from mask2former.data.datasets.semantic import files_by_name, paired_names
from mask2former.data.errors import DatasetError, each_converted
from mask2former.utils.cityscapes_labels import INSTANCES_PER_LABEL, label_ids_of, label_table
from mask2former.utils.label_maps import IGNORE_LABEL, read_label_map
from mask2former.utils.storage import to_path

SPLITS = ("train", "val", "test")
IMAGE_SUFFIX, TRUTH_SUFFIX = "_leftImg8bit", "_gtFine_"
GROUP = "group"  # what ends the label of several objects that were not told apart
SEMANTIC_TRUTH = {"labelTrainIds": ".png", "labelIds": ".png"}  # kind -> suffix; one of them is enough
INSTANCE_TRUTH = {"instanceIds": ".png", "polygons": ".json"}
SLOW_SECONDS = 5.0  # a progress bar is shown after that


class Frame(NamedTuple):
    """An image and its annotations: `truth` is kind -> file, as "instanceIds" -> "..._instanceIds.png"."""

    image: str
    truth: dict[str, str]


def register_cityscapes() -> None:
    """Cityscapes under its published names."""
    for split in SPLITS:
        paths = {"image_root": f"cityscapes/leftImg8bit/{split}", "gt_dir": f"cityscapes/gtFine/{split}"}
        load: tuple[Callable[[Metadata], list[Record]], ...] = (load_semantic, load_instances)
        if split == "test":
            load = load_images, load_images
        register_below_root(f"cityscapes_fine_sem_seg_{split}", paths, semantic_facts, load[0])
        register_below_root(f"cityscapes_fine_instance_seg_{split}", paths, instance_facts, load[1])
    for split in ("train", "val"):
        paths = {
            "image_root": f"cityscapes/leftImg8bit/{split}",
            "gt_dir": f"cityscapes/gtFine/{split}",
            "panoptic_root": f"cityscapes/gtFine/cityscapes_panoptic_{split}",
            "panoptic_json": f"cityscapes/gtFine/cityscapes_panoptic_{split}.json",
        }
        register_below_root(f"cityscapes_fine_panoptic_{split}", paths, panoptic_facts, load_panoptic_frames)


@functools.cache
def evaluated_labels() -> list[Facts]:
    """The rows of the label table that are classes, in the order of their train ids."""
    rows = [row for row in label_table() if not row["ignoreInEval"]]
    return sorted(rows, key=lambda row: row["trainId"])


@functools.cache
def semantic_facts() -> Facts:
    """19 classes."""
    rows = evaluated_labels()
    return {
        "evaluator_type": "cityscapes_sem_seg",
        "ignore_label": IGNORE_LABEL,
        "stuff_classes": [row["name"] for row in rows],
        "stuff_colors": [row["color"] for row in rows],
        **_label_facts(rows),
    }


@functools.cache
def instance_facts() -> Facts:
    """The 8 things, numbered 0..7."""
    rows = [row for row in evaluated_labels() if row["hasInstances"]]
    return {"evaluator_type": "cityscapes_instance", **instance_categories(rows), **_label_facts(rows)}


@functools.cache
def panoptic_facts() -> Facts:
    """19 classes, the last 8 of them things."""
    rows = [{**row, "isthing": row["hasInstances"]} for row in evaluated_labels()]
    facts = {**PANOPTIC_FACTS, **panoptic_categories(rows), **_label_facts(rows)}
    return {**facts, "evaluator_type": "cityscapes_panoptic_seg"}


def _label_facts(rows: list[Facts]) -> Facts:
    return {"official_label_ids": [row["id"] for row in rows], "labels": label_table()}


@functools.cache
def train_ids() -> dict[int, int]:
    """The contiguous id, or the ignore label, of each value in a file of label ids; -1 is a byte of 255."""
    return {row["id"] % 256: IGNORE_LABEL if row["ignoreInEval"] else row["trainId"] for row in label_table()}


def load_images(metadata: Metadata) -> list[Record]:
    """Records of `image_root` without annotations."""
    frames = [Frame(image, {}) for image in _images(metadata).values()]
    return _records(frames, _frame_record)


def load_semantic(metadata: Metadata) -> list[Record]:
    """Records with label maps: of train ids where they have been made, else of label ids.

    Raises:
        DatasetError: a folder is missing, there is nothing in it, or annotations have no image.
    """
    return _records(
        _frames(metadata, SEMANTIC_TRUTH), lambda frame: {**_frame_record(frame), **_labels(frame)}
    )


def load_instances(metadata: Metadata) -> list[Record]:
    """Records with `annotations`, an RLE each, of the files of instance ids, else of the polygons.

    Raises:
        DatasetError: as `load_semantic`, or a file is broken.
    """
    return _records(_frames(metadata, INSTANCE_TRUTH), _instance_record)


def load_panoptic_frames(metadata: Metadata) -> list[Record]:
    """Panoptic records, with the label maps and the instance ids of the same images.

    Raises:
        DatasetError: as `load_semantic`, or the panoptic JSON names an image that is not there.
    """
    records = load_panoptic(metadata)
    frames = {_image_id(frame): frame for frame in _frames(metadata, SEMANTIC_TRUTH)}

    def complete(record: Record) -> Record:
        frame = frames.get(record["image_id"])
        if frame is None:
            where = f"{metadata.image_root} and {metadata.gt_dir}"
            raise DatasetError(
                f"{metadata.panoptic_json}, image id {record['image_id']!r}: no such image in {where}"
            )
        # The JSON names images in a way of its own: ..._gtFine_leftImg8bit.png, without their folders.
        return {**record, "file_name": frame.image, **_instance_ids(frame), **_labels(frame)}

    return each_converted(complete, records)


def _images(metadata: Metadata) -> dict[str, str]:
    """`<city>/<image id>` -> file."""
    files = files_by_name(metadata.image_root, [".png"])
    images = {name.removesuffix(IMAGE_SUFFIX): file for name, file in files.items()}
    if not images:
        raise DatasetError(f"{metadata.image_root}: there are no images")
    return images


def _frames(metadata: Metadata, kinds: Mapping[str, str]) -> list[Frame]:
    """The images that have annotations of one of `kinds` (kind -> suffix), with all their annotations."""
    images, truth = _images(metadata), dict[str, dict[str, str]]()
    for name, file in files_by_name(metadata.gt_dir, [".png", ".json"]).items():
        frame, _, kind = name.partition(TRUTH_SUFFIX)
        truth.setdefault(frame, {})[kind] = file
    usable = {name: files for name, files in truth.items() if any(kind in files for kind in kinds)}
    if not usable:
        wanted = " or ".join(f"*{TRUTH_SUFFIX}{kind}{suffix}" for kind, suffix in kinds.items())
        raise DatasetError(f"{metadata.gt_dir}: there are no files {wanted}")
    names = paired_names(images, usable, metadata.image_root, metadata.gt_dir)
    return [Frame(images[name], usable[name]) for name in names]


def _records(frames: list[Frame], convert: Callable[[Frame], Record]) -> list[Record]:
    """`convert(frame)` of each, by several threads: decoding images is most of the work."""
    progress = functools.partial(tqdm, desc="reading Cityscapes", unit="image", delay=SLOW_SECONDS)
    with ThreadPoolExecutor() as pool:
        return each_converted(
            convert, frames, lambda one, items: progress(pool.map(one, items), total=len(frames))
        )


def _image_id(frame: Frame) -> str:
    return Path(frame.image).stem.removesuffix(IMAGE_SUFFIX)


def _frame_record(frame: Frame) -> Record:
    try:
        with to_path(frame.image).open("rb") as file, Image.open(file) as image:
            width, height = image.size
    except OSError as error:
        raise DatasetError(f"{frame.image}: not a readable image ({error})") from error
    return {
        "file_name": frame.image,
        "image_id": _image_id(frame),
        "height": height,
        "width": width,
        **_instance_ids(frame),
    }


def _instance_ids(frame: Frame) -> Record:
    return {"instance_ids_file_name": frame.truth["instanceIds"]} if "instanceIds" in frame.truth else {}


def _labels(frame: Frame) -> Record:
    if "labelTrainIds" in frame.truth:
        return {"sem_seg_file_name": frame.truth["labelTrainIds"]}
    return {"sem_seg_file_name": frame.truth["labelIds"], "sem_seg_label_ids": train_ids()}


def _instance_record(frame: Frame) -> Record:
    read = _instances_of_ids if "instanceIds" in frame.truth else _instances_of_polygons
    return {**_frame_record(frame), "annotations": read(frame.truth)}


def _instances_of_ids(truth: dict[str, str]) -> list[Facts]:
    file = truth["instanceIds"]
    try:
        return annotations_of(read_label_map(file))
    except ValueError as error:
        raise DatasetError(f"{file}: {str(error).removeprefix(f'{file}: ')}") from error


def _instances_of_polygons(truth: dict[str, str]) -> list[Facts]:
    file = truth["polygons"]
    content = read_json(file, "imgHeight", "imgWidth", "objects")
    try:
        return annotations_of(draw_instance_ids(content))
    except KeyError as key:
        raise DatasetError(f"{file}: an object has no {key}") from key
    except (ValueError, TypeError) as error:
        raise DatasetError(f"{file}: {error}") from error


def draw_instance_ids(content: Facts) -> np.ndarray:
    """The instance ids (H, W) int32 of an annotation's JSON: later polygons hide earlier ones.

    Raises:
        KeyError: an object lacks its label or polygon.
        ValueError: there is no such label.
    """
    labels = {row["name"]: row for row in label_table()}
    image = Image.new("I", (content["imgWidth"], content["imgHeight"]), labels["unlabeled"]["id"])
    drawer, numbers = ImageDraw.Draw(image), dict.fromkeys(labels, 0)
    for item in content["objects"]:
        name = item["label"]
        is_group = name not in labels and name.endswith(GROUP)
        label = labels.get(name.removesuffix(GROUP) if is_group else name)
        if label is None:
            raise ValueError(f"there is no label '{name}'")
        if item.get("deleted") or label["id"] < 0:
            continue
        value = label["id"]
        if label["hasInstances"] and not is_group:
            value = value * INSTANCES_PER_LABEL + numbers[name]
            numbers[name] += 1
        drawer.polygon([tuple(point) for point in item["polygon"]], fill=value)
    return np.asarray(image)


def annotations_of(ids: np.ndarray) -> list[Facts]:
    """Return annotations of the things in a map of instance ids (H, W); a thing without a number is a crowd.

    Raises:
        ValueError: an id is of a label that there is not.
    """
    known = {row["id"] for row in label_table()}
    contiguous = instance_facts()["thing_dataset_id_to_contiguous_id"]
    runs = _Runs.of(ids)
    annotations = []
    present = np.unique(runs.values)
    for value, label in zip(present.tolist(), label_ids_of(present).tolist(), strict=True):
        is_crowd = value < INSTANCES_PER_LABEL
        if label not in known:
            raise ValueError(f"instance id {value} is of label {label}, which there is not")
        if label in contiguous:
            code = runs.encode(value)
            annotation = {"category_id": contiguous[label], "iscrowd": int(is_crowd), "segmentation": code}
            annotations.append({**annotation, "bbox": coco_mask.toBbox(code).tolist(), "bbox_mode": XYWH})
    return annotations


class _Runs(NamedTuple):
    """A map of ids (H, W) as `R` runs down its columns: where each ends (R,), and its id (R,)."""

    size: tuple[int, int]
    ends: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, ids: np.ndarray) -> _Runs:
        flat = ids.ravel(order="F")
        ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size)
        return cls((ids.shape[0], ids.shape[1]), ends, flat[ends - 1])

    def encode(self, value: int) -> dict[str, Any]:
        """The compressed RLE of the pixels that hold `value`; much faster than from a mask for each."""
        own = np.flatnonzero(self.values == value)
        starts = np.append(0, self.ends)[own]
        edges = np.stack([starts, self.ends[own]], axis=1).ravel()
        counts = np.diff(edges, prepend=0, append=self.ends[-1])
        code = coco_mask.frPyObjects({"size": self.size, "counts": counts}, *self.size)
        return {"size": list(self.size), "counts": code["counts"].decode()}
