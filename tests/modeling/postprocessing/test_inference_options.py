"""Options of post-processing, and its memory budget."""

import pytest
import torch
from peak_memory import PeakMemory

from mask2former.modeling.postprocessing.inference import InferenceOptions, post_process
from mask2former.modeling.predictions import ImagePrediction, Sizes


def test_other_tasks_enforce_resizing_logits_first():
    assert not InferenceOptions(tasks=("semantic",)).resizes_logits
    assert InferenceOptions(tasks=("semantic",), resize_first=True).resizes_logits
    assert InferenceOptions(tasks=("semantic", "panoptic")).resizes_logits


@pytest.mark.parametrize("tasks", [(), ("semantic", "boxes")])
def test_unknown_tasks_are_refused(tasks):
    with pytest.raises(ValueError, match="semantic"):
        InferenceOptions(tasks=tasks)


def test_a_negative_number_of_instances_is_refused():
    with pytest.raises(ValueError, match="DETECTIONS_PER_IMAGE is -1"):
        InferenceOptions(max_instances=-1)


@pytest.mark.parametrize("output", [(400, 300), (900, 700), (90, 70)])
def test_memory_stays_within_the_budget(output):
    sizes = Sizes((512, 384), (500, 380), output)
    prediction = ImagePrediction(torch.randn(60, 21).softmax(-1), torch.randn(60, 128, 96), sizes)
    pixels, budget = output[0] * output[1], 2**22
    options = InferenceOptions(thing_ids=tuple(range(10)), memory_budget=budget, max_instances=20)
    with PeakMemory() as memory:
        post_process(prediction, options, compact=True)
    results = pixels * (4 + 4) + 2**20  # label map and panoptic map in int32; runs of masks
    assert memory.peak < budget + results + 2 * prediction.mask_logits.nbytes
    assert memory.peak > budget / 4
