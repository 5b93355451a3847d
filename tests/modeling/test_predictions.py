"""Mask logits on demand."""

import pytest
import torch

from mask2former.modeling.predictions import Prediction, Predictions, Sizes


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


@pytest.mark.parametrize("layer", [0, 1, -1, -2])
def test_images_get_the_prediction_of_the_layer_asked_for(layer):
    predictions = draw()
    size = Sizes((24, 28), (24, 28), (24, 28))
    for i, image in enumerate(predictions.of_images([size, size], layer)):
        assert torch.equal(image.mask_logits, predictions.mask_logits(layer)[i])
        assert torch.equal(image.probabilities, predictions.layers[layer].class_logits[i].softmax(-1))


def test_the_queries_of_a_layer_are_the_embeddings_of_its_images():
    predictions, sizes = draw(), [Sizes((24, 28), (24, 28), (24, 28))] * 2
    assert [image.embeddings for image in predictions.of_images(sizes)] == [None, None]
    queries = torch.randn(2, 5, 8).bfloat16()
    predictions.layers[0] = predictions.layers[0]._replace(queries=queries)
    found = [image.embeddings for image in predictions.of_images(sizes, layer=0)]
    assert torch.equal(torch.stack(found), queries.float())


@pytest.mark.parametrize("layer", [2, -3])
def test_a_layer_that_is_not_there_is_an_error(layer):
    with pytest.raises(ValueError, match=f"LAYER is {layer}, but the model makes 2 predictions"):
        draw().of_images([], layer)


def test_mask_logits_are_float32_products_under_autocast():
    predictions = draw(torch.bfloat16)
    expected = predictions.mask_logits()
    with torch.autocast("cpu", torch.bfloat16):
        result = predictions.mask_logits()
    assert expected.dtype == result.dtype == torch.float32
    assert torch.equal(result, expected)
