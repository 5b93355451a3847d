"""Numbers over time, for machines: `metrics.json` (one JSON object a line) and TensorBoard events."""

import json
import math
import os
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mask2former.utils.atomic_files import atomic_write

METRICS_FILE = "metrics.json"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last line that a killed process left unfinished is not among them."""
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]


class MetricsLog:
    """Appends to the metrics of a run that continues at step `start`.

    Lines of that step and later are dropped: the steps run again. The main process alone makes one of these.
    """

    def __init__(self, folder: Path, start: int) -> None:
        self.folder, self.start = folder, start
        path = folder / METRICS_FILE
        kept = [line for line in read_metrics(path) if line["iteration"] < start]
        self._evaluated = {line["iteration"] for line in kept if any("/" in name for name in line)}
        with atomic_write(path) as file:
            file.writelines(json.dumps(line).encode() + b"\n" for line in kept)
        self._file = open(path, "a")  # noqa: SIM115  (open as long as the run)
        self._events: Any = None

    @property
    def events(self) -> Any:
        """The TensorBoard writer, made on first use: its import takes a second."""
        if self._events is None:
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(self.folder), purge_step=self.start or None)
        return self._events

    def write(self, iteration: int, values: dict[str, float]) -> None:
        """One line about the run after step `iteration`; it survives the end of this process.

        JSON has no NaN: a value that is not finite is null.
        """
        line = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"iteration": iteration, **line}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self.events.add_scalar(name, value, iteration)

    def has_results(self, iteration: int) -> bool:
        """Whether the run had noted the evaluation after step `iteration` when it was resumed."""
        return iteration in self._evaluated

    def write_image(self, iteration: int, name: str, image: NDArray[Any]) -> None:
        """An image (H, W, 3) uint8 for TensorBoard."""
        self.events.add_image(name, image, iteration, dataformats="HWC")

    def close(self) -> None:
        """Write out what is buffered."""
        self._file.close()
        if self._events is not None:
            self._events.close()
