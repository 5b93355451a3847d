"""The one error of this package that users meet: a dataset that cannot be used as it is."""

from typing import Any


class DatasetError(ValueError):
    """A dataset, or one record of it, is broken; the message names the file, the image and the value."""


def broken_record(record: dict[str, Any], what: str, file: str | None = None) -> DatasetError:
    """The error for one record; `file` is the culprit where it is not the picture itself."""
    return DatasetError(f"{file or record.get('file_name')}, image id {record.get('image_id')!r}: {what}")
