"""Metrics as text: tables for people, or one JSON object."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence

from tabulate import tabulate

from mask2former.utils.messages import legible


def metrics_table(results: Mapping[str, float], *, per_class: bool = True) -> str:
    """Return a table of the metrics and, if `per_class`, a second one with a row for each class.

    The metric of a class is called `METRIC-class name`.
    """
    overall: dict[str, float] = {}
    classes: dict[str, dict[str, str | float]] = {}
    for name, value in results.items():
        metric, dash, class_name = name.partition("-")
        if dash:
            classes.setdefault(class_name, {"class": legible(class_name, 60)})[metric] = value
        else:
            overall[name] = value
    rows = list(classes.values()) if per_class else []
    tables = [table for table in ([overall], rows) if table]
    return "\n\n".join(tabulate(table, headers="keys", floatfmt=".3f", tablefmt="simple") for table in tables)


def distinct_names(names: Sequence[str]) -> list[str]:
    """Return the names of classes for metrics: those that several have get the class id, as `box (3)`."""
    counts = Counter(names)
    return [name if counts[name] == 1 else f"{name} ({k})" for k, name in enumerate(names)]


def metrics_json(results: Mapping[str, float]) -> str:
    """Return the metrics as one JSON object; NaN becomes null, as JSON has no NaN."""
    return json.dumps({name: None if math.isnan(value) else value for name, value in results.items()})
