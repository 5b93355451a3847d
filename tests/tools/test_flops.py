"""Costs: operators by hand, models by torch's and fvcore's own counters, published ones by the paper."""

import pytest
import torch
import torch.nn.functional as F
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from tiny_runs import tiny_config
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mask2former.config import load_config
from mask2former.engine.build import build_model
from mask2former.modeling.transformer_decoder import masked
from mask2former.ops import ms_deform_attn
from mask2former.tools.flops import (
    ATTENTION,
    CONVOLUTION,
    NORM,
    PARTS,
    PRODUCT,
    RESIZING,
    CostCounter,
    check_parts,
    count_cost,
    usual_sizes,
)

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


def kind_total(cost, *kinds):
    return sum(flops[kind] for flops in cost.flops.values() for kind in kinds)


@pytest.fixture(params=TINY, ids=["resnet", "swin"])
def tiny(request):
    """A config, its cost, and its model without gradients, but where they could be had: one step a layer."""
    model = build_model(request.param).eval().requires_grad_(False)
    return request.param, count_cost(request.param, SIZE), model


def sample(heads=2, channels=3, queries=5, points=4):
    value = torch.zeros(1, 6, heads, channels)
    locations = torch.zeros(1, queries, heads, 1, points, 2)
    return ms_deform_attn(value, ((2, 3),), locations, torch.zeros(1, queries, heads, 1, points))


@pytest.mark.parametrize(
    ("compute", "flops"),
    [
        (lambda: F.conv2d(torch.zeros(1, 2, 5, 6), torch.zeros(4, 2, 3, 3), padding=1), 30 * 4 * 2 * 9),
        (lambda: F.conv2d(torch.zeros(1, 4, 5, 6), torch.zeros(4, 2, 1, 1), groups=2), 30 * 4 * 2),
        (lambda: F.conv_transpose2d(torch.zeros(1, 4, 5, 6), torch.zeros(4, 3, 2, 2), stride=2), 30 * 4 * 12),
        (lambda: F.linear(torch.zeros(2, 7, 3), torch.zeros(5, 3), torch.zeros(5)), 14 * 15),
        (lambda: F.linear(torch.zeros(7, 3), torch.zeros(5, 3)), 7 * 15),
        (lambda: torch.zeros(2, 7, 3) @ torch.zeros(2, 3, 5), 2 * 7 * 15),
        (
            lambda: F.scaled_dot_product_attention(torch.zeros(1, 2, 3, 4), *[torch.zeros(1, 2, 5, 4)] * 2),
            2 * 15 * (4 + 4),
        ),
        (sample, 5 * 2 * 4 * 3 * 4),
        (lambda: F.layer_norm(torch.zeros(2, 6), [6], torch.ones(6), torch.zeros(6)), 5 * 12),
        (lambda: F.group_norm(torch.zeros(1, 4, 3), 2, torch.ones(4), torch.zeros(4)), 5 * 12),
        (lambda: F.interpolate(torch.zeros(1, 3, 2, 2), (4, 5), mode="bilinear"), 4 * 60),
        (lambda: (torch.zeros(3, 4).sigmoid() + 1).transpose(0, 1).contiguous().view(12), 0),
    ],
)
def test_an_operator_by_hand(compute, flops):
    with torch.no_grad(), CostCounter() as counter:
        compute()
    assert counter.total() == flops
    assert not counter.uncounted


def test_an_operator_without_a_rule_is_named():
    with torch.no_grad(), CostCounter() as counter:
        torch.cdist(torch.zeros(1, 3, 2), torch.zeros(1, 4, 2)).cumsum(0)
    assert counter.uncounted == {"aten::_cdist_forward": 1, "aten::cumsum": 1}


def test_products_are_those_of_torch_s_counter(tiny):
    """It counts two for a multiply-add, and attention on a CPU where that is made of plain products."""
    _, cost, model = tiny
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.network(torch.zeros(1, 3, *SIZE)).mask_logits()
    assert 2 * kind_total(cost, CONVOLUTION, PRODUCT, ATTENTION) == counter.get_total_flops()
    assert not cost.uncounted


def test_the_backbone_is_that_of_fvcore(tiny):
    """Fused attention aside, for which fvcore has no rule."""
    _, cost, model = tiny
    images = torch.zeros(1, 3, *SIZE)
    flops = FlopCountAnalysis(model.backbone, images).set_op_handle("aten::batch_norm", None)
    expected = {CONVOLUTION: ("conv",), PRODUCT: ("linear", "matmul"), NORM: ("layer_norm",)}
    found = flops.unsupported_ops_warnings(False).by_operator()
    for kind, names in expected.items():
        assert cost.flops["backbone"][kind] == sum(found[name] for name in names), kind
    if not cost.flops["backbone"][ATTENTION]:
        activations = ActivationCountAnalysis(model.backbone, images).unsupported_ops_warnings(False)
        assert cost.activations["backbone"] == activations.total()


class Flat(nn.Module):
    """The transformer decoder with tensors alone for arguments and results, as fvcore wants it."""

    def __init__(self, predictor):
        super().__init__()
        self.predictor = predictor

    def forward(self, mask_features, *memory):
        predictions = self.predictor(list(memory), mask_features)
        return tuple(tensor for layer in predictions.layers for tensor in layer)


def test_the_transformer_decoder_is_that_of_fvcore(tiny):
    _, cost, model = tiny
    mask_features, memory = model.sem_seg_head.pixel_decoder(model.backbone(torch.zeros(1, 3, *SIZE)))
    flops = FlopCountAnalysis(Flat(model.sem_seg_head.predictor), (mask_features, *memory))
    found = flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False).by_operator()
    ours = cost.flops["transformer decoder"]
    assert ours[PRODUCT] == found["linear"] + found["matmul"]
    assert ours[NORM] == found["layer_norm"]
    assert ours[RESIZING] == found["upsample_bilinear2d"]


def test_parameters_by_part(tiny):
    _, cost, model = tiny
    assert cost.parameters.keys() == PARTS.keys()
    assert sum(cost.parameters.values()) == sum(parameter.numel() for parameter in model.parameters())
    assert cost.parameters["backbone"] == sum(parameter.numel() for parameter in model.backbone.parameters())


def test_the_published_graph(tiny, monkeypatch):
    """Run as published: the mask logits of every prediction at full size, and only then resized."""
    cfg, cost, _ = tiny

    def full_size_first(mask_embed, guide):
        mask_features, shape = guide
        logits = masked.multiply_masks(mask_embed, mask_features)
        blocked = F.interpolate(logits, size=shape, mode="bilinear", align_corners=False).flatten(2) < 0
        return blocked & ~blocked.all(-1, keepdim=True)

    monkeypatch.setattr(masked, "resize_mask_features", lambda features, shape: (features, shape))
    monkeypatch.setattr(masked, "blocked_cells", full_size_first)
    assert cost.published_flops == count_cost(cfg, SIZE).total_flops()
    assert cost.published_flops > cost.total_flops()


def test_a_size_counts_as_it_is_padded():
    flops = [count_cost(TINY[0], size).flops for size in ((33, 70), (64, 96), (65, 96))]
    assert flops[0] == flops[1] != flops[2]


def test_a_frozen_config_is_left_as_it_is():
    cfg = tiny_config()
    cfg.freeze()
    count_cost(cfg, SIZE)
    assert cfg.MODEL.DEVICE == "cpu"


def published(task, config):
    """Millions of parameters, and mean GFLOPs over COCO's images as published."""
    cfg = load_config(f"coco/{task}-segmentation/{config}")
    costs = [(share, count_cost(cfg, size)) for size, share in usual_sizes(cfg).items()]
    flops = sum(share * cost.published_flops for share, cost in costs) / 1e9
    return sum(costs[0][1].parameters.values()) / 1e6, flops


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_the_paper_s_figures(task):
    """Images are fitted so that R50 takes 226 GFLOPs; the others then must come out by themselves."""
    (r50, fitted), (r101, r101_flops), (swin_l, swin_l_flops) = (
        published(task, config) for config in (R50, R101, SWIN_L)
    )
    assert (round(r50), round(r101), round(swin_l)) == (44, 63, 216)
    assert round(fitted) == 226
    assert r101_flops == pytest.approx(293, rel=0.01)
    assert swin_l_flops == pytest.approx(868, rel=0.01)


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
    sizes = usual_sizes(load_config(f"coco/panoptic-segmentation/{R50}", ["DATASETS.TRAIN", ()]))
    assert list(sizes) == [(800, 1067), (800, 1199)]  # the test set tells
    opts = ["DATASETS.TRAIN", (), "DATASETS.TEST", ()]
    assert usual_sizes(load_config(f"coco/panoptic-segmentation/{R50}", opts)) == {(800, 1067): 1}


def test_a_model_of_other_parts_is_refused():
    with pytest.raises(ValueError, match=r"MODEL\.META_ARCHITECTURE.*Module without 'backbone'"):
        check_parts(nn.Module())
