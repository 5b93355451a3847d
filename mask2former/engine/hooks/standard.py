"""What happens around training steps: progress and curves, checkpoints, evaluation, images.

Their order matters: a step's line is written before the checkpoint that ends with it, so that a resumed run
neither misses nor repeats a line; the checkpoint comes before the evaluation, which may take long or fail.
"""

import datetime
import logging
import math
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from mask2former.engine.checkpoint.disk_space import check_space, failure_explained
from mask2former.engine.checkpoint.run_folder import FINAL, PARTS_SUFFIX, SUFFIX, RunFolder
from mask2former.engine.metrics_log import MetricsLog
from mask2former.engine.parallel import gathered, is_sharded
from mask2former.engine.trainer import Hook, Trainer, is_due
from mask2former.utils.comm import all_reduce_sum, is_main_process

logger = logging.getLogger(__name__)

Results = OrderedDict[str, Any]

LOG_PERIOD = 20
LONGEST_SILENCE = 30.0  # seconds without a line on the console


def memory_megabytes(device: torch.device) -> float:
    """The highest use of memory so far: of the GPU, or of this process (NaN where that is not told)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return math.nan
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def last_layer(losses: dict[str, float]) -> dict[str, float]:
    """The losses of the final prediction: those without a layer's number."""
    return {name: value for name, value in losses.items() if not name.rpartition("_")[2].isdigit()}


class ProgressHook(Hook):
    """A console line and a line of metrics every twenty steps, averaged over them."""

    def __init__(self, metrics: MetricsLog | None) -> None:
        self.metrics = metrics
        self._data_seconds: list[float] = []
        self._compute_seconds: list[float] = []
        self._printed = 0.0

    def before_train(self, trainer: Trainer) -> None:
        """Start the clock."""
        self._printed = time.perf_counter()

    def after_step(self, trainer: Trainer) -> None:
        """Take the step's times; write and print when due."""
        assert trainer.last is not None
        self._data_seconds.append(trainer.last.data_seconds)
        self._compute_seconds.append(trainer.last.compute_seconds)
        due = trainer.done % LOG_PERIOD == 0 or trainer.done == trainer.max_iter
        silent = time.perf_counter() - self._printed > LONGEST_SILENCE
        if self.metrics is not None and (due or silent):
            values = self._values(trainer)
            self._print(trainer, values)
            if due:
                self.metrics.write(trainer.done - 1, values)
        if due:
            trainer.window.clear()
            self._data_seconds, self._compute_seconds = [], []

    def _values(self, trainer: Trainer) -> dict[str, float]:
        assert trainer.last is not None
        data = sum(self._data_seconds) / len(self._data_seconds)
        compute = sum(self._compute_seconds) / len(self._compute_seconds)
        return {
            **trainer.window.means(),
            "lr": trainer.last.rate,
            "data_time": data,
            "time": data + compute,
            "eta_seconds": (trainer.max_iter - trainer.done) * (data + compute),
            "memory_mb": memory_megabytes(trainer.device),
        }

    def _print(self, trainer: Trainer, values: dict[str, float]) -> None:
        self._printed = time.perf_counter()
        losses = {name: value for name, value in values.items() if name.startswith("loss")}
        final = "  ".join(f"{name} {value:.3f}" for name, value in last_layer(losses).items())
        logger.info(
            "step %d/%d  eta %s  total_loss %.2f (last layer: %s)  "
            "lr %.1e  data %.2fs  compute %.2fs  memory %.0f MB",
            trainer.done,
            trainer.max_iter,
            datetime.timedelta(seconds=int(values["eta_seconds"])),
            values.get("total_loss", float("nan")),
            final,
            values["lr"],
            values["data_time"],
            values["time"] - values["data_time"],
            values["memory_mb"],
        )


class CheckpointHook(Hook):
    """Saves the run every `period` steps (0: not then) and at its end; sharded, all processes write."""

    def __init__(self, folder: RunFolder, period: int, extra: dict[str, Any]) -> None:
        self.folder, self.period, self.extra = folder, period, extra

    def before_train(self, trainer: Trainer) -> None:
        """Look for room on the disk."""
        if is_main_process():
            check_space(self.folder.path, trainer)

    def after_step(self, trainer: Trainer) -> None:
        """Save when due."""
        if is_due(trainer.done, self.period):
            self._save_step(trainer)

    def save_now(self, trainer: Trainer) -> None:
        """Save though it is not due; nothing where `after_step` has just done so."""
        if not is_due(trainer.done, self.period):
            self._save_step(trainer)

    def after_train(self, trainer: Trainer) -> None:
        """Save the final weights."""
        self._save(trainer, FINAL)

    def _save_step(self, trainer: Trainer) -> None:
        self._save(trainer, f"model_{trainer.done - 1:07d}.pth")

    def _save(self, trainer: Trainer, name: str) -> None:
        content = {"model": trainer.plain_model.state_dict(), **trainer.state_dict(), **self.extra}
        in_parts = is_sharded(trainer.model) and name != FINAL  # who uses the final weights wants one file
        if not in_parts:
            content = gathered(content)
        if in_parts or is_main_process():
            save = self.folder.save_parts if in_parts else self.folder.save
            path = (self.folder.path / name).with_suffix(PARTS_SUFFIX if in_parts else SUFFIX)
            with failure_explained(path):
                logger.info("saved %s", save(name, content))
        self.folder.publish()


class EvaluationHook(Hook):
    """Evaluates every `period` steps (0: only at the end), and keeps the last results."""

    def __init__(self, period: int, evaluate: Callable[[], Results], metrics: MetricsLog | None) -> None:
        self.period, self.evaluate, self.metrics = period, evaluate, metrics
        self.results: Results = OrderedDict()

    def before_train(self, trainer: Trainer) -> None:
        """Make up for an evaluation during which the run was killed, after its checkpoint."""
        missing = self.metrics is not None and not self.metrics.has_results(trainer.done - 1)
        if all_reduce_sum(torch.tensor(int(missing), device=trainer.device)):
            self.after_step(trainer)

    def after_step(self, trainer: Trainer) -> None:
        """Evaluate when due; the end has its own turn."""
        if is_due(trainer.done, self.period) and trainer.done < trainer.max_iter:
            self._run(trainer.done - 1)

    def after_train(self, trainer: Trainer) -> None:
        """Evaluate the final weights."""
        self._run(trainer.done - 1)

    def _run(self, iteration: int) -> None:
        self.results = self.evaluate()
        if self.metrics is not None and self.results and not self.metrics.has_results(iteration):
            self.metrics.write(iteration, flatten_results(self.results))


def flatten_results(results: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """{"segm": {"AP": 1.0}} -> {"segm/AP": 1.0}, whatever the depth."""
    flat: dict[str, float] = {}
    for name, value in results.items():
        if isinstance(value, dict):
            flat |= flatten_results(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = float(value)
    return flat
