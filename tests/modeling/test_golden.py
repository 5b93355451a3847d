"""The whole model against recorded answers of the public implementation, with the same weights.

The repository holds trimmed files; the whole ones are compared where the shared folder is present.
"""

import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from golden import COCO_THINGS, NAMES, fill, load_golden

from mask2former.config import load_config
from mask2former.modeling.mask_former import build_mask_former

RUNS = 5
RECORDED_RUNS = 12
LEVELS = ("multi_scale0", "multi_scale1", "multi_scale2")


def image_seeds(count):
    return [[1000 * run + i for i in range(count)] for run in range(RUNS)]


@functools.cache
def computed(name):
    """Return our model's features, predictions, results, and losses of several runs."""
    golden = load_golden(name)
    cfg = load_config(golden.config["file"], golden.config["opts"])
    if cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON:
        cfg.MODEL.MASK_FORMER.THING_IDS = list(COCO_THINGS)
    model = fill(build_mask_former(cfg)).eval()
    inputs = golden.inputs()
    with torch.no_grad():
        images = model._images(inputs)
        features = model.backbone(images)
        mask_features, memory = model.sem_seg_head.pixel_decoder(features)
        predictions = model.sem_seg_head.predictor(memory, mask_features)
        targets, size = [image["instances"] for image in inputs], (images.shape[2], images.shape[3])
        losses = [model.criterion(predictions, targets, size, seeds) for seeds in image_seeds(len(targets))]
        results = model(inputs)
    maps = {"mask_features": mask_features, **dict(zip(LEVELS, memory, strict=True))}
    maps |= {f"backbone.{level}": features[level] for level in ("res2", "res5")}
    return SimpleNamespace(features=maps, predictions=predictions, results=results, losses=losses)


@pytest.fixture(params=["trimmed", "whole"])
def root(request):
    return request.getfixturevalue("shared") if request.param == "whole" else None


@pytest.fixture(params=NAMES)
def case(request, root):
    """Return the recorded file and what we compute."""
    return load_golden(request.param, root), computed(request.param)


def test_features(case):
    golden, ours = case
    recorded = ours.features.keys() & golden.arrays.keys()
    assert len(recorded) == (0 if "ade20k" in golden.config["file"] else 6)
    for key in recorded:
        assert golden.error(key, ours.features[key]) < 1e-4, key


def test_all_ten_predictions(case):
    golden, ours = case
    assert len(ours.predictions.layers) == 10
    recorded = 0
    for layer, prediction in enumerate(ours.predictions.layers):
        prefix = "" if layer == 9 else f"aux{layer}."
        if f"{prefix}pred_logits" in golden.arrays:
            recorded += 1
            assert golden.error(f"{prefix}pred_logits", prediction.class_logits) < 1e-3, layer
            assert golden.error(f"{prefix}pred_masks", ours.predictions.mask_logits(layer)) < 1e-2, layer
    assert recorded == (1 if "ade20k" in golden.config["file"] else 10)


def recorded_results(case, key, recorded):
    """Yield the prefix of each image with a recorded answer, and our result `key`; other images have none."""
    golden, ours = case
    for i, result in enumerate(ours.results):
        assert (key in result) == (f"out{i}.{recorded}" in golden.arrays)
        if key in result:
            yield f"out{i}", result[key]


def test_semantic(case):
    golden, _ = case
    for image, scores in recorded_results(case, "sem_seg", "sem_seg_argmax"):
        assert golden.error(f"{image}.sem_seg_every4", scores[:, ::4, ::4]) < 1e-3
        assert (scores.argmax(0).numpy() != golden.arrays[f"{image}.sem_seg_argmax"]).mean() <= 1e-3


def test_panoptic(case):
    golden, _ = case
    for image, (found, segments) in recorded_results(case, "panoptic_seg", "panoptic"):
        rows = [[s["id"], s["category_id"], s["isthing"]] for s in segments]
        assert rows == golden.arrays[f"{image}.segments"].tolist()
        assert (found.numpy() != golden.arrays[f"{image}.panoptic"]).mean() <= 1e-3


def test_instances(case):
    golden, _ = case
    for image, found in recorded_results(case, "instances", "scores"):
        masks = golden.masks(f"{image}.masks", found.image_size[1])
        recorded = (torch.from_numpy(golden.arrays[f"{image}.{name}"]) for name in ("classes", "scores"))
        check_instances(found, masks, *recorded)


def check_instances(found, masks, classes, scores):
    """Check that each recorded instance has one of ours: of its class, score and mask (up to 0.1 %)."""
    left = list(range(len(found)))
    assert len(found) == len(scores)
    for mask, label, score in zip(masks, classes, scores, strict=True):
        match = [
            n
            for n in left
            if found.pred_classes[n] == label
            and abs(found.scores[n] - score) < 1e-4
            and (found.pred_masks[n] != mask).float().mean() <= 1e-3
        ]
        assert match, f"class {label} with score {score}"
        left.remove(match[0])


def test_losses(case):
    golden, ours = case
    keys = {key.removeprefix("loss.") for key in golden.arrays if key.startswith("loss.")}
    assert keys == ours.losses[0].keys() and len(keys) == 30
    for key in keys:
        mean, deviation = golden.arrays[f"loss.{key}"]
        values = np.array([losses[key].item() for losses in ours.losses])
        noise = np.sqrt(deviation**2 / RECORDED_RUNS + values.var(ddof=1) / RUNS)
        assert abs(values.mean() - mean) < 5 * noise + 1e-3, key
