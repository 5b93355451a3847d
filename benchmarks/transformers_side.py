"""transformers' Mask2Former, built from one of our configs, with our weights.

Every tensor of both models is accounted for: it has its counterpart of the same shape, or stands in one of
the two short lists of what a model computes for itself. Needs `pip install .[bench]`.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from mask2former.config import CfgNode

try:
    import transformers
except ImportError as error:
    raise SystemExit("this benchmark compares with transformers: pip install '.[bench]'") from error

OURS_ALONE = re.compile(r"relative_position_index$|criterion\.empty_weight$")
THEIRS_ALONE = re.compile(r"swin\.layernorm\.|criterion\.empty_weight$|num_batches_tracked$")

SWIN, RESNET = r"model\.pixel_level_module\.encoder\.(?:swin\.)?", r"model\.pixel_level_module\.encoder\."
DECODER, LAYER = (
    r"model\.transformer_module\.decoder\.",
    r"model\.transformer_module\.decoder\.layers\.(\d+)\.",
)
PIXEL = r"model\.pixel_level_module\.decoder\."
HEAD = "sem_seg_head.predictor."

RENAMES = tuple(  # their names -> ours; all rows that match apply, in order
    (re.compile(pattern), ours)
    for pattern, ours in {
        SWIN + r"embeddings\.patch_embeddings\.projection": "backbone.patch_embed.proj",
        SWIN + r"embeddings\.norm": "backbone.patch_embed.norm",
        SWIN + r"encoder\.layers": "backbone.layers",
        r"(\.blocks\..*)attention\.o_proj": r"\1attn.proj",
        r"(\.blocks\..*)attention\.[qkv]_proj": r"\1attn.qkv",
        r"attention\.relative_position_bias\.": "attn.",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        RESNET + r"embedder\.embedder\.convolution": "backbone.stem.conv1",
        RESNET + r"embedder\.embedder\.normalization": "backbone.stem.conv1.norm",
        RESNET + r"encoder\.stages\.(\d+)\.layers\.(\d+)\.": r"backbone.res<\1+2>.\2.",
        r"\.layer\.(\d+)\.convolution": r".conv<\1+1>",
        r"\.layer\.(\d+)\.normalization": r".conv<\1+1>.norm",
        r"shortcut\.convolution": "shortcut",
        r"shortcut\.normalization": "shortcut.norm",
        RESNET + r"hidden_states_norms\.stage(\d+)": r"backbone.norm<\1-1>",
        PIXEL + "level_embed": "sem_seg_head.pixel_decoder.transformer.level_embed",
        PIXEL + "encoder": "sem_seg_head.pixel_decoder.transformer.encoder",
        PIXEL: "sem_seg_head.pixel_decoder.",
        "input_projections": "input_proj",
        "mask_projection": "mask_features",
        r"(adapter|layer)_1\.0\.": r"\1_1.",
        r"(adapter|layer)_1\.1\.": r"\1_1.norm.",
        r"model\.transformer_module\.queries_embedder": HEAD + "query_embed",
        r"model\.transformer_module\.queries_features": HEAD + "query_feat",
        r"model\.transformer_module\.level_embed": HEAD + "level_embed",
        LAYER + r"self_attn\.[qkv]_proj\.": HEAD + r"transformer_self_attention_layers.\1.self_attn.in_proj_",
        LAYER + r"self_attn\.": HEAD + r"transformer_self_attention_layers.\1.self_attn.",
        LAYER + r"self_attn_layer_norm": HEAD + r"transformer_self_attention_layers.\1.norm",
        LAYER + r"cross_attn\.": HEAD + r"transformer_cross_attention_layers.\1.multihead_attn.",
        LAYER + r"cross_attn_layer_norm": HEAD + r"transformer_cross_attention_layers.\1.norm",
        LAYER + r"final_layer_norm": HEAD + r"transformer_ffn_layers.\1.norm",
        LAYER + r"fc": HEAD + r"transformer_ffn_layers.\1.linear",
        "self_attn_layer_norm": "norm1",
        "final_layer_norm": "norm2",
        r"(encoder\.layers\.\d+)\.fc": r"\1.linear",
        DECODER + "layernorm": HEAD + "decoder_norm",
        DECODER + r"mask_predictor\.mask_embedder\.(\d+)\.0": HEAD + r"mask_embed.layers.\1",
        "class_predictor": HEAD + "class_embed",
    }.items()
)
COUNTED = re.compile(r"<(\d+)([+-]\d+)>")  # where the sides count from different numbers
PART = re.compile(r"\.([qkv])_proj\.")  # they keep apart what we keep in one matrix


def transformers_model(cfg: CfgNode) -> nn.Module:
    """Build transformers' model for one of our configs, in evaluation mode, with random weights.

    Its batch norms train where ours are constants; `eval()` makes them constants too.

    Raises:
        ValueError: a backbone that they do not have.
    """
    head, decoder = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    config = transformers.Mask2FormerConfig(
        backbone_config=_backbone_config(cfg.MODEL),
        feature_size=head.CONVS_DIM,
        mask_feature_size=head.MASK_DIM,
        hidden_dim=decoder.HIDDEN_DIM,
        dim_feedforward=decoder.DIM_FEEDFORWARD,
        encoder_layers=head.TRANSFORMER_ENC_LAYERS,
        decoder_layers=decoder.DEC_LAYERS,
        num_attention_heads=decoder.NHEADS,
        num_queries=decoder.NUM_OBJECT_QUERIES,
        num_labels=head.NUM_CLASSES,
    )
    return transformers.Mask2FormerForUniversalSegmentation(config).eval()


def _backbone_config(model: CfgNode) -> Any:
    stages = ["stage1", "stage2", "stage3", "stage4"]
    if model.BACKBONE.NAME == "D2SwinTransformer":
        return transformers.SwinConfig(
            embed_dim=model.SWIN.EMBED_DIM,
            depths=list(model.SWIN.DEPTHS),
            num_heads=list(model.SWIN.NUM_HEADS),
            window_size=model.SWIN.WINDOW_SIZE,
            drop_path_rate=model.SWIN.DROP_PATH_RATE,
            out_features=stages,
        )
    if model.BACKBONE.NAME == "build_resnet_backbone" and model.RESNETS.DEPTH == 50:
        return transformers.ResNetConfig(out_features=stages)
    raise ValueError(f"no counterpart is known of MODEL.BACKBONE.NAME {model.BACKBONE.NAME}")


@torch.no_grad()
def copy_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """Give their model the weights of ours, by name.

    Raises:
        ValueError: a tensor has no counterpart, one of another shape, or more than one.
    """
    sources = ours.state_dict()
    left = {name for name in sources if not OURS_ALONE.search(name)}
    parts: dict[str, set[str]] = {}
    for name, target in theirs.state_dict().items():
        if THEIRS_ALONE.search(name):
            continue
        source = our_name(name)
        if source not in sources:
            raise ValueError(f"their {name} would be our {source}, which does not exist")
        target.copy_(_same_shape(name, _part(sources[source], name, parts.setdefault(source, set())), target))
        left.discard(source)
    unfinished = left | {name for name, used in parts.items() if used not in ({""}, {"q", "k", "v"})}
    if unfinished:
        raise ValueError(f"of ours these found no place: {sorted(unfinished)}")


def our_name(theirs: str) -> str:
    """Return our name of a tensor of transformers' model."""
    for pattern, ours in RENAMES:
        theirs = pattern.sub(ours, theirs)
    return COUNTED.sub(lambda match: str(int(match[1]) + int(match[2])), theirs)


def _part(source: Tensor, theirs: str, used: set[str]) -> Tensor:
    """Return the rows of our tensor for theirs: all, or a third if they separate query, key and value."""
    match = PART.search(theirs)
    kind = match[1] if match else ""
    if kind in used:
        raise ValueError(f"their {theirs} is the second to take the same of ours")
    used.add(kind)
    return source.chunk(3)["qkv".index(kind)] if kind else source


def _same_shape(name: str, source: Tensor, target: Tensor) -> Tensor:
    if source.shape != target.shape:
        raise ValueError(f"their {name} is {tuple(target.shape)}, ours {tuple(source.shape)}")
    return source
