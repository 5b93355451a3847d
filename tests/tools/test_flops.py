"""Costs: operators counted by hand, and models by fvcore's own counter."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from tiny_clips import IMAGES, VIDEO
from tiny_runs import tiny_config
from torch import nn

from mask2former.config import load_config
from mask2former.engine.build import build_model
from mask2former.modeling.transformer_decoder import masked, memory_attention
from mask2former.ops import ms_deform_attn
from mask2former.tools import flops
from mask2former.tools.flops import (
    NORMS_AND_RESIZING,
    PARTS,
    REST,
    count_activations,
    count_cost,
    count_flops,
    count_norms_and_resizing,
    usual_images,
)

R50 = "maskformer2_R50_bs16_50ep.yaml"
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


@pytest.mark.parametrize(
    ("compute", "name"),
    [
        (lambda x: F.layer_norm(x, [6], torch.ones(6), torch.ones(6)), "layer_norm"),
        (lambda x: F.group_norm(x, 2, torch.ones(4), torch.ones(4)), "group_norm"),
        (lambda x: F.batch_norm(x, *[torch.ones(4)] * 4), "batch_norm"),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), "upsample_bilinear2d"),
        (lambda x: F.interpolate(x, scale_factor=2, mode="nearest"), "upsample_nearest2d"),
    ],
)
def test_norms_and_resizing_count_as_in_fvcore(compute, name):
    class Compute(nn.Module):
        def forward(self, x):
            return compute(x)

    x = torch.zeros(2, 4, 5, 6)
    found = FlopCountAnalysis(Compute().eval(), x).unsupported_ops_warnings(False).by_operator()
    with count_norms_and_resizing() as counter:
        compute(x)
    (count,) = (
        counter.get_flop_counts()["Global"].get(op, 0) for op in NORMS_AND_RESIZING if name in str(op)
    )
    assert count == found[name] > 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ATTENTION": "pooling"},
        {"MEMORY_STRIDE": 8},
        {"SUPERVISE_QUERIES": False},
        {"FINE_LAYERS": 2},
    ],
)
def test_full_size_masks_cost_what_a_model_needs_that_computes_them(options, monkeypatch):
    """Compare with a model that computes all mask logits at full size and then resizes them."""
    keys = {f"MODEL__MASK_FORMER__DECODER__{key}": value for key, value in options.items()}
    cfg = tiny_config(MODEL__MASK_FORMER__DEC_LAYERS=5, **keys)
    cost = count_cost(cfg, SIZE)

    def full_size_first(mask_embed, guide):
        mask_features, shape = guide
        logits = memory_attention.multiply_masks(mask_embed, mask_features)
        blocked = F.interpolate(logits, size=shape, mode="bilinear", align_corners=False).flatten(2) < 0
        return blocked & ~blocked.all(-1, keepdim=True)

    def keep_full_size(features, shape):
        return SimpleNamespace(flatten=lambda _: (features, shape))

    monkeypatch.setattr(masked, "resize_mask_features", keep_full_size)
    monkeypatch.setattr(memory_attention, "blocked_cells", full_size_first)
    assert cost.full_size_flops == count_cost(cfg, SIZE).total_flops() > cost.total_flops()


def test_a_model_of_clips_costs_what_one_for_images_does():
    of_clips, of_images = (
        count_cost(tiny_config(**{**VIDEO, "DATASETS__TRAIN": (), "DATASETS__TEST": (), **kind}), SIZE)
        for kind in ({}, IMAGES)
    )
    assert of_clips == of_images


def test_sizes_count_as_padded_and_the_config_stays_unchanged():
    cfg = tiny_config()
    cfg.freeze()
    first, same, larger = (count_cost(cfg, size).flops for size in ((33, 70), (64, 96), (65, 96)))
    assert first == same != larger
    assert cfg.MODEL.DEVICE == "cpu"


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (
            f"coco/panoptic-segmentation/{R50}",
            [((800, 1067), (480, 640), 0.7), ((800, 1199), (427, 640), 0.3)],
        ),
        (
            "cityscapes/semantic-segmentation/maskformer2_R50_bs16_90k.yaml",
            [((1024, 2048), (1024, 2048), 1)],
        ),
        ("ade20k/semantic-segmentation/maskformer2_R50_bs16_160k.yaml", [((512, 512), (512, 512), 1)]),
        (
            "mapillary-vistas/semantic-segmentation/maskformer2_R50_bs16_300k.yaml",
            [((1536, 2048), (3000, 4000), 1)],
        ),
        (
            "youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml",
            [((360, 640), (720, 1280), 1)],
        ),
        ("shapes/panoptic-segmentation/maskformer2_R18_bs8_shapes.yaml", [((96, 128), (480, 640), 1)]),
    ],
)
def test_usual_images(config, sizes):
    assert usual_images(load_config(config)) == sizes


def test_without_a_dataset_images_are_four_to_three():
    config, opts = f"coco/panoptic-segmentation/{R50}", ["DATASETS.TRAIN", ()]
    assert len(usual_images(load_config(config, opts))) == 2  # from the test set
    assert usual_images(load_config(config, [*opts, "DATASETS.TEST", ()])) == [((800, 1067), (480, 640), 1)]


def test_a_model_without_a_pixel_decoder_has_two_parts():
    cfg = load_config("shapes/panoptic-segmentation/detr_R18_bs8_shapes.yaml")
    cost, model = count_cost(cfg, SIZE), build_model(cfg)
    assert list(cost.flops) == ["backbone", "head", REST]
    assert cost.parameters == {
        "backbone": sum(parameter.numel() for parameter in model.backbone.parameters()),
        "head": sum(parameter.numel() for parameter in model.sem_seg_head.parameters()),
    }
    counter = FlopCountAnalysis(model.backbone.eval(), torch.zeros(1, 3, *SIZE)).unsupported_ops_warnings(
        False
    )
    assert cost.flops["backbone"].total() == counter.by_operator()["conv"]
    assert cost.flops["head"]["attention"] > 0


def test_a_model_with_other_parts_is_an_error(monkeypatch):
    monkeypatch.setattr(flops, "build_model", lambda cfg: nn.Module())
    with pytest.raises(ValueError, match=r"MODEL\.META_ARCHITECTURE gives a Module without one of backbone"):
        count_cost(TINY[0], SIZE)


@pytest.mark.parametrize(
    ("config", "size", "parameters", "published"),
    [
        ("coco/panoptic-segmentation/eomt/eomt_dinov2_small_bs16_24ep.yaml", (480, 640), 24.0, 68),
        ("coco/panoptic-segmentation/eomt/eomt_dinov2_large_bs16_12ep.yaml", (480, 640), 316.7, 669),
        (
            "cityscapes/semantic-segmentation/eomt/eomt_dinov2_large_bs16_107ep.yaml",
            (1024, 2048),
            319.0,
            4350,
        ),
    ],
)
def test_eomt_counts_squares_as_published(config, size, parameters, published):
    """Table 1 of its paper, and Table 6 for Cityscapes, whose images take two windows."""
    cost = count_cost(load_config(config), size)
    assert sum(cost.parameters.values()) / 1e6 == pytest.approx(parameters, rel=0.005)
    assert cost.total_flops() / 1e9 == pytest.approx(published, rel=0.03)
