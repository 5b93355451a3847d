"""Recognition of the format of annotations, by their content."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mask2former.data.custom.label_classes import existing
from mask2former.data.datasets.files import load_json
from mask2former.data.datasets.semantic import LABEL_EXTENSIONS, files_by_name
from mask2former.data.errors import DatasetError, first_few
from mask2former.data.load_context import LoadContext
from mask2former.utils.coco_values import Row
from mask2former.utils.storage import PathLike, files_below

logger = logging.getLogger(__name__)

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


def check_ids(path: PathLike, content: Row) -> None:
    """Check that the ids of images, annotations and annotated images in a COCO JSON are unique.

    Nothing uses the ids of annotations and a file name may occur twice, so those only cause a warning.

    Raises:
        DatasetError: two images share an id, or two panoptic annotations an image.
    """
    images, annotations = content["images"], content["annotations"]
    panoptic = [annotation for annotation in annotations if "segments_info" in annotation]
    for where, rows, key in (("images", images, "id"), ("annotations", panoptic, "image_id")):
        if repeated := _repeated(rows, key):
            raise DatasetError(f"{path}, {where}: the {key} {first_few(repeated)} occurs more than once")
    for where, rows, key in (("images", images, "file_name"), ("annotations", annotations, "id")):
        if repeated := _repeated(rows, key):
            logger.warning("%s, %s: the %s %s occurs more than once", path, where, key, first_few(repeated))


def _repeated(rows: Iterable[Row], key: str) -> list[Any]:
    counts = Counter(row[key] for row in rows if isinstance(row.get(key), int | float | str))
    return [value for value, count in counts.items() if count > 1]
