"""The protocol of evaluators (Detectron2's), and the loop that runs a model over a data set for them."""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

import torch
from torch import nn

logger = logging.getLogger(__name__)

Results = OrderedDict[str, OrderedDict[str, float]]
SECONDS_BETWEEN_LOGS = 5.0


class DatasetEvaluator(Protocol):
    """Takes a model's results batch by batch, and turns them into metrics."""

    def reset(self) -> None:
        """Forget everything processed so far."""

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Take the inputs of a batch and what the model made of them, one each."""

    def evaluate(self) -> Results:
        """Task -> metric -> value, over the images of all processes; empty but on the main process."""
        ...


class DatasetEvaluators:
    """Several evaluators as one; every output is handed to each of them."""

    def __init__(self, evaluators: Iterable[DatasetEvaluator]) -> None:
        self._evaluators = list(evaluators)

    def reset(self) -> None:
        """Reset each."""
        for evaluator in self._evaluators:
            evaluator.reset()

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Hand the batch to each."""
        for evaluator in self._evaluators:
            evaluator.process(inputs, outputs)

    def evaluate(self) -> Results:
        """The results of all; a ValueError if two of them are of the same task."""
        results: Results = OrderedDict()
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
    """Run the model on each batch of this process's share of the data, and evaluate.

    Args:
        model: maps a list of dicts to a list of outputs; runs in eval mode and returns to its own.
        loader: a sized iterable of lists of dicts; with several processes each has its own share.
        evaluator: is reset, fed and evaluated.
        predict: how the model makes outputs of a batch, if not by being called.

    Returns:
        The evaluator's results on the main process, nothing on others.
    """
    evaluator.reset()
    progress = _Progress(len(loader))
    with _eval_mode(model), torch.inference_mode():
        for inputs in progress.batches(loader):
            outputs = (predict or model)(inputs)
            progress.spent("compute")
            evaluator.process(inputs, outputs)
            progress.spent("evaluation")
    logger.info("%s: %s", "Inference done" if progress.is_complete() else "Inference stopped", str(progress))
    return evaluator.evaluate()


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, and afterwards in the mode it was in."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


class _Progress:
    """Counts batches and the seconds for data, compute and evaluation; logs them with the time left."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._seconds = {"data": 0.0, "compute": 0.0, "evaluation": 0.0}
        self._start = self._mark = self._logged = time.perf_counter()

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The loader's batches; waiting for them counts as data."""
        for batch in loader:
            self.spent("data")
            yield batch
            self._done += 1
            if self._mark - self._logged > SECONDS_BETWEEN_LOGS:
                self._logged = self._mark
                logger.info("Inference: %s", str(self))

    def spent(self, part: str) -> None:
        """The time since the last call was spent on `part`."""
        now = time.perf_counter()
        self._seconds[part] += now - self._mark
        self._mark = now

    def is_complete(self) -> bool:
        """Whether all batches have come."""
        return self._done == self._total

    def __str__(self) -> str:
        done = max(self._done, 1)
        left = timedelta(seconds=round((self._mark - self._start) / done * (self._total - self._done)))
        parts = ", ".join(f"{name} {seconds / done:.4f}" for name, seconds in self._seconds.items())
        return f"{self._done} of {self._total} batches, seconds a batch: {parts}; eta {left}"
