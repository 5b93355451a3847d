"""Registration of custom datasets. The task, the classes and the metrics follow from the files.

Formats are recognized by content: a COCO instance JSON; a COCO panoptic JSON, whose PNGs lie in a folder of
the same name; a folder of label PNGs. See docs/custom_datasets.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mask2former.data.catalog import DatasetCatalog, MetadataCatalog, Record
from mask2former.data.custom.checks import (
    check_annotations,
    check_files,
    check_ids,
    check_panoptic,
    check_same_classes,
    check_sizes,
    warn_of_overlap,
    warn_of_unused_classes,
)
from mask2former.data.custom.label_classes import LabelClasses, existing, find_label_classes
from mask2former.data.datasets.coco import (
    load_instances,
    load_panoptic,
    register_coco_instances,
    register_coco_panoptic,
)
from mask2former.data.datasets.files import load_json
from mask2former.data.datasets.registration import Facts, Load, register
from mask2former.data.datasets.semantic import (
    LABEL_EXTENSIONS,
    files_by_name,
    find_labels,
    load_semantic,
    register_semantic,
)
from mask2former.data.errors import DatasetError
from mask2former.data.load_context import LoadContext
from mask2former.data.records import Datasets
from mask2former.utils.storage import files_below, to_path

EXPECTED = (
    "expected one of: a COCO instance JSON ('images', 'categories', 'annotations' with 'segmentation'); a "
    "COCO panoptic JSON ('annotations' with 'segments_info', PNGs in a folder of the JSON's name); a folder "
    "of label PNGs. See docs/custom_datasets.md"
)
LISTS = ("images", "annotations", "categories")  # of a COCO JSON
# Other formats, by keys of a JSON and by suffixes of files
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
MAPPERS_BY_TASK = {
    "instance": ("coco_instance_lsj", "mask_former_instance"),
    "panoptic": ("coco_panoptic_lsj", "mask_former_panoptic", "detr_panoptic"),
    "semantic": ("mask_former_semantic",),
}


@dataclass(frozen=True)
class CustomDataset:
    """A registered custom dataset.

    Attributes:
        name: in the catalogs.
        task: "instance", "panoptic" or "semantic".
        evaluator_type: chooses the evaluator.
        mappers: possible values of INPUT.DATASET_MAPPER_NAME.
        classes: names in the order of contiguous ids.
        thing_ids: contiguous ids of the classes that have instances.
        images: paths of all images with annotations.
        label_classes: what the values of label PNGs mean; None for the other formats.
    """

    name: str
    task: str
    evaluator_type: str
    mappers: tuple[str, ...]
    classes: tuple[str, ...]
    thing_ids: tuple[int, ...]
    images: tuple[str, ...]
    label_classes: LabelClasses | None = None


def register_custom_dataset(
    name: str,
    images: str,
    annotations: str,
    classes: str | None = None,
    *,
    crowds_as_objects: bool = False,
    train_dataset: CustomDataset | None = None,
    datasets: Datasets | None = None,
    context: LoadContext | None = None,
) -> CustomDataset:
    """Register a custom dataset of any known format as `name`, and check its files.

    Args:
        name: the new dataset.
        images: a folder of images.
        annotations: a JSON, or a folder of label PNGs.
        classes: a file that names the classes of label PNGs; see `label_classes`.
        crowds_as_objects: ignore `iscrowd` in a COCO instance JSON.
        train_dataset: the dataset trained on, whose task and classes this dataset to test on must have.
        datasets: gets the records, so that they are not read again.
        context: what several datasets share while they are read.

    Raises:
        DatasetError: the format is unknown, or the dataset is broken; nothing is registered then.
    """
    if name in DatasetCatalog:
        raise DatasetError(f"a dataset called '{name}' is registered already")
    context = context or LoadContext()
    try:
        task, label_classes = register_files(
            *(name, images, annotations, classes),
            crowds_as_objects=crowds_as_objects,
            train_dataset=train_dataset,
            context=context,
        )
        records, metadata = DatasetCatalog.get(name, context), MetadataCatalog.get(name)
        class_names = metadata.thing_classes if task == "instance" else metadata.stuff_classes
        _check(task, records, class_names, images, annotations)
        dataset = CustomDataset(
            name=name,
            task=task,
            evaluator_type=metadata.evaluator_type,
            mappers=MAPPERS_BY_TASK[task],
            classes=tuple(class_names),
            thing_ids=tuple(sorted(metadata.thing_dataset_id_to_contiguous_id.values())),
            images=tuple(record["file_name"] for record in records),
            label_classes=label_classes,
        )
        if train_dataset is not None:
            check_same_classes(annotations, dataset.classes, train_dataset.classes)
            warn_of_overlap(train_dataset.images, dataset.images)
    except DatasetError:
        forget(name)
        raise
    if datasets is not None:
        datasets.prepare(name, records)
    return dataset


def _check(task: str, records: list[Record], classes: Sequence[str], images: str, annotations: str) -> None:
    if not records:
        raise DatasetError(f"{annotations}: there is no image in it")
    check_files(records, images)
    check_sizes(records)
    if task == "instance":
        check_annotations(records, classes, annotations)
    elif task == "panoptic":
        check_panoptic(records, len(classes))
        present = {segment["category_id"] for record in records for segment in record["segments_info"]}
        warn_of_unused_classes(annotations, classes, present)


def register_files(
    name: str,
    images: str,
    annotations: str,
    classes: str | None = None,
    *,
    crowds_as_objects: bool = False,
    train_dataset: CustomDataset | None = None,
    context: LoadContext,
) -> tuple[str, LabelClasses | None]:
    """Register a dataset without checks of its records; return its task and the classes of label PNGs.

    Raises:
        DatasetError: the format is unknown, or does not fit the other arguments.
    """
    existing(images)
    task = find_task(annotations, context)
    if classes is not None and task != "semantic":
        raise DatasetError(f"{annotations} names its classes; {classes} is for label PNGs, which do not")
    if train_dataset is not None and task != train_dataset.task:
        difference = f"is {task} data, but what is trained on is {train_dataset.task} data"
        raise DatasetError(f"{annotations} {difference}")
    if task == "instance":
        facts: Facts = {"crowds_as_objects": True} if crowds_as_objects else {}
        register_coco_instances(name, facts, annotations, images)
        return task, None
    if task == "panoptic":
        pngs = find_panoptic_root(to_path(annotations), context)
        register_coco_panoptic(name, {}, images, pngs, annotations)
        return task, None
    label_files = [*find_labels(images, annotations).values()]
    train_classes = train_dataset.label_classes if train_dataset else None
    label_classes = find_label_classes(label_files, classes, train_classes, context=context)
    facts = {
        "stuff_classes": list(label_classes.names),
        "ignore_label": label_classes.ignore_label,
        "official_label_ids": label_classes.values,
        "thing_dataset_id_to_contiguous_id": {},
    }
    register_semantic(name, facts, images, annotations, label_classes.table)
    return task, label_classes


def register_as_found(dataset: CustomDataset, facts: Facts) -> None:
    """Register a dataset that another process has checked, with its metadata, without reading anything."""
    table = None if dataset.label_classes is None else dataset.label_classes.table
    load: dict[str, Load] = {
        "instance": load_instances,
        "panoptic": load_panoptic,
        "semantic": lambda metadata, context: load_semantic(metadata, context, table),
    }
    register(dataset.name, facts, lambda context: {}, load[dataset.task])


def forget(name: str) -> None:
    """Remove a name from the catalogs, if it is in them."""
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog.list():
            catalog.remove(name)


def find_task(annotations: str, context: LoadContext | None = None) -> str:
    """Return the task of annotations, by their content.

    Raises:
        DatasetError: they do not exist, or their format is unknown; the message says what is expected.
    """
    path = existing(annotations)
    if path.is_dir():
        if files_by_name(path, LABEL_EXTENSIONS):
            return "semantic"
        raise DatasetError(f"{path}: there are no label PNGs{_found_instead(path)}; {EXPECTED}")
    if path.suffix.lower() != ".json":
        what = FOREIGN_SUFFIXES.get(path.suffix.lower(), "unknown")
        raise DatasetError(f"{path}: its format is {what}; {EXPECTED}")
    content = load_json(path, context=context)
    if wrong := _not_coco(content):
        raise DatasetError(f"{path}: {wrong}; {EXPECTED}")
    check_ids(path, content)
    is_panoptic = any("segments_info" in annotation for annotation in content["annotations"])
    return "panoptic" if is_panoptic else "instance"


def _found_instead(folder: Path) -> str:
    """Return what a folder without label PNGs holds, as part of a message."""
    jsons = [*files_below(folder, (".json",))]
    if len(jsons) == 1:
        return f", but one JSON, which may be meant: {jsons[0]}"
    found = {file.suffix.lower() for file in files_below(folder, FOREIGN_SUFFIXES)}
    what = next((name for suffix, name in FOREIGN_SUFFIXES.items() if suffix in found), None)
    return f", but files of {what}" if what else ""


def _not_coco(content: Any) -> str | None:
    """Return in what the content of a JSON differs from COCO's formats."""
    if not isinstance(content, dict):
        return f"it holds a {type(content).__name__}, as files of results do"
    if absent := [key for key in LISTS if key not in content]:
        if kind := next((kind for key, kind in FOREIGN_KEYS.items() if key in content), None):
            return f"its format is {kind}"
        return f"it has no '{absent[0]}', only {', '.join(sorted(map(str, content)))[:200] or 'nothing'}"
    for key in LISTS:
        if not isinstance(content[key], list) or not all(isinstance(row, dict) for row in content[key]):
            return f"'{key}' is not a list of objects"
    return None


def find_panoptic_root(panoptic_json: Path, context: LoadContext) -> str:
    """Return the folder of a panoptic JSON's PNGs: named as the JSON, beside it or one level up; or its own.

    Raises:
        DatasetError: the first PNG that it names is in none of them.
    """
    annotations = load_json(panoptic_json, "annotations", context=context)["annotations"]
    png = annotations[0].get("file_name")
    if png is None:
        raise DatasetError(f"{panoptic_json}: its first annotation has no 'file_name', a panoptic PNG")
    folder = panoptic_json.absolute().parent
    candidates = [folder / panoptic_json.stem, folder.parent / panoptic_json.stem, folder]
    for candidate in candidates:
        if (candidate / png).is_file():
            return str(candidate)
    raise DatasetError(f"{panoptic_json}: its PNG {png} is in none of {', '.join(map(str, candidates))}")
