"""From transformers' config.json to our keys, and back.

What transformers has no field for stands under one key of config.json, `mask2former`: in `config` the keys
whose values the fields do not give, and in `metadata` the names, things and colors of the classes.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mask2former.config import CfgNode, get_cfg, with_values
from mask2former.config.yaml_files import flatten
from mask2former.utils.messages import brief
from mask2former.weights.hub.eomt import eomt_fields, eomt_values
from mask2former.weights.hub.fields import MAPS, MODELS, NO_BACKBONE
from mask2former.weights.hub.processor import input_values
from mask2former.weights.hub.tables import Table

EXTRA = "mask2former"
NUM_CLASSES = "MODEL.SEM_SEG_HEAD.NUM_CLASSES"
RESNET = "resnet"
BATCH_NORMS = ("FrozenBN", "BN", "SyncBN")
DEFAULT_LABELS = {"0": "LABEL_0", "1": "LABEL_1"}  # of a file that has none


def model_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return our keys and their values for a config.json, those under `mask2former` not included.

    Raises:
        ValueError: it is of another model, or has a value that this project does not know.
    """
    flat = flatten(config)
    tables = MODELS[_known(MODELS, flat, "model_type")].tables
    with_backbone = NO_BACKBONE not in tables
    kind = _known(tables, flat, "backbone_config.model_type") if with_backbone else NO_BACKBONE
    table = tables[kind]
    for name, value in table.theirs.items():
        if flat.get(name, value) != value:
            raise ValueError(f"{name} is {brief(flat[name])}; only {value!r} is read")
    values = {field.key: flat.get(field.hub, field.default) for field in table.fields}
    derived = _resnet_values(flat) if kind == RESNET else {}
    derived |= {} if with_backbone else eomt_values(flat, table)
    return {**table.ours, **table.implied, **values, **derived, NUM_CLASSES: len(labels(config))}


def _known(known: Mapping[str, Any], flat: Mapping[str, Any], name: str) -> str:
    """Return the value of a field, which must be one of the known."""
    value = flat.get(name)
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} is {brief(value)}; it must be {' or '.join(map(repr, known))}")
    return value


def _resnet_values(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that follow from the depths and widths of the stages."""
    depths = flat.get("backbone_config.depths", [3, 4, 6, 3])
    widths = flat.get("backbone_config.hidden_sizes", [256, 512, 1024, 2048])
    for name, numbers in (("depths", depths), ("hidden_sizes", widths)):
        if not (isinstance(numbers, list) and len(numbers) == 4 and all(type(n) is int for n in numbers)):
            raise ValueError(f"backbone_config.{name} is {brief(numbers)}; it must be four whole numbers")
    if widths != [widths[0] * 2**i for i in range(4)]:
        raise ValueError(f"backbone_config.hidden_sizes is {widths}; each must be twice the one before")
    convolutions = 3 if flat.get("backbone_config.layer_type", "bottleneck") == "bottleneck" else 2
    return {
        "MODEL.RESNETS.DEPTH": convolutions * sum(depths) + 2,  # with the stem and the classifier
        "MODEL.RESNETS.RES2_OUT_CHANNELS": widths[0],
        "MODEL.RESNETS.WIDTH_PER_GROUP": max(widths[0] // 4, 1),
    }


def labels(config: Mapping[str, Any]) -> list[str]:
    """Return the names of the classes.

    Raises:
        ValueError: they are not numbered from 0 on.
    """
    names = config.get("id2label") or DEFAULT_LABELS
    if not isinstance(names, Mapping) or set(names) != {str(k) for k in range(len(names))}:
        raise ValueError(f"id2label is {brief(names)}; it must have a name for each number from 0 on")
    return [str(names[str(k)]) for k in range(len(names))]


def class_names(metadata: Mapping[str, Any], count: int) -> list[str]:
    """Return the names of a model's classes by the metadata of its checkpoint, or numbers if it has none."""
    for kind in ("stuff_classes", "thing_classes"):
        names = metadata.get(kind)
        if isinstance(names, list | tuple) and len(names) == count:
            return list(names)
    return [f"class {k}" for k in range(count)]


def hub_config(
    cfg: CfgNode, metadata: Mapping[str, Any], names: Collection[str], saved: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the config.json of a model, whose tensors have these names of ours.

    `saved` is the config.json that the model came with, whose other fields are kept; it may be empty.

    Raises:
        ValueError: transformers has no model like this; the message names the key.
    """
    values = flatten(cfg)
    model = model_type(cfg)
    kind, table = _backbone(cfg, model, saved)
    for key, value in table.ours.items():
        if values[key] != value:
            raise ValueError(f"{key} is {values[key]!r}; transformers has only {value!r}")
    fields = dict(table.theirs) | {field.hub: values[field.key] for field in reversed(table.fields)}
    if kind == NO_BACKBONE:
        fields |= eomt_fields(values, table)
    else:
        fields = {"backbone_config.model_type": kind, **fields}
    fields |= _resnet_fields(values, names) if kind == RESNET else {}
    classes = class_names(metadata, values[NUM_CLASSES])
    content = {
        "architectures": [MODELS[model].architecture],
        "model_type": model,
        **{name: value for name, value in saved.items() if name != EXTRA},
    }
    if "id2label" not in content or labels(content) != classes:
        content["id2label"] = {str(k): name for k, name in enumerate(classes)}
        content["label2id"] = {name: k for k, name in enumerate(classes)}
    implied = {**table.theirs, **{field.hub: field.default for field in table.fields}} if saved else {}
    return _with_fields(content, fields, implied)


def model_type(cfg: CfgNode) -> str:
    """Return transformers' name for the model of a config; Mask2Former's if it is none of the others."""
    if cfg.MODEL.META_ARCHITECTURE == "EoMT":
        return "eomt_dinov3" if cfg.MODEL.VIT.POSITIONS == "rotary" else "eomt"
    decoder = cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME
    return "maskformer" if decoder == "StandardTransformerDecoder" else "mask2former"


def _backbone(cfg: CfgNode, model: str, saved: Mapping[str, Any]) -> tuple[str, Table]:
    """Return the type of the backbone, if possible as `saved` names it, and the table."""
    name, tables = cfg.MODEL.BACKBONE.NAME, MODELS[model].tables
    kinds = [kind for kind, table in tables.items() if table.ours["MODEL.BACKBONE.NAME"] == name]
    if not kinds:
        raise ValueError(f"MODEL.BACKBONE.NAME is {name!r}; transformers has Swin and ResNet")
    before = (saved.get("backbone_config") or {}).get("model_type")
    kind = before if before in kinds else kinds[0]
    return kind, tables[kind]


def _resnet_fields(values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    norm, width = values["MODEL.RESNETS.NORM"], values["MODEL.RESNETS.RES2_OUT_CHANNELS"]
    if norm not in BATCH_NORMS:
        raise ValueError(f"MODEL.RESNETS.NORM is {norm!r}; transformers has only batch norms")
    bottleneck = "backbone.res2.0.conv3.weight" in names
    if bottleneck and values["MODEL.RESNETS.WIDTH_PER_GROUP"] != width // 4:
        group = values["MODEL.RESNETS.WIDTH_PER_GROUP"]
        raise ValueError(f"MODEL.RESNETS.WIDTH_PER_GROUP is {group}; transformers has only {width // 4}")
    blocks = [{name.split(".")[2] for name in names if name.startswith(f"backbone.{map}.")} for map in MAPS]
    return {
        "backbone_config.depths": [len(numbers) for numbers in blocks],
        "backbone_config.hidden_sizes": [width * 2**i for i in range(4)],
        "backbone_config.layer_type": "bottleneck" if bottleneck else "basic",
    }


def _with_fields(
    config: Mapping[str, Any], fields: Mapping[str, Any], implied: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a config with other values. A field that has the value, or is left out and implied, stays."""
    sections = {name.partition(".")[0] for name in fields if "." in name}
    changed = {**config, **{name: dict(config.get(name) or {}) for name in sections}}
    flat = {**implied, **flatten(changed)}
    for name, value in fields.items():
        value = list(value) if isinstance(value, tuple) else value
        if name not in flat or flat[name] != value:
            section, _, field = name.rpartition(".")
            (changed[section] if section else changed)[field] = value
    return changed


def extra(
    cfg: CfgNode, metadata: Mapping[str, Any], config: Mapping[str, Any], processor: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what stands under `mask2former`: the keys that the two files do not give, and the metadata."""
    given = flatten(with_values(get_cfg(), model_values(config) | input_values(processor), "fields"))
    rest = {key: value for key, value in flatten(cfg).items() if given[key] != value}
    return {"config": rest, "metadata": {"thing_ids": list(cfg.MODEL.MASK_FORMER.THING_IDS), **metadata}}


def extra_of(config: Mapping[str, Any], names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return the keys and the metadata under `mask2former`; None if they are missing.

    They count as missing if the classes have other names by now, as after training in transformers.

    Raises:
        ValueError: they are not as this project writes them.
    """
    given = config.get(EXTRA)
    if given is None:
        return None
    parts = [given.get(part) if isinstance(given, Mapping) else None for part in ("config", "metadata")]
    if not all(isinstance(part, dict) for part in parts):
        raise ValueError(f"{EXTRA} is {brief(given)}; it must have `config` and `metadata`, with keys each")
    values, metadata = parts
    assert values is not None and metadata is not None
    return (values, metadata) if class_names(metadata, len(names)) == list(names) else None
