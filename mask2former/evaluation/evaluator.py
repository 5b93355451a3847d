"""Evaluators with the interface of Detectron2, and the loop that runs a model over a dataset for them."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Protocol

import torch
from torch import nn

logger = logging.getLogger(__name__)

Metrics = dict[str, float]  # metric -> value
Results = dict[str, Metrics]  # task -> metrics
SECONDS_BETWEEN_LOGS = 5.0


class DatasetEvaluator(Protocol):
    """Interface of an object that turns a model's outputs into metrics, batch by batch."""

    def reset(self) -> None:
        """Forget all images."""

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Add a batch: the dataset dict of each image, and the model's output for it."""

    def evaluate(self) -> Results:
        """Return the metrics over the images of all processes; nothing except on the main process."""
        ...


class DatasetEvaluators:
    """Several evaluators behind the interface of one."""

    def __init__(self, evaluators: Iterable[DatasetEvaluator]) -> None:
        self._evaluators = list(evaluators)

    def reset(self) -> None:
        """Reset all evaluators."""
        for evaluator in self._evaluators:
            evaluator.reset()

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Pass the batch to all evaluators."""
        for evaluator in self._evaluators:
            evaluator.process(inputs, outputs)

    def evaluate(self) -> Results:
        """Return the results of all evaluators; raise ValueError if two of them have the same task."""
        results: Results = {}
        for evaluator in self._evaluators:
            for task, metrics in evaluator.evaluate().items():
                if task in results:
                    raise ValueError(f"two evaluators have results called '{task}'")
                results[task] = metrics
        return results


def inference_on_dataset(
    model: nn.Module,
    loader: Any,
    evaluator: DatasetEvaluator,
    predict: Callable[[Any], Sequence[Mapping[str, Any]]] | None = None,
) -> Results:
    """Run the model on each batch of this process's share of the dataset, and evaluate.

    Args:
        model: maps a list of dicts to a list of outputs; runs in eval mode, then returns to its former mode.
        loader: a sized iterable of lists of dicts; each process has a different share.
        evaluator: is reset before the first batch.
        predict: maps a batch to outputs; by default `model` itself.

    Returns:
        The evaluator's results on the main process, nothing on the others.
    """
    evaluator.reset()
    progress, was_training = _Progress(len(loader)), model.training
    model.eval()
    try:
        with torch.inference_mode():
            for inputs in progress.batches(loader):
                outputs = (predict or model)(inputs)
                progress.add_time("compute")
                evaluator.process(inputs, outputs)
                progress.add_time("evaluation")
    finally:
        model.train(was_training)
    logger.info("Inference done: %s", str(progress))
    return evaluator.evaluate()


class _Progress:
    """Counter of batches and of seconds for data, compute and evaluation, which logs them with the ETA."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._seconds = {"data": 0.0, "compute": 0.0, "evaluation": 0.0}
        self._start = self._mark = self._logged = time.perf_counter()

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        """Yield the loader's batches; the time to wait for them counts as data."""
        for batch in loader:
            self.add_time("data")
            yield batch
            self._done += 1
            if self._mark - self._logged > SECONDS_BETWEEN_LOGS:
                self._logged = self._mark
                logger.info("Inference: %s", str(self))

    def add_time(self, part: str) -> None:
        """Add the time since the last call to `part`."""
        now = time.perf_counter()
        self._seconds[part] += now - self._mark
        self._mark = now

    def __str__(self) -> str:
        done = max(self._done, 1)
        left = timedelta(seconds=round((self._mark - self._start) / done * (self._total - self._done)))
        parts = ", ".join(f"{name} {seconds / done:.4f}" for name, seconds in self._seconds.items())
        return f"{self._done} of {self._total} batches, seconds a batch: {parts}; eta {left}"
