"""Loop over a dataset: modes, order, progress, and several evaluators at once."""

import logging
from typing import Any

import pytest
import torch
from synthetic_evaluation import Replay

from mask2former.evaluation import evaluator as module
from mask2former.evaluation.coco.ap import COCOEvaluator
from mask2former.evaluation.evaluator import DatasetEvaluators, Results, inference_on_dataset
from mask2former.evaluation.panoptic.quality import COCOPanopticEvaluator
from mask2former.evaluation.semantic.miou import SemSegEvaluator


class Recorder:
    """Evaluator that records its calls."""

    def __init__(self, task: str = "task") -> None:
        self.calls: list[Any] = ["stale"]
        self.task = task

    def reset(self) -> None:
        self.calls = []

    def process(self, inputs: Any, outputs: Any) -> None:
        self.calls += [(record["name"], output) for record, output in zip(inputs, outputs, strict=True)]
        assert torch.is_inference_mode_enabled()

    def evaluate(self) -> Results:
        return {self.task: {"count": len(self.calls)}}


BATCHES = [[{"name": "a", "output": 1}, {"name": "b", "output": 2}], [{"name": "c", "output": 3}]]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_runs_in_eval_mode_and_returns_to_its_former_mode(training):
    model, recorder = Replay().train(training), Recorder()
    assert inference_on_dataset(model, BATCHES, recorder) == {"task": {"count": 3}}
    assert recorder.calls == [("a", 1), ("b", 2), ("c", 3)]
    assert model.modes == [False, False] and model.training is training


def test_a_predict_function_replaces_the_call_of_the_model():
    model, recorder = Replay().train(), Recorder()
    modes = []

    def predict(inputs: list[dict[str, Any]]) -> list[Any]:
        modes.append(model.training)
        return [-record["output"] for record in inputs]

    inference_on_dataset(model, BATCHES, recorder, predict)
    assert recorder.calls == [("a", -1), ("b", -2), ("c", -3)]
    assert modes == [False, False] and model.training


def test_the_mode_is_restored_after_an_error():
    model = Replay().train()
    with pytest.raises(KeyError):
        inference_on_dataset(model, [[{"name": "no output"}]], Recorder())
    assert model.training


def test_progress_shows_seconds_and_eta(caplog, monkeypatch):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LOGS", -1.0)
    with caplog.at_level(logging.INFO, logger=module.__name__):
        inference_on_dataset(Replay(), BATCHES, Recorder())
    first, second, done = caplog.messages
    assert first.startswith("Inference: 1 of 2 batches, seconds a batch: data 0.0")
    assert "compute" in first and "eta 0:00:0" in first
    assert second.startswith("Inference: 2 of 2") and done.startswith("Inference done: 2 of 2")


def test_two_evaluators_of_the_same_task_are_an_error():
    both = DatasetEvaluators([Recorder("a"), Recorder("b")])
    assert inference_on_dataset(Replay(), BATCHES, both) == {"a": {"count": 3}, "b": {"count": 3}}
    with pytest.raises(ValueError, match="two evaluators have results called 'a'"):
        inference_on_dataset(Replay(), BATCHES, DatasetEvaluators([Recorder("a"), Recorder("a")]))


def test_three_evaluators_run_at_once(tmp_path, dataset):
    for_all = DatasetEvaluators(
        kind(metadata=dataset.metadata, output_dir=tmp_path / "inference")
        for kind in (COCOPanopticEvaluator, COCOEvaluator, SemSegEvaluator)
    )
    results = inference_on_dataset(Replay(), [dataset.records(dataset.maps)], for_all)
    assert list(results) == ["panoptic_seg", "segm", "sem_seg"]
    scores = results["panoptic_seg"]["PQ"], results["segm"]["AP"], results["sem_seg"]["mIoU"]
    assert scores == pytest.approx((100, 100, 100))
    files = {path.name for path in (tmp_path / "inference").iterdir()}
    assert files == {"panoptic", "coco_instances_results.json", "sem_seg_predictions.json"}
