"""From a config to a model on its device, with the facts that belong to the dataset taken from the dataset.

Class count, ignore label and thing ids stand in the metadata of the first training dataset (else of the first
test dataset). A config file's value yields to them; a conflicting value that the user typed is an error.
"""

import logging
from collections.abc import Collection, Mapping
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn

from mask2former.data import DatasetCatalog, MetadataCatalog
from mask2former.distributed import world_size
from mask2former.engine.weight_files import Checkpoint
from mask2former.modeling import mask_former  # noqa: F401  (registers the model and all its parts)
from mask2former.registry import META_ARCH, find_builder

logger = logging.getLogger(__name__)

NUM_CLASSES = "MODEL.SEM_SEG_HEAD.NUM_CLASSES"
IGNORE_VALUE = "MODEL.SEM_SEG_HEAD.IGNORE_VALUE"
THING_IDS = "MODEL.MASK_FORMER.THING_IDS"
INSTANCE_EVALUATORS = ("coco", "lvis", "cityscapes_instance")  # datasets whose classes are their things alone
SAVED_METADATA = ("thing_classes", "thing_colors", "stuff_classes", "stuff_colors")


def resolve_device(name: str) -> torch.device:
    """The device that MODEL.DEVICE asks for; "auto" is a GPU if there is one, else the CPU.

    Raises:
        ValueError: not a device, or one that this machine lacks.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"MODEL.DEVICE is '{name}', which is no device: {error}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"MODEL.DEVICE is '{name}', but this machine has {torch.cuda.device_count()} GPUs")
    return device


def launched_device(name: str, launched_on: str, num_gpus: int | None) -> str:
    """MODEL.DEVICE for a process that was launched on "cuda" or "cpu"; `name` is what the config says.

    A process for the CPU computes there. One on a GPU may be told to compute on the CPU, unless `num_gpus`,
    of --num-gpus, asks for GPUs, or there are several, which talk to each other through their GPUs.

    Raises:
        ValueError: the two contradict each other, or as `resolve_device`.
    """
    wanted = resolve_device(name).type
    if launched_on == "cuda" and wanted == "cpu" and (num_gpus or world_size() > 1):
        flag = f"--num-gpus {num_gpus}" if num_gpus else "the processes were launched on GPUs"
        raise ValueError(
            f"{flag}, but MODEL.DEVICE is '{name}': for processes on the CPU give --num-processes"
        )
    return "cpu" if launched_on == "cpu" and wanted == "cuda" else name


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


def apply_dataset_facts(cfg: CfgNode, typed_keys: Collection[str] = ()) -> None:
    """Write into `cfg` what the dataset knows better; `typed_keys` are those that the user typed.

    Raises:
        ValueError: a typed value contradicts the dataset.
    """
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
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
    """What a checkpoint must know about its classes to be enough alone: names, colours, things."""
    metadata = dataset_metadata(cfg)
    kept = {key: [_plain(item) for item in metadata[key]] for key in SAVED_METADATA if key in metadata}
    return {**kept, "thing_ids": list(cfg.MODEL.MASK_FORMER.THING_IDS)}


def _plain(item: Any) -> Any:
    return item if isinstance(item, str) else [int(channel) for channel in item]


def build_model(cfg: CfgNode) -> nn.Module:
    """The model that `cfg` describes, with fresh weights, on MODEL.DEVICE.

    Raises:
        ValueError: MODEL.META_ARCHITECTURE or a part is not registered, or the device is not there.
    """
    cfg = cfg.clone()
    cfg.defrost()
    apply_dataset_facts(cfg)
    if cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON and not cfg.MODEL.MASK_FORMER.THING_IDS:
        logger.warning(
            "%s is empty: panoptic results take every class for stuff, none has instances", THING_IDS
        )
    build = find_builder(META_ARCH, cfg.MODEL.META_ARCHITECTURE, "MODEL.META_ARCHITECTURE")
    return build(cfg).to(resolve_device(cfg.MODEL.DEVICE))
