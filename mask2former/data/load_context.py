"""State shared by the functions that load one dataset: JSON files parsed so far, and errors found so far."""

from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

from mask2former.data.errors import DatasetError

Item = TypeVar("Item")
Result = TypeVar("Result")


class LoadContext:
    """JSON files parsed so far, which may take gigabytes: keep a context no longer than the loading.

    Args:
        errors: a list that collects the errors of broken parts, which are left out then; None raises them.
    """

    def __init__(self, errors: list[DatasetError] | None = None) -> None:
        self.parsed: dict[Hashable, Any] = {}
        self._errors = errors

    def report(self, error: DatasetError) -> None:
        """Raise the error of one part of a dataset, or collect it."""
        if self._errors is None:
            raise error
        self._errors.append(error)

    def convert_each(
        self,
        convert: Callable[[Item], Result],
        items: Iterable[Item],
        run: Callable[[Callable[[Item], Result | None], Iterable[Item]], Iterable[Result | None]] = map,
    ) -> list[Result]:
        """Return `convert(item)` of each item that is not broken; `run` may be the `map` of a thread pool."""

        def attempt(item: Item) -> Result | None:
            try:
                return convert(item)
            except DatasetError as error:
                self.report(error)
                return None

        return [result for result in run(attempt, items) if result is not None]
