"""Mask logits on demand."""

import torch

from mask2former.modeling.predictions import Prediction, Predictions


def draw(dtype=torch.float32):
    torch.manual_seed(0)
    layers = [Prediction(torch.randn(2, 5, 4), torch.randn(2, 5, 3).to(dtype)) for _ in range(2)]
    return Predictions(layers, torch.randn(2, 3, 6, 7).to(dtype))


def test_mask_logits_of_each_layer():
    predictions = draw()
    for layer in (0, 1, -1):
        expected = torch.zeros(2, 5, 6, 7)
        for channel in range(3):
            embedding = predictions.layers[layer].mask_embed[:, :, channel, None, None]
            expected += embedding * predictions.mask_features[:, None, channel]
        torch.testing.assert_close(predictions.mask_logits(layer), expected)
    assert torch.equal(predictions.mask_logits(), predictions.mask_logits(1))


def test_mask_logits_are_float32_products_under_autocast():
    predictions = draw(torch.bfloat16)
    expected = predictions.mask_logits()
    with torch.autocast("cpu", torch.bfloat16):
        result = predictions.mask_logits()
    assert expected.dtype == result.dtype == torch.float32
    assert torch.equal(result, expected)
