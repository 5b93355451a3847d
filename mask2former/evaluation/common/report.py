"""What the metric commands show: a table for people, or one JSON object, and one line for an error."""

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence

from tabulate import tabulate


def metrics_table(results: Mapping[str, float], *, per_class: bool = True) -> str:
    """A table of the metrics, and below it one of the classes.

    Args:
        results: metric name -> value; a class's metric is called `METRIC-class name`.
        per_class: whether to show the second table.
    """
    overall: dict[str, float] = {}
    classes: dict[str, dict[str, str | float]] = {}
    for name, value in results.items():
        metric, dash, class_name = name.partition("-")
        if dash:
            classes.setdefault(class_name, {"class": class_name})[metric] = value
        else:
            overall[name] = value
    rows = list(classes.values()) if per_class else []
    tables = [table for table in ([overall], rows) if table]
    return "\n\n".join(tabulate(table, headers="keys", floatfmt=".3f", tablefmt="simple") for table in tables)


def metrics_json(results: Mapping[str, float]) -> str:
    """One JSON object; JSON has no NaN, so a metric without a value is null."""
    return json.dumps({name: None if math.isnan(value) else value for name, value in results.items()})


def run_command(
    parser: argparse.ArgumentParser,
    score: Callable[[argparse.Namespace], Mapping[str, float]],
    argv: Sequence[str] | None,
) -> int:
    """Parse the arguments, score, and write the result to stdout; returns the exit code, 2 for bad input."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    args = parser.parse_args(argv)
    try:
        results = score(args)
    except (ValueError, OSError, MemoryError) as error:
        message = " ".join(str(error).split())
        sys.stderr.write(f"error: {message}\n")
        return 2
    sys.stdout.write((metrics_json if args.json else metrics_table)(results) + "\n")
    return 0
