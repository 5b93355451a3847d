"""Inference in bfloat16: types of weights and results, and the distance from float32 results."""

import pytest
import torch
from tiny_checkpoint import tiny_config

from mask2former.engine.build import build_model
from mask2former.modeling.layers import attention
from mask2former.modeling.precision import set_precision


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model(tiny_config()).eval()


def inputs():
    generator = torch.Generator().manual_seed(1)
    return [{"image": torch.randint(0, 256, (3, 64, 96), generator=generator, dtype=torch.uint8)}]


@torch.no_grad()
def mask_features(model):
    with torch.autocast("cpu", model.precision, enabled=model.precision != torch.float32):
        return model.network(model._images(inputs())).mask_features


def test_weights_of_products_are_stored_in_bfloat16(model):
    shapes = {name: x.shape for name, x in model.state_dict().items()}
    set_precision(model, "bf16")
    after = model.state_dict()
    assert {name: x.shape for name, x in after.items()} == shapes
    half = {name for name, x in after.items() if x.dtype == torch.bfloat16}
    pixel = "sem_seg_head.pixel_decoder.transformer.encoder.layers.0."
    cross = "sem_seg_head.predictor.transformer_cross_attention_layers.0."
    products = {pixel + "linear1.weight", cross + "multihead_attn.in_proj_weight"}
    assert products | {"backbone.stem.conv1.weight"} <= half
    exact = {pixel + "self_attn.sampling_offsets.weight", pixel + "norm1.weight", cross + "norm.weight"}
    exact |= {"sem_seg_head.predictor.query_feat.weight", "backbone.stem.conv1.norm.running_var"}
    assert exact <= after.keys() - half


def test_bfloat16_results_are_close_to_float32(model):
    exact = mask_features(model)
    set_precision(model, "bf16")
    half = mask_features(model)
    error = (half.float() - exact).abs().mean() / exact.abs().mean()
    assert half.dtype == torch.bfloat16 and 1e-4 < error < 0.03


@pytest.fixture
def sampled_types(monkeypatch):
    """Return the types of values, centers, offsets and logits in each call of the sampling so far."""
    seen = []
    compute = attention.ms_deform_attn_from_offsets

    def record(value, shapes, centers, offsets, logits):
        seen.append((value.dtype, centers.dtype, offsets.dtype, logits.dtype))
        return compute(value, shapes, centers, offsets, logits)

    monkeypatch.setattr(attention, "ms_deform_attn_from_offsets", record)
    return seen


def test_sampling_locations_stay_in_float32(model, sampled_types):
    set_precision(model, "bf16")
    mask_features(model)
    assert set(sampled_types) == {(torch.bfloat16, torch.float32, torch.float32, torch.bfloat16)}


def test_sampling_with_gradients_stays_in_float32(model, sampled_types):
    pixel_decoder = model.sem_seg_head.pixel_decoder
    pixel_decoder.autocast_in_training = True
    with torch.autocast("cpu", torch.bfloat16):
        features, _ = pixel_decoder(model.backbone(model._images(inputs())))
    assert features.dtype == torch.bfloat16
    assert set(sampled_types) == {(torch.float32,) * 4}


def test_results_have_the_same_types(model):
    exact = model.predict(inputs())
    set_precision(model, "bf16")
    half = model.predict(inputs())
    assert exact[0].keys() == half[0].keys()
    assert half[0]["sem_seg"].dtype == exact[0]["sem_seg"].dtype == torch.float32
    assert torch.isfinite(half[0]["sem_seg"]).all()


def test_fp32_leaves_the_model_unchanged(model):
    before = {name: x.clone() for name, x in model.state_dict().items()}
    set_precision(model, "fp32")
    assert model.precision == torch.float32
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_the_autocast_of_the_caller_applies(model):
    seen = []
    model.sem_seg_head.pixel_decoder.mask_features.register_forward_hook(lambda *a: seen.append(a[2].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model.predict(inputs())
    model.predict(inputs())
    assert seen == [torch.bfloat16, torch.float32]
