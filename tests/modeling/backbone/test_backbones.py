"""Properties that every backbone has."""

import pytest
import torch
from small_backbones import small_resnet, small_swin

from mask2former.config import get_cfg
from mask2former.modeling.backbone.resnet import ResNet
from mask2former.modeling.backbone.swin import SwinTransformer
from mask2former.structures import ShapeSpec
from mask2former.utils.registry import BACKBONE

STAGES = ("res2", "res3", "res4", "res5")
FULL_SWIN = {"depths": (2, 1, 1, 1), "num_heads": (1, 2, 4, 8)}
WIDE_RESNET = {"stem_channels": 32, "res2_channels": 32, "width_per_group": 32}


@pytest.mark.parametrize("size", [(64, 96), (45, 67), (9, 4)])
@pytest.mark.parametrize(
    ("build", "keys", "stem", "width"),
    [
        (small_swin, FULL_SWIN, {}, 8),
        *((small_resnet, {"depth": depth}, {"stem": ShapeSpec(8, 4)}, 16) for depth in (18, 34, 50)),
    ],
)
def test_maps_have_the_declared_shapes(build, keys, stem, width, size):
    model = build(**keys, out_features=(*stem, *STAGES)).eval()
    stages = {name: ShapeSpec(width * 2**i, 4 * 2**i) for i, name in enumerate(STAGES)}
    assert model.output_shape() == stem | stages
    maps = model(torch.randn(2, 3, *size))
    for name, (channels, stride) in model.output_shape().items():
        assert maps[name].shape == (2, channels, *(-(-side // stride) for side in size))


@pytest.mark.parametrize(("build", "width"), [(SwinTransformer, 768), (lambda: ResNet(depth=50), 2048)])
def test_no_data_dependent_control_flow(build, width):
    with torch.device("meta"):  # values do not exist there
        maps = build()(torch.empty(1, 3, 800, 1344))
    assert maps["res5"].shape == (1, width, 25, 42)


@pytest.mark.parametrize("name", ["D2SwinTransformer", "build_resnet_backbone"])
def test_activation_checkpointing_key(name):
    cfg = get_cfg()
    cfg.MODEL.ACTIVATION_CHECKPOINTING = True
    with torch.device("meta"):
        assert BACKBONE.get(name)(cfg, ShapeSpec(channels=3)).checkpointing


@pytest.mark.parametrize("build", [small_swin, lambda: small_resnet(norm="FrozenBN")])
def test_an_image_alone_equals_itself_in_a_batch(build):
    model = build()
    images = torch.randn(3, 3, 40, 56)
    alone, together = model(images[1:2]), model(images)
    for name, x in alone.items():
        torch.testing.assert_close(x[0], together[name][1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("build", "keys"),
    [
        (small_swin, {"ape": True}),
        *((small_resnet, {"depth": 18, "norm": norm, **WIDE_RESNET}) for norm in ("BN", "GN", "")),
        *((small_resnet, {"norm": norm, **WIDE_RESNET}) for norm in ("BN", "SyncBN", "FrozenBN", "GN", "")),
    ],
)
def test_every_parameter_gets_a_gradient(build, keys):
    model = build(**keys).train()
    maps = model(torch.randn(2, 3, 64, 64)).values()
    sum((x * torch.randn_like(x)).mean() for x in maps).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize(
    ("build", "keys"), [(small_swin, {"drop_path_rate": 0.5, "drop_rate": 0.2}), (small_resnet, {})]
)
def test_checkpointing_gives_the_same_step(build, keys):
    plain, checkpointed = build(**keys).train(), build(**keys, checkpointing=True).train()
    images = torch.randn(4, 3, 40, 40)
    for model in (plain, checkpointed):
        torch.manual_seed(1)
        sum((x**3).mean() for x in model(images).values()).backward()
    torch.testing.assert_close(checkpointed.state_dict(), plain.state_dict())
    for expected, actual in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad)
