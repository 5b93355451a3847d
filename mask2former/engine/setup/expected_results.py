"""The rows of TEST.EXPECTED_RESULTS."""

from typing import Any

NUMBERS = [False, False, True, True]  # which items of a row are numbers


def expected_results(rows: list[Any]) -> list[tuple[str, str, float, float]]:
    """Return the checked rows of TEST.EXPECTED_RESULTS.

    Raises:
        ValueError: a row is not [task, metric, value, tolerance].
    """
    for row in rows:
        if not isinstance(row, (list, tuple)) or [isinstance(x, (int, float)) for x in row] != NUMBERS:
            raise ValueError(f"TEST.EXPECTED_RESULTS has {row!r}, not ['task', 'metric', value, tolerance]")
    return [(str(row[0]), str(row[1]), float(row[2]), float(row[3])) for row in rows]
