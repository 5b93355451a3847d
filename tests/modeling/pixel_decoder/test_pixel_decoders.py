"""Properties that every pixel decoder has, as a part of a whole small model."""

import pytest
import torch
from pixel_decoder_cases import draw_maps
from tiny_runs import tiny_config

from mask2former.engine.build import build_model
from mask2former.structures import Instances, ShapeSpec
from mask2former.utils.registry import SEM_SEG_HEADS

NAMES = (
    "MSDeformAttnPixelDecoder",
    "BasePixelDecoder",
    "TransformerEncoderPixelDecoder",
    "SemanticFPNPixelDecoder",
    "BiFPNPixelDecoder",
    "FaPNPixelDecoder",
    "UperNetPixelDecoder",
)
OWN_OPTIONS = {"UperNetPixelDecoder": {"MODEL__SEM_SEG_HEAD__NORM": ""}}  # a cell has one value a group here
SHAPES = {f"res{i}": ShapeSpec(8 * i, 2**i) for i in (2, 3, 4, 5)}


def build(name, **changes):
    torch.manual_seed(0)
    return SEM_SEG_HEADS.get(name)(tiny_config(**OWN_OPTIONS.get(name, {}), **changes), SHAPES)


def draw_features(height, width):
    return draw_maps(height, width, SHAPES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(64, 96), (68, 100), (4, 36)])
def test_mask_features_at_stride_4_and_memory_from_coarse_to_fine(name, size):
    decoder, features = build(name, MODEL__SEM_SEG_HEAD__MASK_DIM=12).eval(), draw_features(*size)
    mask_features, memory, *encoded = decoder(features)
    assert decoder.mask_dim == 12
    assert decoder.memory_shape == [ShapeSpec(32, 32), ShapeSpec(32, 16), ShapeSpec(32, 8)]
    assert mask_features.shape == (2, 12, *features["res2"].shape[2:])
    assert [x.shape for x in memory] == [(2, 32, *features[f"res{i}"].shape[2:]) for i in (5, 4, 3)]
    assert len(encoded) == hasattr(decoder, "encoded_shape")
    for x in encoded:
        assert decoder.encoded_shape == ShapeSpec(32, 32)
        assert x.shape == memory[0].shape


@pytest.mark.parametrize("name", NAMES)
def test_results_without_gradients_are_the_same_in_both_memory_layouts(name):
    decoder, features = build(name).eval(), draw_features(64, 96)
    expected = decoder(features)
    before = {name: x.clone() for name, x in features.items()}
    with torch.no_grad():
        for layout in (torch.contiguous_format, torch.channels_last):
            found = decoder({name: x.contiguous(memory_format=layout) for name, x in features.items()})
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
            assert found[0].is_contiguous(memory_format=layout)  # mixed layouts cost more than the arithmetic
    assert all(torch.equal(x, before[name]) for name, x in features.items())


@pytest.mark.parametrize("name", NAMES)
def test_an_image_alone_equals_itself_in_a_batch(name):
    decoder, features = build(name).eval(), draw_features(64, 96)
    together, alone = decoder(features)[0], decoder({name: x[1:] for name, x in features.items()})[0]
    torch.testing.assert_close(alone[0], together[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_training_step_gives_every_parameter_a_finite_gradient(name):
    changes = {"MODEL__SEM_SEG_HEAD__PIXEL_DECODER_NAME": name, "MODEL__MASK_FORMER__DEC_LAYERS": 4}
    torch.manual_seed(0)
    model = build_model(tiny_config(**OWN_OPTIONS.get(name, {}), **changes))
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(256, (3, 64, 90), generator=generator, dtype=torch.uint8)
    masks = torch.rand(2, 64, 90, generator=generator) > 0.5
    targets = Instances((64, 90), gt_classes=torch.tensor([0, 3]), gt_masks=masks)
    losses = model([{"image": image, "instances": targets}])
    sum(losses.values()).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("name", NAMES)
def test_training_under_autocast(name):
    decoder, features = build(name), draw_features(64, 96)
    with torch.autocast("cpu", torch.bfloat16):
        mask_features, memory, *_ = decoder({name: x.bfloat16() for name, x in features.items()})
    sum(x.float().mean() for x in (mask_features, *memory)).backward()
    assert all(parameter.grad.isfinite().all() for parameter in decoder.parameters())
    expected = decoder(features)[0]
    assert (mask_features - expected).norm() < 0.1 * expected.norm()
