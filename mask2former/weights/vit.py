"""Plain vision transformers in files of others: tables of names, and tensors that are cut otherwise there.

Our names are timm's, on which EoMT's checkpoints are based, below `backbone.vit.`.

Shapes: `C` channels, `P` patches of a grid.
"""

from collections.abc import Mapping
from math import isqrt

import torch
from torch import Tensor

Renames = tuple[tuple[str, str], ...]

PREFIX = "backbone.vit."
AUTHORS: Renames = (  # the authors of BEiT, DINOv2 and DINOv3, and timm
    (r"^(register_tokens|storage_tokens)$", "reg_token"),
    (r"\.gamma_([12])$", r".ls\1.gamma"),
    (r"^", PREFIX),
)
AUTHORS_UNUSED = r"^mask_token$|^rope_embed\.|^(fc_norm|head)\.|\.relative_position_index$"
HUB: Renames = (  # transformers; queries, keys and values are still apart afterward, as `attn.q.weight`
    (r"^(beit|dinov2|dinov2_with_registers)\.", ""),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.patch_embeddings\.(projection\.)?", "patch_embed.proj."),
    (r"^(?:encoder\.|model\.)?layer\.", "blocks."),
    (r"^layernorm\.", "norm."),
    (r"\.attention\.attention\.relative_position_bias\.", ".attn."),
    (r"\.attention\.(?:attention\.)?([qkv])\w+\.", r".attn.\1."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.(?:layer_scale([12])\.lambda1|lambda_([12]))$", r".ls\1\2.gamma"),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.(?:intermediate\.dense|mlp\.up_proj)\.", ".mlp.fc1."),
    (r"\.(?:output\.dense|mlp\.down_proj)\.", ".mlp.fc2."),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
    (r"^", PREFIX),
)
GATED = (r"\.mlp\.gate_proj\.",)  # evidence of `HUB_GATED`
HUB_GATED: Renames = (
    (r"\.mlp\.gate_proj\.", ".mlp.w1."),
    (r"\.mlp\.up_proj\.", ".mlp.w2."),
    (r"\.mlp\.down_proj\.", ".mlp.w3."),
    *HUB,
)
HUB_UNUSED = r"\bembeddings\.mask_token$|\b(pooler|classifier|rope_embeddings)\.|\.relative_position_index$"
JOINED: tuple[tuple[tuple[str, ...], str], ...] = tuple(
    (tuple(f"{part}.{kind}" for part in parts), f"{whole}.{kind}")
    for parts, whole in ((("q", "k", "v"), "qkv"), (("w1", "w2"), "w12"))
    for kind in ("weight", "bias")
)
KEYLESS = (("q.bias", "q_bias"), ("v.bias", "v_bias"))  # where keys have no bias


def to_our_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a vision transformer, renamed by a table of this module, as our model has them.

    Parts are joined. A bias of keys that the model masks is dropped. The position of the class token, which
    is the first of one more than the patches, becomes a part of the token.
    """
    ours = dict(tensors)
    _drop_masked_biases(ours)
    _join(ours)
    _fold_class_position(ours)
    return ours


def _drop_masked_biases(tensors: dict[str, Tensor]) -> None:
    """Split the biases (3 * C) of DINOv3's authors, whose `bias_mask` is zero for keys."""
    for name in [name for name in tensors if name.endswith(".qkv.bias_mask")]:
        del tensors[name]
        attention = name.removesuffix("qkv.bias_mask")
        if (bias := tensors.pop(f"{attention}qkv.bias", None)) is not None:
            query, _, value = bias.tensor_split(3)
            tensors |= {f"{attention}q_bias": query, f"{attention}v_bias": value}


def _join(tensors: dict[str, Tensor]) -> None:
    """Join the parts of a tensor; parts that do not fit each other stay, to be reported as unexpected."""
    for parts, whole in JOINED:
        for first in [name for name in tensors if name.endswith(f".{parts[0]}")]:
            module = first.removesuffix(parts[0])
            names = [module + part for part in parts]
            if len({tensors[name].shape if name in tensors else None for name in names}) == 1:
                tensors[module + whole] = torch.cat([tensors.pop(name) for name in names])
    for part, ours in KEYLESS:
        for name in [name for name in tensors if name.endswith(f".attn.{part}")]:
            tensors[name.removesuffix(part) + ours] = tensors.pop(name)


def _fold_class_position(tensors: dict[str, Tensor]) -> None:
    position, token = tensors.get(f"{PREFIX}pos_embed"), tensors.get(f"{PREFIX}cls_token")
    if position is None or token is None or position.ndim != 3:
        return
    if isqrt(position.shape[1]) ** 2 != position.shape[1]:
        tensors |= {f"{PREFIX}pos_embed": position[:, 1:], f"{PREFIX}cls_token": token + position[:, :1]}
