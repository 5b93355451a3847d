"""Renaming of names copied from real files and of those in the published checkpoints."""

import gzip
import json
import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mask2former.config import load_config
from mask2former.modeling.backbone.swin import PatchMerging
from mask2former.utils.registry import META_ARCH
from mask2former.weights.rename import SCHEMES, rename, translate

GOLDEN = Path(__file__).parents[1] / "golden_files"


def published_tables(file):
    """Return the names in each published checkpoint, by config."""
    manifest = json.loads(gzip.decompress((GOLDEN / file).read_bytes()))
    return {config: list(manifest["tables"][row["table"]]) for config, row in manifest["configs"].items()}


MASK2FORMER = next(scheme for scheme in SCHEMES if scheme.title.startswith("Mask2Former"))
MASKFORMER = published_tables("maskformer_state_dicts.json.gz")
PUBLISHED = published_tables("state_dicts.json.gz") | MASKFORMER


def translated(names):
    """Return the scheme, and the file's name for each of ours; each tensor holds its index in the list."""
    names = list(names)
    scheme, tensors = translate({name: torch.tensor(i) for i, name in enumerate(names)})
    return scheme, {ours: names[int(number)] for ours, number in tensors.items()}


def test_names_in_published_checkpoints_stay_unchanged():
    assert len(PUBLISHED) == 77
    for names in PUBLISHED.values():
        scheme, ours = translated(names)
        assert scheme.title == "Mask2Former or MaskFormer checkpoint"
        assert ours == {name: name for name in names}


@pytest.mark.parametrize("config", MASKFORMER, ids=lambda config: config.rpartition("/")[2])
def test_maskformers_checkpoints_of_before_the_pixel_decoder_had_a_name_are_renamed(config):
    """Files of version 1 have the pixel decoder's parts beside the predictor, in heads of every kind."""
    old = {name.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): name for name in MASKFORMER[config]}
    assert sum(ours != theirs for theirs, ours in old.items()) > 20
    assert translated(old)[1] == {ours: theirs for theirs, ours in old.items()}


FILES = {
    "torchvision": {  # resnet50-0676ba61.pth
        "conv1.weight": "stem.conv1.weight",
        "bn1.weight": "stem.conv1.norm.weight",
        "bn1.running_var": "stem.conv1.norm.running_var",
        "layer1.0.conv1.weight": "res2.0.conv1.weight",
        "layer1.0.bn3.bias": "res2.0.conv3.norm.bias",
        "layer1.0.downsample.0.weight": "res2.0.shortcut.weight",
        "layer1.0.downsample.1.running_mean": "res2.0.shortcut.norm.running_mean",
        "layer3.5.bn2.num_batches_tracked": "res4.5.conv2.norm.num_batches_tracked",
        "layer4.2.conv3.weight": "res5.2.conv3.weight",
        "fc.weight": None,
        "fc.bias": None,
    },
    "Detectron2": {  # ImageNetPretrained/torchvision/R-50.pkl
        "stem.conv1.weight": "stem.conv1.weight",
        "stem.conv1.norm.running_mean": "stem.conv1.norm.running_mean",
        "res2.0.conv1.weight": "res2.0.conv1.weight",
        "res2.0.shortcut.norm.weight": "res2.0.shortcut.norm.weight",
        "stem.fc.weight": None,
    },
    "Swin": {  # swin_tiny_patch4_window7_224.pth
        "patch_embed.proj.weight": "patch_embed.proj.weight",
        "patch_embed.norm.bias": "patch_embed.norm.bias",
        "layers.0.blocks.0.attn.qkv.weight": "layers.0.blocks.0.attn.qkv.weight",
        "layers.0.blocks.1.attn_mask": None,
        "layers.0.downsample.reduction.weight": "layers.0.downsample.reduction.weight",
        "layers.2.blocks.5.norm1.weight": "layers.2.blocks.5.norm1.weight",
        "layers.3.blocks.0.attn.relative_position_bias_table": (
            "layers.3.blocks.0.attn.relative_position_bias_table"
        ),
        "norm.weight": None,
        "head.bias": None,
    },
}  # title of the scheme -> names in files and below "backbone."; None: no counterpart


@pytest.mark.parametrize("title", FILES)
def test_backbones_trained_elsewhere_are_renamed(title):
    scheme, found = translated(FILES[title])
    assert title in scheme.title
    assert found == {f"backbone.{ours}": theirs for theirs, ours in FILES[title].items() if ours}


BACKBONE = {
    "conv1.weight": "stem.conv1.weight",
    "bn1.running_var": "stem.conv1.norm.running_var",
    "layer1.0.conv1.weight": "res2.0.conv1.weight",
    "layer3.22.bn2.bias": "res4.22.conv2.norm.bias",
    "layer4.0.downsample.0.weight": "res5.0.shortcut.weight",
    "layer4.0.downsample.1.weight": "res5.0.shortcut.norm.weight",
}
DETECTOR = [
    "transformer.encoder.layers.0.self_attn.in_proj_weight",
    "transformer.decoder.layers.5.multihead_attn.out_proj.bias",
    "transformer.decoder.norm.weight",
    *("class_embed.bias", "bbox_embed.layers.2.weight", "query_embed.weight", "input_proj.weight"),
]
MASK_HEAD = ["bbox_attention.q_linear.weight", "mask_head.lay1.weight", "mask_head.out_lay.bias"]


@pytest.mark.parametrize("prefix", ["detr.", ""], ids=["panoptic", "detection"])
def test_detrs_names_are_renamed(prefix):
    """Names copied from detr-r50-panoptic-00ce5173.pth, and, without masks, detr-r50-e632da11.pth."""
    masks = MASK_HEAD if prefix else []
    files = {f"backbone.{ours}": f"{prefix}backbone.0.body.{theirs}" for theirs, ours in BACKBONE.items()}
    files |= {f"sem_seg_head.{name}": prefix + name for name in DETECTOR}
    files |= {f"sem_seg_head.{name}": name for name in masks}
    scheme, found = translated(files.values())
    assert found == files
    assert "DETR" in scheme.title and ("without masks" in scheme.title) == (not masks)
    again, kept = translated(found)
    assert kept == {name: name for name in found}
    for each in (scheme, again):
        untrained = [name for name in MASK_HEAD if re.search(each.untrained, f"sem_seg_head.{name}")]
        assert untrained == ([] if masks else MASK_HEAD)


UPERNET = {  # upernet_swin_tiny_patch4_window7_512x512_160k_ade20k_pretrain_224x224_1K_...pth
    "backbone.patch_embed.projection.weight": "backbone.patch_embed.proj.weight",
    "backbone.patch_embed.norm.bias": "backbone.patch_embed.norm.bias",
    "backbone.stages.0.blocks.0.norm1.weight": "backbone.layers.0.blocks.0.norm1.weight",
    "backbone.stages.2.blocks.5.attn.w_msa.qkv.bias": "backbone.layers.2.blocks.5.attn.qkv.bias",
    "backbone.stages.0.blocks.0.attn.w_msa.relative_position_bias_table": (
        "backbone.layers.0.blocks.0.attn.relative_position_bias_table"
    ),
    "backbone.stages.3.blocks.1.ffn.layers.0.0.weight": "backbone.layers.3.blocks.1.mlp.fc1.weight",
    "backbone.stages.3.blocks.1.ffn.layers.1.bias": "backbone.layers.3.blocks.1.mlp.fc2.bias",
    "backbone.norm3.weight": "backbone.norm3.weight",
    "decode_head.conv_seg.weight": "sem_seg_head.predictor.weight",
    "decode_head.psp_modules.3.1.conv.weight": "sem_seg_head.pixel_decoder.psp_modules.3.1.weight",
    "decode_head.psp_modules.3.1.bn.running_mean": (
        "sem_seg_head.pixel_decoder.psp_modules.3.1.norm.running_mean"
    ),
    "decode_head.bottleneck.conv.weight": "sem_seg_head.pixel_decoder.bottleneck.weight",
    "decode_head.lateral_convs.0.bn.weight": "sem_seg_head.pixel_decoder.lateral_convs.0.norm.weight",
    "decode_head.fpn_convs.2.conv.weight": "sem_seg_head.pixel_decoder.fpn_convs.2.weight",
    "decode_head.fpn_bottleneck.bn.bias": "sem_seg_head.pixel_decoder.fpn_bottleneck.norm.bias",
    "auxiliary_head.conv_seg.bias": "sem_seg_head.auxiliary_head.conv_seg.bias",
    "auxiliary_head.convs.0.conv.weight": "sem_seg_head.auxiliary_head.convs.0.weight",
    "auxiliary_head.convs.0.bn.num_batches_tracked": (
        "sem_seg_head.auxiliary_head.convs.0.norm.num_batches_tracked"
    ),
}


def test_mmsegmentations_names_of_upernet_are_renamed_to_names_of_the_model():
    scheme, found = translated(UPERNET)
    assert "UperNet" in scheme.title
    assert found == {ours: theirs for theirs, ours in UPERNET.items()}
    with torch.device("meta"):
        cfg = load_config("comparators/upernet/upernet_swin_tiny_bs16_160k.yaml")
        assert found.keys() <= META_ARCH.get("SemanticSegmentor")(cfg).state_dict().keys()
    assert translated(found)[1] == {name: name for name in found}
    swin = {theirs: theirs for theirs in found if theirs.startswith("backbone.")}  # as of Swin's authors
    assert translated([*swin, *(name for name in UPERNET if "head" in name)])[1].items() >= swin.items()


def test_merged_patches_of_mmsegmentations_swin_come_in_our_order():
    """mmsegmentation merges patches by nn.Unfold."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 8, 5, generator=generator)
    theirs = {
        "norm.weight": torch.randn(20, generator=generator),
        "norm.bias": torch.randn(20, generator=generator),
        "reduction.weight": torch.randn(10, 20, generator=generator),
    }
    unfolded = F.unfold(x.permute(0, 3, 1, 2), kernel_size=2, stride=2).transpose(1, 2)
    normed = F.layer_norm(unfolded, (20,), theirs["norm.weight"], theirs["norm.bias"])
    expected = normed @ theirs["reduction.weight"].T

    prefix, evidence = "backbone.stages.1.downsample.", "decode_head.psp_modules.0.1.bn.bias"
    _, found = translate({evidence: x} | {prefix + name: tensor for name, tensor in theirs.items()})
    ours = PatchMerging(5)
    ours.load_state_dict({name: found[f"backbone.layers.1.downsample.{name}"] for name in theirs})
    torch.testing.assert_close(ours(x).flatten(1, 2), expected)


OLD = {
    "sem_seg_head.adapter_1.weight": "sem_seg_head.pixel_decoder.adapter_1.weight",
    "sem_seg_head.input_proj.0.0.weight": "sem_seg_head.pixel_decoder.input_proj.0.0.weight",
    "sem_seg_head.transformer.level_embed": "sem_seg_head.pixel_decoder.transformer.level_embed",
    "sem_seg_head.predictor.static_query.weight": "sem_seg_head.predictor.query_feat.weight",
    "sem_seg_head.predictor.query_embed.weight": "sem_seg_head.predictor.query_embed.weight",
    "backbone.stem.conv1.weight": "backbone.stem.conv1.weight",
}


def test_names_of_older_checkpoints_are_renamed():
    assert translated(OLD)[1] == {ours: theirs for theirs, ours in OLD.items()}


def test_a_checkpoint_that_was_loaded_and_saved_is_not_renamed_again():
    # The original code doubled prefixes of such files, which lack a version number
    once = translated(OLD)[1]
    assert translated(once)[1] == {name: name for name in once}


def test_an_old_name_stays_if_the_file_has_the_new_one_too():
    new, old = "sem_seg_head.pixel_decoder.adapter_1.weight", "sem_seg_head.adapter_1.weight"
    for names in ([new, old], [old, new]):
        assert translated(names)[1] == {new: new, old: old}


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_removed(wrapper):
    assert translated(wrapper + name for name in OLD)[1].keys() == set(OLD.values())


def test_a_backbone_and_a_file_of_unknown_origin():
    assert translated(["backbone.res2.0.conv1.weight"])[0].title == "backbone"
    scheme, found = translated(["encoder.weight"])
    assert scheme not in SCHEMES
    assert found == {"encoder.weight": "encoder.weight"}


def test_renaming_twice_adds_no_prefix_twice():
    for scheme in SCHEMES:
        for theirs in ("layer1.0.bn1.weight", "stem.conv1.weight", "sem_seg_head.x.static_query.weight"):
            ours = rename(theirs, scheme.renames)
            twice = rename(ours, MASK2FORMER.renames)
            assert not re.search(r"(backbone\.){2}|(pixel_decoder\.){2}", twice)
