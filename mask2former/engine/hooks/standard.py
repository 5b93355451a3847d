"""Hooks of every run: progress and metrics, checkpoints; those of evaluation are in `evaluation.py`.

Their order matters. Metrics are written before the checkpoint of the same step, so that a resumed run neither
misses nor repeats a line. The checkpoint comes before the evaluation, which may take long or fail.
"""

import datetime
import logging
import math
import sys
import time
from typing import Any

import torch

from mask2former.engine.checkpoint.disk_space import check_space
from mask2former.engine.checkpoint.run_folder import FINAL, RunFolder
from mask2former.engine.metrics_log import MetricsLog
from mask2former.engine.trainer import Hook, Trainer, Window, is_due
from mask2former.utils.comm import is_main_process
from mask2former.utils.sharding import is_sharded

logger = logging.getLogger(__name__)

LOG_PERIOD = 20  # steps
MAX_SILENCE = 30.0  # seconds without a line on the console


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory of the GPU, or of this process on a CPU (NaN on Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return math.nan
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def last_layer(losses: dict[str, float]) -> dict[str, float]:
    """Return the losses of the final prediction, whose names do not end in a layer's number."""
    return {name: value for name, value in losses.items() if not name.rpartition("_")[2].isdigit()}


class ProgressHook(Hook):
    """Console and metrics lines every LOG_PERIOD steps, averaged over them."""

    def __init__(self, metrics: MetricsLog | None) -> None:
        self.metrics = metrics
        self._seconds: list[tuple[float, float]] = []  # of each step since the last line: data, compute
        self._printed = 0.0

    def before_train(self, trainer: Trainer) -> None:
        self._printed = time.perf_counter()

    def after_step(self, trainer: Trainer) -> None:
        """Add the step's times; write and print when due."""
        assert trainer.last is not None
        self._seconds.append((trainer.last.data_seconds, trainer.last.compute_seconds))
        due = trainer.done % LOG_PERIOD == 0 or trainer.done == trainer.max_iter
        silent = time.perf_counter() - self._printed > MAX_SILENCE
        if self.metrics is not None and (due or silent):
            values = self._values(trainer)
            self._print(trainer, values)
            if due:
                self.metrics.write(trainer.done - 1, values)
        if due:
            trainer.window = Window()
            self._seconds = []

    def _values(self, trainer: Trainer) -> dict[str, float]:
        assert trainer.last is not None
        data, compute = (sum(column) / len(column) for column in zip(*self._seconds, strict=True))
        return {
            **trainer.window.means(),
            "lr": trainer.last.learning_rate,
            "data_time": data,
            "time": data + compute,
            "eta_seconds": (trainer.max_iter - trainer.done) * (data + compute),
            "memory_mb": peak_memory_mb(trainer.device),
        }

    def _print(self, trainer: Trainer, values: dict[str, float]) -> None:
        self._printed = time.perf_counter()
        losses = {name: value for name, value in values.items() if name.startswith("loss")}
        final = "  ".join(f"{name} {value:.3f}" for name, value in last_layer(losses).items())
        logger.info(
            "step %d/%d  eta %s  total_loss %.2f (last layer: %s)  "
            "lr %.1e  data %.2fs  compute %.2fs  memory %.0f MB",
            *(trainer.done, trainer.max_iter, datetime.timedelta(seconds=int(values["eta_seconds"]))),
            *(values.get("total_loss", math.nan), final, values["lr"], values["data_time"]),
            *(values["time"] - values["data_time"], values["memory_mb"]),
        )


class CheckpointHook(Hook):
    """Checkpoints every `period` steps (0: none) and at the end of the run; if sharded, all ranks write."""

    def __init__(self, folder: RunFolder, period: int, extra: dict[str, Any]) -> None:
        self.folder, self.period, self.extra = folder, period, extra
        self._saved_step = 0

    def before_train(self, trainer: Trainer) -> None:
        if is_main_process():
            averages = trainer.average.tensors()
            check_space(self.folder.path, trainer.plain_model, trainer.optimizer, averages)

    def after_step(self, trainer: Trainer) -> None:
        if is_due(trainer.done, self.period):
            self.save(trainer)

    def after_train(self, trainer: Trainer) -> None:
        self._write(trainer, FINAL)

    def save(self, trainer: Trainer) -> None:
        """Save the run after the current step, unless that was done before."""
        if self._saved_step != trainer.done:
            self._write(trainer, f"model_{trainer.done - 1:07d}.pth")
            self._saved_step = trainer.done

    def _write(self, trainer: Trainer, name: str) -> None:
        sharded = is_sharded(trainer.model) and name != FINAL  # users want the final weights in one file
        with trainer.average.in_model() as trained:
            model = {"model": trainer.plain_model.state_dict(), **trained}
            self.folder.save(name, {**model, **trainer.state_dict(), **self.extra}, sharded)


def flatten_results(results: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Flatten nested results: {"segm": {"AP": 1.0}} -> {"segm/AP": 1.0}."""
    flat: dict[str, float] = {}
    for name, value in results.items():
        if isinstance(value, dict):
            flat |= flatten_results(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = float(value)
    return flat
