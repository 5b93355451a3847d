"""The error of datasets that cannot be used as they are."""

from collections.abc import Sequence
from typing import Any

from mask2former.utils.image_io import UPRIGHT, ImageError, read_header
from mask2former.utils.messages import InputError, shortened


class DatasetError(InputError):
    """A dataset, or one record of it, is broken; the message names file, image or video, and value."""


def broken_record(record: dict[str, Any], what: str, file: str | None = None) -> DatasetError:
    """Return the error of one record; `file` is the broken file if that is not the image itself."""
    kind = "video" if "video_id" in record else "image"
    return DatasetError(f"{file or record.get('file_name')}, {kind} id {record.get(f'{kind}_id')!r}: {what}")


def wrong_size(record: dict[str, Any], size: tuple[int, ...], expected: tuple[int, int]) -> DatasetError:
    """Return the error of an image whose `size` (H, W) is not the one that its annotations say."""
    what = f"(height, width) is {size}, the annotations say {expected}"
    return broken_record(record, what + _orientation(record, "its"))


def wrong_map_size(
    record: dict[str, Any], file: str, size: tuple[int, ...], expected: tuple[int, int]
) -> DatasetError:
    """Return the error of a label or panoptic PNG whose `size` (H, W) is not that of the image."""
    what = f"(height, width) is {size}, the image's is {expected}"
    return broken_record(record, what + _orientation(record, "the image's"), file)


def _orientation(record: dict[str, Any], whose: str) -> str:
    """Return how an image is stored, as part of a message, if it is rotated by its tags."""
    try:
        header = read_header(record["file_name"])
    except (ImageError, KeyError):
        return ""
    if header.orientation == UPRIGHT:
        return ""
    return f"; {whose} pixels are stored as {header.stored} with the EXIF orientation {header.orientation}"


def examples(values: Sequence[Any], count: int = 3) -> str:
    """Return the first of some values for a message that has their number."""
    shown = ", ".join(shortened(str(value), 150) for value in values[:count])
    return shown + (", ..." if len(values) > count else "")


def first_few(values: Sequence[Any], count: int = 3) -> str:
    """Return the first of some values for a message, and the number of all if there are more."""
    return examples(values, count) + (f" ({len(values)} in all)" if len(values) > count else "")
