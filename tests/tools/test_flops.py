"""Costs: operators counted by hand, models by fvcore's own counter, published models by the paper."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from tiny_runs import tiny_config
from torch import nn

from mask2former.config import load_config
from mask2former.engine.build import build_model
from mask2former.modeling.transformer_decoder import masked, memory_attention
from mask2former.ops import ms_deform_attn
from mask2former.tools import flops
from mask2former.tools.flops import PARTS, count_activations, count_cost, count_flops, usual_sizes

R50 = "maskformer2_R50_bs16_50ep.yaml"
R101 = "maskformer2_R101_bs16_50ep.yaml"
SWIN_L = "swin/maskformer2_swin_large_IN21k_384_bs16_100ep.yaml"
SIZE = (64, 96)  # of what tiny models look at
TINY = [
    tiny_config(MODEL__MASK_FORMER__DEC_LAYERS=5),
    tiny_config(
        MODEL__MASK_FORMER__DEC_LAYERS=5,
        MODEL__BACKBONE__NAME="D2SwinTransformer",
        MODEL__SWIN__EMBED_DIM=16,
        MODEL__SWIN__DEPTHS=[2, 2, 2, 2],
        MODEL__SWIN__NUM_HEADS=[1, 2, 4, 8],
        MODEL__SWIN__WINDOW_SIZE=3,
    ),
]


@pytest.fixture(params=TINY, ids=["resnet", "swin"])
def tiny(request):
    """A config, its cost, and its model with frozen parameters."""
    model = build_model(request.param).eval().requires_grad_(False)
    return request.param, count_cost(request.param, SIZE), model


def sample(heads=2, channels=3, queries=5, points=4):
    value = torch.zeros(1, 6, heads, channels)
    locations = torch.zeros(1, queries, heads, 1, points, 2)
    return ms_deform_attn(value, ((2, 3),), locations, torch.zeros(1, queries, heads, 1, points))


def attend():
    return F.scaled_dot_product_attention(torch.zeros(1, 2, 3, 4), *[torch.zeros(1, 2, 5, 4)] * 2)


@pytest.mark.parametrize(
    ("compute", "expected", "activations"),
    [
        (lambda: F.conv2d(torch.zeros(1, 4, 5, 6), torch.zeros(4, 2, 1, 1), groups=2), 30 * 4 * 2, 120),
        (lambda: F.linear(torch.zeros(2, 7, 3), torch.zeros(5, 3), torch.zeros(5)), 14 * 15, 70),
        (lambda: torch.zeros(2, 7, 3) @ torch.zeros(2, 3, 5), 2 * 7 * 15, 70),
        (attend, 2 * 15 * (4 + 4), 24),
        (sample, 5 * 2 * 4 * 3 * 4, 30),
        (lambda: F.layer_norm((torch.zeros(3, 4).sigmoid() + 1).transpose(0, 1), [3]), 0, 0),
    ],
)
def test_flops_and_activations_of_an_operator(compute, expected, activations):
    with torch.no_grad(), count_activations() as elements, count_flops() as counter:
        compute()
    assert counter.get_total_flops() == 2 * expected
    assert elements.get_total_flops() == activations


def test_the_backbone_counts_as_in_fvcore(tiny):
    """Fused attention is left out, for which fvcore has no rule."""
    _, cost, model = tiny
    images = torch.zeros(1, 3, *SIZE)
    found = FlopCountAnalysis(model.backbone, images).unsupported_ops_warnings(False).by_operator()
    ours = cost.flops["backbone"]
    assert ours["convolution"] == found["conv"]
    assert ours["matrix product"] == found["linear"] + found["matmul"]
    if not ours["attention"]:
        activations = ActivationCountAnalysis(model.backbone, images).unsupported_ops_warnings(False)
        assert cost.activations["backbone"] == activations.total()


class Flat(nn.Module):
    """The transformer decoder with tensors as arguments and results, which fvcore needs."""

    def __init__(self, predictor):
        super().__init__()
        self.predictor = predictor

    def forward(self, mask_features, *memory):
        predictions = self.predictor(list(memory), mask_features)
        return tuple(tensor for layer in predictions.layers for tensor in layer)


def test_the_transformer_decoder_counts_as_in_fvcore(tiny):
    _, cost, model = tiny
    mask_features, memory = model.sem_seg_head.pixel_decoder(model.backbone(torch.zeros(1, 3, *SIZE)))
    counter = FlopCountAnalysis(Flat(model.sem_seg_head.predictor), (mask_features, *memory))
    found = counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False).by_operator()
    assert cost.flops["transformer decoder"]["matrix product"] == found["linear"] + found["matmul"]


def test_parameters_by_part(tiny):
    _, cost, model = tiny
    assert cost.parameters.keys() == PARTS.keys()
    assert sum(cost.parameters.values()) == sum(parameter.numel() for parameter in model.parameters())
    assert cost.parameters["backbone"] == sum(parameter.numel() for parameter in model.backbone.parameters())


def test_published_flops_are_those_of_full_size_masks(tiny, monkeypatch):
    """Compare with a model that computes all mask logits at full size and then resizes them."""
    cfg, cost, _ = tiny

    def full_size_first(mask_embed, guide):
        mask_features, shape = guide
        logits = memory_attention.multiply_masks(mask_embed, mask_features)
        blocked = F.interpolate(logits, size=shape, mode="bilinear", align_corners=False).flatten(2) < 0
        return blocked & ~blocked.all(-1, keepdim=True)

    def keep_full_size(features, shape):
        return SimpleNamespace(flatten=lambda _: (features, shape))

    monkeypatch.setattr(masked, "resize_mask_features", keep_full_size)
    monkeypatch.setattr(memory_attention, "blocked_cells", full_size_first)
    assert cost.published_flops == count_cost(cfg, SIZE).total_flops()
    assert cost.published_flops > cost.total_flops()


def test_sizes_count_as_padded_and_the_config_stays_unchanged():
    cfg = tiny_config()
    cfg.freeze()
    first, same, larger = (count_cost(cfg, size).flops for size in ((33, 70), (64, 96), (65, 96)))
    assert first == same != larger
    assert cfg.MODEL.DEVICE == "cpu"


def published(task, config):
    """Return the parameters in millions, and the mean GFLOPs over COCO's images as published."""
    cfg = load_config(f"coco/{task}-segmentation/{config}")
    costs = [(share, count_cost(cfg, size)) for size, share in usual_sizes(cfg).items()]
    mean = sum(share * cost.published_flops for share, cost in costs) / 1e9
    return sum(costs[0][1].parameters.values()) / 1e6, mean


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_figures_are_those_of_the_paper(task):
    """The image sizes are fitted to the paper's 226 GFLOPs of R50; the other figures follow from them."""
    parameters, flops = zip(*(published(task, config) for config in (R50, R101, SWIN_L)), strict=True)
    assert [round(count) for count in parameters] == [44, 63, 216]
    assert round(flops[0]) == 226
    assert flops[1:] == pytest.approx((293, 868), rel=0.01)


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (f"coco/panoptic-segmentation/{R50}", {(800, 1067): 0.7, (800, 1199): 0.3}),
        ("cityscapes/semantic-segmentation/maskformer2_R50_bs16_90k.yaml", {(1024, 2048): 1}),
        ("ade20k/semantic-segmentation/maskformer2_R50_bs16_160k.yaml", {(512, 512): 1}),
        ("mapillary-vistas/semantic-segmentation/maskformer2_R50_bs16_300k.yaml", {(1536, 2048): 1}),
        ("shapes/panoptic-segmentation/maskformer2_R18_bs8_shapes.yaml", {(96, 128): 1}),
    ],
)
def test_usual_sizes(config, sizes):
    assert usual_sizes(load_config(config)) == sizes


def test_without_a_dataset_images_are_four_to_three():
    config, opts = f"coco/panoptic-segmentation/{R50}", ["DATASETS.TRAIN", ()]
    assert list(usual_sizes(load_config(config, opts))) == [(800, 1067), (800, 1199)]  # from the test set
    assert usual_sizes(load_config(config, [*opts, "DATASETS.TEST", ()])) == {(800, 1067): 1}


def test_a_model_with_other_parts_is_an_error(monkeypatch):
    monkeypatch.setattr(flops, "build_model", lambda cfg: nn.Module())
    with pytest.raises(ValueError, match=r"MODEL\.META_ARCHITECTURE gives a Module without one of backbone"):
        count_cost(TINY[0], SIZE)
