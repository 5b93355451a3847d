"""Facts that belong to the dataset: class count, ignore label, thing ids, class names.

They are in the metadata of the first training dataset, or of the first test dataset if there is none to train
on.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from mask2former.config import CfgNode, with_values
from mask2former.config.node import Node
from mask2former.config.yaml_files import flatten
from mask2former.data import DatasetCatalog, MetadataCatalog
from mask2former.data.clips import holds_videos
from mask2former.weights.read import Checkpoint

logger = logging.getLogger(__name__)

NUM_CLASSES = "MODEL.SEM_SEG_HEAD.NUM_CLASSES"
IGNORE_VALUE = "MODEL.SEM_SEG_HEAD.IGNORE_VALUE"
THING_IDS = "MODEL.MASK_FORMER.THING_IDS"
INSTANCE_EVALUATORS = (
    "coco",
    "lvis",
    "cityscapes_instance",
    "ytvis",
)  # datasets whose only classes are things
IMAGE_MODELS = ("MaskFormer", "SemanticSegmentor", "DETR", "EoMT")
SAVED_METADATA = ("thing_classes", "thing_colors", "stuff_classes", "stuff_colors")


def dataset_names(cfg: CfgNode) -> list[str]:
    """Return all datasets of a config; the first one defines the classes."""
    return [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]


def dataset_metadata(cfg: CfgNode) -> dict[str, Any]:
    """Return the metadata of the dataset that defines the classes; empty if it is not registered."""
    names = dataset_names(cfg)
    if not names or names[0] not in DatasetCatalog:
        return {}
    metadata = MetadataCatalog.get(names[0])
    if "thing_classes" not in metadata.as_dict() and "stuff_classes" not in metadata.as_dict():
        DatasetCatalog.get(names[0])  # reading a user's COCO file sets its classes
    return metadata.as_dict()


def class_names(metadata: dict[str, Any]) -> list[str]:
    """Return the names of the classes that the model predicts; empty if the dataset names none."""
    things_only = metadata.get("evaluator_type") in INSTANCE_EVALUATORS or "stuff_classes" not in metadata
    return list(metadata.get("thing_classes" if things_only else "stuff_classes", ()))


def dataset_facts(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the config keys that `metadata` decides, with their values."""
    facts: dict[str, Any] = {}
    if names := class_names(metadata):
        facts[NUM_CLASSES] = len(names)
    if "ignore_label" in metadata:
        facts[IGNORE_VALUE] = metadata["ignore_label"]
    if "thing_dataset_id_to_contiguous_id" in metadata:
        facts[THING_IDS] = sorted(set(metadata["thing_dataset_id_to_contiguous_id"].values()))
    return facts


def check_architecture(cfg: CfgNode) -> None:
    """Raise ValueError if a dataset holds videos, but the model reads images."""
    model = cfg.MODEL.META_ARCHITECTURE
    of_videos = [name for name in dataset_names(cfg) if holds_videos(MetadataCatalog.get(name))]
    if of_videos and model in IMAGE_MODELS:
        raise ValueError(
            f"dataset '{of_videos[0]}' holds videos, but MODEL.META_ARCHITECTURE {model} reads images; take "
            "a config of VideoMaskFormer, such as youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml"
        )


def warn_of_other_classes(metadata: dict[str, Any], checkpoint: Checkpoint) -> None:
    """Warn if a checkpoint has as many classes as the dataset, but other names: its class head is kept."""
    names, known = class_names(metadata), class_names(checkpoint.metadata or {})
    if names and len(known) == len(names) and known != names:
        pairs = [f"'{old}' -> '{new}'" for old, new in zip(known, names, strict=True) if old != new]
        logger.warning(
            "%s was trained on as many, but other classes: its class head is kept, although %s%s",
            *(checkpoint.file, ", ".join(pairs[:3]), ", ..." if len(pairs) > 3 else ""),
        )


def checkpoint_metadata(metadata: dict[str, Any], thing_ids: Iterable[int]) -> dict[str, Any]:
    """Return what a checkpoint stores about its classes, to be usable alone: names, colors, things."""
    kept = {key: [_plain(item) for item in metadata[key]] for key in SAVED_METADATA if key in metadata}
    return {**kept, "thing_ids": list(thing_ids)}


def _plain(item: Any) -> Any:
    return item if isinstance(item, str) else [int(channel) for channel in item]


def new_facts(cfg: Any, facts: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the facts that differ from the config, and log them.

    Raises:
        ValueError: a typed value contradicts one of them.
    """
    values, new = flatten(cfg), {}
    for key, fact in facts.items():
        value = values[key]
        if (type(fact)(value) if isinstance(fact, list | tuple) else value) == fact:
            continue
        if isinstance(cfg, CfgNode) and cfg.is_typed(key):
            raise ValueError(f"{key} was given as {value}, but {source} says {fact}")
        logger.info("%s: %s, as %s says, instead of %s", key, fact, source, value)
        new[key] = fact
    return new


def with_dataset_facts(cfg: Node) -> Node:
    """Return `cfg`, ours or Detectron2's, with the class count, ignore label and thing ids of its dataset.

    Raises:
        ValueError: a typed value contradicts the dataset.
    """
    facts, source = dataset_facts(dataset_metadata(cfg)), f"dataset '{''.join(dataset_names(cfg)[:1])}'"
    return with_values(cfg, new_facts(cfg, facts, source), source)
