"""MaskFormer's pixel decoders: against plain torch, recorded answers and published names; errors."""

import gzip
import json

import pytest
import torch
import torch.nn.functional as F
from golden import COCO_THINGS, fill, load_golden
from pixel_decoder_cases import ENCODER, SHAPES, draw_maps

from mask2former.config import load_config
from mask2former.modeling.layers.position import sine_position
from mask2former.modeling.mask_former import build_mask_former
from mask2former.modeling.pixel_decoder import BasePixelDecoder, TransformerEncoderPixelDecoder
from mask2former.structures import ShapeSpec

PYRAMID = {"conv_dim": 32, "mask_dim": 12, "norm": "GN"}


def build(**changes):
    torch.manual_seed(0)
    return BasePixelDecoder(**({"input_shape": SHAPES} | PYRAMID | changes))


def build_with_encoder(**changes):
    torch.manual_seed(0)
    return TransformerEncoderPixelDecoder(**({"input_shape": SHAPES} | PYRAMID | ENCODER | changes))


@pytest.fixture
def features():
    return draw_maps()


def convolve(convolution, x, padding):
    x = F.conv2d(x, convolution.weight, convolution.bias, padding=padding)
    norm = convolution.norm
    return x if norm is None else F.group_norm(x, 32, norm.weight, norm.bias)


@pytest.mark.parametrize("norm", ["GN", ""])
def test_pyramid_is_plain_torch(features, norm):
    decoder = build(norm=norm)
    y = convolve(decoder.layer_4, features["res5"], 1).relu()
    maps = [y]
    for level in (3, 2, 1):
        lateral = convolve(decoder.get_submodule(f"adapter_{level}"), features[f"res{level + 1}"], 0)
        y = lateral + y.repeat_interleave(2, 2).repeat_interleave(2, 3)
        y = convolve(decoder.get_submodule(f"layer_{level}"), y, 1).relu()
        maps.append(y)
    mask_features, memory = decoder(features)
    torch.testing.assert_close(memory, maps[:3])
    last = decoder.mask_features
    torch.testing.assert_close(mask_features, F.conv2d(y, last.weight, last.bias, padding=1))


def test_encoder_comes_before_the_pyramid(features):
    decoder = build_with_encoder()
    mask_features, memory, encoded = decoder(features)
    projection = decoder.input_proj
    x = F.conv2d(features["res5"], projection.weight, projection.bias).flatten(2).transpose(1, 2)
    for layer in decoder.transformer.encoder.layers:
        x = layer(x, sine_position((2, 3), 32))
    torch.testing.assert_close(encoded, x.transpose(1, 2).reshape(2, 32, 2, 3))
    shapes = SHAPES | {"res5": ShapeSpec(32, 32)}
    pyramid = build(input_shape=shapes)
    pyramid.load_state_dict(decoder.state_dict(), strict=False)
    expected = pyramid(features | {"res5": encoded})
    torch.testing.assert_close((mask_features, memory), expected)


def test_names_in_any_order(features):
    other = build(input_shape=dict(reversed(SHAPES.items())))
    torch.testing.assert_close(other(features), build()(features))


def test_dropout_in_training_alone(features):
    decoder = build_with_encoder(dropout=0.5)
    assert not torch.allclose(decoder(features)[2], decoder(features)[2])
    decoder.eval()
    assert torch.equal(decoder(features)[2], decoder(features)[2])


def test_initial_values():
    decoder = build_with_encoder(conv_dim=256, num_heads=8)
    convolutions = [decoder.adapter_1, decoder.layer_1, decoder.layer_4, decoder.mask_features]
    for convolution in (*convolutions, decoder.input_proj):
        fan_in = convolution.weight[0].numel()
        assert 0.98 * (3 / fan_in) ** 0.5 < convolution.weight.abs().max() <= (3 / fan_in) ** 0.5
        assert convolution.weight.var().item() == pytest.approx(1 / fan_in, rel=0.05)
    assert not decoder.mask_features.bias.any()
    assert not decoder.input_proj.bias.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_shape": {"res2": ShapeSpec(8, 4)}}, r"IN_FEATURES is \['res2'\]; .* at least two maps"),
        ({"conv_dim": 48}, "32 groups, which do not divide 48 channels"),
        ({"num_heads": 5}, "32 cannot be shared by 5 attention heads"),
    ],
)
def test_wrong_values_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build_with_encoder(**changes)


@pytest.mark.parametrize(
    ("file", "decoder", "layers"),
    [
        ("ade20k-150/maskformer_R50_bs16_160k.yaml", BasePixelDecoder, None),
        (
            "ade20k-150/swin/maskformer_swin_base_IN21k_384_bs16_160k_res640.yaml",
            BasePixelDecoder,
            None,
        ),
        ("coco-panoptic/maskformer_panoptic_R50_bs64_554k.yaml", TransformerEncoderPixelDecoder, 6),
    ],
)
def test_published_names_and_shapes(file, decoder, layers, shared):
    with gzip.open(shared / "manifests" / "maskformer_state_dicts.json.gz", "rt") as opened:
        state = json.load(opened)[file]["state"]
    prefix = "sem_seg_head.pixel_decoder."
    published = {name.removeprefix(prefix): s for name, s in state.items() if name.startswith(prefix)}
    widths = (128, 256, 512, 1024) if "swin" in file else (256, 512, 1024, 2048)
    shapes = {f"res{i}": ShapeSpec(width, 2**i) for i, width in zip((2, 3, 4, 5), widths, strict=True)}
    encoder = {} if layers is None else ENCODER | {"num_layers": 6, "num_heads": 8, "dim_feedforward": 2048}
    with torch.device("meta"):
        built = decoder(input_shape=shapes, conv_dim=256, mask_dim=256, norm="GN", **encoder)
    assert {name: list(tensor.shape) for name, tensor in built.state_dict().items()} == published


@pytest.fixture(params=["trimmed", "whole"])
def golden(request):
    root = request.getfixturevalue("shared") if request.param == "whole" else None
    return load_golden("maskformer/coco_panoptic_R50_fpn", root)


def test_recorded_answers_of_a_mask2former_with_the_plain_pyramid(golden):
    cfg = load_config(golden.config["file"], golden.config["opts"])
    cfg.MODEL.MASK_FORMER.THING_IDS = list(COCO_THINGS)
    model = fill(build_mask_former(cfg)).eval()
    inputs = golden.inputs()
    with torch.no_grad():
        predictions = model.network(model._images(inputs))
        (result,) = model(inputs)
    assert len(predictions.layers) == 10
    for layer, prediction in enumerate(predictions.layers):
        key = "pred_logits" if layer == 9 else f"aux{layer}.pred_logits"
        assert golden.error(key, prediction.class_logits) < 1e-3, layer
    assert golden.error("pred_masks", predictions.mask_logits()) < 1e-2
    scores = result["sem_seg"]
    assert golden.error("out0.sem_seg_every4", scores[:, ::4, ::4]) < 1e-3
    assert (scores.argmax(0).numpy() != golden.arrays["out0.sem_seg_argmax"]).mean() <= 1e-3
