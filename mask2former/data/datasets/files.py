"""Locations of datasets, and their JSON files; errors say what was looked for and how to get it."""

from __future__ import annotations

import functools
import json
import os
import shlex
from pathlib import Path
from typing import Any

from mask2former.data.errors import DatasetError
from mask2former.data.load_context import LoadContext
from mask2former.utils.storage import PathLike, to_file, to_path

METADATA = Path(__file__).parent / "metadata"
ROOT_VARIABLE = "DETECTRON2_DATASETS"
PREPARED = {  # beginnings of paths below the root -> the script that makes these files
    "ADE20K_2021_17_01/annotations_detectron2": "prepare_ade20k_full.py",
    "ADE20K_2021_17_01/images_detectron2": "prepare_ade20k_full.py",
    "ADEChallengeData2016/ade20k_": "prepare_ade20k.py",
    "ADEChallengeData2016/annotations_detectron2": "prepare_ade20k.py",
    "cityscapes/gtFine/cityscapes_panoptic_": "prepare_cityscapes.py",
    "coco/coco_stuff_10k/annotations_detectron2": "prepare_coco_stuff.py",
    "coco/coco_stuff_10k/images_detectron2": "prepare_coco_stuff.py",
    "films": "prepare_films.py",
    "shapes": "prepare_shapes.py",
}


def datasets_root() -> Path:
    """Return the folder of all datasets, perhaps remote: the current $DETECTRON2_DATASETS, or ./datasets."""
    return to_path(os.environ.get(ROOT_VARIABLE) or "datasets")


def require_path(path: PathLike) -> Path:
    """Return the path, which must exist.

    Raises:
        DatasetError: it does not exist; the message says where it was looked for and how to get it. Or it
            is a pipe, socket or device.
    """
    try:
        place = to_file(path)
    except OSError as error:
        raise DatasetError(str(error)) from error
    if place.exists():
        return place
    root = datasets_root()
    below = place.relative_to(root).as_posix() if place.is_relative_to(root) else ""
    advice = "Layouts, and where to download what, are described in datasets/README.md."
    if scripts := [script for start, script in PREPARED.items() if below.startswith(start)]:
        advice = f"It is made by `python datasets/{scripts[0]} --root {shlex.quote(str(root))}`."
    here = os.environ.get(ROOT_VARIABLE)
    state = f"is {here}" if here else "is not set: ./datasets is taken"
    raise DatasetError(
        f"{place.absolute()} does not exist. {advice} "
        f"Datasets known by name are looked for below ${ROOT_VARIABLE}, which {state}; "
        f"set it by: export {ROOT_VARIABLE}=/folder/of/datasets"
    )


def load_json(path: PathLike, *keys: str, context: LoadContext | None = None) -> Any:
    """Return the content of a JSON file, which must have `keys` and must not be changed.

    Raises:
        DatasetError: the file is missing, is not JSON, or lacks a key.
    """
    parsed = {} if context is None else context.parsed
    if str(path) not in parsed:
        with require_path(path).open(encoding="utf-8-sig") as file:  # some tools write a byte order mark
            try:
                parsed[str(path)] = json.load(file)
            except RecursionError as error:
                raise DatasetError(
                    f"{path} is not a usable JSON: its brackets are nested too deep"
                ) from error
            except ValueError as error:
                raise DatasetError(f"{path} is not JSON: {error}") from error
    content = parsed[str(path)]
    if absent := [key for key in keys if not isinstance(content, dict) or key not in content]:
        raise DatasetError(f"{path} has no '{absent[0]}'")
    return content


@functools.cache
def table(name: str) -> list[dict[str, Any]]:
    """Return the rows of the category table `name` of this package; see metadata/README.md."""
    rows: list[dict[str, Any]] = load_json(METADATA / f"{name}.json")
    return rows
