"""Instance annotations for the records of a panoptic dataset, as Detectron2's "separated" datasets have them.

COCO and ADE20K annotate things twice, and the two kinds differ: AP is measured on the instance JSON.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mask2former.data.catalog import Metadata, Record
from mask2former.data.datasets.coco import checked_categories, load_instances
from mask2former.data.datasets.files import load_json
from mask2former.data.errors import DatasetError, first_few
from mask2former.data.load_context import LoadContext
from mask2former.utils.coco_values import Row
from mask2former.utils.messages import brief


def with_instances(records: Sequence[Record], metadata: Metadata) -> Iterator[Record]:
    """Yield the records with `annotations`, those of the same image id in the dataset's `json_file`.

    Their classes are contiguous ids of the panoptic classes. An image for which the JSON lists no annotation
    has no instances; every image must be among its `images`. Records that have `annotations` keep them.

    Raises:
        DatasetError: the JSON is missing or broken, lacks an image or has another size for it, or its
            categories are not things of the panoptic dataset.
    """
    path, context = metadata.json_file, LoadContext()
    _check_categories(load_json(path, "annotations", "categories", context=context), metadata)
    found = {record["image_id"]: record for record in load_instances(metadata, context)}
    context.parsed.clear()  # gigabytes, before the records are packed
    for record in records:
        if "annotations" in record:
            yield record
            continue
        id = record.get("image_id")
        if id not in found:
            raise DatasetError(f"{path}, images: no id {brief(id)}, which is that of {record['file_name']}")
        sizes = [tuple(image[key] for key in ("height", "width")) for image in (found[id], record)]
        if sizes[0] != sizes[1]:
            what = f"(height, width) is {sizes[0]}, the panoptic annotations say {sizes[1]}"
            raise DatasetError(f"{path}, image id {brief(id)}: {what}")
        yield {**record, "annotations": found[id]["annotations"]}


def _check_categories(content: Row, metadata: Metadata) -> None:
    """Check that a name does not belong to different ids in the two JSONs, as after a renumbering.

    Names that only one of them has are fine: those of ADE20K differ in their synonyms.
    """
    things = metadata.thing_dataset_id_to_contiguous_id
    names = {id: metadata.stuff_classes[contiguous] for id, contiguous in things.items()}
    for category in checked_categories(content, metadata.json_file):
        id, name = category["id"], category["name"]
        if names.get(id) != name and name in names.values():
            others = [other for other in names if names[other] == name]
            what = f"{brief(name)} has the id {id}, but {first_few(others)} in the panoptic annotations"
            raise DatasetError(f"{metadata.json_file}, categories: {what}")
