"""Files that name the classes of label PNGs: text, CSV, JSON or YAML.

Text: a name on each line for the values 0, 1, 2, ..., or a value and its name on every line (`7 road`). CSV:
columns of values and names. JSON and YAML: a list of names, of objects with `id` and `name`, or a table of
values and names; or a file that has one of these as `names` (YOLO) or `categories` (COCO).
"""

from __future__ import annotations

import csv
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mask2former.config.yaml_files import load_yaml
from mask2former.data.errors import DatasetError

logger = logging.getLogger(__name__)

IGNORE = "ignore"  # as a name
LABELME_IGNORE = "__ignore__"  # line 0 of labelme's labels.txt, whose lines count from -1
LARGEST = 65535  # label value
COLOR = re.compile(r"\d+[\s,]+\d+[\s,]+\d+")
NAME_FIRST = re.compile(r"\D.*[:,;=]\s*\d+")
OTHER_SYNTAX = re.compile(r"names\s*[:=].*|<.*|.*\{|//.*")  # YAML, darknet's .data, XML, protobuf, comments
NAME_THEN_VALUE = re.compile(r"(\D*\S)\s+\d+")
NAME_HEADER = re.compile(r"name|class|label", re.IGNORECASE)
COLUMN_HEADER = re.compile(r"(class_?)?names?|class(es)?|labels?", re.IGNORECASE)  # of a single column
WRAPPERS = ("names", "categories")
JSON_FORMS = "expected a list of names, of objects with 'id' and 'name', or a table of values and names"


class NamedValues(NamedTuple):
    """Names by label value.

    Attributes:
        names: by value.
        counted: the file has names alone, for the values 0, 1, 2, ...
        key: of the names among other keys of a file.
    """

    names: dict[int, str]
    counted: bool
    key: str | None = None


def read_classes_file(path: Path) -> NamedValues:
    """Return the names that a file gives to label values.

    Raises:
        DatasetError: the file cannot be read, its format is another one, or there is no name in it.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        is_json = text.lstrip()[:1] in ("[", "{")
        read = READERS.get(path.suffix.lower(), _from_json if is_json else _from_text)
        named = read(text, path)
    except RecursionError:
        raise DatasetError(f"{path} is not a classes file: its brackets are nested too deeply") from None
    except (ValueError, OSError, csv.Error) as error:
        reason = " ".join(str(error).split())[:200]
        raise DatasetError(f"{path} is not a classes file: {reason}") from error
    if not named.names:
        raise DatasetError(f"{path}: there is no class in it")
    names = {value: IGNORE if name == LABELME_IGNORE else name for value, name in named.names.items()}
    return named._replace(names=names)


def _from_text(text: str, path: Path) -> NamedValues:
    written = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in written if not line.startswith("#")]
    if len(lines) < len(written):
        logger.warning("%s: comment lines (#) left out: %d", path, len(written) - len(lines))
    _check_lines(lines)
    pairs = [re.fullmatch(r"(\d+)[\s:,;]+(.+)", line) for line in lines]
    valued = [(pair[1], pair[2]) for pair in pairs if pair]
    if len(lines) / 2 < len(valued) < len(lines):  # a table with a header, say; one name may be "3 wheeler"
        odd = next(line for line, pair in zip(lines, pairs, strict=True) if not pair)
        raise ValueError(f"'{odd}' has no value, as the other lines have")
    if len(valued) == len(lines):
        return _with_values(valued)
    if lines[0] == LABELME_IGNORE:
        del lines[0]
        logger.warning("%s: read as labelme does: the line after %s names the value 0", path, LABELME_IGNORE)
    return NamedValues(dict(enumerate(lines)), True)


def _check_lines(lines: list[str]) -> None:
    """Raise ValueError if lines of text are not names, or values and names."""
    if other := next((line for line in lines if OTHER_SYNTAX.fullmatch(line)), None):
        raise ValueError(f"its line '{other}' is not of a list of names")
    if lines and all(COLOR.search(line) for line in lines):
        raise ValueError("it lists colors, as CVAT's labelmap.txt does; write lines VALUE NAME")
    named = [match[1] for line in lines if (match := NAME_THEN_VALUE.fullmatch(line))]
    is_table = len(named) == len(lines) > 1 and len(set(named)) > 1  # unlike "grade 1", "grade 2"
    if lines and (is_table or all(NAME_FIRST.fullmatch(line) for line in lines)):
        raise ValueError("its values follow the names; write lines VALUE NAME")


def _from_csv(text: str, path: Path) -> NamedValues:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    delimiter = next((mark for mark in "\t;," if lines and mark in lines[0]), ",")
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter)]
    header = rows.pop(0) if rows and not rows[0][0].isdecimal() and len(rows[0]) > 1 else []
    if not header and all(len(row) == 1 for row in rows):
        cells = [row[0] for row in rows]
        if cells and COLUMN_HEADER.fullmatch(cells[0]):
            logger.warning("%s: its first line, '%s', is read as the head of the column", path, cells.pop(0))
        return _from_text("\n".join(cells), path)
    width = max(map(len, rows), default=0)
    column = next((i for i, cell in enumerate(header) if i and NAME_HEADER.search(cell)), 1)
    if width > 2 and not (header and NAME_HEADER.search(header[column])):
        raise ValueError(f"it has {width} columns, and none is headed 'name'; expected columns VALUE,NAME")
    if wrong := next((row for row in rows if not row[0].isdecimal() or len(row) <= column), None):
        raise ValueError(f"its row '{delimiter.join(wrong)}' is not a value and a name")
    return _with_values([(row[0], row[column]) for row in rows])


def _from_yaml(text: str, path: Path) -> NamedValues:
    return _from_content(load_yaml(text), path)


def _from_json(text: str, path: Path) -> NamedValues:
    return _from_content(json.loads(text), path)


def _from_content(content: Any, path: Path) -> NamedValues:
    """Return the names in the content of a JSON or YAML file."""
    key = next((key for key in WRAPPERS if isinstance(content, dict) and key in content), None)
    content = content if key is None else content[key]
    if isinstance(content, dict) and content and not any(_as_text(value).isdecimal() for value in content):
        raise ValueError(f"it has no 'names', only {', '.join(map(_as_text, [*content][:5]))}; {JSON_FORMS}")
    if isinstance(content, dict):
        return _with_values([*content.items()])
    rows = content if isinstance(content, list) else []
    if rows and all(isinstance(row, str) for row in rows):
        return NamedValues(dict(enumerate(rows)), True, key)
    if not rows or not all(isinstance(row, dict) and {"id", "name"} <= row.keys() for row in rows):
        raise ValueError(JSON_FORMS)
    return _with_values([(row["id"], row["name"]) for row in rows])


def _with_values(pairs: list[tuple[Any, Any]]) -> NamedValues:
    names: dict[int, str] = {}
    for value, name in pairs:
        digits = _as_text(value)
        if not re.fullmatch(r"[0-9]{1,5}", digits) or int(digits) > LARGEST:
            raise ValueError(f"'{digits}' is not a label value from 0 to {LARGEST}; {JSON_FORMS}")
        if int(digits) in names:
            raise ValueError(f"the value {digits} occurs twice")
        if not isinstance(name, str | int | float) or name == "":
            raise ValueError(f"the name of {digits} is '{_as_text(name)}', not text")
        names[int(digits)] = str(name)
    return NamedValues(names, False)


def _as_text(value: Any) -> str:
    """Return a text or number as text, for other types the name of the type: they may be of any size."""
    return str(value)[:50] if type(value) in (str, int, float) else type(value).__name__


READERS: dict[str, Callable[[str, Path], NamedValues]] = {
    ".json": _from_json,
    ".yaml": _from_yaml,
    ".yml": _from_yaml,
    ".csv": _from_csv,
}
