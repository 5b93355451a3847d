"""JSON files of datasets and results, with errors that name file, key and value."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mask2former.utils.atomic_files import write_errors_named
from mask2former.utils.messages import InputError, brief
from mask2former.utils.storage import PathLike, to_file

JsonObject = dict[str, Any]

SUBMISSION = "submission"  # folder of the files in the formats that the datasets' authors take


def load_json(path: PathLike, kind: type) -> Any:
    """Return the content of a JSON file, which must be a `kind` (dict or list).

    Raises:
        ValueError: the file is missing, is not JSON, or holds something else.
    """
    try:
        content = json.loads(to_file(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except RecursionError as error:
        raise InputError(f"{path}: not a usable JSON file (its brackets are nested too deep)") from error
    except (OSError, ValueError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise InputError(f"{path}: not a readable JSON file ({reason})") from error
    if not isinstance(content, kind):
        raise InputError(f"{path}: holds a {type(content).__name__} at the top, expected a {kind.__name__}")
    return content


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file; create its folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_errors_named(path):
        path.write_text(json.dumps(content), encoding="utf-8")


def get_value(record: Mapping[str, Any], key: str, where: object, kind: type = object) -> Any:
    """Return `record[key]`, which must be a `kind`: anything, a `list`, or a `float` (or int) that is finite.

    Raises:
        ValueError: the key is missing, or its value something else; the message names `where` and the key.
    """
    # A dict is recognized in half the time that Mapping alone takes
    if not isinstance(record, (dict, Mapping)) or key not in record:
        raise InputError(f"{where}: no key '{key}' in {brief(record)}")
    value = record[key]
    is_number = isinstance(value, (int, float)) and abs(value) <= sys.float_info.max  # NaN is not
    if not (is_number if kind is float else isinstance(value, kind)):
        expected = "a number" if kind is float else f"a {kind.__name__}"
        raise InputError(f"{where}: '{key}' is {brief(value)}, expected {expected}")
    return value


def index_by(records: list[Any], key: str, where: object) -> dict[Any, Any]:
    """Return the records by their value of `key`; raise ValueError if one lacks it or two share it."""
    table: dict[Any, Any] = {}
    for record in records:
        value = get_value(record, key, where)
        whole = isinstance(value, float) and value.is_integer()
        if not (whole or isinstance(value, (int, str))):
            raise InputError(f"{where}: '{key}' is {brief(value)}, expected a whole number or a name")
        if value in table:
            raise InputError(f"{where}: '{key}' {brief(value)} occurs twice")
        table[value] = record
    return table
