"""Our evaluators behind Detectron2's interface.

They take what models of both sides put out; only the class that Detectron2 knows an evaluator by is new.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import detectron2.evaluation

from mask2former.data import MetadataCatalog
from mask2former.engine import evaluate
from mask2former.evaluation.coco.ap import COCOEvaluator
from mask2former.evaluation.evaluator import DatasetEvaluator, Results


class HostEvaluator(detectron2.evaluation.DatasetEvaluator):
    """An evaluator of ours as one of Detectron2's, for its `inference_on_dataset`."""

    def __init__(self, evaluator: DatasetEvaluator) -> None:
        self._evaluator = evaluator

    def reset(self) -> None:
        """Forget everything processed so far."""
        self._evaluator.reset()

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Take the inputs of a batch and what the model made of them."""
        self._evaluator.process(inputs, outputs)

    def evaluate(self) -> Results:
        """Task -> metric -> value; empty but on the main process."""
        return self._evaluator.evaluate()


class InstanceSegEvaluator(HostEvaluator):
    """AP of instance masks, also where the model has classes that are no things.

    Args:
        dataset_name: its metadata has `json_file` and `thing_dataset_id_to_contiguous_id`.
        output_dir: where the results are written; None writes none.
    """

    def __init__(self, dataset_name: str, *, output_dir: str | None = None) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        super().__init__(COCOEvaluator(metadata=metadata, output_dir=output_dir))


def build_evaluator(cfg: Any, dataset_name: str, output_dir: str | Path) -> HostEvaluator:
    """Our evaluators of a dataset, for the outputs that are on.

    Raises:
        ValueError: the dataset names no evaluator type that is known, or none for these outputs.
    """
    return HostEvaluator(evaluate.build_evaluator(cfg, dataset_name, Path(output_dir)))
