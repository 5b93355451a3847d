"""ResNet: known sizes, strides, frozen parts, keys, errors."""

import copy

import pytest
import torch
from small_backbones import small_resnet
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mask2former.config import get_cfg
from mask2former.modeling.backbone.resnet import Bottleneck, ResNet
from mask2former.modeling.layers.norm import FrozenBatchNorm2d
from mask2former.structures import ShapeSpec
from mask2former.utils.registry import BACKBONE

# torchvision's documented parameter counts, less those of the classifier.
PARAMETERS = [
    ({"depth": 18, "res2_channels": 64}, 11_689_512 - 513_000),
    ({"depth": 34, "res2_channels": 64}, 21_797_672 - 513_000),
    ({"depth": 50}, 25_557_032 - 2_049_000),
    ({"depth": 101}, 44_549_160 - 2_049_000),
    ({"depth": 152}, 60_192_808 - 2_049_000),
    ({"depth": 50, "groups": 32, "width_per_group": 4}, 25_028_904 - 2_049_000),
    ({"depth": 50, "width_per_group": 128}, 68_883_240 - 2_049_000),
]


@pytest.mark.parametrize(("keys", "count"), PARAMETERS)
def test_parameter_counts(keys, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in ResNet(norm="BN", **keys).parameters()) == count


def test_the_layout_of_images_does_not_matter_and_maps_have_channels_last():
    model = small_resnet(norm="FrozenBN").double()
    images = torch.randn(2, 3, 45, 67, dtype=torch.float64)
    maps, again = model(images), model(images.contiguous(memory_format=torch.channels_last))
    for name, x in maps.items():
        assert x.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(again[name], x)


@pytest.mark.parametrize(("in_1x1", "strides"), [(True, (2, 1)), (False, (1, 2))])
def test_stride_in_1x1_selects_the_strided_convolution(in_1x1, strides):
    block = small_resnet(stride_in_1x1=in_1x1).get_submodule("res3.0")
    assert (block.conv1.stride[0], block.conv2.stride[0], block.shortcut.stride[0]) == (*strides, 2)


@pytest.mark.parametrize("sides", [(64, 96), (70, 101)])
def test_res5_at_stride_16_holds_the_map_at_stride_32(sides):
    """Dilation keeps what strided convolutions compute (DETR's DC5): every second cell is the usual one."""
    usual = small_resnet(norm="FrozenBN").double()
    dense = small_resnet(norm="FrozenBN", res5_stride=1, res5_dilations=(1, 2, 2)).double()
    dense.load_state_dict(usual.state_dict())
    images = torch.randn(1, 3, *sides, dtype=torch.float64)
    maps, expected = dense(images), usual(images)
    assert maps["res5"].shape[2:] == maps["res4"].shape[2:]
    torch.testing.assert_close(maps["res5"][..., ::2, ::2], expected["res5"])
    assert [shape.stride for shape in dense.output_shape().values()] == [4, 8, 16, 16]


def test_a_block_with_a_zero_branch_equals_its_shortcut():
    block = Bottleneck(16, 16, stride=1, norm="BN", width=4, groups=1, stride_in_1x1=False).eval()
    nn.init.zeros_(block.conv3.norm.weight)
    x = torch.randn(2, 16, 5, 5)
    before = x.clone()
    assert torch.equal(block(x), x.relu())
    assert torch.equal(x, before)


def test_convolutions_start_with_the_variance_that_keeps_gradients():
    weight = ResNet(depth=18, res2_channels=64).get_submodule("res3.1.conv1").weight
    assert weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)


def test_only_requested_stages_are_built():
    model = small_resnet(out_features=["res3"])
    assert list(model(torch.randn(1, 3, 32, 32))) == ["res3"]
    assert {name.split(".")[0] for name in model.state_dict()} == {"stem", "res2", "res3"}


@pytest.mark.parametrize("freeze_at", [-1, 0, 1, 2, 5])
def test_frozen_stages_do_not_train(freeze_at):
    model = small_resnet(freeze_at=freeze_at).train()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad] or [torch.zeros(1)], lr=1)
    if freeze_at < 5:
        sum(x.square().mean() for x in model(torch.randn(2, 3, 64, 64)).values()).backward()
        optimizer.step()
    else:
        assert not any(x.requires_grad for x in model(torch.randn(2, 3, 64, 64)).values())
    for stage, name in enumerate(("stem", "res2", "res3", "res4", "res5"), start=1):
        frozen = stage <= freeze_at
        part = model.get_submodule(name)
        norms = [module for module in part.modules() if isinstance(module, (_BatchNorm, FrozenBatchNorm2d))]
        assert norms and all(isinstance(norm, FrozenBatchNorm2d) == frozen for norm in norms)
        for key, value in part.state_dict().items():
            assert torch.equal(value, before[f"{name}.{key}"]) == frozen, (name, key)


def test_keys_reach_the_network():
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.FREEZE_AT = 1
    cfg.MODEL.RESNETS.update({"NORM": "GN", "STEM_OUT_CHANNELS": 32, "RES2_OUT_CHANNELS": 128})
    cfg.MODEL.RESNETS.update({"NUM_GROUPS": 2, "WIDTH_PER_GROUP": 32, "STRIDE_IN_1X1": True})
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3"]
    with torch.device("meta"):
        model = BACKBONE.get("build_resnet_backbone")(cfg, ShapeSpec(channels=4))
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert model.output_shape() == {"res2": ShapeSpec(128, 4), "res3": ShapeSpec(256, 8)}
    assert shapes["stem.conv1.weight"] == (32, 4, 7, 7)
    assert shapes["res3.0.conv2.weight"] == (128, 64, 3, 3)
    assert model.get_submodule("res3.0.conv1").stride == (2, 2)
    assert isinstance(model.get_submodule("stem.conv1.norm"), nn.GroupNorm)
    assert not model.get_submodule("stem.conv1").weight.requires_grad
    assert model.get_submodule("res2.0.conv1").weight.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["DEPTH", 42], r"DEPTH is 42; known are \[18, 34"),
        (["OUT_FEATURES", ["res2", "p3"]], r"OUT_FEATURES is \['res2', 'p3'\]"),
        (["OUT_FEATURES", []], "OUT_FEATURES"),
        (["NORM", "XBN"], "XBN"),
        (["DEPTH", 18], r"RES2_OUT_CHANNELS is 256; with DEPTH 18"),
        (["DEPTH", 18, "RES2_OUT_CHANNELS", 64, "NUM_GROUPS", 2], "NUM_GROUPS is 2"),
    ],
)
def test_errors(options, message):
    cfg = get_cfg()
    for key, value in zip(options[::2], options[1::2], strict=True):
        cfg.MODEL.RESNETS[key] = value
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        BACKBONE.get("build_resnet_backbone")(cfg, ShapeSpec(channels=3))
