"""Tables of the fields of transformers' config.json and of the config keys that mean the same.

A field of a nested section is written with dots: `backbone_config.depths`.
"""

from typing import NamedTuple

from mask2former.weights.hub import eomt
from mask2former.weights.hub.tables import HEAD, LOSS_FIELDS, QUERY, Field, Table

STAGES = ["stage1", "stage2", "stage3", "stage4"]
MAPS = ["res2", "res3", "res4", "res5"]
MASK2FORMER = Table(
    fields=(
        Field("feature_size", f"{HEAD}CONVS_DIM", 256),
        Field("mask_feature_size", f"{HEAD}MASK_DIM", 256),
        Field("encoder_layers", f"{HEAD}TRANSFORMER_ENC_LAYERS", 6),
        Field("encoder_feedforward_dim", f"{HEAD}TRANSFORMER_ENC_DIM_FEEDFORWARD", 1024),
        Field("ignore_value", f"{HEAD}IGNORE_VALUE", 255),
        Field("hidden_dim", f"{QUERY}HIDDEN_DIM", 256),
        Field("decoder_layers", f"{QUERY}DEC_LAYERS", 10),
        Field("num_attention_heads", f"{QUERY}NHEADS", 8),
        Field("dim_feedforward", f"{QUERY}DIM_FEEDFORWARD", 2048),
        Field("dropout", f"{QUERY}DROPOUT", 0.0),
        Field("dropout", f"{QUERY}DECODER.DROPOUT", 0.0),  # theirs is that of both decoders
        Field("pre_norm", f"{QUERY}PRE_NORM", False),
        Field("enforce_input_projection", f"{QUERY}ENFORCE_INPUT_PROJ", False),
        Field("num_queries", f"{QUERY}NUM_OBJECT_QUERIES", 100),
        *LOSS_FIELDS,
        Field("use_auxiliary_loss", f"{QUERY}DEEP_SUPERVISION", True),
    ),
    theirs={"activation_function": "relu", "common_stride": 4, "feature_strides": [4, 8, 16, 32]},
    ours={
        "MODEL.META_ARCHITECTURE": "MaskFormer",
        f"{HEAD}NAME": "MaskFormerHead",
        f"{HEAD}PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder",
        f"{HEAD}NORM": "GN",
        f"{HEAD}IN_FEATURES": MAPS,
        f"{HEAD}DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": MAPS[1:],
        f"{QUERY}TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder",
        f"{QUERY}TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",
        f"{QUERY}DECODER.ATTENTION": "masked",
        f"{QUERY}DECODER.MEMORY_STRIDE": 0,
        f"{QUERY}DECODER.CONCATENATE_LEVELS": False,
        f"{QUERY}DECODER.FINE_LAYERS": 0,
        f"{QUERY}DECODER.LEARNED_QUERIES": True,
        f"{QUERY}DECODER.SELF_ATTENTION_FIRST": False,
        "INPUT.FORMAT": "RGB",
    },
    implied={},
)
MASKFORMER = Table(  # without use_auxiliary_loss, with which transformers 5 cannot predict
    fields=(
        Field("fpn_feature_size", f"{HEAD}CONVS_DIM", 256),
        Field("mask_feature_size", f"{HEAD}MASK_DIM", 256),
        Field("no_object_weight", f"{QUERY}NO_OBJECT_WEIGHT", 0.1),
        Field("cross_entropy_weight", f"{QUERY}CLASS_WEIGHT", 1.0),
        Field("mask_weight", f"{QUERY}MASK_WEIGHT", 20.0),
        Field("dice_weight", f"{QUERY}DICE_WEIGHT", 1.0),
        Field("decoder_config.d_model", f"{QUERY}HIDDEN_DIM", 256),
        Field("decoder_config.num_queries", f"{QUERY}NUM_OBJECT_QUERIES", 100),
        Field("decoder_config.decoder_layers", f"{QUERY}DEC_LAYERS", 6),
        Field("decoder_config.decoder_attention_heads", f"{QUERY}NHEADS", 8),
        Field("decoder_config.decoder_ffn_dim", f"{QUERY}DIM_FEEDFORWARD", 2048),
        Field("decoder_config.dropout", f"{QUERY}DROPOUT", 0.1),
    ),
    theirs={"decoder_config.model_type": "detr", "decoder_config.activation_function": "relu"},
    ours={
        "MODEL.META_ARCHITECTURE": "MaskFormer",
        f"{HEAD}NAME": "MaskFormerHead",
        f"{HEAD}PIXEL_DECODER_NAME": "BasePixelDecoder",
        f"{HEAD}NORM": "GN",
        f"{HEAD}IN_FEATURES": MAPS,
        f"{QUERY}TRANSFORMER_DECODER_NAME": "StandardTransformerDecoder",
        f"{QUERY}TRANSFORMER_IN_FEATURE": "res5",
        f"{QUERY}ENC_LAYERS": 0,
        f"{QUERY}PRE_NORM": False,
        "INPUT.FORMAT": "RGB",
    },
    implied={f"{QUERY}MATCH_ON": "masks", f"{QUERY}LOSS_ON": "masks", f"{QUERY}MASK_LOSS": "focal"},
)
SWIN = Table(
    fields=tuple(
        Field(f"backbone_config.{field}", f"MODEL.SWIN.{key}", default)
        for field, key, default in (
            ("embed_dim", "EMBED_DIM", 96),
            ("depths", "DEPTHS", [2, 2, 6, 2]),
            ("num_heads", "NUM_HEADS", [3, 6, 12, 24]),
            ("window_size", "WINDOW_SIZE", 7),
            ("mlp_ratio", "MLP_RATIO", 4.0),
            ("qkv_bias", "QKV_BIAS", True),
            ("hidden_dropout_prob", "DROP_RATE", 0.0),
            ("attention_probs_dropout_prob", "ATTN_DROP_RATE", 0.0),
            ("drop_path_rate", "DROP_PATH_RATE", 0.1),
            ("image_size", "PRETRAIN_IMG_SIZE", 224),
        )
    ),
    theirs={
        "backbone_config.num_channels": 3,
        "backbone_config.out_features": STAGES,
        "backbone_config.patch_size": 4,
        "backbone_config.use_absolute_embeddings": False,
        "backbone_config.hidden_act": "gelu",
        "backbone_config.layer_norm_eps": 1e-5,
    },
    ours={
        "MODEL.BACKBONE.NAME": "D2SwinTransformer",
        "MODEL.SWIN.PATCH_SIZE": 4,
        "MODEL.SWIN.PATCH_NORM": True,
        "MODEL.SWIN.APE": False,
        "MODEL.SWIN.QK_SCALE": None,
        "MODEL.SWIN.OUT_FEATURES": MAPS,
    },
    implied={},
)
RESNET = Table(  # depths and widths: `config.py`
    fields=(
        Field("backbone_config.embedding_size", "MODEL.RESNETS.STEM_OUT_CHANNELS", 64),
        Field("backbone_config.downsample_in_bottleneck", "MODEL.RESNETS.STRIDE_IN_1X1", False),
    ),
    theirs={
        "backbone_config.num_channels": 3,
        "backbone_config.out_features": STAGES,
        "backbone_config.hidden_act": "relu",
        "backbone_config.downsample_in_first_stage": False,
    },
    ours={
        "MODEL.BACKBONE.NAME": "build_resnet_backbone",
        "MODEL.RESNETS.NUM_GROUPS": 1,
        "MODEL.RESNETS.OUT_FEATURES": MAPS,
    },
    implied={"MODEL.RESNETS.NORM": "BN", "MODEL.BACKBONE.FREEZE_AT": 0},
)


def _joined(model: Table, backbone: Table) -> Table:
    return Table(
        model.fields + backbone.fields,
        {**model.theirs, **backbone.theirs},
        {**model.ours, **backbone.ours},
        {**model.implied, **backbone.implied},
    )


NO_BACKBONE = ""


class Model(NamedTuple):
    """A model of transformers: its classes, and its tables by the type of its backbone or NO_BACKBONE."""

    architecture: str
    processor: str
    tables: dict[str, Table]


MODELS = {  # by model_type
    "mask2former": Model(
        "Mask2FormerForUniversalSegmentation",
        "Mask2FormerImageProcessor",
        {"swin": _joined(MASK2FORMER, SWIN), "resnet": _joined(MASK2FORMER, RESNET)},
    ),
    "maskformer": Model(
        "MaskFormerForInstanceSegmentation",
        "MaskFormerImageProcessor",
        {
            "swin": _joined(MASKFORMER, SWIN),
            "maskformer-swin": _joined(MASKFORMER, SWIN),  # as it is named once transformers has built it
            "resnet": _joined(MASKFORMER, RESNET),
        },
    ),
    "eomt": Model("EomtForUniversalSegmentation", "EomtImageProcessor", {NO_BACKBONE: eomt.DINOV2}),
    "eomt_dinov3": Model(
        "EomtDinov3ForUniversalSegmentation", "EomtImageProcessor", {NO_BACKBONE: eomt.DINOV3}
    ),
}
