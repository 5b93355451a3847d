"""The rows of TEST.EXPECTED_RESULTS."""

from fvcore.common.config import CfgNode

NUMBERS = [False, False, True, True]  # which items of a row of TEST.EXPECTED_RESULTS are


def expected_results(cfg: CfgNode) -> list[tuple[str, str, float, float]]:
    """The rows of TEST.EXPECTED_RESULTS.

    Raises:
        ValueError: a row is not [task, metric, value, tolerance].
    """
    rows = []
    for row in cfg.TEST.EXPECTED_RESULTS:
        if not isinstance(row, (list, tuple)) or [isinstance(x, (int, float)) for x in row] != NUMBERS:
            raise ValueError(f"TEST.EXPECTED_RESULTS has {row!r}, not ['task', 'metric', value, tolerance]")
        rows.append((str(row[0]), str(row[1]), float(row[2]), float(row[3])))
    return rows
