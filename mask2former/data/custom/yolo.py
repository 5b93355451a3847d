"""YOLO's segmentation labels as the content of a COCO JSON.

Each image has a text file with one object a line: the class index, and x y of each corner as fractions of the
upright image's sides. A data.yaml names the classes. Lines of five numbers are boxes, which have no mask.

https://docs.ultralytics.com/datasets/segment/
"""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from mask2former.data.custom.classes_file import read_classes_file
from mask2former.data.custom.label_classes import LOOKED_AT, existing, spread
from mask2former.data.errors import DatasetError, examples
from mask2former.data.load_context import LoadContext
from mask2former.utils.coco_values import Row
from mask2former.utils.image_io import EXTENSIONS, ImageError, read_header
from mask2former.utils.messages import brief, shortened
from mask2former.utils.storage import PathLike, contents_of, files_below, names_in, only_alike, to_path

logger = logging.getLogger(__name__)

YAML = (".yaml", ".yml")
CLASSES_FILES = ("data.yaml", "dataset.yaml", "data.yml", "classes.txt", "obj.names")
LEVELS = 3  # above the folder of labels, where a file of classes is looked for
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
LINE = re.compile(r"\s*\d+(\s+[-+.\deE]+){4,}\s*", re.ASCII)
SLACK = 0.01  # beyond the image, by rounding
BOXES, REPEATED = "boxes without a polygon", "repeated lines"


def is_yolo_folder(folder: Path) -> bool:
    """Return True if text files in a folder hold YOLO's lines; some of many are looked at."""
    files = sorted(_label_files(folder))
    return any(LINE.fullmatch(line) for file in spread(files, LOOKED_AT) for line in lines_of(file)[:1])


def find_classes(annotations: PathLike) -> dict[int, str]:
    """Return the class names by index: of a data.yaml, or of such a file in or above a folder of labels.

    Raises:
        DatasetError: there is none, or it is broken.
    """
    path = existing(annotations)
    if path.is_dir():
        folders = [path, *path.absolute().parents[:LEVELS]]
        places = [folder / name for folder in folders for name in CLASSES_FILES]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            what = (
                f"YOLO labels need names of classes, and no data.yaml is there or up to {LEVELS} levels above"
            )
            raise DatasetError(f"{path}: {what}; give --train-annotations data.yaml or --classes")
        path = found
    return read_classes_file(path).names


def read_yolo(images: str, annotations: str, classes: dict[int, str], context: LoadContext) -> Row:
    """Return the images, annotations and categories of YOLO labels, as a COCO JSON has them.

    Args:
        images: the folder of images.
        annotations: the folder of labels, or a data.yaml, whose labels lie as Ultralytics expects them: in a
            folder `labels` in place of the last `images` of an image's path, or else beside the image.
        classes: names by index.
        context: collects the errors of single files.

    Raises:
        DatasetError: there are no labels, or a line is broken; the message names the file and the line.
    """
    root, source = to_path(images), to_path(annotations)
    files = sorted(files_below(root, EXTENSIONS))
    labels = _as_on_disk({file: _label_file(file, root, source) for file in files}, annotations)
    left_out: Counter[str] = Counter()

    def read(numbered: tuple[int, Path]) -> tuple[Row, list[Row]]:
        number, file = numbered
        return _read_image(number, file, root, labels[file], classes, left_out)

    found = context.convert_each(read, [*enumerate(files, start=1)])
    present = {label for label in labels.values() if label.is_file()}
    if not present:
        if not files:
            raise DatasetError(f"{images}: there are no images; {contents_of(images)}")
        example = f"{labels[files[0]]} was looked for"
        raise DatasetError(f"{annotations}: there are no labels of the images; {example}")
    _log(annotations, left_out, present, source)
    return {
        "images": [image for image, _ in found],
        "annotations": [row for _, rows in found for row in rows],
        "categories": [{"id": index, "name": name} for index, name in classes.items()],
    }


def _as_on_disk(labels: dict[Path, Path], annotations: str) -> dict[Path, Path]:
    """Return the label file of each image in the letter case that it has, and warn of those that differ."""
    missing: defaultdict[Path, set[str]] = defaultdict(set)
    for label in labels.values():
        if not label.is_file():
            missing[label.parent].add(label.name)
    claimed = set(labels.values())
    on_disk: dict[Path, Path] = {}
    for folder, wanted in missing.items():
        free = (name for name in names_in(folder) if folder / name not in claimed)
        on_disk |= {folder / name: folder / file for name, file in only_alike(wanted, free).items()}
    found = {image: on_disk[label] for image, label in labels.items() if label in on_disk}
    if found:
        pairs = examples([f"{file.name} of {image.name}" for image, file in found.items()])
        message = "%s: %d label files differ from their images in letter case: %s"
        logger.warning(message, annotations, len(found), pairs)
    return labels | found


def _log(annotations: str, left_out: Counter[str], present: set[Path], source: Path) -> None:
    for what, count in sorted(left_out.items()):
        logger.warning("%s: left out %d %s", annotations, count, what)
    others = (
        sorted(str(file) for file in _label_files(source) if file not in present) if source.is_dir() else []
    )
    if others:
        logger.warning("%s: %d label files have no image: %s", annotations, len(others), examples(others))


def _label_files(folder: Path) -> Iterator[Path]:
    return (file for file in files_below(folder, (".txt",)) if file.name not in CLASSES_FILES)


def _label_file(image: Path, root: Path, source: Path) -> Path:
    """Return where the labels of an image lie, or would lie."""
    in_folder = source / image.relative_to(root).with_suffix(".txt")
    if source.suffix.lower() not in YAML and in_folder.is_file():
        return in_folder
    parts = image.absolute().parts
    at = max((i for i, part in enumerate(parts[:-1]) if part == "images"), default=None)
    folders = parts if at is None else (*parts[:at], "labels", *parts[at + 1 :])
    by_rule = Path(*folders).with_suffix(".txt")
    if source.suffix.lower() in YAML or by_rule.is_relative_to(source.absolute()):
        return by_rule
    return in_folder


def _read_image(
    number: int, file: Path, root: Path, label: Path, classes: dict[int, str], left_out: Counter[str]
) -> tuple[Row, list[Row]]:
    """Return the row of an image and those of its annotations; images without labels have none."""
    try:
        height, width = read_header(file).upright
    except ImageError as error:
        raise DatasetError(str(error)) from error
    name = file.relative_to(root).as_posix()
    image = {"id": number, "file_name": name, "height": height, "width": width}
    rows = []
    for place, line in enumerate(lines_of(label) if label.is_file() else (), start=1):
        try:
            rows += [_parse(line, classes)] if line.strip() else []
        except ValueError as error:
            raise DatasetError(f"{label}, line {place}: {error}") from error
    return image, _annotations(rows, number, (width, height), left_out)


def lines_of(file: Path) -> list[str]:
    """Return the lines of a text file; raise DatasetError if it is not readable text."""
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file}: not a readable text file ({error})") from error


def _parse(line: str, classes: dict[int, str]) -> tuple[int, tuple[float, ...]]:
    """Return the class index and the fractions of a line.

    Raises:
        ValueError: it is neither a polygon nor a box, or the class has no name.
    """
    words = line.split()
    if wrong := [word for word in words if not NUMBER.fullmatch(word)]:
        raise ValueError(f"{brief(wrong[0])} is not a number")
    category, *fractions = map(float, words)
    if category not in classes:
        raise ValueError(f"class {shortened(words[0], 30)} is not among the classes {brief([*classes])}")
    if len(fractions) != 4 and (len(fractions) < 6 or len(fractions) % 2):
        raise ValueError(f"{len(fractions)} numbers after the class, expected x y of at least three points")
    if far := [value for value in fractions if not -SLACK <= value <= 1 + SLACK]:
        raise ValueError(f"{far[0]:g} is not a fraction of the image's side, from 0 to 1")
    return int(category), tuple(fractions)


def _annotations(
    rows: list[tuple[int, tuple[float, ...]]], image_id: int, sides: tuple[int, int], left_out: Counter[str]
) -> list[Row]:
    different = dict.fromkeys(rows)
    polygons = [row for row in different if len(row[1]) > 4]
    for what, count in ((REPEATED, len(rows) - len(different)), (BOXES, len(different) - len(polygons))):
        left_out.update({what: count} if count else {})
    return [
        {
            "image_id": image_id,
            "category_id": category,
            "segmentation": [[value * sides[i % 2] for i, value in enumerate(fractions)]],
        }
        for category, fractions in polygons
    ]
