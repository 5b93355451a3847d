"""The names and shapes of the authors' checkpoints, as their public code builds them, and ours."""

import re

import pytest
import torch

from mask2former.config import load_config
from mask2former.engine.build import build_model
from mask2former.weights.load import load_weights
from mask2former.weights.read import Checkpoint
from mask2former.weights.rename import translate

CONFIG = "comparators/knet/knet_R50_bs16_36ep.yaml"
C, CLASSES, HIDDEN = 256, 133, 2048


def linear(name, out, into=C, bias=True):
    return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if bias else {})


def conv(name, out, into, size, bias=False):
    return {f"{name}.weight": (out, into, size, size)} | ({f"{name}.bias": (out,)} if bias else {})


def norm(name, width=C):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def conv_and_norm(name, size):
    return conv(f"{name}.conv", C, C, size) | norm(f"{name}.gn")


def batch_norm(name, width):
    statistics = {f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}
    return norm(name, width) | statistics | {f"{name}.num_batches_tracked": ()}


def resnet50():
    table = conv("conv1", 64, 3, 7) | batch_norm("bn1", 64)
    into = 64
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        width = 32 * 2**stage
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            for i, (out, channels, size) in enumerate(
                [(width, into, 1), (width, width, 3), (4 * width, width, 1)], 1
            ):
                table |= conv(f"{name}.conv{i}", out, channels, size) | batch_norm(f"{name}.bn{i}", out)
            if block == 0:
                table |= conv(f"{name}.downsample.0", 4 * width, into, 1)
                table |= batch_norm(f"{name}.downsample.1", 4 * width)
            into = 4 * width
    return {f"backbone.{name}": shape for name, shape in table.items()}


def neck():
    table = {}
    for i in range(4):
        table |= conv(f"neck.lateral_convs.{i}.conv", C, 256 * 2**i, 1, bias=True)
        table |= conv(f"neck.fpn_convs.{i}.conv", C, C, 3, bias=True)
    return table


def kernel_head():
    fpn = "rpn_head.localization_fpn"
    table = conv("rpn_head.init_kernels", 100, C, 1) | conv("rpn_head.conv_seg", CLASSES, C, 1, bias=True)
    for level, count in enumerate((1, 1, 2, 3)):
        for i in range(count):
            table |= conv_and_norm(f"{fpn}.convs_all_levels.{level}.conv{i}", 3)
    for name in (f"{fpn}.conv_pred", f"{fpn}.aux_convs.0", "rpn_head.loc_convs.0", "rpn_head.seg_convs.0"):
        table |= conv_and_norm(name, 1)
    return table


def stage(number):
    table = linear("attention.attn.out_proj", C) | norm("attention_norm") | norm("ffn_norm")
    table |= {"attention.attn.in_proj_weight": (3 * C, C), "attention.attn.in_proj_bias": (3 * C,)}
    update = "kernel_update_conv"
    table |= linear(f"{update}.dynamic_layer", 2 * C) | linear(f"{update}.input_layer", 2 * C)
    for name in ("input_gate", "update_gate", "fc_layer"):
        table |= linear(f"{update}.{name}", C)
    for name in ("norm_in", "norm_out", "input_norm_in", "input_norm_out", "fc_norm"):
        table |= norm(f"{update}.{name}")
    table |= conv("feat_transform.conv", C, C, 1, bias=True)
    table |= linear("ffn.layers.0.0", HIDDEN) | linear("ffn.layers.1", C, HIDDEN)
    for name in ("cls_fcs", "mask_fcs"):
        table |= linear(f"{name}.0", C, bias=False) | norm(f"{name}.1")
    table |= linear("fc_cls", CLASSES) | linear("fc_mask", C)
    return {f"roi_head.mask_head.{number}.{name}": shape for name, shape in table.items()}


@pytest.fixture(scope="module")
def published():
    table = resnet50() | neck() | kernel_head()
    for number in range(3):
        table |= stage(number)
    random = torch.Generator().manual_seed(0)
    return {name: torch.rand(shape, generator=random) for name, shape in table.items()}


def test_every_published_name_is_one_of_ours_with_the_same_shape(published):
    scheme, ours = translate(published)
    assert scheme.title == "K-Net checkpoint (the authors' names)"
    model = build_model(load_config(CONFIG, ["MODEL.DEVICE", "meta"]))
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    found = {name: tensor.shape for name, tensor in ours.items() if "num_batches_tracked" not in name}
    assert found == expected


def test_a_published_file_loads_whole(published):
    model = build_model(load_config(CONFIG, ["MODEL.DEVICE", "cpu"]))
    report = load_weights(model, Checkpoint("knet.pth", published))
    assert report.share_loaded == 1 and report.has_trained_head and not report.problems
    stages = model.sem_seg_head.predictor.stages
    assert torch.equal(stages[2].linear2.weight, published["roi_head.mask_head.2.ffn.layers.1.weight"])
    assert torch.equal(
        stages[0].attention.out_proj.bias, published["roi_head.mask_head.0.attention.attn.out_proj.bias"]
    )


def test_a_published_file_loads_for_other_classes(published):
    options = ["MODEL.DEVICE", "cpu", "DATASETS.TRAIN", (), "DATASETS.TEST", ()]
    model = build_model(load_config(CONFIG, [*options, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 7]))
    report = load_weights(model, Checkpoint("knet.pth", published))
    assert set(report.adapted.values()) == {"re-initialized: class head (133 -> 7 classes)"}
    assert len(report.adapted) == 2 + 3 * 2 and not report.problems


SWIN = {  # names of mmdetection's Swin beside those of the stages
    "backbone.patch_embed.projection.weight": "backbone.patch_embed.proj.weight",
    "backbone.stages.2.blocks.17.attn.w_msa.qkv.bias": "backbone.layers.2.blocks.17.attn.qkv.bias",
    "backbone.stages.3.blocks.1.ffn.layers.0.0.weight": "backbone.layers.3.blocks.1.mlp.fc1.weight",
    "backbone.stages.3.blocks.1.ffn.layers.1.bias": "backbone.layers.3.blocks.1.mlp.fc2.bias",
    "backbone.stages.0.downsample.reduction.weight": "backbone.layers.0.downsample.reduction.weight",
    "backbone.norm3.weight": "backbone.norm3.weight",
    "neck.fpn_convs.3.conv.bias": "sem_seg_head.pixel_decoder.fpn_convs.3.bias",
    "rpn_head.init_kernels.weight": "sem_seg_head.predictor.init_kernels.weight",
    "roi_head.mask_head.0.fc_mask.weight": "sem_seg_head.predictor.stages.0.fc_mask.weight",
    "roi_head.mask_head.2.ffn.layers.1.bias": "sem_seg_head.predictor.stages.2.linear2.bias",
}


def test_names_with_a_swin_are_those_of_our_model():
    scheme, found = translate({name: torch.zeros(4, 8) for name in SWIN})
    assert scheme.title.startswith("K-Net") and list(found) == list(SWIN.values())
    config = "comparators/knet/knet_swin_large_IN21k_224_bs32_36ep.yaml"
    model = build_model(load_config(config, ["MODEL.DEVICE", "meta"]))
    assert found.keys() <= model.state_dict().keys()
    assert re.search(scheme.unfolded, "backbone.stages.0.downsample.reduction.weight")


def test_parameters_of_the_public_model_are_37_5_million(published):
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert sum(t.numel() for name, t in published.items() if not name.endswith(statistics)) == 37_536_852
