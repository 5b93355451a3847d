"""Folders of transformers that do not say which classes are things: a known dataset says it by its labels.

They also lack thresholds, tasks and a size rule that keeps the shape of images. Those are taken from the
published config for the dataset.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

from mask2former.config import load_config, with_values
from mask2former.config.yaml_files import parse_yaml
from mask2former.engine.setup.dataset_facts import (
    checkpoint_metadata,
    class_names,
    dataset_metadata,
    with_dataset_facts,
)
from mask2former.weights.hub.folder import saved_files
from mask2former.weights.hub.processor import fixed_side
from mask2former.weights.read import Checkpoint

logger = logging.getLogger(__name__)

KNOWN = (  # the config of each dataset; one for panoptic segmentation also turns on the other tasks
    "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml",
    "coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml",
    "ade20k/panoptic-segmentation/maskformer2_R50_bs16_160k.yaml",
    "ade20k/instance-segmentation/maskformer2_R50_bs16_160k.yaml",
    "cityscapes/panoptic-segmentation/maskformer2_R50_bs16_90k.yaml",
    "cityscapes/instance-segmentation/maskformer2_R50_bs16_90k.yaml",
    "mapillary-vistas/panoptic-segmentation/maskformer_R50_bs16_300k.yaml",
)
UNKNOWN = "_base_/models/maskformer2.yaml"
SAME_NAMES = 0.8  # share of the classes whose names are equal: some have other names on the hub


def lacks_things(checkpoint: Checkpoint) -> bool:
    """Return True for a folder of transformers that does not say which classes are things."""
    config, _ = saved_files(checkpoint)
    return bool(config) and "thing_ids" not in (checkpoint.metadata or {})


def with_known_classes(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint with the things, colors, tasks and thresholds of the dataset that its labels name.

    Labels of no known dataset leave it for semantic segmentation, and it still `lacks_things`. One that does
    not lack them is returned as it is.
    """
    if not lacks_things(checkpoint) or checkpoint.config is None:
        return checkpoint
    values = parse_yaml(checkpoint.config, checkpoint.file)
    labels = class_names(checkpoint.metadata or {})
    known = next((name for name in KNOWN if _are_same(labels, _classes(name))), None)
    metadata = checkpoint.metadata
    if known is None:
        side = fixed_side(saved_files(checkpoint)[1])
        values |= {"INPUT.MIN_SIZE_TEST": side} if side else {}
        cfg = load_config(UNKNOWN)
    else:
        cfg = with_dataset_facts(load_config(known))
        metadata = checkpoint_metadata(dataset_metadata(cfg), cfg.MODEL.MASK_FORMER.THING_IDS)
        logger.info("%s: things, tasks and thresholds are those of %s, by its labels", checkpoint.file, known)
    return replace(checkpoint, config=with_values(cfg, values, checkpoint.file).dump(), metadata=metadata)


def _classes(config: str) -> list[str]:
    return class_names(dataset_metadata(load_config(config)))


def _are_same(labels: Sequence[str], classes: Sequence[str]) -> bool:
    """Return True for names of the same classes: as many, most of them equal up to their first comma."""
    if len(labels) != len(classes):
        return False
    return sum(_first(a) == _first(b) for a, b in zip(labels, classes, strict=True)) >= SAME_NAMES * len(
        labels
    )


def _first(name: str) -> str:
    return name.split(",")[0].strip().lower()
