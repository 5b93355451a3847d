"""Names of tensors in transformers' files and in ours, as tables that are read in both directions.

The names are those of the files: transformers 5 has others in memory, and translates when it saves and loads.
A row is a pair of templates. In a template `{i}` stands for a number and `{i+1}` for the next one, `*` for
the rest of the name, and `<a|b|c>` for tensors that this project keeps joined, in this order of rows.
"""

from mask2former.weights.hub import eomt
from mask2former.weights.hub.tables import Names, Row, below

PIXEL, QUERY = "model.pixel_level_module.", "model.transformer_module."
BACKBONE, DECODER = f"{PIXEL}encoder.", f"{PIXEL}decoder."
BLOCK = "encoder.layers.{i}.blocks.{j}."
OURS_PIXEL, OURS_QUERY = "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."

SWIN = (
    ("embeddings.patch_embeddings.projection.*", "patch_embed.proj.*"),
    ("embeddings.norm.*", "patch_embed.norm.*"),
    (f"{BLOCK}layernorm_before.*", "layers.{i}.blocks.{j}.norm1.*"),
    (f"{BLOCK}layernorm_after.*", "layers.{i}.blocks.{j}.norm2.*"),
    (
        f"{BLOCK}attention.self.relative_position_bias_table",
        "layers.{i}.blocks.{j}.attn.relative_position_bias_table",
    ),
    (f"{BLOCK}attention.self.<query|key|value>.*", "layers.{i}.blocks.{j}.attn.qkv.*"),
    (f"{BLOCK}attention.output.dense.*", "layers.{i}.blocks.{j}.attn.proj.*"),
    (f"{BLOCK}intermediate.dense.*", "layers.{i}.blocks.{j}.mlp.fc1.*"),
    (f"{BLOCK}output.dense.*", "layers.{i}.blocks.{j}.mlp.fc2.*"),
    ("encoder.layers.{i}.downsample.*", "layers.{i}.downsample.*"),
)
RESNET = (
    ("embedder.embedder.convolution.weight", "stem.conv1.weight"),
    ("embedder.embedder.normalization.*", "stem.conv1.norm.*"),
    ("encoder.stages.{i}.layers.{j}.layer.{k}.convolution.weight", "res{i+2}.{j}.conv{k+1}.weight"),
    ("encoder.stages.{i}.layers.{j}.layer.{k}.normalization.*", "res{i+2}.{j}.conv{k+1}.norm.*"),
    ("encoder.stages.{i}.layers.{j}.shortcut.convolution.weight", "res{i+2}.{j}.shortcut.weight"),
    ("encoder.stages.{i}.layers.{j}.shortcut.normalization.*", "res{i+2}.{j}.shortcut.norm.*"),
)
PIXEL_DECODER = (
    ("level_embed", "transformer.level_embed"),
    ("input_projections.{i}.*", "input_proj.{i}.*"),
    ("encoder.layers.{i}.self_attn.*", "transformer.encoder.layers.{i}.self_attn.*"),
    ("encoder.layers.{i}.self_attn_layer_norm.*", "transformer.encoder.layers.{i}.norm1.*"),
    ("encoder.layers.{i}.fc{k}.*", "transformer.encoder.layers.{i}.linear{k}.*"),
    ("encoder.layers.{i}.final_layer_norm.*", "transformer.encoder.layers.{i}.norm2.*"),
    ("mask_projection.*", "mask_features.*"),
    ("adapter_1.0.weight", "adapter_1.weight"),
    ("adapter_1.1.*", "adapter_1.norm.*"),
    ("layer_1.0.weight", "layer_1.weight"),
    ("layer_1.1.*", "layer_1.norm.*"),
)
QUERY_DECODER = (
    ("queries_embedder.weight", "query_embed.weight"),
    ("queries_features.weight", "query_feat.weight"),
    ("level_embed.weight", "level_embed.weight"),
    ("input_projections.{i}.*", "input_proj.{i}.*"),
    ("decoder.layernorm.*", "decoder_norm.*"),
    ("decoder.mask_predictor.mask_embedder.{i}.0.*", "mask_embed.layers.{i}.*"),
    (
        "decoder.layers.{i}.self_attn.<q_proj|k_proj|v_proj>.*",
        "transformer_self_attention_layers.{i}.self_attn.in_proj_*",
    ),
    (
        "decoder.layers.{i}.self_attn.out_proj.*",
        "transformer_self_attention_layers.{i}.self_attn.out_proj.*",
    ),
    ("decoder.layers.{i}.self_attn_layer_norm.*", "transformer_self_attention_layers.{i}.norm.*"),
    ("decoder.layers.{i}.cross_attn.*", "transformer_cross_attention_layers.{i}.multihead_attn.*"),
    ("decoder.layers.{i}.cross_attn_layer_norm.*", "transformer_cross_attention_layers.{i}.norm.*"),
    ("decoder.layers.{i}.fc{k}.*", "transformer_ffn_layers.{i}.linear{k}.*"),
    ("decoder.layers.{i}.final_layer_norm.*", "transformer_ffn_layers.{i}.norm.*"),
)
FEATURE_PYRAMID = (
    ("fpn.stem.0.weight", "layer_4.weight"),
    ("fpn.stem.1.*", "layer_4.norm.*"),
    *(
        (f"fpn.layers.{i}.{theirs}", f"{ours.format(level=3 - i)}")
        for i in (0, 1, 2)
        for theirs, ours in (
            ("proj.0.weight", "adapter_{level}.weight"),
            ("proj.1.*", "adapter_{level}.norm.*"),
            ("block.0.weight", "layer_{level}.weight"),
            ("block.1.*", "layer_{level}.norm.*"),
        )
    ),
    ("mask_projection.*", "mask_features.*"),
)
DETR_LAYER, OUR_LAYER = "decoder.layers.{i}.", "transformer.decoder.layers.{i}."
DETR_DECODER = (
    ("queries_embedder.weight", "query_embed.weight"),
    ("input_projection.*", "input_proj.*"),
    ("decoder.layernorm.*", "transformer.decoder.norm.*"),
    (f"{DETR_LAYER}self_attn.<q_proj|k_proj|v_proj>.*", f"{OUR_LAYER}self_attn.in_proj_*"),
    (f"{DETR_LAYER}self_attn.out_proj.*", f"{OUR_LAYER}self_attn.out_proj.*"),
    (f"{DETR_LAYER}self_attn_layer_norm.*", f"{OUR_LAYER}norm1.*"),
    (f"{DETR_LAYER}encoder_attn.<q_proj|k_proj|v_proj>.*", f"{OUR_LAYER}multihead_attn.in_proj_*"),
    (f"{DETR_LAYER}encoder_attn.out_proj.*", f"{OUR_LAYER}multihead_attn.out_proj.*"),
    (f"{DETR_LAYER}encoder_attn_layer_norm.*", f"{OUR_LAYER}norm2.*"),
    (f"{DETR_LAYER}fc{{k}}.*", f"{OUR_LAYER}linear{{k}}.*"),
    (f"{DETR_LAYER}final_layer_norm.*", f"{OUR_LAYER}norm3.*"),
)
SHARED = (
    *below(BACKBONE, "backbone.", RESNET),
    Row("class_predictor.*", f"{OURS_QUERY}class_embed.*"),
    Row("criterion.empty_weight", "criterion.empty_weight"),
)
MASK2FORMER = Names(
    rows=(
        *below(BACKBONE, "backbone.", SWIN),
        Row(f"{BACKBONE}hidden_states_norms.stage{{i+1}}.*", "backbone.norm{i}.*"),
        *below(DECODER, OURS_PIXEL, PIXEL_DECODER),
        *below(QUERY, OURS_QUERY, QUERY_DECODER),
        *SHARED,
    ),
    unused=f"{BACKBONE}swin.layernorm.",
    last_norm=f"{BACKBONE}hidden_states_norms.stage4.",
)
MASKFORMER = Names(
    rows=(
        *below(f"{BACKBONE}model.", "backbone.", SWIN),
        Row(
            f"{BACKBONE}model.{BLOCK}attention.self.relative_position_index",
            "backbone.layers.{i}.blocks.{j}.attn.relative_position_index",
        ),
        Row(f"{BACKBONE}hidden_states_norms.{{i}}.*", "backbone.norm{i}.*"),
        *below(DECODER, OURS_PIXEL, FEATURE_PYRAMID),
        *below(QUERY, OURS_QUERY, DETR_DECODER),
        Row("mask_embedder.{i}.0.*", f"{OURS_QUERY}mask_embed.layers.{{i}}.*"),
        *SHARED,
    ),
    unused=f"{BACKBONE}model.layernorm.",
    last_norm=f"{BACKBONE}hidden_states_norms.3.",
)
NAMES = {  # by transformers' model_type
    "mask2former": MASK2FORMER,
    "maskformer": MASKFORMER,
    "eomt": eomt.DINOV2_NAMES,
    "eomt_dinov3": eomt.DINOV3_NAMES,
}
