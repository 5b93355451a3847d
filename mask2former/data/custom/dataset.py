"""Anybody's own data: which format it has, what follows from it, and a name for it in the catalogs.

Formats are told apart by content: a COCO instance JSON; a COCO panoptic JSON, whose PNGs lie in a folder of
its name; a folder of label PNGs. See docs/custom_datasets.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mask2former.data.catalog import DatasetCatalog, Metadata, MetadataCatalog, Record
from mask2former.data.custom.checks import (
    check_annotations,
    check_files,
    check_ids,
    check_same_classes,
    check_sizes,
    tell_overlap,
    tell_unused,
)
from mask2former.data.custom.label_classes import Labels, existing, find_labels
from mask2former.data.datasets.coco import (
    load_instances,
    load_panoptic,
    register_coco_instances,
    register_coco_panoptic,
)
from mask2former.data.datasets.files import read_json
from mask2former.data.datasets.registration import Facts, Load, register
from mask2former.data.datasets.semantic import (
    LABEL_EXTENSIONS,
    files_by_name,
    load_semantic,
    register_semantic,
)
from mask2former.data.errors import DatasetError
from mask2former.data.records import read_here
from mask2former.utils.storage import to_path

EXPECTED = (
    "expected one of: a COCO instance JSON ('images', 'categories', 'annotations' with 'segmentation'); a "
    "COCO panoptic JSON ('annotations' with 'segments_info', PNGs in a folder of the JSON's name); a folder "
    "of label PNGs. See docs/custom_datasets.md"
)
# Signs of formats that are none of those: keys of a JSON, suffixes of files.
FOREIGN_KEYS = {
    "shapes": "labelme's",
    "imagePath": "labelme's",
    "_via_img_metadata": "the VGG Image Annotator's",
    "_via_settings": "the VGG Image Annotator's",
    "labels": "FiftyOne's",
    "features": "GeoJSON",
}
FOREIGN_SUFFIXES = {
    ".xml": "Pascal VOC's",
    ".txt": "YOLO's",
    ".json": "a JSON for each image, such as labelme's",
    ".jpg": "JPEG, which changes values: labels must be PNG",
    ".jpeg": "JPEG, which changes values: labels must be PNG",
    ".csv": "a table",
    ".mat": "MATLAB's",
    ".npy": "numpy's",
}


@dataclass(frozen=True)
class CustomDataset:
    """What follows from somebody's data.

    Attributes:
        name: in the catalogs.
        task: "instance", "panoptic" or "semantic".
        evaluator_type: by which it is evaluated.
        mappers: values that INPUT.DATASET_MAPPER_NAME can have for it.
        classes: their names, in the order of contiguous ids.
        thing_ids: contiguous ids of those that have instances.
        images: paths of all its images with annotations.
        labels: of label PNGs, what their values mean.
    """

    name: str
    task: str
    evaluator_type: str
    mappers: tuple[str, ...]
    classes: tuple[str, ...]
    thing_ids: tuple[int, ...]
    images: tuple[str, ...]
    labels: Labels | None = None


MAPPERS = {
    "instance": ("coco_instance_lsj", "mask_former_instance"),
    "panoptic": ("coco_panoptic_lsj", "mask_former_panoptic"),
    "semantic": ("mask_former_semantic",),
}


def register_custom_dataset(
    name: str,
    images: str,
    annotations: str,
    classes: str | None = None,
    *,
    trained: CustomDataset | None = None,
) -> CustomDataset:
    """Make data of any of the formats known as `name`, once it was checked; what follows from it.

    Args:
        name: the new dataset.
        images: a folder of images.
        annotations: a JSON, or a folder of label PNGs.
        classes: a file that names the classes of label PNGs; see `own_labels`.
        trained: the training data, whose classes this data to test on must have.

    Raises:
        DatasetError: of no known format, or broken; nothing is registered then.
    """
    if name in DatasetCatalog:
        raise DatasetError(f"a dataset called '{name}' is registered already")
    task, labels = find_format(images, annotations, classes, trained=trained)
    try:
        REGISTER[task](name, images, annotations, labels)
        own = _checked(name, task, images, annotations, labels)
        if trained is not None:
            check_same_classes(annotations, own.classes, trained.classes)
            tell_overlap(trained.images, own.images)
    except DatasetError:
        forget(name)
        raise
    return own


def register_as_found(own: CustomDataset, facts: Facts) -> None:
    """Make known, without a look at the data, what another process has registered with these facts."""
    table = None if own.labels is None else own.labels.table
    load: dict[str, Load] = {
        "instance": load_instances,
        "panoptic": load_panoptic,
        "semantic": lambda metadata: load_semantic(metadata, table),
    }
    register(own.name, facts, dict, load[own.task])


def find_format(
    images: str, annotations: str, classes: str | None = None, *, trained: CustomDataset | None = None
) -> tuple[str, Labels | None]:
    """The task that data is for, and what the values of label PNGs mean; see `register_custom_dataset`.

    Raises:
        DatasetError: of no known format, or not what the other arguments say.
    """
    existing(images)
    task = find_task(annotations)
    if classes is not None and task != "semantic":
        raise DatasetError(f"{annotations} names its classes; {classes} is for label PNGs, which do not")
    if trained is not None and task != trained.task:
        raise DatasetError(f"{annotations} is {task} data, but what is trained on is {trained.task} data")
    labels = None
    if task == "semantic":
        files = [*files_by_name(annotations, LABEL_EXTENSIONS).values()]
        labels = find_labels(files, classes, trained.labels if trained else None)
    return task, labels


def forget(name: str) -> None:
    """Take a name out of the catalogs, if it is in them."""
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog.list():
            catalog.remove(name)


def find_task(annotations: str) -> str:
    """The task that annotations are for, by their content.

    Raises:
        DatasetError: there is nothing, or something else; the message says what is expected.
    """
    path = existing(annotations)
    if path.is_dir():
        if files_by_name(path, LABEL_EXTENSIONS):
            return "semantic"
        raise DatasetError(f"{path}: there are no label PNGs{_found_instead(path)}; {EXPECTED}")
    if path.suffix.lower() != ".json":
        what = FOREIGN_SUFFIXES.get(path.suffix.lower(), "unknown")
        raise DatasetError(f"{path}: its format is {what}; {EXPECTED}")
    content = read_json(path)
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= content.keys():
        raise DatasetError(f"{path}: {_looks_like(content)}; {EXPECTED}")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content[key], list) or not all(isinstance(row, dict) for row in content[key]):
            raise DatasetError(f"{path}: '{key}' is no list of objects; {EXPECTED}")
    panoptic = any("segments_info" in annotation for annotation in content["annotations"])
    check_ids(path, content)
    return "panoptic" if panoptic else "instance"


def _found_instead(folder: Path) -> str:
    """What a folder without label PNGs holds, as part of a message."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    jsons = [file for file in files if file.suffix.lower() == ".json"]
    if len(jsons) == 1:
        return f", but one JSON, which may be meant: {jsons[0]}"
    found = {file.suffix.lower() for file in files}
    what = next((name for suffix, name in FOREIGN_SUFFIXES.items() if suffix in found), None)
    return f", but files of {what}" if what else ""


def _looks_like(content: Any) -> str:
    if not isinstance(content, dict):
        return f"it holds a {type(content).__name__}, as files of results do"
    if kind := next((FOREIGN_KEYS[key] for key in FOREIGN_KEYS if key in content), None):
        return f"its format is {kind}"
    absent = next(key for key in ("images", "annotations", "categories") if key not in content)
    return f"it has no '{absent}', only {', '.join(sorted(map(str, content)))[:200] or 'nothing'}"


def _register_instances(name: str, images: str, annotations: str, labels: Labels | None) -> None:
    register_coco_instances(name, {}, annotations, images)


def _register_panoptic(name: str, images: str, annotations: str, labels: Labels | None) -> None:
    register_coco_panoptic(name, {}, images, find_panoptic_root(to_path(annotations)), annotations)


def _register_labels(name: str, images: str, annotations: str, labels: Labels | None) -> None:
    assert labels is not None
    facts: Facts = {
        "stuff_classes": list(labels.names),
        "ignore_label": labels.ignore_label,
        "official_label_ids": labels.values,
        "thing_dataset_id_to_contiguous_id": {},
    }
    register_semantic(name, facts, images, annotations, labels.table)


REGISTER: dict[str, Callable[[str, str, str, Labels | None], None]] = {
    "instance": _register_instances,
    "panoptic": _register_panoptic,
    "semantic": _register_labels,
}


def find_panoptic_root(panoptic_json: Path) -> str:
    """The folder of a panoptic JSON's PNGs: of the same name, beside it or beside its folder; or its folder.

    Raises:
        DatasetError: the PNG that it names first is in none of them.
    """
    png = read_json(panoptic_json, "annotations")["annotations"][0].get("file_name")
    if png is None:
        raise DatasetError(f"{panoptic_json}: its first annotation has no 'file_name', a panoptic PNG")
    folder = panoptic_json.absolute().parent
    candidates = [folder / panoptic_json.stem, folder.parent / panoptic_json.stem, folder]
    for candidate in candidates:
        if (candidate / png).is_file():
            return str(candidate)
    raise DatasetError(f"{panoptic_json}: its PNG {png} is in none of {', '.join(map(str, candidates))}")


def _checked(name: str, task: str, images: str, annotations: str, labels: Labels | None) -> CustomDataset:
    """Look through the dataset that was registered as `name`."""
    records, metadata = read_here(name), MetadataCatalog.get(name)
    names = metadata.thing_classes if task == "instance" else metadata.stuff_classes
    if not records:
        raise DatasetError(f"{annotations}: there is no image in it")
    check_files(records, images)
    check_sizes(records)
    _check_task(task, records, names, annotations)
    return CustomDataset(
        name=name,
        task=task,
        evaluator_type=metadata.evaluator_type,
        mappers=MAPPERS[task],
        classes=tuple(names),
        thing_ids=_thing_ids(metadata),
        images=tuple(record["file_name"] for record in records),
        labels=labels,
    )


def _check_task(task: str, records: list[Record], names: list[str], annotations: str) -> None:
    if task == "instance":
        check_annotations(records, names, annotations)
    elif task == "panoptic":
        present = {segment["category_id"] for record in records for segment in record["segments_info"]}
        tell_unused(annotations, names, present)


def _thing_ids(metadata: Metadata) -> tuple[int, ...]:
    return tuple(sorted(metadata.thing_dataset_id_to_contiguous_id.values()))
