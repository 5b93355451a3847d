"""The plain vision transformer as a backbone: its maps, the config, the published parameter count."""

import pytest
import torch
from small_vits import draw, small_vit
from torch.nn import functional as F

from mask2former.config import get_cfg, load_config
from mask2former.modeling import mask_former  # noqa: F401  (registers the models)
from mask2former.modeling.vit.backbone import STRIDES, SimplePyramid
from mask2former.modeling.vit.scaling import ScaleBlock
from mask2former.modeling.vit.transformer import VisionTransformer
from mask2former.structures import ShapeSpec
from mask2former.utils.registry import BACKBONE, META_ARCH


def small_pyramid(out_features=tuple(STRIDES), **changes):
    return SimplePyramid(small_vit(patch_size=16, **changes), out_features=out_features)


@pytest.mark.parametrize("size", [(64, 96), (45, 67), (9, 4)])
@pytest.mark.parametrize("positions", ["learned", "rotary"])
@torch.no_grad()
def test_maps_have_the_declared_shapes(positions, size):
    model = small_pyramid(positions=positions)
    assert model.output_shape() == {name: ShapeSpec(32, stride) for name, stride in STRIDES.items()}
    maps = model(torch.randn(2, 3, *size))
    for name, stride in STRIDES.items():
        assert maps[name].shape == (2, 32, *(-(-side // stride) for side in size))


@torch.no_grad()
def test_the_map_at_the_stride_of_patches_is_the_normalized_one():
    model, images = draw(small_pyramid(("res4",))), torch.randn(1, 3, 32, 48)
    tokens, _ = model.vit(images)
    assert torch.equal(model(images)["res4"].flatten(2).mT, tokens[:, 5:])


@torch.no_grad()
def test_doubling_writes_four_cells_for_each():
    block, x = draw(ScaleBlock(4, up=True)), torch.randn(1, 4, 2, 3)
    doubled = torch.empty(1, 4, 4, 6)
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
        cells = torch.einsum("bchw,cd->bdhw", x, block.conv1.weight[:, :, dy, dx])
        doubled[:, :, dy::2, dx::2] = cells + block.conv1.bias[:, None, None]
    mixed = F.conv2d(F.gelu(doubled), block.conv2.weight, padding=1, groups=4)
    centered = mixed - mixed.mean(1, keepdim=True)
    normed = centered / (centered.square().mean(1, keepdim=True) + 1e-6).sqrt()
    expected = normed * block.norm.weight[:, None, None] + block.norm.bias[:, None, None]
    torch.testing.assert_close(block(x), expected)


@torch.no_grad()
def test_halving_reads_four_cells_for_each():
    block, x = draw(ScaleBlock(4, up=False)), torch.randn(1, 4, 2, 3)
    x = F.pad(x, (0, 1))
    halved = sum(
        torch.einsum("bchw,dc->bdhw", x[:, :, dy::2, dx::2], block.conv1.weight[:, :, dy, dx])
        for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1))
    )
    mixed = F.conv2d(
        F.gelu(halved + block.conv1.bias[:, None, None]), block.conv2.weight, padding=1, groups=4
    )
    torch.testing.assert_close(block(x[..., :3]), block.norm(mixed))


def test_every_parameter_gets_a_gradient():
    for changes in ({}, {"positions": "relative", "registers": 0, "key_bias": False, "final_norm": False}):
        model = small_pyramid(**changes).train()
        sum((x * torch.randn_like(x)).mean() for x in model(torch.randn(2, 3, 64, 64)).values()).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.any(), name


def test_the_config_reaches_the_model():
    cfg = get_cfg()
    vit = cfg.MODEL.VIT
    vit.EMBED_DIM, vit.DEPTH, vit.NUM_HEADS, vit.REGISTERS, vit.POSITIONS = 32, 2, 4, 0, "rotary"
    vit.KEY_BIAS, vit.OUT_FEATURES, cfg.MODEL.ACTIVATION_CHECKPOINTING = False, ["res3", "res5"], True
    model = BACKBONE.get("ViTSimplePyramid")(cfg, ShapeSpec(channels=4))
    assert model.output_shape() == {"res3": ShapeSpec(32, 8), "res5": ShapeSpec(32, 32)}
    assert len(model.vit.blocks) == 2 and model.vit.special_tokens == 1 and model.vit.checkpointing
    assert model.vit.patch_embed.proj.weight.shape == (32, 4, 16, 16)


def test_other_patches_are_an_error():
    with pytest.raises(ValueError, match=r"PATCH_SIZE is 14; a pyramid .* needs 16"):
        SimplePyramid(small_vit(patch_size=14))


def test_mask2former_on_dinov2_large_has_the_published_342m_parameters():
    """Table 1 of the EoMT paper: plain ViT-L with a simple pyramid."""
    cfg = load_config(
        "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml",
        ["MODEL.BACKBONE.NAME", "ViTSimplePyramid", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "200"],
    )
    with torch.device("meta"):
        model = META_ARCH.get("MaskFormer")(cfg)
    assert isinstance(model.backbone.vit, VisionTransformer)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == 342
