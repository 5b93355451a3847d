"""The module that is exported, run by PyTorch."""

import pytest
import torch
from tiny_checkpoint import tiny_config

from mask2former.engine.build import build_model
from mask2former.export.graph import Graph, HalfGraph
from mask2former.modeling.predictions import PixelPredictions
from mask2former.utils.messages import InputError


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(tiny_config()).eval()


@torch.no_grad()
def test_images_of_any_size_are_padded_with_zeros(model):
    images = torch.randn(1, 3, 70, 100)
    padded = torch.zeros(1, 3, 96, 128)
    padded[:, :, :70, :100] = images
    expected = model.network(padded)
    class_logits, mask_logits = Graph(model)(images)
    assert torch.equal(class_logits, expected.layers[-1].class_logits)
    assert torch.equal(mask_logits, expected.mask_logits())


@torch.no_grad()
def test_half_stores_16_bits_and_computes_with_32(model):
    graph = Graph(model)
    half = HalfGraph(graph)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    images = torch.randn(1, 3, 64, 96)
    for rounded, exact in zip(half(images), graph(images), strict=True):
        assert rounded.dtype == torch.float32
        assert 0 < (rounded - exact).abs().max() < 0.05 * exact.abs().max()


def test_models_that_predict_no_masks_are_refused(model, monkeypatch):
    pixels = PixelPredictions([torch.zeros(1, 4, 16, 16)])
    monkeypatch.setattr(model, "network", lambda images, sizes: pixels)
    with pytest.raises(InputError, match="a model with PixelPredictions cannot be exported"):
        Graph(model)
