"""Renaming, by hand-written names of the real files and by the manifest of the published checkpoints."""

import gzip
import json
import re
from pathlib import Path

import pytest
import torch

from mask2former.weights.rename import SCHEMES, rename, translate

MANIFEST = Path(__file__).parents[1] / "golden_files" / "state_dicts.json.gz"


def translated(names):
    """The file's name for each of ours; each tensor carries its number in the list."""
    names = list(names)
    scheme, tensors = translate({name: torch.tensor(i) for i, name in enumerate(names)})
    return scheme, {ours: names[int(number)] for ours, number in tensors.items()}


def test_names_in_published_checkpoints_pass_unchanged():
    tables = json.loads(gzip.decompress(MANIFEST.read_bytes()))["tables"]
    assert tables
    for names in tables.values():
        scheme, ours = translated(names)
        assert scheme.title == "Mask2Former checkpoint"
        assert ours == {name: name for name in names}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [  # as stands in resnet50-0676ba61.pth
        ("conv1.weight", "backbone.stem.conv1.weight"),
        ("bn1.running_var", "backbone.stem.conv1.norm.running_var"),
        ("layer1.0.conv1.weight", "backbone.res2.0.conv1.weight"),
        ("layer1.0.bn3.bias", "backbone.res2.0.conv3.norm.bias"),
        ("layer1.0.downsample.0.weight", "backbone.res2.0.shortcut.weight"),
        ("layer1.0.downsample.1.running_mean", "backbone.res2.0.shortcut.norm.running_mean"),
        ("layer3.5.bn2.num_batches_tracked", "backbone.res4.5.conv2.norm.num_batches_tracked"),
        ("layer4.2.conv3.weight", "backbone.res5.2.conv3.weight"),
    ],
)
def test_torchvision_resnets(theirs, ours):
    scheme, found = translated({theirs, "bn1.weight", "layer1.0.conv1.weight", "fc.weight", "fc.bias"})
    assert found[ours] == theirs
    assert "torchvision" in scheme.title
    assert not any("fc" in name for name in found)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [  # as stands in Detectron2's ImageNetPretrained/torchvision/R-50.pkl
        ("stem.conv1.norm.running_mean", "backbone.stem.conv1.norm.running_mean"),
        ("res2.0.shortcut.norm.weight", "backbone.res2.0.shortcut.norm.weight"),
        ("res4.5.conv2.weight", "backbone.res4.5.conv2.weight"),
    ],
)
def test_detectron2_resnets(theirs, ours):
    scheme, found = translated({theirs, "stem.conv1.weight", "res2.0.conv1.weight", "stem.fc.weight"})
    assert found[ours] == theirs
    assert "Detectron2" in scheme.title
    assert not any("fc" in name for name in found)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [  # as stands in swin_tiny_patch4_window7_224.pth
        ("patch_embed.norm.bias", "backbone.patch_embed.norm.bias"),
        ("layers.0.blocks.1.attn.qkv.bias", "backbone.layers.0.blocks.1.attn.qkv.bias"),
        ("layers.0.downsample.reduction.weight", "backbone.layers.0.downsample.reduction.weight"),
        ("layers.2.blocks.5.norm1.weight", "backbone.layers.2.blocks.5.norm1.weight"),
        (
            "layers.3.blocks.0.attn.relative_position_bias_table",
            "backbone.layers.3.blocks.0.attn.relative_position_bias_table",
        ),
    ],
)
def test_swin_transformers(theirs, ours):
    evidence = {"patch_embed.proj.weight", "layers.0.blocks.0.attn.qkv.weight"}
    classifier = {"norm.weight", "norm.bias", "head.weight", "head.bias", "layers.0.blocks.1.attn_mask"}
    scheme, found = translated({theirs} | evidence | classifier)
    assert found.keys() == {ours} | {f"backbone.{name}" for name in evidence}
    assert found[ours] == theirs
    assert "Swin" in scheme.title


OLD = {
    "sem_seg_head.adapter_1.weight": "sem_seg_head.pixel_decoder.adapter_1.weight",
    "sem_seg_head.input_proj.0.0.weight": "sem_seg_head.pixel_decoder.input_proj.0.0.weight",
    "sem_seg_head.transformer.level_embed": "sem_seg_head.pixel_decoder.transformer.level_embed",
    "sem_seg_head.predictor.static_query.weight": "sem_seg_head.predictor.query_feat.weight",
    "sem_seg_head.predictor.query_embed.weight": "sem_seg_head.predictor.query_embed.weight",
    "backbone.stem.conv1.weight": "backbone.stem.conv1.weight",
}


def test_older_checkpoints():
    assert translated(OLD)[1] == {ours: theirs for theirs, ours in OLD.items()}


def test_a_checkpoint_saved_anew_is_not_renamed_twice():
    """Its names are new whatever version number it lacks: a doubled prefix was the original's bug."""
    once = translated(OLD)[1]
    assert translated(once)[1] == {name: name for name in once}


def test_a_file_with_old_and_new_names_of_a_tensor_keeps_the_new():
    new, old = "sem_seg_head.pixel_decoder.adapter_1.weight", "sem_seg_head.adapter_1.weight"
    for names in ([new, old], [old, new]):
        assert translated(names)[1] == {new: new, old: old}


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_from_inside_a_wrapper(wrapper):
    assert translated(wrapper + name for name in OLD)[1].keys() == set(OLD.values())


def test_a_backbone_alone_and_a_stranger():
    assert translated(["backbone.res2.0.conv1.weight"])[0].title == "backbone"
    scheme, found = translated(["encoder.weight"])
    assert scheme not in SCHEMES
    assert found == {"encoder.weight": "encoder.weight"}


def test_renaming_twice_is_renaming_once():
    """For our own scheme: the others' results are recognized as ours and not renamed again."""
    for scheme in SCHEMES:
        for theirs in ("layer1.0.bn1.weight", "stem.conv1.weight", "sem_seg_head.x.static_query.weight"):
            ours = rename(theirs, scheme.renames)
            assert not re.search(r"(backbone\.){2}|(pixel_decoder\.){2}", rename(ours, SCHEMES[0].renames))
