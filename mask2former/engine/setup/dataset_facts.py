"""Facts that belong to the dataset: class count, ignore label, thing ids, class names."""

import logging
from collections.abc import Collection, Mapping
from typing import Any

from fvcore.common.config import CfgNode

from mask2former.data import DatasetCatalog, MetadataCatalog
from mask2former.data.records import Datasets
from mask2former.weights.read import Checkpoint

logger = logging.getLogger(__name__)

NUM_CLASSES = "MODEL.SEM_SEG_HEAD.NUM_CLASSES"
IGNORE_VALUE = "MODEL.SEM_SEG_HEAD.IGNORE_VALUE"
THING_IDS = "MODEL.MASK_FORMER.THING_IDS"
INSTANCE_EVALUATORS = ("coco", "lvis", "cityscapes_instance")  # datasets whose classes are their things alone
SAVED_METADATA = ("thing_classes", "thing_colors", "stuff_classes", "stuff_colors")


def dataset_metadata(cfg: CfgNode) -> dict[str, Any]:
    """All facts about the dataset that the model is for; nothing where no such dataset is registered."""
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    if not names or names[0] not in DatasetCatalog:
        return {}
    metadata = MetadataCatalog.get(names[0])
    if "thing_classes" not in metadata.as_dict() and "stuff_classes" not in metadata.as_dict():
        DatasetCatalog.get(names[0])  # a user's COCO file tells its classes only when it is read
    return metadata.as_dict()


def class_names(metadata: dict[str, Any]) -> list[str]:
    """The names of the classes that the model tells apart; none where the dataset does not tell them."""
    things_only = metadata.get("evaluator_type") in INSTANCE_EVALUATORS or "stuff_classes" not in metadata
    return list(metadata.get("thing_classes" if things_only else "stuff_classes", ()))


def dataset_facts(metadata: dict[str, Any]) -> dict[str, Any]:
    """The config keys that `metadata` decides, with their values."""
    facts: dict[str, Any] = {}
    if names := class_names(metadata):
        facts[NUM_CLASSES] = len(names)
    if "ignore_label" in metadata:
        facts[IGNORE_VALUE] = metadata["ignore_label"]
    if "thing_dataset_id_to_contiguous_id" in metadata:
        facts[THING_IDS] = sorted(set(metadata["thing_dataset_id_to_contiguous_id"].values()))
    return facts


def apply_dataset_facts(
    cfg: CfgNode, typed_keys: Collection[str] = (), datasets: Datasets | None = None
) -> None:
    """Write into `cfg` what the dataset knows better; `typed_keys` are those that the user typed.

    With `datasets` the dataset is read first, once per machine, and its metadata reaches all processes.

    Raises:
        ValueError: a typed value contradicts the dataset.
    """
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    if datasets is not None and names and names[0] in DatasetCatalog:
        datasets.load(names[0])
    if facts := dataset_facts(dataset_metadata(cfg)):
        overrule(cfg, facts, typed_keys, f"dataset '{names[0]}'")


def overrule(cfg: CfgNode, facts: Mapping[str, Any], typed_keys: Collection[str], source: str) -> None:
    """Write into `cfg` what `source` knows better, and log it.

    Raises:
        ValueError: one of `typed_keys`, which the user typed, contradicts it.
    """
    for key, fact in facts.items():
        *sections, name = key.split(".")
        node = cfg
        for section in sections:
            node = node[section]
        value = node[name]
        if (type(fact)(value) if isinstance(fact, list | tuple) else value) == fact:
            continue
        if key in typed_keys:
            raise ValueError(f"{key} was given as {value}, but {source} says {fact}")
        logger.info("%s: %s, as %s says, instead of %s", key, fact, source, value)
        node[name] = fact


def warn_of_other_classes(cfg: CfgNode, checkpoint: Checkpoint) -> None:
    """Warn where a checkpoint names as many classes as the dataset has, but others: its head is kept."""
    names, known = class_names(dataset_metadata(cfg)), class_names(checkpoint.metadata or {})
    if names and len(known) == len(names) and known != names:
        pairs = [f"'{old}' -> '{new}'" for old, new in zip(known, names, strict=True) if old != new]
        logger.warning(
            "%s was trained on as many, but other classes: its class head is kept, although %s%s",
            *(checkpoint.file, ", ".join(pairs[:3]), ", ..." if len(pairs) > 3 else ""),
        )


def checkpoint_metadata(cfg: CfgNode) -> dict[str, Any]:
    """What a checkpoint must know about its classes to be enough alone: names, colors, things."""
    metadata = dataset_metadata(cfg)
    kept = {key: [_plain(item) for item in metadata[key]] for key in SAVED_METADATA if key in metadata}
    return {**kept, "thing_ids": list(cfg.MODEL.MASK_FORMER.THING_IDS)}


def _plain(item: Any) -> Any:
    return item if isinstance(item, str) else [int(channel) for channel in item]
