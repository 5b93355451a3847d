"""Cityscapes, finely annotated: semantic, instance and panoptic.

Classes are the 19 labels that the benchmark evaluates, in the order of their train ids. Instances come from
the files of instance ids; where such a file is missing, the polygons are rasterized. The ground truth of the
test set is not public, so its datasets hold images alone.

Shapes: `H, W` the image's sides in pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from tqdm import tqdm

from mask2former.data.catalog import Metadata, Record
from mask2former.data.datasets.coco import (
    PANOPTIC_FACTS,
    XYWH,
    Row,
    instance_categories,
    load_panoptic,
    panoptic_categories,
    semantic_categories,
)
from mask2former.data.datasets.files import load_json
from mask2former.data.datasets.registration import Facts, Load, register_below_root
from mask2former.data.datasets.semantic import files_by_name, paired_names
from mask2former.data.errors import DatasetError
from mask2former.data.load_context import LoadContext
from mask2former.structures import runs
from mask2former.utils.cityscapes_labels import INSTANCES_PER_LABEL, label_ids_of, label_table
from mask2former.utils.image_io import ImageError, open_image
from mask2former.utils.label_maps import IGNORE_LABEL, Array, read_label_map
from mask2former.utils.messages import reason
from mask2former.utils.storage import to_file

SPLITS = ("train", "val", "test")
IMAGE_SUFFIX, ANNOTATION_SUFFIX = "_leftImg8bit", "_gtFine_"
GROUP = "group"  # last part of the label of several objects that were annotated as one
SEMANTIC_FILES = {"labelTrainIds": ".png", "labelIds": ".png"}  # kind -> suffix; one of them is enough
INSTANCE_FILES = {"instanceIds": ".png", "polygons": ".json"}
SLOW_SECONDS = 5.0  # a progress bar is shown after that

CLASSES = sorted(
    ({**row, "isthing": row["hasInstances"]} for row in label_table() if not row["ignoreInEval"]),
    key=lambda row: row["trainId"],
)
THINGS = [row for row in CLASSES if row["isthing"]]  # the last 8 of the 19 classes
SEMANTIC: Facts = {
    "evaluator_type": "cityscapes_sem_seg",
    "ignore_label": IGNORE_LABEL,
    **semantic_categories(CLASSES),
    "official_label_ids": [row["id"] for row in CLASSES],
}
INSTANCE: Facts = {
    "evaluator_type": "cityscapes_instance",
    **instance_categories(THINGS),
    "official_label_ids": [row["id"] for row in THINGS],
}
PANOPTIC: Facts = {
    **PANOPTIC_FACTS,
    **SEMANTIC,
    **panoptic_categories(CLASSES),
    "evaluator_type": "cityscapes_panoptic_seg",
}
# Value in a file of label ids -> train id or ignore label; the label -1 is stored in a byte as 255.
TRAIN_IDS: dict[int, int] = {
    row["id"] % 256: IGNORE_LABEL if row["ignoreInEval"] else row["trainId"] for row in label_table()
}


class Frame(NamedTuple):
    """An image and its annotations: `annotations` is kind -> file, as "labelIds" -> "..._labelIds.png"."""

    image: str
    annotations: dict[str, str]


def register_cityscapes() -> None:
    """Register Cityscapes under its published names."""
    for split in SPLITS:
        images = {"image_root": f"cityscapes/leftImg8bit/{split}", "gt_dir": f"cityscapes/gtFine/{split}"}
        panoptic = {
            **images,
            "panoptic_root": f"cityscapes/gtFine/cityscapes_panoptic_{split}",
            "panoptic_json": f"cityscapes/gtFine/cityscapes_panoptic_{split}.json",
        }
        tests = split == "test"
        semantic: Load = load_images if tests else load_semantic
        instance: Load = load_images if tests else load_instances
        register_below_root(f"cityscapes_fine_sem_seg_{split}", images, SEMANTIC, semantic)
        register_below_root(f"cityscapes_fine_instance_seg_{split}", images, INSTANCE, instance)
        if not tests:
            name = f"cityscapes_fine_panoptic_{split}"
            register_below_root(name, panoptic, PANOPTIC, load_panoptic_frames)


def load_images(metadata: Metadata, context: LoadContext) -> list[Record]:
    """Return records of `image_root` without annotations."""
    return _convert_frames([Frame(image, {}) for image in _images(metadata).values()], _image_record, context)


def load_semantic(metadata: Metadata, context: LoadContext) -> list[Record]:
    """Return records with label maps: of train ids where they have been made, else of label ids.

    Raises:
        DatasetError: a folder is missing or empty, or annotations have no image.
    """
    frames = _frames(metadata, SEMANTIC_FILES, context)
    return _convert_frames(frames, lambda frame: {**_image_record(frame), **_label_map(frame)}, context)


def load_instances(metadata: Metadata, context: LoadContext) -> list[Record]:
    """Return records with `annotations`, one RLE each, from instance ids or else polygons.

    Raises:
        DatasetError: see `load_semantic`, or a file is broken.
    """
    return _convert_frames(_frames(metadata, INSTANCE_FILES, context), _instance_record, context)


def load_panoptic_frames(metadata: Metadata, context: LoadContext) -> list[Record]:
    """Return panoptic records with the label maps and the instance ids of the same images.

    Raises:
        DatasetError: see `load_semantic`, or the panoptic JSON names an image that does not exist.
    """
    records = load_panoptic(metadata, context)
    frames = {_image_id(frame): frame for frame in _frames(metadata, SEMANTIC_FILES, context)}

    def complete(record: Record) -> Record:
        frame = frames.get(record["image_id"])
        if frame is None:
            what = f"no such image in {metadata.image_root} and {metadata.gt_dir}"
            raise DatasetError(f"{metadata.panoptic_json}, image id {record['image_id']!r}: {what}")
        # The JSON's file names, ..._gtFine_leftImg8bit.png without a folder, are not those of the files.
        return {**record, "file_name": frame.image, **_instance_ids(frame), **_label_map(frame)}

    return context.convert_each(complete, records)


def _images(metadata: Metadata) -> dict[str, str]:
    """Return `<city>/<image id>` -> file."""
    files = files_by_name(metadata.image_root, [".png"])
    if not files:
        raise DatasetError(f"{metadata.image_root}: there are no images")
    return {name.removesuffix(IMAGE_SUFFIX): file for name, file in files.items()}


def _frames(metadata: Metadata, kinds: Mapping[str, str], context: LoadContext) -> list[Frame]:
    """Return the images with annotations of one of `kinds` (kind -> suffix), and all their annotations."""
    images, annotations = _images(metadata), dict[str, dict[str, str]]()
    for name, file in files_by_name(metadata.gt_dir, [".png", ".json"]).items():
        frame, _, kind = name.partition(ANNOTATION_SUFFIX)
        annotations.setdefault(frame, {})[kind] = file
    usable = {name: files for name, files in annotations.items() if files.keys() & kinds.keys()}
    if not usable:
        wanted = " or ".join(f"*{ANNOTATION_SUFFIX}{kind}{suffix}" for kind, suffix in kinds.items())
        raise DatasetError(f"{metadata.gt_dir}: there are no files {wanted}")
    names = paired_names(images, usable, metadata.image_root, metadata.gt_dir, context)
    return [Frame(images[name], usable[name]) for name in names]


def _convert_frames(
    frames: list[Frame], convert: Callable[[Frame], Record], context: LoadContext
) -> list[Record]:
    """Return `convert(frame)` of each, by several threads: most of the work is decoding images."""
    progress = functools.partial(tqdm, desc="reading Cityscapes", unit="image", delay=SLOW_SECONDS)
    with ThreadPoolExecutor() as pool:
        return context.convert_each(
            convert, frames, lambda one, items: progress(pool.map(one, items), total=len(frames))
        )


def _image_id(frame: Frame) -> str:
    return Path(frame.image).stem.removesuffix(IMAGE_SUFFIX)


def _image_record(frame: Frame) -> Record:
    try:
        with to_file(frame.image).open("rb") as file, open_image(file, frame.image) as image:
            width, height = image.size
    except ImageError as error:
        raise DatasetError(str(error)) from error
    except OSError as error:
        raise DatasetError(f"{frame.image}: not a readable image ({error})") from error
    size = {"height": height, "width": width}
    return {"file_name": frame.image, "image_id": _image_id(frame), **size, **_instance_ids(frame)}


def _instance_ids(frame: Frame) -> Record:
    files = frame.annotations
    return {"instance_ids_file_name": files["instanceIds"]} if "instanceIds" in files else {}


def _label_map(frame: Frame) -> Record:
    if "labelTrainIds" in frame.annotations:
        return {"sem_seg_file_name": frame.annotations["labelTrainIds"]}
    return {"sem_seg_file_name": frame.annotations["labelIds"], "sem_seg_label_ids": TRAIN_IDS}


def _instance_record(frame: Frame) -> Record:
    record = _image_record(frame)
    kind = next(kind for kind in INSTANCE_FILES if kind in frame.annotations)
    file = frame.annotations[kind]
    content = load_json(file, "imgHeight", "imgWidth", "objects") if kind == "polygons" else None
    try:
        ids = read_label_map(file) if content is None else draw_instance_ids(content)
        return {**record, "annotations": annotations_of(ids)}
    except KeyError as key:
        raise DatasetError(f"{file}: an object has no {key}") from key
    except (ValueError, TypeError) as error:
        raise DatasetError(f"{file}: {reason(error, file)}") from error


def draw_instance_ids(content: Row) -> Array:
    """Return the instance ids (H, W) int32 of an annotation's JSON; later polygons hide earlier ones.

    Raises:
        KeyError: an object lacks its label or polygon.
        ValueError: a label is unknown.
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


def annotations_of(instance_ids: Array) -> list[Row]:
    """Return annotations of the things in a map of instance ids (H, W); a thing without a number is a crowd.

    Raises:
        ValueError: an id belongs to an unknown label.
    """
    known = {row["id"] for row in label_table()}
    contiguous = INSTANCE["thing_dataset_id_to_contiguous_id"]
    flat, size = instance_ids.ravel(order="F"), list(instance_ids.shape)
    pixel_runs = runs(flat)
    run_ids = flat[pixel_runs[:, 0]]
    present = np.unique(run_ids)
    annotations = []
    for value, label in zip(present.tolist(), label_ids_of(present).tolist(), strict=True):
        if label not in known:
            raise ValueError(f"instance id {value} is of label {label}, which is unknown")
        if label in contiguous:
            # Runs down the columns make an RLE much faster than a mask (H, W) does.
            counts = np.diff(pixel_runs[run_ids == value].ravel(), prepend=0, append=flat.size)
            code = coco_mask.frPyObjects({"size": size, "counts": counts}, *size)
            annotations.append(
                {
                    "category_id": contiguous[label],
                    "iscrowd": int(value < INSTANCES_PER_LABEL),
                    "segmentation": {"size": size, "counts": code["counts"].decode()},
                    "bbox": coco_mask.toBbox(code).tolist(),
                    "bbox_mode": XYWH,
                }
            )
    return annotations
