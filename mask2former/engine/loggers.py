"""Where the metrics of a run go besides `metrics.json`: TensorBoard, Weights & Biases, MLflow (LOGGERS).

A resumed run goes on in the same run of the service, whose id is kept in the run folder. Steps that run again
are sent again, with the same values.
"""

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from fvcore.common.config import CfgNode
from numpy.typing import NDArray

from mask2former.config.yaml_files import flatten
from mask2former.utils.atomic_files import atomic_write

logger = logging.getLogger(__name__)

PROJECT = "mask2former"  # unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME is set
IDS_FILE = "loggers.json"  # logger -> id of the run there
MLFLOW_DATABASE, MLFLOW_FILES = "mlflow.db", "mlflow"
MLFLOW_BATCH = 1000  # the most metrics that it takes at once


class MetricsLogger(Protocol):
    """A service that shows metrics over time."""

    def write(self, iteration: int, values: dict[str, float]) -> None:
        """Write scalars of a step."""

    def write_image(self, iteration: int, name: str, image: NDArray[Any]) -> None:
        """Write an image (H, W, 3) uint8 RGB."""

    def close(self) -> None:
        """Write what is left."""


class TensorBoardLogger:
    """Event files in the run folder, without those of steps that run again."""

    def __init__(self, folder: Path, start: int, cfg: CfgNode) -> None:
        self.folder, self.start = folder, start
        self._events: Any = None

    @property
    def events(self) -> Any:
        """Return the writer, created on first use: its import takes a second."""
        if self._events is None:
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
            from torch.utils.tensorboard import SummaryWriter

            threading.excepthook = _without_write_errors
            self._events = SummaryWriter(str(self.folder), purge_step=self.start or None)
        return self._events

    def write(self, iteration: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.events.add_scalar(name, value, iteration)

    def write_image(self, iteration: int, name: str, image: NDArray[Any]) -> None:
        self.events.add_image(name, image, iteration, dataformats="HWC")

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


def _without_write_errors(arguments: threading.ExceptHookArgs) -> None:
    """Print the error that ends a thread; TensorBoard's thread raises those of writing in `write`, too."""
    is_tensorboard = type(arguments.thread).__module__.startswith("tensorboard.")
    if not (is_tensorboard and isinstance(arguments.exc_value, OSError)):
        threading.__excepthook__(arguments)


class WandbLogger:
    """A run of Weights & Biases, with files in the run folder; WANDB_MODE=offline sends nothing.

    Raises:
        ValueError: W&B refuses to start, as without an account.
    """

    def __init__(self, folder: Path, start: int, cfg: CfgNode) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        try:
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=os.environ.get("WANDB_NAME", folder.name),
                dir=str(folder),
                id=_read_ids(folder).get("wandb"),
                resume="allow",
                config=flatten(cfg),
            )
        except wandb.Error as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"LOGGERS: wandb: {reason}. Or set WANDB_MODE=offline") from error
        # Not W&B's own step, which must not go back in a resumed run
        self.run.define_metric("*", step_metric="iteration")
        self._image = wandb.Image
        _keep_id(folder, "wandb", self.run.id)

    def write(self, iteration: int, values: dict[str, float]) -> None:
        self.run.log({"iteration": iteration, **values})

    def write_image(self, iteration: int, name: str, image: NDArray[Any]) -> None:
        self.run.log({"iteration": iteration, name: self._image(image)})

    def close(self) -> None:
        self.run.finish()


class MlflowLogger:
    """A run of MLflow, at MLFLOW_TRACKING_URI or else in a database in the run folder.

    A server that fails during the run causes warnings: the metrics are also in `metrics.json`.

    Raises:
        ValueError: MLflow refuses to start.
    """

    def __init__(self, folder: Path, start: int, cfg: CfgNode) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        self._metric, self._error = Metric, MlflowException
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        artifacts = None if uri else (folder / MLFLOW_FILES).absolute().as_uri()
        try:
            self.client = MlflowClient(uri or f"sqlite:///{(folder / MLFLOW_DATABASE).absolute()}")
            self.id = self._earlier_run(folder) or self._new_run(folder, artifacts)
        except MlflowException as error:
            raise ValueError(f"LOGGERS: mlflow: {str(error).splitlines()[0]}") from error
        _keep_id(folder, "mlflow", self.id)
        with self._warning():
            self.client.log_text(self.id, cfg.dump(), "config.yaml")

    def _earlier_run(self, folder: Path) -> str | None:
        """Set the status of the run that is resumed, and return its id; None if there is none."""
        earlier = _read_ids(folder).get("mlflow")
        if earlier is not None:
            self.client.update_run(earlier, status="RUNNING")
        return earlier

    def _new_run(self, folder: Path, artifacts: str | None) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self.client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self.client.create_experiment(name, artifacts)
        return str(self.client.create_run(number, run_name=folder.name).info.run_id)

    def write(self, iteration: int, values: dict[str, float]) -> None:
        with self._warning():
            now = int(time.time() * 1000)
            metrics = [self._metric(_mlflow_name(n), value, now, iteration) for n, value in values.items()]
            for first in range(0, len(metrics), MLFLOW_BATCH):
                self.client.log_batch(self.id, metrics[first : first + MLFLOW_BATCH])

    def write_image(self, iteration: int, name: str, image: NDArray[Any]) -> None:
        with self._warning():
            self.client.log_image(self.id, image, key=_mlflow_name(name), step=iteration)

    def close(self) -> None:
        with self._warning():
            self.client.set_terminated(self.id)

    @contextmanager
    def _warning(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            logger.warning("MLflow: %s", str(error).splitlines()[0])


def _mlflow_name(name: str) -> str:
    """Replace the characters of a class name that MLflow refuses."""
    return re.sub(r"[^\w./: -]", "_", name)


def _read_ids(folder: Path) -> dict[str, str]:
    file = folder / IDS_FILE
    return json.loads(file.read_text()) if file.is_file() else {}


def _keep_id(folder: Path, name: str, run_id: str) -> None:
    ids = json.dumps({**_read_ids(folder), name: run_id})
    with atomic_write(folder / IDS_FILE) as file:
        file.write(ids.encode())


LOGGERS: dict[str, Callable[[Path, int, CfgNode], MetricsLogger]] = {
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
    "mlflow": MlflowLogger,
}  # each module is called like its logger, and except for TensorBoard like its extra


def check_loggers(names: Sequence[str]) -> None:
    """Raise ValueError if a name of LOGGERS is unknown, or its package is not installed."""
    for name in names:
        if name not in LOGGERS:
            raise ValueError(f"LOGGERS has '{name}'; known are: {', '.join(LOGGERS)}")
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # a folder of that name, as W&B creates, is no package
            raise ValueError(
                f"LOGGERS has '{name}', which is not installed: pip install 'mask2former[{name}]'"
            )


def build_loggers(cfg: CfgNode, folder: Path, start: int) -> list[MetricsLogger]:
    """Start the loggers of LOGGERS for a run that continues at step `start`, on rank 0 only."""
    return [LOGGERS[name](folder, start, cfg) for name in dict.fromkeys(cfg.LOGGERS)]
