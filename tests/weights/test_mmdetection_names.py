"""Mask2Former's names in mmdetection and those of ViT-Adapter's checkpoints, against our models."""

import gzip
import json

import pytest
import torch

from mask2former.config import load_config
from mask2former.engine.build import build_model
from mask2former.weights.rename import translate

BEIT = "ade20k/semantic-segmentation/vit/maskformer2_beitv2_large_adapter_bs16_80k_res896.yaml"
R50 = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
LEAVES = ("weight", "bias")


def with_leaves(*modules):
    return [f"{module}.{leaf}" for module in modules for leaf in LEAVES]


def encoder_names():
    """Return the names of the pixel decoder."""
    names = ["level_encoding.weight", "lateral_convs.0.conv.weight", "output_convs.0.conv.weight"]
    names += with_leaves("lateral_convs.0.gn", "output_convs.0.gn", "mask_feature")
    for i in range(3):
        names += with_leaves(f"input_convs.{i}.conv", f"input_convs.{i}.gn")
    attention = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    for i in range(6):
        layer = f"encoder.layers.{i}."
        names += with_leaves(*(f"{layer}attentions.0.{part}" for part in attention))
        names += with_leaves(f"{layer}ffns.0.layers.0.0", f"{layer}ffns.0.layers.1")
        names += with_leaves(f"{layer}norms.0", f"{layer}norms.1")
    return [f"pixel_decoder.{name}" for name in names]


def decoder_names():
    """Return the names of the transformer decoder and of what predicts."""
    names = ["query_embed.weight", "query_feat.weight", "level_embed.weight"]
    names += with_leaves("cls_embed", "mask_embed.0", "mask_embed.2", "mask_embed.4")
    names += with_leaves("transformer_decoder.post_norm")
    for i in range(9):
        layer = f"transformer_decoder.layers.{i}."
        for attention in (0, 1):  # to the memory, of the queries
            part = f"{layer}attentions.{attention}.attn."
            names += [f"{part}in_proj_weight", f"{part}in_proj_bias", *with_leaves(f"{part}out_proj")]
        names += with_leaves(f"{layer}ffns.0.layers.0.0", f"{layer}ffns.0.layers.1")
        names += with_leaves(*(f"{layer}norms.{i}" for i in range(3)))
    return names


def meta_model(config):
    with torch.device("meta"):
        return build_model(load_config(config, ["MODEL.DEVICE", "meta"]))


def translated_names(names):
    scheme, tensors = translate({name: torch.empty(0) for name in names})
    assert len(tensors) == len(set(names))
    return scheme.title, set(tensors)


def parameters_of(model, prefix=""):
    buffers = {name for name, _ in model.named_buffers() if "running" not in name}
    return {name for name in model.state_dict() if name.startswith(prefix)} - buffers


@pytest.fixture(scope="module")
def beit():
    return meta_model(BEIT)


def test_vit_adapters_checkpoint_has_all_names_of_its_config(beit, shared):
    file = shared / "manifests/vit/vit_adapter_beit_large_896_backbone.json.gz"
    backbone = json.loads(gzip.decompress(file.read_bytes()))["state_dict"]
    head = [f"decode_head.{name}" for name in encoder_names() + decoder_names()]
    counters = (".relative_position_index", ".num_batches_tracked")
    names = [name for name in (*backbone, *head) if not name.endswith(counters)]
    title, ours = translated_names(names)
    assert title == "ViT-Adapter with Mask2Former's head (the authors' names)"
    assert ours == parameters_of(beit)


def test_vit_adapters_model_has_the_published_571m_parameters(beit):
    """README of ViT-Adapter, ADE20K, BEiTv2-L at 896."""
    assert sum(p.numel() for p in beit.parameters()) / 1e6 == pytest.approx(571, abs=3)


def test_mmdetections_mask2former_has_all_names_of_our_head():
    backbone = ["backbone.conv1.weight", "backbone.layer1.0.bn1.running_mean"]
    head = [f"panoptic_head.{name}" for name in encoder_names() + decoder_names()]
    title, ours = translated_names([*backbone, *head])
    assert title == "mmdetection's Mask2Former checkpoint"
    stem = {"backbone.stem.conv1.weight", "backbone.res2.0.conv1.norm.running_mean"}
    assert ours == stem | parameters_of(meta_model(R50), "sem_seg_head.")


def test_mask2former_on_dinov2_with_adapter_has_the_published_349m_parameters():
    """Table 1 of the EoMT paper: ViT-L with ViT-Adapter."""
    model = meta_model("coco/panoptic-segmentation/vit/maskformer2_dinov2_large_adapter_bs16_12ep.yaml")
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == 349
