"""ViT-Adapter against slow formulas, its parameters against the published ones, its config and its errors."""

import gzip
import json

import pytest
import slow_adapter
import torch
from small_vits import draw, small_vit
from torch import nn

from mask2former.config import get_cfg
from mask2former.modeling.layers.norm import SyncBatchNorm
from mask2former.modeling.vit.adapter import ViTAdapter
from mask2former.modeling.vit.transformer import VisionTransformer
from mask2former.structures import ShapeSpec
from mask2former.utils.registry import BACKBONE
from mask2former.weights.load import Checkpoint, load_weights

STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
HEADS = 4
BEIT = {"positions": "relative", "registers": 0, "key_bias": False}


def small_adapter(drop_path_rate=0.0, checkpointing=False, **vit):
    torch.manual_seed(0)
    body = small_vit(
        patch_size=16,
        depth=4,
        final_norm=False,
        drop_path_rate=drop_path_rate,
        checkpointing=checkpointing,
        **vit,
    )
    return ViTAdapter(body, num_heads=HEADS, drop_path_rate=drop_path_rate, checkpointing=checkpointing)


@pytest.mark.parametrize(
    "changes", [{}, {"positions": "rotary"}, BEIT], ids=["learned", "rotary", "relative"]
)
@torch.no_grad()
def test_maps_equal_the_slow_formulas(changes):
    model = draw(small_adapter(**changes)).eval()
    images = torch.randn(2, 3, 64, 96)
    expected = slow_adapter.adapter_maps(model.state_dict(), model.vit, images, HEADS)
    for actual, other in zip(model(images).values(), expected, strict=True):
        torch.testing.assert_close(actual, other, rtol=5e-3, atol=5e-3)
        assert other.std() > 0.1


@pytest.mark.parametrize("size", [(64, 96), (45, 67), (9, 4)])
@torch.no_grad()
def test_maps_have_the_declared_shapes(size):
    model = small_adapter().eval()
    assert model.output_shape() == {name: ShapeSpec(32, stride) for name, stride in STRIDES.items()}
    maps = model(torch.randn(2, 3, *size))
    for name, stride in STRIDES.items():
        assert maps[name].shape == (2, 32, *(-(-side // stride) for side in size))


@torch.no_grad()
def test_a_new_adapter_leaves_the_tokens_of_the_vision_transformer():
    model, images = small_adapter().eval(), torch.randn(1, 3, 64, 64)
    seen = []
    model.vit.blocks[-1].register_forward_hook(lambda block, inputs, output: seen.append(output))
    model(images)
    assert torch.equal(seen[0], model.vit(images)[0])


def test_every_parameter_gets_a_gradient():
    model = draw(small_adapter()).train()
    sum((x * torch.randn_like(x)).mean() for x in model(torch.randn(2, 3, 64, 64)).values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_checkpointing_gives_the_same_step():
    models = [draw(small_adapter(drop_path_rate=0.5, checkpointing=on)).train() for on in (False, True)]
    images = torch.randn(4, 3, 64, 64)
    for model in models:
        torch.manual_seed(1)
        sum((x**3).mean() for x in model(images).values()).backward()
    for expected, actual in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad)


def test_the_config_reaches_the_model():
    cfg = get_cfg()
    vit, adapter = cfg.MODEL.VIT, cfg.MODEL.VIT_ADAPTER
    vit.EMBED_DIM, vit.DEPTH, vit.NUM_HEADS, vit.DROP_PATH_RATE = 32, 4, 2, 0.25
    adapter.NUM_HEADS, adapter.VALUE_RATIO, adapter.NORM = 8, 0.25, "GN"
    cfg.MODEL.ACTIVATION_CHECKPOINTING = True
    model = BACKBONE.get("ViTAdapter")(cfg, ShapeSpec(channels=4))
    extractor = model.interactions[0].extractor
    assert extractor.attn.num_heads == 8 and extractor.attn.value_proj.weight.shape == (8, 32)
    assert extractor.drop_path.rate == model.vit.blocks[-1].drop_path.rate == 0.25
    assert isinstance(model.norm1, nn.GroupNorm) and model.spm.stem[0].weight.shape == (64, 4, 3, 3)
    assert model.vit.checkpointing and model.interactions[3].checkpointing
    assert isinstance(model.vit.norm, nn.Identity)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["MODEL.VIT.DEPTH", 6], "MODEL.VIT.DEPTH is 6; ViT-Adapter needs a multiple of 4"),
        (["MODEL.VIT_ADAPTER.NUM_HEADS", 3], "NUM_HEADS is 3; it must divide EMBED_DIM .* which is 512"),
        (["MODEL.VIT.OUT_FEATURES", ["res5"]], r"MODEL.VIT.OUT_FEATURES is \['res5'\]; ViT-Adapter has"),
    ],
)
def test_sizes_that_do_not_fit_are_errors(keys, message):
    cfg = get_cfg()
    cfg.merge_from_list(keys)
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        BACKBONE.get("ViTAdapter")(cfg, ShapeSpec(channels=3))


def test_other_patches_are_an_error():
    with pytest.raises(ValueError, match="PATCH_SIZE is 14; ViT-Adapter needs 16"):
        ViTAdapter(small_vit(patch_size=14, depth=4))


def test_a_pretrained_vision_transformer_fills_all_but_the_adapter():
    model, pretrained = nn.Module(), draw(small_vit(patch_size=16, depth=4))
    model.backbone = small_adapter()
    assert "norm.weight" in pretrained.state_dict()
    report = load_weights(model, Checkpoint("vit.pth", pretrained.state_dict()))
    assert report.untrained and not any(name.startswith("backbone.vit.") for name in report.untrained)
    for name, parameter in model.backbone.vit.named_parameters():
        assert torch.equal(parameter, pretrained.get_parameter(name)), name


def meta_adapter(vit, **adapter):
    with torch.device("meta"):
        return ViTAdapter(VisionTransformer(**vit, final_norm=False), **adapter)


def test_published_names_and_shapes(shared):
    file = shared / "manifests/vit/vit_adapter_beit_large_896_backbone.json.gz"
    manifest = json.loads(gzip.decompress(file.read_bytes()))
    model = meta_adapter({**BEIT, "position_grid": 56})
    assert sum(p.numel() for p in model.parameters()) == manifest["parameters"]
    published = {name.removeprefix("backbone."): shape for name, shape in manifest["state_dict"].items()}
    of_vit = ("cls_token", "patch_embed.", "blocks.")
    adapters = {
        name.replace(".dwconv.dwconv.", ".dwconv."): tuple(shape)
        for name, shape in published.items()
        if not name.startswith(of_vit)
    }
    ours = {name: tuple(x.shape) for name, x in model.state_dict().items() if not name.startswith("vit.")}
    assert ours == adapters
    assert isinstance(model.norm1, SyncBatchNorm)
