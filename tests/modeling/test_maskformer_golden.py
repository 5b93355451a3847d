"""MaskFormer and its per-pixel baseline against recorded answers of the public implementation."""

import functools
from types import SimpleNamespace

import pytest
import torch
from golden import COCO_THINGS, MASKFORMER, fill, load_golden

from mask2former.config import load_config
from mask2former.engine.build import build_model


@functools.cache
def computed(name):
    """Return our predictions and results."""
    golden = load_golden(f"maskformer/{name}")
    folder = "maskformer/" if golden.config["project"] == "MaskFormer" else ""
    cfg = load_config(folder + golden.config["file"], [*golden.config["opts"], "MODEL.DEVICE", "cpu"])
    if cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON:
        cfg.MODEL.MASK_FORMER.THING_IDS = list(COCO_THINGS)
    model = fill(build_model(cfg)).eval()
    inputs = golden.inputs()
    with torch.no_grad():
        return SimpleNamespace(predictions=model.network(model._images(inputs)), results=model(inputs))


@pytest.fixture(params=["trimmed", "whole"])
def root(request):
    return request.getfixturevalue("shared") if request.param == "whole" else None


@pytest.fixture(params=MASKFORMER)
def case(request, root):
    """Return the recorded file and what we compute."""
    return load_golden(f"maskformer/{request.param}", root), computed(request.param)


def test_predictions(case):
    golden, ours = case
    if "pred_logits" not in golden.arrays:
        assert len(ours.predictions.layers) == 1  # the per-pixel baseline
        return
    count = len(ours.predictions.layers)
    assert count == 1 + sum(key.endswith(".pred_logits") for key in golden.arrays)
    for layer, prediction in enumerate(ours.predictions.layers):
        key = "pred_logits" if layer == count - 1 else f"aux{layer}.pred_logits"
        assert golden.error(key, prediction.class_logits) < 1e-3, layer
    assert golden.error("pred_masks", ours.predictions.mask_logits()) < 1e-2


def test_results(case):
    golden, ours = case
    for i, result in enumerate(ours.results):
        assert golden.error(f"out{i}.sem_seg_every4", result["sem_seg"][:, ::4, ::4]) < 1e-3
        labels = result["sem_seg"].argmax(0).numpy()
        assert (labels != golden.arrays[f"out{i}.sem_seg_argmax"]).mean() <= 1e-3
        if f"out{i}.panoptic" in golden.arrays:
            found, segments = result["panoptic_seg"]
            rows = [[s["id"], s["category_id"], s["isthing"]] for s in segments]
            assert rows == golden.arrays[f"out{i}.segments"].tolist()
            assert (found.numpy() != golden.arrays[f"out{i}.panoptic"]).mean() <= 1e-3
