"""Registration of custom datasets. The task, the classes and the metrics follow from the files.

Formats are recognized by content: a COCO instance JSON; a COCO panoptic JSON, whose PNGs lie in a folder of
the same name; folders of label PNGs, of labelme's JSONs, of YOLO's labels. See docs/custom_datasets.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from mask2former.data.catalog import DatasetCatalog, Metadata, MetadataCatalog, Record
from mask2former.data.custom.checks import (
    check_annotations,
    check_files,
    check_panoptic,
    check_same_classes,
    check_sizes,
    warn_of_overlap,
    warn_of_unused_classes,
)
from mask2former.data.custom.classes_file import IGNORE, read_classes_file
from mask2former.data.custom.documents import Source, load_instances, read_document, register_instances
from mask2former.data.custom.formats import find_format
from mask2former.data.custom.image_files import image_finder, is_below
from mask2former.data.custom.label_classes import LabelClasses, existing, find_label_classes
from mask2former.data.custom.labelme import NO_OBJECTS
from mask2former.data.custom.orientation import with_turned_labels
from mask2former.data.custom.yolo import find_classes
from mask2former.data.datasets.coco import load_panoptic, register_coco_panoptic
from mask2former.data.datasets.files import load_json
from mask2former.data.datasets.registration import Facts, Load, register
from mask2former.data.datasets.semantic import find_labels, load_semantic, register_semantic
from mask2former.data.errors import DatasetError, first_few
from mask2former.data.load_context import LoadContext
from mask2former.data.records import Datasets
from mask2former.utils.coco_values import text
from mask2former.utils.messages import shortened
from mask2former.utils.storage import is_file, to_path

COCO_FORMATS = ("instance", "panoptic")
MAPPERS_BY_TASK = {
    "instance": ("coco_instance_lsj", "mask_former_instance"),
    "panoptic": ("coco_panoptic_lsj", "mask_former_panoptic", "detr_panoptic"),
    "semantic": ("mask_former_semantic",),
}


class DatasetFiles(NamedTuple):
    """The files of a custom dataset, and how they are read.

    Attributes:
        images: a folder of images.
        annotations: a JSON, a data.yaml, or a folder of label PNGs, JSONs or text files.
        classes: a file that names the classes of label PNGs, labelme's JSONs or YOLO's labels.
        crowds_as_objects: ignore `iscrowd` in a COCO instance JSON.
    """

    images: str
    annotations: str
    classes: str | None = None
    crowds_as_objects: bool = False


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
        source: the files of instance annotations; None for the other formats.
        has_instance_json: a file of the dataset is the ground truth of AP; else it must be written.
    """

    name: str
    task: str
    evaluator_type: str
    mappers: tuple[str, ...]
    classes: tuple[str, ...]
    thing_ids: tuple[int, ...]
    images: tuple[str, ...]
    label_classes: LabelClasses | None = None
    source: Source | None = None
    has_instance_json: bool = False


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
        images, annotations, classes, crowds_as_objects: see `DatasetFiles`.
        train_dataset: the dataset trained on, whose task and classes this dataset to test on must have.
        datasets: gets the records, so that they are not read again.
        context: what several datasets share while they are read.

    Raises:
        DatasetError: the format is unknown, or the dataset is broken; nothing is registered then.
    """
    if name in DatasetCatalog:
        raise DatasetError(f"a dataset called '{name}' is registered already")
    context = context or LoadContext()
    files = DatasetFiles(images, annotations, classes, crowds_as_objects)
    try:
        task, label_classes, source = register_files(name, files, train_dataset, context=context)
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
            source=source,
            has_instance_json=source is not None and read_document(source, context).is_in_file,
        )
        if dataset.has_instance_json:
            metadata.json_file = annotations
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
    name: str, files: DatasetFiles, train_dataset: CustomDataset | None = None, *, context: LoadContext
) -> tuple[str, LabelClasses | None, Source | None]:
    """Register a dataset without checks of its records.

    Returns:
        Its task, the classes of label PNGs, and the files of instance annotations.

    Raises:
        DatasetError: the format is unknown, or does not fit the other arguments.
    """
    images, annotations, classes, crowds_as_objects = files
    existing(images)
    kind = find_format(images, annotations, context)
    task = "instance" if kind in ("yolo", "labelme") else kind
    if classes is not None and (kind in COCO_FORMATS or to_path(annotations).is_file()):
        raise DatasetError(f"{annotations} names its classes; {classes} is for annotations that do not")
    if train_dataset is not None and task != train_dataset.task:
        difference = f"is {task} data, but what is trained on is {train_dataset.task} data"
        raise DatasetError(f"{annotations} {difference}")
    if task == "instance":
        facts: Facts = {"crowds_as_objects": True} if crowds_as_objects else {}
        source = Source(images, annotations, kind, _classes_of(kind, files, train_dataset))
        register_instances(name, source, facts)
        return task, None, source
    if task == "panoptic":
        pngs = find_panoptic_root(to_path(annotations), context)
        register_coco_panoptic(name, {}, images, pngs, annotations, load=_load_panoptic)
        return task, None, None
    label_files = [*find_labels(images, annotations).values()]
    train_classes = train_dataset.label_classes if train_dataset else None
    label_classes = find_label_classes(label_files, classes, train_classes, context=context)
    facts = {
        "stuff_classes": list(label_classes.names),
        "ignore_label": label_classes.ignore_label,
        "official_label_ids": label_classes.values,
        "thing_dataset_id_to_contiguous_id": {},
    }
    register_semantic(name, facts, images, annotations, label_classes.table, load=_load_semantic)
    return task, label_classes, None


def _classes_of(
    kind: str, files: DatasetFiles, train_dataset: CustomDataset | None
) -> tuple[tuple[int, str], ...]:
    """Return the ids and names of classes that the annotations do not have, or () for all labels found.

    Raises:
        DatasetError: YOLO labels have no names.
    """
    if kind in COCO_FORMATS:
        return ()
    if files.classes is not None:
        names = read_classes_file(existing(files.classes)).names
    elif kind == "yolo" and (train_dataset is None or to_path(files.annotations).is_file()):
        names = find_classes(files.annotations)
    elif train_dataset is None:
        return ()
    elif train_dataset.source is not None and train_dataset.source.format == kind == "yolo":
        return train_dataset.source.classes
    else:
        names = dict(enumerate(train_dataset.classes))
    return tuple((id_, name) for id_, name in names.items() if name not in (IGNORE, *NO_OBJECTS))


def register_as_found(dataset: CustomDataset, facts: Facts) -> None:
    """Register a dataset that another process has checked, with its metadata, without reading anything."""
    load: Load = _load_panoptic
    if dataset.source is not None:
        load = partial(load_instances, source=dataset.source)
    elif dataset.label_classes is not None:
        load = partial(_load_semantic, label_ids=dataset.label_classes.table)
    register(dataset.name, facts, lambda context: {}, load)


def _load_panoptic(metadata: Metadata, context: LoadContext) -> list[Record]:
    path = metadata.panoptic_json
    content = load_json(path, "images", "annotations", context=context)
    image_file = image_finder(content["images"], metadata.image_root, path)
    png_file = image_finder(content["annotations"], metadata.panoptic_root, path, anywhere=False)
    return with_turned_labels(load_panoptic(metadata, context, image_file, png_file), path)


def _load_semantic(metadata: Metadata, context: LoadContext, label_ids: Mapping[int, int]) -> list[Record]:
    return with_turned_labels(load_semantic(metadata, context, label_ids), metadata.sem_seg_root)


def forget(name: str) -> None:
    """Remove a name from the catalogs, if it is in them."""
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog.list():
            catalog.remove(name)


def find_panoptic_root(panoptic_json: Path, context: LoadContext) -> str:
    """Return the folder of a panoptic JSON's PNGs: named as the JSON, beside it or one level up; or its own.

    Raises:
        DatasetError: the first PNG that it names is in none of them.
    """
    annotations = load_json(panoptic_json, "annotations", context=context)["annotations"]
    try:
        png = text(annotations[0], "file_name")
    except KeyError:
        raise DatasetError(
            f"{panoptic_json}: its first annotation has no 'file_name', a panoptic PNG"
        ) from None
    except ValueError as error:
        raise DatasetError(f"{panoptic_json}: its first annotation: {error}") from None
    folder = panoptic_json.absolute().parent
    candidates = [folder / panoptic_json.stem, folder.parent / panoptic_json.stem, folder]
    exact = (candidate for candidate in candidates if is_file(candidate / png))
    similar = (candidate for candidate in candidates if is_below(candidate, png))
    if found := next(chain(exact, similar), None):
        return str(found)
    raise DatasetError(
        f"{panoptic_json}: its PNG {shortened(png, 100)} is in none of {first_few(candidates)}"
    )
