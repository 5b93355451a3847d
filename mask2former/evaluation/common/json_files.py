"""JSON files of datasets and results, with errors that name file, key and value."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mask2former.utils.storage import PathLike, to_path

SUBMISSION = "submission"  # the folder, below an evaluation's, of what the data sets' authors take


def read_json(path: PathLike, kind: type) -> Any:
    """The content of a JSON file.

    Args:
        path: the file.
        kind: what it must hold at the top, `dict` or `list`.

    Raises:
        ValueError: the file is missing, not JSON, or holds something else.
    """
    try:
        content = json.loads(to_path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a readable JSON file ({error})") from error
    if not isinstance(content, kind):
        raise ValueError(f"{path}: holds a {type(content).__name__} at the top, expected a {kind.__name__}")
    return content


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, and the folder that it stands in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def require(record: Mapping[str, Any], key: str, where: object) -> Any:
    """`record[key]`; a ValueError that names `where` and the key if it is missing."""
    if not isinstance(record, Mapping) or key not in record:
        raise ValueError(f"{where}: no key '{key}' in {_shortened(record)}")
    return record[key]


def require_list(record: Mapping[str, Any], key: str, where: object) -> list[Any]:
    """`record[key]`, which must be a list."""
    value = require(record, key, where)
    if not isinstance(value, list):
        raise ValueError(f"{where}: '{key}' is {_shortened(value)}, expected a list")
    return value


def require_number(record: Mapping[str, Any], key: str, where: object) -> float:
    """`record[key]`, which must be a number, and not NaN."""
    value = require(record, key, where)
    if not isinstance(value, (int, float)) or math.isnan(value):
        raise ValueError(f"{where}: '{key}' is {_shortened(value)}, expected a number")
    return value


def unique_by(records: list[Any], key: str, where: object) -> dict[Any, Any]:
    """The records by the value of `key`; a ValueError if one lacks it or two share it."""
    table: dict[Any, Any] = {}
    for record in records:
        value = require(record, key, where)
        if not isinstance(value, (int, str)):
            raise ValueError(f"{where}: '{key}' is {_shortened(value)}, expected a number or a name")
        if value in table:
            raise ValueError(f"{where}: '{key}' {value!r} occurs twice")
        table[value] = record
    return table


def _shortened(value: object, limit: int = 100) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "…"
