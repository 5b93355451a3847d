"""Where datasets lie, and how their JSON is read: with errors that say what was looked for."""

from __future__ import annotations

import functools
import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from mask2former.data.errors import DatasetError
from mask2former.utils.storage import PathLike, to_path

METADATA = Path(__file__).parent / "metadata"
ROOT_VARIABLE = "DETECTRON2_DATASETS"
PREPARED = {  # the script that makes what lies there; beginnings of paths below the root
    "ADE20K_2021_17_01/annotations_detectron2": "prepare_ade20k_full.py",
    "ADE20K_2021_17_01/images_detectron2": "prepare_ade20k_full.py",
    "ADEChallengeData2016/ade20k_": "prepare_ade20k.py",
    "ADEChallengeData2016/annotations_detectron2": "prepare_ade20k.py",
    "cityscapes/gtFine/cityscapes_panoptic_": "prepare_cityscapes.py",
    "coco/coco_stuff_10k/annotations_detectron2": "prepare_coco_stuff.py",
    "coco/coco_stuff_10k/images_detectron2": "prepare_coco_stuff.py",
    "shapes": "prepare_shapes.py",
}

_parsed: ContextVar[dict[str, Any] | None] = ContextVar("parsed", default=None)


def datasets_root() -> Path:
    """The folder of all datasets, perhaps at an address: $DETECTRON2_DATASETS as it is now, or ./datasets."""
    return to_path(os.environ.get(ROOT_VARIABLE) or "datasets")


def require(path: PathLike) -> Path:
    """The path, which must exist.

    Raises:
        DatasetError: it does not; the message says where it was looked for, how to make it, or where else it
            could lie.
    """
    place = to_path(path)
    if not place.exists():
        here = os.environ.get(ROOT_VARIABLE)
        state = f"is {here}" if here else "is not set: ./datasets is taken"
        raise DatasetError(
            f"{place.absolute()} does not exist. {_how_to_get(place)} "
            f"Datasets known by name are looked for below ${ROOT_VARIABLE}, which {state}; "
            f"set it by: export {ROOT_VARIABLE}=/folder/of/datasets"
        )
    return place


def _how_to_get(path: Path) -> str:
    """The command that prepares `path`, or else where its download is described."""
    root = datasets_root()
    below = path.relative_to(root).as_posix() if path.is_relative_to(root) else ""
    for start, script in PREPARED.items():
        if below.startswith(start):
            return f"It is made by `python datasets/{script} --root {shlex.quote(str(root))}`."
    return "Layouts, and where to download what, are described in datasets/README.md."


@contextmanager
def each_file_parsed_once() -> Iterator[None]:
    """Within it `read_json` keeps what it has read, gigabytes at times: for the steps of one reading only."""
    token = _parsed.set({} if (outer := _parsed.get()) is None else outer)
    try:
        yield
    finally:
        _parsed.reset(token)


def read_json(path: PathLike, *keys: str) -> Any:
    """The content of a JSON file, not to be changed; `keys` must stand in it.

    Raises:
        DatasetError: no such file, no JSON, or a key is missing.
    """
    parsed = _parsed.get()
    if parsed is not None and str(path) in parsed:
        content = parsed[str(path)]
    else:
        content = _parse(path)
        if parsed is not None:
            parsed[str(path)] = content
    absent = [key for key in keys if not isinstance(content, dict) or key not in content]
    if absent:
        raise DatasetError(f"{path} has no '{absent[0]}'")
    return content


def _parse(path: PathLike) -> Any:
    with require(path).open(encoding="utf-8") as file:
        try:
            return json.load(file)
        except ValueError as error:
            raise DatasetError(f"{path} is not JSON: {error}") from error


@functools.cache
def table(name: str) -> list[dict[str, Any]]:
    """The category table `name` of this package, a list of rows; see metadata/README.md."""
    rows: list[dict[str, Any]] = read_json(METADATA / f"{name}.json")
    return rows
