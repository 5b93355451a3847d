"""EoMT in transformers' files: fields of its config.json, which has no section for a backbone, and names."""

from collections.abc import Mapping
from typing import Any

from mask2former.weights.hub.tables import HEAD, LOSS_FIELDS, QUERY, Field, Names, Row, Table, below

VIT = "MODEL.VIT."
PATCH = 16  # pixels of a patch's side
FIELDS = (
    Field("num_queries", f"{QUERY}NUM_OBJECT_QUERIES", 200),
    Field("num_blocks", "MODEL.EOMT.NUM_BLOCKS", 4),
    *LOSS_FIELDS,
    Field("hidden_size", f"{VIT}EMBED_DIM", 1024),
    Field("num_hidden_layers", f"{VIT}DEPTH", 24),
    Field("num_attention_heads", f"{VIT}NUM_HEADS", 16),
    Field("num_register_tokens", f"{VIT}REGISTERS", 4),
    Field("layerscale_value", f"{VIT}LAYER_SCALE", 1.0),
    Field("layer_norm_eps", f"{VIT}NORM_EPS", 1e-6),
    Field("drop_path_rate", f"{VIT}DROP_PATH_RATE", 0.0),
)
THEIRS = {
    "patch_size": PATCH,
    "num_channels": 3,
    "num_upscale_blocks": 2,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_dropout": 0.0,
}
OURS = {
    "MODEL.META_ARCHITECTURE": "EoMT",
    "MODEL.BACKBONE.NAME": "EomtBackbone",
    f"{HEAD}NAME": "EomtHead",
    f"{VIT}PATCH_SIZE": PATCH,
    f"{VIT}FINAL_NORM": True,
    f"{VIT}WINDOW_SIZE": 0,
    "INPUT.FORMAT": "RGB",
}
DINOV2 = Table(
    fields=FIELDS,
    theirs=THEIRS,
    ours={**OURS, f"{VIT}POSITIONS": "learned", f"{VIT}KEY_BIAS": True},
    implied={},
)
DINOV3 = Table(
    fields=(*FIELDS, Field("rope_parameters.rope_theta", f"{VIT}ROPE_BASE", 100.0)),
    theirs={
        **THEIRS,
        "use_gated_mlp": False,
        "query_bias": True,
        "key_bias": False,
        "value_bias": True,
        "proj_bias": True,
        "mlp_bias": True,
    },
    ours={**OURS, f"{VIT}POSITIONS": "rotary", f"{VIT}KEY_BIAS": False, f"{VIT}FFN": "mlp"},
    implied={},
)


def eomt_values(flat: Mapping[str, Any], table: Table) -> dict[str, Any]:
    """Return the keys that follow from the image's side and the feed-forward network.

    Raises:
        ValueError: a number is not one, or the side has no whole patches.
    """
    side, width = flat.get("image_size", 640), flat.get("hidden_size", 1024)
    hidden = flat.get("intermediate_size", 4096)
    for name, number in (("image_size", side), ("hidden_size", width), ("intermediate_size", hidden)):
        if type(number) is not int or number < 1:
            raise ValueError(f"{name} is {number!r}; it must be a whole number")
    if side % PATCH:
        raise ValueError(f"image_size is {side}; it must be a multiple of {PATCH}")
    values: dict[str, Any] = {f"{VIT}POSITION_GRID": side // PATCH}
    if table is DINOV3:
        rescale = flat.get("pos_embed_rescale", 2.0) or 1.0
        return {**values, f"{VIT}MLP_RATIO": hidden / width, f"{VIT}ROPE_RESCALE": rescale}
    ffn = "swiglu" if flat.get("use_swiglu_ffn", False) else "mlp"
    return {**values, f"{VIT}MLP_RATIO": flat.get("mlp_ratio", 4), f"{VIT}FFN": ffn}


def eomt_fields(values: Mapping[str, Any], table: Table) -> dict[str, Any]:
    """Return the fields that `eomt_values` reads.

    Raises:
        ValueError: the feed-forward network's width is no multiple of the token's.
    """
    fields: dict[str, Any] = {"image_size": PATCH * values[f"{VIT}POSITION_GRID"]}
    if table is DINOV3:
        hidden = int(values[f"{VIT}EMBED_DIM"] * values[f"{VIT}MLP_RATIO"])
        rescale = values[f"{VIT}ROPE_RESCALE"]
        fields |= {"intermediate_size": hidden, "rope_parameters.rope_type": "default"}
        return {**fields, "pos_embed_rescale": None if rescale == 1 else rescale}
    ratio = values[f"{VIT}MLP_RATIO"]
    if ratio != int(ratio):
        raise ValueError(f"{VIT}MLP_RATIO is {ratio}; transformers has only whole numbers")
    return {**fields, "mlp_ratio": int(ratio), "use_swiglu_ffn": values[f"{VIT}FFN"] == "swiglu"}


LAYER, BLOCK = "layers.{i}.", "blocks.{i}."
VIT_ROWS = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.register_tokens", "reg_token"),
    ("layernorm.*", "norm.*"),
    (f"{LAYER}norm{{k}}.*", f"{BLOCK}norm{{k}}.*"),
    (f"{LAYER}layer_scale{{k}}.lambda1", f"{BLOCK}ls{{k}}.gamma"),
)
DINOV2_ROWS = (
    ("embeddings.patch_embeddings.projection.*", "patch_embed.proj.*"),
    ("embeddings.position_embeddings.weight", "pos_embed"),
    (f"{LAYER}attention.<q_proj|k_proj|v_proj>.*", f"{BLOCK}attn.qkv.*"),
    (f"{LAYER}attention.out_proj.*", f"{BLOCK}attn.proj.*"),
    (f"{LAYER}mlp.fc{{k}}.*", f"{BLOCK}mlp.fc{{k}}.*"),
    (f"{LAYER}mlp.<gate_proj|up_proj>.*", f"{BLOCK}mlp.w12.*"),
    (f"{LAYER}mlp.down_proj.*", f"{BLOCK}mlp.w3.*"),
    (f"{LAYER}mlp.weights_in.*", f"{BLOCK}mlp.w12.*"),  # of files of transformers 4
    (f"{LAYER}mlp.weights_out.*", f"{BLOCK}mlp.w3.*"),
)
DINOV3_ROWS = (
    ("embeddings.patch_embeddings.*", "patch_embed.proj.*"),
    (f"{LAYER}attention.<q_proj|k_proj|v_proj>.weight", f"{BLOCK}attn.qkv.weight"),
    (f"{LAYER}attention.q_proj.bias", f"{BLOCK}attn.q_bias"),
    (f"{LAYER}attention.v_proj.bias", f"{BLOCK}attn.v_bias"),
    (f"{LAYER}attention.o_proj.*", f"{BLOCK}attn.proj.*"),
    (f"{LAYER}mlp.up_proj.*", f"{BLOCK}mlp.fc1.*"),
    (f"{LAYER}mlp.down_proj.*", f"{BLOCK}mlp.fc2.*"),
)
HEAD_ROWS = (
    ("query.weight", "q.weight"),
    ("class_predictor.*", "class_head.*"),
    ("attn_mask_probs", "attn_mask_probs"),
    ("mask_head.fc1.*", "mask_head.0.*"),
    ("mask_head.fc2.*", "mask_head.2.*"),
    ("mask_head.fc3.*", "mask_head.4.*"),
    ("upscale_block.block.{i}.layernorm2d.*", "upscale.{i}.norm.*"),
    ("upscale_block.block.{i}.*", "upscale.{i}.*"),
)


def _names(rows: tuple[tuple[str, str], ...]) -> Names:
    return Names(
        rows=(
            *below("", "backbone.vit.", (*VIT_ROWS, *rows)),
            *below("", "sem_seg_head.", HEAD_ROWS),
            Row("criterion.empty_weight", "criterion.empty_weight"),
        ),
        positions="backbone.vit.pos_embed",
    )


DINOV2_NAMES, DINOV3_NAMES = _names(DINOV2_ROWS), _names(DINOV3_ROWS)
