"""The one error of this package that users meet: a dataset that cannot be used as it is."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class DatasetError(ValueError):
    """A dataset, or one record of it, is broken; the message names the file, the image and the value."""


_collected: ContextVar[list[DatasetError] | None] = ContextVar("collected", default=None)


@contextmanager
def errors_collected() -> Iterator[list[DatasetError]]:
    """Within it, loaders leave out what is broken and note its error in the list, where else they stop."""
    errors: list[DatasetError] = []
    token = _collected.set(errors)
    try:
        yield errors
    finally:
        _collected.reset(token)


def stop_or_note(error: DatasetError) -> None:
    """Raise the error of a part of a dataset; within `errors_collected` note it."""
    errors = _collected.get()
    if errors is None:
        raise error
    errors.append(error)


def each_converted(
    convert: Callable[[Item], Result],
    items: Iterable[Item],
    run: Callable[[Callable[[Item], Result | None], Iterable[Item]], Iterable[Result | None]] = map,
) -> list[Result]:
    """`convert(item)` of each item of a dataset, by `map` or what does the same.

    Raises:
        DatasetError: the first that `convert` raises; none within `errors_collected`.
    """
    errors = _collected.get()  # here: other threads have a context of their own

    def attempt(item: Item) -> Result | None:
        try:
            return convert(item)
        except DatasetError as error:
            if errors is None:
                raise
            errors.append(error)
            return None

    return [result for result in run(attempt, items) if result is not None]


def broken_record(record: dict[str, Any], what: str, file: str | None = None) -> DatasetError:
    """The error for one record; `file` is the culprit where it is not the image itself."""
    return DatasetError(f"{file or record.get('file_name')}, image id {record.get('image_id')!r}: {what}")


def first_few(values: Sequence[Any], count: int = 3) -> str:
    """Return the first of some values for a message, and ", ..." if there are more."""
    return ", ".join(map(str, values[:count])) + (", ..." if len(values) > count else "")
