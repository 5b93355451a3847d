"""What the values in a folder of label PNGs mean: from a classes file, or from the values themselves.

A classes file is text, or JSON. Text: a name a line for the values 0, 1, 2, ..., or on every line a value and
its name (`7 road`). JSON: a list of names, or of objects with `id` and `name`. What is called "ignore" is
trained on by nothing, as is 255 where it has no name of its own.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mask2former.data.errors import DatasetError, each_converted
from mask2former.utils.label_maps import IGNORE_LABEL, read_label_map
from mask2former.utils.storage import PathLike, to_path

logger = logging.getLogger(__name__)

IGNORE = "ignore"  # as a name
BINARY = {0, 255}  # values of a mask as drawing programs save it
BINARY_NAMES = ("background", "foreground")
WIDE_IGNORE_LABEL = 65535  # where there are so many classes that 255 is one
LOOKED_AT = 200  # files that are opened before training, where a classes file tells what is in the others
EXPLAIN = "a classes file with lines VALUE NAME says what is meant, as `0 background` and `255 crack`"
NOT_LABELS = (
    "Labels are one number a pixel: gray values of 8 or 16 bits, or a palette. Colors that stand for "
    "classes must be translated to numbers first"
)


class Labels(NamedTuple):
    """The classes of label maps: `table` is value -> contiguous id, or `ignore_label`."""

    names: tuple[str, ...]
    table: dict[int, int]
    ignore_label: int

    @property
    def values(self) -> list[int]:
        """The value of each class, in the order of contiguous ids."""
        return [value for value, number in self.table.items() if number != self.ignore_label]


class _Named(NamedTuple):
    """The content of a classes file; `counted`: its names had no values, and got 0, 1, 2, ..."""

    names: dict[int, str]
    counted: bool


def find_labels(files: Sequence[str], classes_file: PathLike | None, trained: Labels | None = None) -> Labels:
    """What the values in label PNGs mean: that of those `trained` on, else what the classes file says.

    Without either all files are opened, else some.

    Raises:
        DatasetError: a file cannot be read, a value has no name, or it cannot be told what is meant.
    """
    if trained is not None:
        source = classes_file or "the labels trained on"
        _check_known(values_in(spread(files, LOOKED_AT)), dict.fromkeys(trained.table, ""), source)
        return trained
    if classes_file is None:
        logger.info("reading %d label files for their classes; a classes file would save that", len(files))
        names = _names_of_values(values_in(files))
    else:
        given = _read_classes(existing(classes_file))
        found = values_in(spread(files, LOOKED_AT))
        names = _fitted(given, found, classes_file)
        _check_known(found, names, classes_file)
    return _numbered(names, classes_file)


def existing(path: PathLike) -> Path:
    """A path that the user gave.

    Raises:
        DatasetError: it does not exist.
    """
    place = to_path(path)
    if not place.exists():
        raise DatasetError(f"{path} does not exist; it was looked for as {place.absolute()}")
    return place


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the items, evenly spread."""
    chosen = np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).astype(int))
    return [items[i] for i in chosen]


def values_in(files: Sequence[str]) -> dict[int, str]:
    """Each value that occurs in label PNGs, in ascending order, with a file that holds it.

    Raises:
        DatasetError: a file is no label PNG.
    """
    found: dict[int, str] = {}
    with ThreadPoolExecutor() as pool:  # decoding leaves Python's lock
        for file, values in each_converted(_values, files, pool.map):
            found = {**dict.fromkeys(values, file), **found}
    return dict(sorted(found.items()))


def _values(file: str) -> tuple[str, list[int]]:
    """The file, and what occurs in it."""
    try:
        labels = read_label_map(file)
    except ValueError as error:
        advice = f". {NOT_LABELS}" if "mode is" in str(error) else ""
        raise DatasetError(f"{error}{advice}") from error
    return file, [int(value) for value in np.unique(labels)]


def _names_of_values(found: Mapping[int, str]) -> dict[int, str]:
    """Names for values that have none."""
    if set(found) == BINARY:
        logger.warning("labels are 0 and 255: taken for %s and %s; %s", *BINARY_NAMES, EXPLAIN)
        return dict(zip(sorted(BINARY), BINARY_NAMES, strict=True))
    return {value: f"label {value}" for value in found if value != IGNORE_LABEL}


def _fitted(given: _Named, found: Mapping[int, str], classes_file: PathLike) -> dict[int, str]:
    """The names by value, where one or two names were given and the masks hold 0 and 255.

    That 255 is the ignore label elsewhere would leave one class alone, which nobody wants.
    """
    if not given.counted or set(found) != BINARY or len(given.names) > len(BINARY):
        return given.names
    if len(given.names) < len(BINARY):
        raise DatasetError(f"{classes_file} names one class, and labels are 0 and 255; {EXPLAIN}")
    logger.warning("labels are 0 and 255: taken for %s and %s; %s", *given.names.values(), EXPLAIN)
    return dict(zip(sorted(BINARY), given.names.values(), strict=True))


def _check_known(found: Mapping[int, str], names: Mapping[int, str], classes_file: PathLike) -> None:
    def check(value_and_file: tuple[int, str]) -> None:
        value, file = value_and_file
        if value not in names and value != IGNORE_LABEL:
            raise DatasetError(
                f"{file}: label {value} has no name in {classes_file}, which names {_ranges(names)}; "
                f"without a name only {IGNORE_LABEL} is left out of training"
            )

    each_converted(check, found.items())


def _ranges(values: Mapping[int, str]) -> str:
    first, last = min(values), max(values)
    return f"{first}..{last}" if len(values) == last - first + 1 else ", ".join(map(str, sorted(values)))


def _numbered(names: Mapping[int, str], classes_file: PathLike | None) -> Labels:
    """Contiguous ids, in the order of the values."""
    classes = {value: name for value, name in sorted(names.items()) if name != IGNORE}
    where = classes_file or "the label files"
    if not classes:
        raise DatasetError(f"{where}: there is no class, all is to be ignored")
    if len(set(classes.values())) < len(classes):
        twice = next(name for name in classes.values() if list(classes.values()).count(name) > 1)
        raise DatasetError(f"{where}: two classes are called '{twice}'")
    ignore_label = IGNORE_LABEL if len(classes) <= IGNORE_LABEL else WIDE_IGNORE_LABEL
    table = dict.fromkeys((value for value in names if value not in classes), ignore_label)
    table |= {} if IGNORE_LABEL in names else {IGNORE_LABEL: ignore_label}
    table |= {value: number for number, value in enumerate(classes)}
    return Labels(tuple(classes.values()), table, ignore_label)


def _read_classes(path: Path) -> _Named:
    """The names in a classes file, by value.

    Raises:
        DatasetError: it names nothing, is no text, or not of a form described above.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        named = _from_json(path, json.loads(text)) if path.suffix.lower() == ".json" else _from_lines(text)
    except ValueError as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path} is no classes file: {error}") from error
    if not named.names:
        raise DatasetError(f"{path}: there is no class in it")
    return named


def _from_lines(text: str) -> _Named:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    pairs = [re.fullmatch(r"(\d+)[\s:,;]+(.+)", line) for line in lines]
    valued = [(int(pair[1]), pair[2]) for pair in pairs if pair]
    if len(lines) / 2 < len(valued) < len(lines):  # a table with a head, say; one name may be "3 wheeler"
        odd = next(line for line, pair in zip(lines, pairs, strict=True) if not pair)
        raise ValueError(f"'{odd}' has no value, as the other lines have")
    if len(valued) < len(lines):
        return _Named(dict(enumerate(lines)), counted=True)
    if len(dict(valued)) < len(valued):
        raise ValueError("a value stands on two lines")
    return _Named(dict(valued), counted=False)


def _from_json(path: Path, content: Any) -> _Named:
    rows = content if isinstance(content, list) else []
    if rows and all(isinstance(row, str) for row in rows):
        return _Named(dict(enumerate(rows)), counted=True)
    if not rows or not all(isinstance(row, dict) and {"id", "name"} <= row.keys() for row in rows):
        raise DatasetError(f"{path}: expected a list of names, or of objects with 'id' and 'name'")
    names = {int(row["id"]): str(row["name"]) for row in rows}
    if len(names) < len(rows):
        raise DatasetError(f"{path}: an id occurs twice")
    return _Named(names, counted=False)
