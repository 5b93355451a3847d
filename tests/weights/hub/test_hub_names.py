"""Names in transformers' files: every published tensor has one, and what was joined comes apart again."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from mask2former.config import load_config
from mask2former.engine.build import construct_model
from mask2former.weights.hub.names import MASK2FORMER, NAMES
from mask2former.weights.hub.translate import COMPUTED, COUNTER, hub_names, our_name, to_hub, to_ours

GOLDEN = Path(__file__).parents[2] / "golden_files"


def published_names(file, model, parts):
    """Return the names in each published checkpoint whose config's name has one of the parts."""
    manifest = json.loads(gzip.decompress((GOLDEN / file).read_bytes()))
    configs = [config for config in manifest["configs"] if any(part in config for part in parts)]
    tables = {manifest["configs"][config]["table"]: config for config in configs}
    return {config: (model, list(manifest["tables"][table])) for table, config in tables.items()}


PUBLISHED = {
    **published_names("state_dicts.json.gz", "mask2former", [""]),
    **published_names("maskformer_state_dicts.json.gz", "maskformer", ["panoptic_swin", "/maskformer_R50"]),
}
E = "model.pixel_level_module.encoder."
PAIRS = {  # names in files of transformers -> ours
    f"{E}embeddings.norm.bias": "backbone.patch_embed.norm.bias",
    f"{E}hidden_states_norms.stage1.weight": "backbone.norm0.weight",
    f"{E}encoder.layers.2.blocks.5.output.dense.weight": "backbone.layers.2.blocks.5.mlp.fc2.weight",
    f"{E}encoder.layers.2.blocks.5.attention.output.dense.bias": "backbone.layers.2.blocks.5.attn.proj.bias",
    f"{E}encoder.layers.0.downsample.reduction.weight": "backbone.layers.0.downsample.reduction.weight",
    f"{E}encoder.stages.1.layers.0.layer.2.normalization.running_var": (
        "backbone.res3.0.conv3.norm.running_var"
    ),
    f"{E}encoder.stages.3.layers.0.shortcut.convolution.weight": "backbone.res5.0.shortcut.weight",
    "model.pixel_level_module.decoder.adapter_1.1.bias": "sem_seg_head.pixel_decoder.adapter_1.norm.bias",
    "model.pixel_level_module.decoder.encoder.layers.4.fc2.weight": (
        "sem_seg_head.pixel_decoder.transformer.encoder.layers.4.linear2.weight"
    ),
    "model.transformer_module.decoder.layers.8.cross_attn.in_proj_bias": (
        "sem_seg_head.predictor.transformer_cross_attention_layers.8.multihead_attn.in_proj_bias"
    ),
    "model.transformer_module.decoder.layers.8.self_attn.out_proj.bias": (
        "sem_seg_head.predictor.transformer_self_attention_layers.8.self_attn.out_proj.bias"
    ),
    "model.transformer_module.decoder.mask_predictor.mask_embedder.1.0.weight": (
        "sem_seg_head.predictor.mask_embed.layers.1.weight"
    ),
    "class_predictor.bias": "sem_seg_head.predictor.class_embed.bias",
}


def test_names_of_real_files():
    for hub, ours in PAIRS.items():
        assert our_name(hub, MASK2FORMER) == (ours, None)
        assert hub_names(ours, MASK2FORMER) == [hub]


@pytest.mark.parametrize("config", sorted(PUBLISHED))
def test_every_published_tensor_has_names_that_lead_back_to_it(config):
    model, names = PUBLISHED[config]
    table, seen = NAMES[model], set()
    names = [name for name in names if hub_names(name, table) or not COMPUTED.search(name)]
    for name in names:
        theirs = hub_names(name, table)
        parts = [None] if len(theirs) == 1 else list(range(len(theirs)))
        assert [our_name(their, table) for their in theirs] == [(name, part) for part in parts]
        seen.update(theirs)
    joined = [name for name in names if "attn.qkv." in name or ".self_attn.in_proj_" in name]
    if model == "maskformer":
        joined += [name for name in names if ".multihead_attn.in_proj_" in name]
    assert len(seen) == len(names) + 2 * len(joined)


def test_query_key_and_value_are_thirds_of_the_joined_rows():
    rows = torch.arange(12.0).reshape(6, 2)
    name = "sem_seg_head.predictor.transformer_self_attention_layers.0.self_attn.in_proj_weight"
    T = "model.transformer_module.decoder.layers.0.self_attn."
    theirs = to_hub({name: rows, "backbone.layers.0.blocks.1.attn.qkv.bias": rows[:, 0]}, MASK2FORMER)
    B = f"{E}encoder.layers.0.blocks.1.attention.self."
    expected = {
        f"{T}q_proj.weight": rows[:2],
        f"{T}k_proj.weight": rows[2:4],
        f"{T}v_proj.weight": rows[4:],
        f"{B}query.bias": rows[:2, 0],
        f"{B}key.bias": rows[2:4, 0],
        f"{B}value.bias": rows[4:, 0],
    }
    assert theirs.keys() == expected.keys()
    assert all(torch.equal(theirs[name], expected[name]) for name in expected)
    assert torch.equal(to_ours(dict(reversed(theirs.items())), MASK2FORMER)[name], rows)


def test_maskformer_numbers_its_pyramid_from_the_other_end():
    D = "model.pixel_level_module.decoder.fpn."
    pairs = {
        f"{D}stem.1.bias": "layer_4.norm.bias",
        f"{D}layers.0.proj.0.weight": "adapter_3.weight",
        f"{D}layers.2.block.1.weight": "layer_1.norm.weight",
    }
    for hub, ours in pairs.items():
        assert our_name(hub, NAMES["maskformer"]) == (f"sem_seg_head.pixel_decoder.{ours}", None)


def test_what_only_transformers_has_is_written_as_in_a_new_model_and_not_read():
    norm = torch.rand(4)
    ours = {
        "backbone.norm3.weight": norm,
        "backbone.norm3.bias": norm,
        "backbone.stem.conv1.norm.running_var": norm,
    }
    theirs = to_hub(ours, MASK2FORMER)
    assert theirs[f"{MASK2FORMER.unused}weight"].tolist() == [1, 1, 1, 1]
    assert theirs[f"{MASK2FORMER.unused}bias"].tolist() == [0, 0, 0, 0]
    counter = theirs[f"{E}embedder.embedder.normalization.{COUNTER}"]
    assert counter.dtype == torch.int64 and counter.item() == 0
    old = {f"{E}encoder.layers.0.blocks.0.attention.self.relative_position_index": torch.zeros(4, 4)}
    back = to_ours(theirs | old, MASK2FORMER)
    assert back.keys() == ours.keys() | {f"backbone.stem.conv1.norm.{COUNTER}"}


def test_parts_that_are_missing_or_do_not_fit_are_errors_that_name_them():
    name = f"{E}encoder.layers.0.blocks.0.attention.self."
    with pytest.raises(ValueError, match=rf"{name}key.bias is missing"):
        to_ours({f"{name}query.bias": torch.zeros(2), f"{name}value.bias": torch.zeros(2)}, MASK2FORMER)
    with pytest.raises(ValueError, match=r"key.bias has shape \(3,\), but .*query.bias \(2,\)"):
        to_ours(
            {f"{name}{part}.bias": torch.zeros(2 + (part == "key")) for part in ("query", "key", "value")},
            MASK2FORMER,
        )
    with pytest.raises(ValueError, match=r"backbone\.my.weight has no counterpart"):
        to_hub({"backbone.my.weight": torch.zeros(2)}, MASK2FORMER)


def test_a_tensor_that_no_row_names_keeps_its_name():
    assert to_ours({"model.new.weight": torch.zeros(2)}, MASK2FORMER).keys() == {"model.new.weight"}


@pytest.mark.parametrize(
    ("file", "section", "config"),
    [
        ("hub_r50_names.txt", "", "maskformer2_R50_bs16_50ep.yaml"),
        ("hub_swin_t_names.txt", "## in model.safetensors", "swin/maskformer2_swin_tiny_bs16_50ep.yaml"),
    ],
)
def test_names_and_shapes_are_those_that_transformers_writes(shared, file, section, config):
    text = (shared / "manifests" / file).read_text()
    lines = text[text.index(section) :].splitlines()
    expected = dict(line.split("\t")[:2] for line in lines if "\t" in line)
    with torch.device("meta"):
        model = construct_model(load_config(f"coco/panoptic-segmentation/{config}", ["MODEL.DEVICE", "meta"]))
    theirs = to_hub(model.state_dict(), MASK2FORMER)
    assert {name: str([*tensor.shape]) for name, tensor in theirs.items()} == expected
