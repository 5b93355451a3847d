"""Access to the metadata of a dataset, with errors that name the missing attribute."""

from typing import Any


def required_attribute(metadata: Any, name: str) -> Any:
    """Return `metadata.name`; raise a ValueError that names dataset and attribute if it is missing."""
    value = getattr(metadata, name, None)
    if value is None:
        raise ValueError(f"metadata of '{getattr(metadata, 'name', '?')}': '{name}' is missing")
    return value


class DatasetIds(dict[int, int]):
    """Table of the dataset's id for each contiguous id; raises ValueError for a class that it lacks."""

    def __init__(self, metadata: Any, name: str) -> None:
        super().__init__((place, original) for original, place in required_attribute(metadata, name).items())
        self._name = name

    def __missing__(self, contiguous: int) -> int:
        raise ValueError(
            f"the model predicted class {contiguous}, which is not in the dataset's {self._name}"
        )
