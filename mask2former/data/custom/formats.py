"""Recognition of the format of annotations, by their content."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mask2former.data.custom.label_classes import existing
from mask2former.data.custom.labelme import is_labelme_folder
from mask2former.data.custom.yolo import YAML, is_yolo_folder, lines_of
from mask2former.data.datasets.files import load_json
from mask2former.data.datasets.semantic import LABEL_EXTENSIONS, MASK, files_by_name, is_same_folder
from mask2former.data.errors import DatasetError, first_few
from mask2former.data.load_context import LoadContext
from mask2former.utils.coco_values import Row
from mask2former.utils.messages import brief
from mask2former.utils.storage import PathLike, files_below, to_path

logger = logging.getLogger(__name__)

EXPECTED = (
    "expected one of: a COCO instance JSON ('images', 'categories', 'annotations' with 'segmentation'); a "
    "COCO panoptic JSON ('annotations' with 'segments_info', PNGs in a folder of the JSON's name); a folder "
    "of label PNGs, of labelme's JSONs, or of YOLO's polygons; YOLO's data.yaml. See docs/custom_datasets.md"
)
LISTS = ("images", "annotations", "categories")  # of a COCO JSON
# Other formats, by keys of a JSON and by suffixes of files
FOREIGN_KEYS = {
    "shapes": "labelme's, whose folder is to be given",
    "imagePath": "labelme's, whose folder is to be given",
    "_via_img_metadata": "the VGG Image Annotator's",
    "_via_settings": "the VGG Image Annotator's",
    "labels": "FiftyOne's",
    "features": "GeoJSON",
}
FOREIGN_SUFFIXES = {
    ".xml": "Pascal VOC's",
    ".txt": "text; YOLO's labels are given as their folder",
    ".json": "JSONs that are not labelme's",
    ".jpg": "JPEG, which changes values: labels must be PNG",
    ".jpeg": "JPEG, which changes values: labels must be PNG",
    ".csv": "a table",
    ".mat": "MATLAB's",
    ".npy": "numpy's",
}


def find_format(images: str, annotations: str, context: LoadContext | None = None) -> str:
    """Return "instance", "panoptic" (COCO's JSONs), "yolo", "labelme" or "semantic", by the content of files.

    Raises:
        DatasetError: they do not exist, or their format is unknown; the message says what is expected.
    """
    path = existing(annotations)
    if path.is_dir():
        return _format_of_folder(images, path)
    if path.suffix.lower() in YAML:
        return "yolo"
    if path.suffix.lower() != ".json":
        what = FOREIGN_SUFFIXES.get(path.suffix.lower(), "unknown")
        raise DatasetError(f"{path}: its format is {what}; {EXPECTED}")
    content = load_json(path, context=context)
    if wrong := _not_coco(content):
        raise DatasetError(f"{path}: {wrong}; {EXPECTED}")
    check_ids(path, content)
    is_panoptic = any("segments_info" in annotation for annotation in content["annotations"])
    return "panoptic" if is_panoptic else "instance"


def _format_of_folder(images: str, folder: Path) -> str:
    """Return the format of a folder of annotations, in which images may lie too."""
    pngs = files_by_name(folder, LABEL_EXTENSIONS)
    if is_same_folder(images, folder):
        has_labels = any(name.endswith(MASK) for name in pngs)
    else:
        root = to_path(images).absolute()
        has_labels = not all(to_path(file).absolute().is_relative_to(root) for file in pngs.values())
    if has_labels:
        return "semantic"
    if is_labelme_folder(folder):
        return "labelme"
    if is_yolo_folder(folder):
        return "yolo"
    if pngs:
        return "semantic"  # whose reader says what is wrong
    raise DatasetError(f"{folder}: there are no label PNGs{_found_instead(folder)}; {EXPECTED}")


def _found_instead(folder: Path) -> str:
    """Return what a folder without annotations of a known format holds, as part of a message."""
    jsons = [*files_below(folder, (".json",))]
    if len(jsons) == 1:
        return f", but one JSON, which may be meant: {jsons[0]}"
    found = {file.suffix.lower() for file in files_below(folder, FOREIGN_SUFFIXES)}
    suffix = next((suffix for suffix in FOREIGN_SUFFIXES if suffix in found), None)
    if suffix == ".txt":
        file = min(files_below(folder, (".txt",)))
        line = next((line for line in lines_of(file) if line.strip()), "")
        return f", but text whose lines are not YOLO's (class x y x y x y ...): {file}: {brief(line, 40)}"
    return f", but files of {FOREIGN_SUFFIXES[suffix]}" if suffix else ""


def _not_coco(content: Any) -> str | None:
    """Return in what the content of a JSON differs from COCO's formats."""
    if not isinstance(content, dict):
        return f"it holds a {type(content).__name__}, as files of results do"
    if absent := [key for key in LISTS if key not in content]:
        if kind := next((kind for key, kind in FOREIGN_KEYS.items() if key in content), None):
            return f"its format is {kind}"
        return f"it has no '{absent[0]}', only {', '.join(sorted(map(str, content)))[:100] or 'nothing'}"
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
