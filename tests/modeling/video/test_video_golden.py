"""The video model against the recorded answer of the public implementation, with the same weights."""

import functools
from types import SimpleNamespace

import pytest
import torch
from golden import VIDEO, fill, load_golden

from mask2former.config import load_config
from mask2former.modeling.video.model import build_video_mask_former


@functools.cache
def computed():
    """Return our predictions and tracks."""
    golden = load_golden(VIDEO)
    model = fill(build_video_mask_former(load_config(golden.config["file"]))).eval()
    frames = torch.from_numpy(golden.arrays["frames"])
    height, width = golden.arrays["size"].tolist()
    with torch.no_grad():
        predictions = model.network(model._images([{"image": frame} for frame in frames])[None])
    tracks = model([{"image": list(frames), "height": height, "width": width}])
    return SimpleNamespace(predictions=predictions, tracks=tracks, size=(height, width))


@pytest.fixture(params=["trimmed", "whole"])
def golden(request):
    root = request.getfixturevalue("shared") if request.param == "whole" else None
    return load_golden(VIDEO, root)


def test_all_ten_predictions(golden):
    layers = computed().predictions.layers
    assert len(layers) == 10
    for layer, prediction in enumerate(layers):
        key = "pred_logits" if layer == 9 else f"aux{layer}.pred_logits"
        assert golden.error(key, prediction.class_logits) < 1e-3, layer
    assert golden.error("pred_masks", computed().predictions.mask_logits()) < 1e-2


def test_the_ten_tracks(golden):
    found = computed().tracks
    assert found["image_size"] == computed().size
    assert found["pred_scores"] == pytest.approx(sorted(golden.arrays["scores"], reverse=True), abs=1e-4)
    masks = golden.masks("masks", computed().size[1])
    left = list(range(10))
    for mask, label, score in zip(masks, golden.arrays["labels"], golden.arrays["scores"], strict=True):
        match = [
            n
            for n in left
            if found["pred_labels"][n] == label
            and abs(found["pred_scores"][n] - score) < 1e-4
            and (found["pred_masks"][n] != mask).float().mean() <= 1e-3
        ]
        assert match, f"class {label} with score {score}"
        left.remove(match[0])
