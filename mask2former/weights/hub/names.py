"""Names of tensors in transformers' files and in ours, as one table that is read in both directions.

The names are those of the files: transformers 5 has others in memory, and translates when it saves and loads.
A row is a pair of templates. In a template `{i}` stands for a number and `{i+1}` for the next one, `*` for
the rest of the name, and `<a|b|c>` for tensors that this project keeps joined, in this order of rows.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Row(NamedTuple):
    """Two templates of the same names."""

    hub: str
    ours: str


PIXEL, QUERY = "model.pixel_level_module.", "model.transformer_module."
BACKBONE, DECODER = f"{PIXEL}encoder.", f"{PIXEL}decoder."
BLOCK = "encoder.layers.{i}.blocks.{j}."
OURS_PIXEL, OURS_QUERY = "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."


def _below(hub: str, ours: str, rows: Iterable[tuple[str, str]]) -> tuple[Row, ...]:
    """Return rows with a prefix on each side."""
    return tuple(Row(hub + theirs, ours + name) for theirs, name in rows)


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
ROWS = (
    *_below(BACKBONE, "backbone.", SWIN),
    Row(f"{BACKBONE}hidden_states_norms.stage{{i+1}}.*", "backbone.norm{i}.*"),
    *_below(BACKBONE, "backbone.", RESNET),
    *_below(DECODER, OURS_PIXEL, PIXEL_DECODER),
    *_below(QUERY, OURS_QUERY, QUERY_DECODER),
    Row("class_predictor.*", f"{OURS_QUERY}class_embed.*"),
    Row("criterion.empty_weight", "criterion.empty_weight"),
)

COMPUTED = re.compile(r"\.relative_position_index$")  # of Swin's windows; in ours, and in old files of theirs
# transformers has this norm of a classifier, which a backbone does not use, and says if a file lacks it
UNUSED = f"{BACKBONE}swin.layernorm."
COUNTER = "num_batches_tracked"  # of batch norms; frozen ones have none, and nothing reads it

_TOKEN = re.compile(r"\{(\w)(?:\+(\d))?\}|<([\w|]+)>|(\*)")
PART, REST = "part", "rest"


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    def group(token: re.Match[str]) -> str:
        number, _, parts, _ = token.groups()
        if number:
            return rf"(?P<{number}>\d+)"
        return f"(?P<{PART}>{parts})" if parts else f"(?P<{REST}>.+)"

    literals = [re.escape(text) for text in _TOKEN.sub("\0", template).split("\0")]
    groups = [group(token) for token in _TOKEN.finditer(template)]
    return re.compile("".join(f"{a}{b}" for a, b in zip(literals, [*groups, ""], strict=True)))


def _values(template: str, name: str) -> dict[str, Any] | None:
    """Return what the placeholders of a template stand for in a name; None if it is not of this form."""
    match = _pattern(template).fullmatch(name)
    if match is None:
        return None
    values: dict[str, Any] = match.groupdict()
    for number, offset, parts, _ in _TOKEN.findall(template):
        if number:
            values[number] = int(values[number]) - int(offset or 0)
        elif parts:
            values[PART] = parts.split("|").index(values[PART])
    return values


def _filled(template: str, values: Mapping[str, Any]) -> str:
    def text(token: re.Match[str]) -> str:
        number, offset, parts, _ = token.groups()
        if number:
            return str(values[number] + int(offset or 0))
        return str(parts.split("|")[values[PART]] if parts else values[REST])

    return _TOKEN.sub(text, template)


def our_name(name: str) -> tuple[str, int | None] | None:
    """Return our name for one of transformers', and which part of it that is, if it is one of several.

    A tensor without a counterpart has none.
    """
    for row in ROWS:
        values = _values(row.hub, name)
        if values is not None:
            return _filled(row.ours, values), values.get(PART)
    return None


def hub_names(name: str) -> list[str]:
    """Return transformers' names for one of ours, in the order of the rows; none if it has no counterpart."""
    for row in ROWS:
        values = _values(row.ours, name)
        if values is not None:
            parts = re.findall(r"<([\w|]+)>", row.hub)
            count = len(parts[0].split("|")) if parts else 1
            return [_filled(row.hub, {**values, PART: part}) for part in range(count)]
    return []


def to_ours(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a file of transformers' under our names, without those that nothing reads.

    Tensors without a counterpart keep their names, to be reported as unexpected when they are loaded.

    Raises:
        ValueError: a part of a tensor is missing, or its parts have different shapes.
    """
    ours: dict[str, Tensor] = {}
    joined: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        if COMPUTED.search(name) or name.startswith(UNUSED):
            continue
        new, part = our_name(name) or (name, None)
        if part is None:
            ours[new] = tensor
        else:
            joined.setdefault(new, {})[part] = tensor
    for name, parts in joined.items():
        names = hub_names(name)
        if missing := [names[i] for i in range(len(names)) if i not in parts]:
            raise ValueError(f"{missing[0]} is missing")
        shapes = [tuple(parts[i].shape) for i in range(len(names))]
        for theirs, shape in zip(names, shapes, strict=True):
            if shape != shapes[0]:
                raise ValueError(f"{theirs} has shape {shape}, but {names[0]} {shapes[0]}")
        ours[name] = torch.cat([parts[i] for i in range(len(names))])
    return ours


def to_hub(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our tensors under transformers' names, in memory of their own, and what theirs have in excess.

    Raises:
        ValueError: a tensor has no counterpart.
    """
    theirs: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if COMPUTED.search(name):
            continue
        names = hub_names(name)
        if not names:
            raise ValueError(f"{name} has no counterpart in transformers")
        parts = tensor.chunk(len(names)) if len(names) > 1 else (tensor,)
        theirs |= {new: part.clone() for new, part in zip(names, parts, strict=True)}
    return {**_excess(theirs), **theirs}


def _excess(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return transformers' tensors that have no counterpart here, as they are in a new model."""
    excess: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "running_var":
            excess[f"{module}.{COUNTER}"] = torch.zeros((), dtype=torch.int64, device=tensor.device)
        elif module == f"{BACKBONE}hidden_states_norms.stage4":
            excess[UNUSED + leaf] = torch.full_like(tensor, 1.0 if leaf == "weight" else 0.0)
    return excess
