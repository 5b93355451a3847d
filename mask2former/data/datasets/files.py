"""Where datasets lie, and how their JSON is read: with errors that say what was looked for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mask2former.data.errors import DatasetError
from mask2former.label_files import PathLike

METADATA = Path(__file__).parent / "metadata"
ROOT_VARIABLE = "DETECTRON2_DATASETS"


def datasets_root() -> Path:
    """The folder of all datasets: $DETECTRON2_DATASETS as it is now, or ./datasets."""
    return Path(os.environ.get(ROOT_VARIABLE) or "datasets").expanduser()


def require(path: PathLike) -> Path:
    """The path, which must exist.

    Raises:
        DatasetError: it does not; the message says where it was looked for and how to say otherwise.
    """
    if not Path(path).exists():
        here = os.environ.get(ROOT_VARIABLE)
        state = f"is {here}" if here else "is not set: ./datasets is taken"
        raise DatasetError(
            f"{Path(path).absolute()} does not exist. The layouts are described in datasets/README.md. "
            f"Datasets known by name are looked for below ${ROOT_VARIABLE}, which {state}; "
            f"set it by: export {ROOT_VARIABLE}=/folder/of/datasets"
        )
    return Path(path)


def read_json(path: PathLike, *keys: str) -> Any:
    """The content of a JSON file; `keys` must stand in it.

    Raises:
        DatasetError: no such file, no JSON, or a key is missing.
    """
    with open(require(path), encoding="utf-8") as file:
        try:
            content = json.load(file)
        except ValueError as error:
            raise DatasetError(f"{path} is not JSON: {error}") from error
    absent = [key for key in keys if not isinstance(content, dict) or key not in content]
    if absent:
        raise DatasetError(f"{path} has no '{absent[0]}'")
    return content
