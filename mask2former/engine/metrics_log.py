"""Metrics over time: `metrics.json` (one JSON object per line), and what LOGGERS adds."""

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mask2former.engine.checkpoint.disk_space import write_errors_explained
from mask2former.engine.loggers import MetricsLogger
from mask2former.utils.atomic_files import atomic_write
from mask2former.utils.messages import InputError, brief

METRICS_FILE = "metrics.json"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file, without a last line cut off by a kill.

    Raises:
        ValueError: a line is something else; the message has the file and the line.
    """
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return [_metrics(line, f"{path}, line {n}") for n, line in enumerate(text.split("\n")[:-1], start=1)]


def _metrics(line: str, where: str) -> dict[str, Any]:
    try:
        metrics = json.loads(line)
        if isinstance(metrics["iteration"], int):
            return metrics
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    raise InputError(f"{where}: {brief(line)} is no line of metrics; delete it, or the file")


class MetricsLog:
    """Metrics of a run that continues at step `start`, on rank 0 only.

    Earlier lines of that step and later are dropped, since these steps run again. Methods raise TrainingError
    if a file cannot be written, as on a full disk.
    """

    def __init__(self, folder: Path, start: int, loggers: Sequence[MetricsLogger] = ()) -> None:
        self.loggers = loggers
        path = folder / METRICS_FILE
        kept = [line for line in read_metrics(path) if line["iteration"] < start]
        self._earlier = kept
        self._evaluated = {line["iteration"] for line in kept if any("/" in name for name in line)}
        self._explained = partial(write_errors_explained, path)
        with self._explained():
            with atomic_write(path) as file:
                file.writelines(json.dumps(line).encode() + b"\n" for line in kept)
            self._file = open(path, "a")  # noqa: SIM115  (open until `close`)

    def write(self, iteration: int, values: dict[str, float]) -> None:
        """Write and flush one line for step `iteration`; non-finite values become null: JSON has no NaN."""
        line = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with self._explained():
            self._file.write(json.dumps({"iteration": iteration, **line}) + "\n")
            self._file.flush()
            for logger in self.loggers:
                logger.write(iteration, values)

    def has_results(self, iteration: int) -> bool:
        """Return True if the resumed run already had the evaluation results of step `iteration`."""
        return iteration in self._evaluated

    def earlier(self, name: str) -> list[tuple[int, float | None]]:
        """Return step and value (None: not finite) of a metric in the lines of the run that is resumed."""
        return [(line["iteration"], line[name]) for line in self._earlier if name in line]

    def write_image(self, iteration: int, name: str, image: NDArray[Any]) -> None:
        """Write an image (H, W, 3) uint8 RGB."""
        with self._explained():
            for logger in self.loggers:
                logger.write_image(iteration, name, image)

    def close(self) -> None:
        """Flush and close the files."""
        with self._explained():
            self._file.close()
            for logger in self.loggers:
                logger.close()
