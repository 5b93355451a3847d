"""Instance annotations of custom datasets as the content of a COCO JSON, which COCO's reader then checks.

So there is one notion of what is valid, whatever the format of the files.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from mask2former.data.catalog import Metadata, Record
from mask2former.data.custom.image_files import image_finder
from mask2former.data.custom.labelme import read_labelme
from mask2former.data.custom.orientation import image_files, turned_upright
from mask2former.data.custom.yolo import read_yolo
from mask2former.data.datasets.coco import (
    INSTANCE_FACTS,
    checked_categories,
    instance_categories,
    instance_records,
)
from mask2former.data.datasets.files import load_json
from mask2former.data.datasets.registration import Facts, register
from mask2former.data.load_context import LoadContext
from mask2former.utils.coco_values import Row
from mask2former.utils.storage import to_path

COCO = "instance"


class Source(NamedTuple):
    """The files of instance annotations.

    Attributes:
        images: the folder of images.
        annotations: a file or folder.
        format: "instance" (COCO's), "yolo" or "labelme".
        classes: pairs of id and name, where the annotations do not have them.
    """

    images: str
    annotations: str
    format: str = COCO
    classes: tuple[tuple[int, str], ...] = ()


class Document(NamedTuple):
    """Instance annotations in COCO's format.

    Attributes:
        content: that of a COCO JSON.
        image_file: from a row of `images` to the path below the folder of images.
        is_in_file: the annotations are a file of this content, which AP can read.
    """

    content: Row
    image_file: Callable[[Row], str]
    is_in_file: bool


def read_document(source: Source, context: LoadContext) -> Document:
    """Return the annotations of a dataset; the context keeps them.

    Raises:
        DatasetError: a file is missing or broken.
    """
    if source not in context.parsed:
        content = _read(source, context)
        find = image_finder(content["images"], source.images, source.annotations)
        files = image_files(content["images"], find, to_path(source.images))
        upright = turned_upright(content, files, source.annotations)
        context.parsed[source] = Document(
            upright, find, is_in_file=source.format == COCO and upright is content
        )
    document: Document = context.parsed[source]
    return document


def _read(source: Source, context: LoadContext) -> Row:
    if source.format == "yolo":
        return read_yolo(source.images, source.annotations, dict(source.classes), context)
    if source.format == "labelme":
        return read_labelme(source.images, source.annotations, dict(source.classes), context)
    content: Row = load_json(source.annotations, "images", "annotations", context=context)
    return content


def register_instances(name: str, source: Source, facts: Facts) -> None:
    """Register instance annotations as `name`, with further facts; nothing is read yet.

    The fact `json_file`, the ground truth of AP, is not among them.
    """
    register(
        name,
        {"image_root": source.images, **INSTANCE_FACTS, **facts},
        lambda context: _class_facts(source, context),
        partial(load_instances, source=source),
    )


def load_instances(metadata: Metadata, context: LoadContext, source: Source) -> list[Record]:
    """Return the records; the errors are those of COCO's reader."""
    document = read_document(source, context)
    return instance_records(source.annotations, document.content, metadata, context, document.image_file)


def _class_facts(source: Source, context: LoadContext) -> Facts:
    content = read_document(source, context).content
    return instance_categories(checked_categories(content, source.annotations))
