"""Reading the facts that evaluators need from a data set's metadata."""

from typing import Any


def required_attribute(metadata: Any, name: str) -> Any:
    """`metadata.name`; a ValueError that says which fact of the data set is missing."""
    value = getattr(metadata, name, None)
    if value is None:
        raise ValueError(f"metadata of '{getattr(metadata, 'name', '?')}': '{name}' is missing")
    return value


class DatasetIds(dict[int, int]):
    """Contiguous id -> the data set's id; a ValueError for a class that the data set does not have."""

    def __init__(self, metadata: Any, name: str) -> None:
        super().__init__((place, original) for original, place in required_attribute(metadata, name).items())
        self._name = name

    def __missing__(self, contiguous: int) -> int:
        raise ValueError(f"the model found class {contiguous}, which is not in the data set's {self._name}")
