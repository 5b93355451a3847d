"""The classes of a folder of label PNGs, from a classes file or from the values that occur in the PNGs.

Values named "ignore" are not trained on, and neither is 255 unless it has another name.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mask2former.data.custom.classes_file import IGNORE, LARGEST, read_classes_file
from mask2former.data.errors import DatasetError, first_few
from mask2former.data.load_context import LoadContext
from mask2former.utils.label_maps import IGNORE_LABEL, read_label_map
from mask2former.utils.storage import PathLike, to_file

logger = logging.getLogger(__name__)

BINARY = {0, 255}  # values of a mask as drawing programs save it
BINARY_NAMES = ("background", "foreground")
WIDE_IGNORE_LABEL = 65535  # for so many classes that 255 is one of them
MANY = 30  # classes that nobody has named
LOOKED_AT = 200  # files that are opened before training if a classes file names the values of all
EXPLAIN = "a classes file with lines VALUE NAME is unambiguous, such as `0 background` and `255 crack`"
NOT_LABELS = (
    "Labels are one number a pixel: gray values of up to 16 bits, or a palette. Colors that stand for "
    "classes must be translated to numbers first"
)


class LabelClasses(NamedTuple):
    """The classes of label maps: `table` is value -> contiguous id or `ignore_label`."""

    names: tuple[str, ...]
    table: dict[int, int]
    ignore_label: int

    @property
    def values(self) -> list[int]:
        """Return the value of each class, in the order of contiguous ids."""
        return [value for value, number in self.table.items() if number != self.ignore_label]


def find_label_classes(
    files: Sequence[str],
    classes_file: PathLike | None,
    train_classes: LabelClasses | None = None,
    *,
    context: LoadContext,
) -> LabelClasses:
    """Return the classes of label PNGs: `train_classes`, or those of the classes file, or the values found.

    All PNGs are opened if nothing else names the classes, else some.

    Raises:
        DatasetError: a file cannot be read, a value has no name, or the classes are ambiguous.
    """
    if train_classes is not None:
        source = classes_file or "the labels trained on"
        _check_known(values_in(spread(files, LOOKED_AT), context), train_classes.table, source, context)
        return train_classes
    if classes_file is None:
        logger.info("reading %d label files for their classes; a classes file avoids this", len(files))
        found = values_in(files, context)
        if found.keys() == BINARY:
            return _number(_name_binary(BINARY_NAMES), "the label files")
        named = {value: f"label {value}" for value in found if value != IGNORE_LABEL}
        _warn_of_soft_edges([*named], IGNORE_LABEL in found)
        return _number(named, "the label files")
    names, counted, key = read_classes_file(existing(classes_file))
    if key:
        logger.warning("%s: '%s' is read as the names of the label values 0, 1, 2, ...", classes_file, key)
    looked_at = spread(files, LOOKED_AT)
    found = values_in(looked_at, context)
    if counted and found.keys() == BINARY and len(names) <= len(BINARY):
        # 255 is the ignore label elsewhere, but here that would leave a single class, which nobody wants.
        if len(names) < len(BINARY):
            raise DatasetError(f"{classes_file} names one class, and labels are 0 and 255; {EXPLAIN}")
        names = _name_binary(tuple(names.values()))
    _check_known(found, names, classes_file, context)
    absent = [f"{value} {name}" for value, name in names.items() if value not in found and name != IGNORE]
    if absent:
        message = "%s: the labels in %d of %d files have none of the values %s"
        logger.warning(message, classes_file, len(looked_at), len(files), first_few(absent))
    return _number(names, classes_file)


def existing(path: PathLike) -> Path:
    """Return a path that the user gave.

    Raises:
        DatasetError: it does not exist, or is a pipe, socket or device.
    """
    try:
        place = to_file(path)
    except OSError as error:
        raise DatasetError(str(error)) from error
    if not place.exists():
        raise DatasetError(f"{path} does not exist; it was looked for as {place.absolute()}")
    return place


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """Return at most `count` of the items, evenly spread."""
    chosen = np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).astype(int))
    return [items[i] for i in chosen]


def values_in(files: Sequence[str], context: LoadContext) -> dict[int, str]:
    """Return each value that occurs in label PNGs, in ascending order, and a file that holds it.

    Raises:
        DatasetError: a file is not a label PNG.
    """

    def read(file: str) -> dict[int, str]:
        try:
            values = np.unique(read_label_map(file)).tolist()
        except ValueError as error:
            advice = f". {NOT_LABELS}" if "mode is" in str(error) else ""
            raise DatasetError(f"{error}{advice}") from error
        if wrong := [value for value in values if not 0 <= value <= LARGEST]:
            raise DatasetError(f"{file}: label {wrong[0]} is not a value from 0 to {LARGEST}")
        return dict.fromkeys(values, file)

    found: dict[int, str] = {}
    with ThreadPoolExecutor() as pool:  # decoding releases Python's lock
        for values in context.convert_each(read, files, pool.map):
            found = {**values, **found}
    return dict(sorted(found.items()))


def _name_binary(names: tuple[str, ...]) -> dict[int, str]:
    logger.warning("labels are 0 and 255: taken for %s and %s; %s", *names, EXPLAIN)
    return dict(zip(sorted(BINARY), names, strict=True))


def _warn_of_soft_edges(values: Sequence[int], has_ignored: bool) -> None:
    """Warn if values without names may be gray levels of mask edges rather than classes."""
    has_gaps = bool(values) and len(values) < max(values)
    if len(values) > MANY or (has_gaps and has_ignored):
        ignored = f", and {IGNORE_LABEL} is not trained on" if has_ignored else ""
        message = "each of the label values %s is a class%s; masks with soft edges must be thresholded; %s"
        logger.warning(message, first_few(values), ignored, EXPLAIN)


def _check_known(
    found: Mapping[int, str], known: Mapping[int, Any], source: PathLike, context: LoadContext
) -> None:
    first, last = min(known), max(known)
    is_range = len(known) == last - first + 1
    named = f"{first}..{last}" if is_range else ", ".join(map(str, sorted(known)))
    for value, file in found.items():
        if value not in known and value != IGNORE_LABEL:
            what = f"label {value} has no name in {source}, which names {named}"
            advice = f"without a name only {IGNORE_LABEL} is left out of training"
            context.report(DatasetError(f"{file}: {what}; {advice}"))


def _number(names: Mapping[int, str], source: PathLike) -> LabelClasses:
    """Assign contiguous ids in the order of the values."""
    classes = {value: name for value, name in sorted(names.items()) if name != IGNORE}
    if not classes:
        raise DatasetError(f"{source}: there is no class, all is to be ignored")
    name, count = Counter(classes.values()).most_common(1)[0]
    if count > 1:
        raise DatasetError(f"{source}: two classes are called '{name}'")
    ignore_label = IGNORE_LABEL if len(classes) <= IGNORE_LABEL else WIDE_IGNORE_LABEL
    table = dict.fromkeys((value for value in names if value not in classes), ignore_label)
    table |= {} if IGNORE_LABEL in names else {IGNORE_LABEL: ignore_label}
    table |= {value: number for number, value in enumerate(classes)}
    return LabelClasses(tuple(classes.values()), table, ignore_label)
