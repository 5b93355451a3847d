"""Names of Mask2Former's head in mmdetection and mmsegmentation, and of ViT-Adapter, trained there."""

Renames = tuple[tuple[str, str], ...]

HEAD = r"^(?:decode_head|panoptic_head)\."
INPUTS = rf"{HEAD}pixel_decoder\.input_convs\."  # only Mask2Former's pixel decoder has them
PIXEL_DECODER = "sem_seg_head.pixel_decoder."
PREDICTOR = "sem_seg_head.predictor."

_ENCODER: Renames = (
    (rf"{HEAD}pixel_decoder\.input_convs\.(\d+)\.conv\.", rf"{PIXEL_DECODER}input_proj.\1.0."),
    (rf"{HEAD}pixel_decoder\.input_convs\.(\d+)\.gn\.", rf"{PIXEL_DECODER}input_proj.\1.1."),
    (rf"{HEAD}pixel_decoder\.level_encoding\.weight$", f"{PIXEL_DECODER}transformer.level_embed"),
    (rf"{HEAD}pixel_decoder\.encoder\.", f"{PIXEL_DECODER}transformer.encoder."),
    (rf"{HEAD}pixel_decoder\.lateral_convs\.0\.conv\.", f"{PIXEL_DECODER}adapter_1."),
    (rf"{HEAD}pixel_decoder\.lateral_convs\.0\.gn\.", f"{PIXEL_DECODER}adapter_1.norm."),
    (rf"{HEAD}pixel_decoder\.output_convs\.0\.conv\.", f"{PIXEL_DECODER}layer_1."),
    (rf"{HEAD}pixel_decoder\.output_convs\.0\.gn\.", f"{PIXEL_DECODER}layer_1.norm."),
    (rf"{HEAD}pixel_decoder\.mask_feature\.", f"{PIXEL_DECODER}mask_features."),
    (rf"^({PIXEL_DECODER}.*)\.attentions\.0\.", r"\1.self_attn."),
    (rf"^({PIXEL_DECODER}.*)\.norms\.0\.", r"\1.norm1."),
    (rf"^({PIXEL_DECODER}.*)\.norms\.1\.", r"\1.norm2."),
)
_LAYERS = rf"{HEAD}transformer_decoder\.layers\.(\d+)\."
_CROSS = rf"{PREDICTOR}transformer_cross_attention_layers.\1."
_SELF = rf"{PREDICTOR}transformer_self_attention_layers.\1."
_FEED_FORWARD = rf"{PREDICTOR}transformer_ffn_layers.\1."
_DECODER: Renames = (
    (rf"{_LAYERS}attentions\.0\.attn\.", f"{_CROSS}multihead_attn."),
    (rf"{_LAYERS}attentions\.1\.attn\.", f"{_SELF}self_attn."),
    (rf"{_LAYERS}norms\.0\.", f"{_CROSS}norm."),
    (rf"{_LAYERS}norms\.1\.", f"{_SELF}norm."),
    (rf"{_LAYERS}norms\.2\.", f"{_FEED_FORWARD}norm."),
    (rf"{_LAYERS}(?=ffns\.)", _FEED_FORWARD),
    (rf"{HEAD}transformer_decoder\.post_norm\.", f"{PREDICTOR}decoder_norm."),
    (rf"{HEAD}cls_embed\.", f"{PREDICTOR}class_embed."),
    (rf"{HEAD}mask_embed\.0\.", f"{PREDICTOR}mask_embed.layers.0."),
    (rf"{HEAD}mask_embed\.2\.", f"{PREDICTOR}mask_embed.layers.1."),
    (rf"{HEAD}mask_embed\.4\.", f"{PREDICTOR}mask_embed.layers.2."),
    (HEAD, PREDICTOR),
)
MASK2FORMER: Renames = (
    *_ENCODER,
    *_DECODER,
    (r"^(sem_seg_head\..*\.)ffns\.0\.layers\.0\.0\.", r"\1linear1."),
    (r"^(sem_seg_head\..*\.)ffns\.0\.layers\.1\.", r"\1linear2."),
)
ADAPTERS_VIT = r"^backbone\.(cls_token|pos_embed|patch_embed\.|blocks\.)"  # beside the parts of the adapter
VIT_ADAPTER: Renames = (
    (ADAPTERS_VIT, r"backbone.vit.\1"),
    (r"\.gamma_([12])$", r".ls\1.gamma"),
    (r"\.dwconv\.dwconv\.", ".dwconv."),
)
