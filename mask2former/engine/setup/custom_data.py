"""A custom dataset given by flags: its registration, and the config keys that follow from it.

Task, mapper, outputs and class count follow from the data, whatever the config was made for. The kind of
augmentation stays the config's: large-scale jitter, or else resizing by the shorter side and cropping.
"""

import json
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mask2former.config import CfgNode
from mask2former.data import DatasetCatalog, MetadataCatalog
from mask2former.data.custom.checks import check_areas
from mask2former.data.custom.dataset import CustomDataset, forget, register_as_found, register_custom_dataset
from mask2former.data.custom.instance_json import instance_json
from mask2former.data.errors import examples
from mask2former.data.load_context import LoadContext
from mask2former.data.records import Datasets
from mask2former.utils.atomic_files import atomic_write
from mask2former.utils.comm import barrier, is_main_process
from mask2former.utils.record_cache import read_once_per_machine

logger = logging.getLogger(__name__)

TRAIN, VAL = "custom_train", "custom_val"
OUTPUTS = {
    "semantic": ("SEMANTIC",),
    "instance": ("INSTANCE",),
    "panoptic": ("SEMANTIC", "INSTANCE", "PANOPTIC"),
}
MAPPER = "INPUT.DATASET_MAPPER_NAME"
LARGE_SCALE_JITTER = "_lsj"

Registered = tuple[CustomDataset | None, CustomDataset | None]  # to train on, and to test on


class DataFlags(NamedTuple):
    """The values of `--train-images` and so on."""

    train_images: str | None = None
    train_annotations: str | None = None
    val_images: str | None = None
    val_annotations: str | None = None
    classes: str | None = None
    crowds_as_objects: bool = False


NO_DATA = DataFlags()


def register_custom_data(flags: DataFlags, datasets: Datasets, *, eval_only: bool = False) -> Registered:
    """Register and check the data of the flags; both are None if there are no flags.

    Its records go to `datasets`, so that it is read once.

    Raises:
        ValueError: a flag lacks its counterpart.
        DatasetError: the data is broken.
    """
    _check_flags(flags, eval_only)
    for name in (TRAIN, VAL):
        forget(name)
    if flags == NO_DATA:
        return None, None

    def read() -> tuple[list[Any], Any]:
        found = _register(flags, datasets)
        return [], (found, {own.name: MetadataCatalog.get(own.name).as_dict() for own in found if own})

    disabled = logging.root.manager.disable
    # One process of each machine reads the data and finds the same: only the main process warns.
    logging.disable(disabled if is_main_process() else logging.WARNING)
    try:
        _, (found, facts) = read_once_per_machine(read)
        for own in filter(None, found):
            if own.name not in DatasetCatalog:
                register_as_found(own, facts[own.name])
    finally:
        logging.disable(disabled)
    return found


def check_registered(names: Sequence[str]) -> None:
    """Raise ValueError if a config, as one that continues a run, names data whose flags are missing."""
    for name in names:
        if name.startswith((TRAIN, VAL)) and name not in DatasetCatalog:
            raise ValueError(
                f"the config names '{name}', which is data given by flags: give --train-images, "
                "--train-annotations (and --val-images, --val-annotations, --classes) again"
            )


def custom_data_facts(cfg: CfgNode, data: CustomDataset) -> dict[str, Any]:
    """Return the keys that can have no other value: the mapper, and outputs that the data cannot train."""
    facts: dict[str, Any] = {}
    if cfg.INPUT.DATASET_MAPPER_NAME not in data.mappers:
        jitter = cfg.INPUT.DATASET_MAPPER_NAME.endswith(LARGE_SCALE_JITTER)
        same_kind = [name for name in data.mappers if name.endswith(LARGE_SCALE_JITTER) == jitter]
        facts[MAPPER] = (same_kind or data.mappers)[0]
    off = {"SEMANTIC", "INSTANCE", "PANOPTIC"} - set(_outputs(data))
    return {**facts, **{f"MODEL.MASK_FORMER.TEST.{output}_ON": False for output in sorted(off)}}


def custom_data_choices(cfg: CfgNode, data: CustomDataset) -> dict[str, Any]:
    """Return the keys that follow from the data unless they are typed: outputs, and crops for label maps."""
    choices: dict[str, Any] = {f"MODEL.MASK_FORMER.TEST.{output}_ON": True for output in _outputs(data)}
    keys = cfg.INPUT
    if data.task == "semantic" and keys.SIZE_DIVISIBILITY <= 0 and not keys.CROP.ENABLED:
        size = keys.IMAGE_SIZE  # of large-scale jitter, which label maps do not have
        choices |= {
            "INPUT.MIN_SIZE_TRAIN": (int(size * keys.MIN_SCALE), int(size * keys.MAX_SCALE)),
            "INPUT.MIN_SIZE_TRAIN_SAMPLING": "range",
            "INPUT.MAX_SIZE_TRAIN": int(4 * size * max(keys.MAX_SCALE, 1)),
            "INPUT.CROP.ENABLED": True,
            "INPUT.CROP.TYPE": "absolute",
            "INPUT.CROP.SIZE": [size, size],
            "INPUT.SIZE_DIVISIBILITY": size,
        }
    return choices


def write_instance_ground_truth(data: CustomDataset, output_dir: Path, datasets: Datasets) -> None:
    """Write the ground truth of AP as a COCO JSON to `output_dir`, and name it in the metadata."""
    target = output_dir / f"{data.name}_instances.json"
    metadata = MetadataCatalog.get(data.name)
    records = datasets.load(data.name).records
    if is_main_process():
        output_dir.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as file:
            file.write(json.dumps(instance_json(records, metadata)).encode())
        logger.info("AP of '%s' is measured on its objects in %s", data.name, target)
    barrier()
    metadata.json_file = str(target)


def _register(flags: DataFlags, datasets: Datasets) -> Registered:
    train, val = None, None
    context = LoadContext()
    register = partial(
        register_custom_dataset,
        classes=flags.classes,
        crowds_as_objects=flags.crowds_as_objects,
        datasets=datasets,
        context=context,
    )
    if flags.train_images and flags.train_annotations:
        train = register(TRAIN, flags.train_images, flags.train_annotations)
    if flags.val_images and flags.val_annotations:
        val = register(VAL, flags.val_images, flags.val_annotations, train_dataset=train)
        if val.has_instance_json:
            check_areas(flags.val_annotations, context)
    for data in filter(None, (train, val)):
        things = f", {len(data.thing_ids)} of them things" if data.task == "panoptic" else ""
        logger.info(
            "'%s': %s data, %d images, %d classes%s: %s",
            *(data.name, data.task, len(data.images), len(data.classes), things, examples(data.classes, 20)),
        )
    if val is None:
        logger.info("without --val-images and --val-annotations nothing is evaluated")
    return train, val


def _check_flags(flags: DataFlags, eval_only: bool) -> None:
    for split in ("train", "val"):
        parts = [f"{split}_images", f"{split}_annotations"]
        absent = [part for part in parts if not getattr(flags, part)]
        if len(absent) == 1:
            both = " and ".join(f"--{part.replace('_', '-')}" for part in parts)
            raise ValueError(f"{both} belong together; --{absent[0].replace('_', '-')} is missing")
    if eval_only and flags.train_images and not flags.val_images:
        raise ValueError("--eval-only needs data to test on: --val-images and --val-annotations")
    if flags.val_images and not flags.train_images and not eval_only:
        raise ValueError("--val-images needs --train-images: classes must be the same in both")
    if flags.crowds_as_objects and not (flags.train_images or flags.val_images):
        raise ValueError("--crowds-as-objects belongs to --train-images or --val-images, which are missing")
    if flags.classes and not (flags.train_images or flags.val_images):
        raise ValueError("--classes belongs to --train-images and --train-annotations, which are missing")


def _outputs(data: CustomDataset) -> list[str]:
    """Return the outputs that the data can train; without things there are no instances."""
    return [output for output in OUTPUTS[data.task] if output != "INSTANCE" or data.thing_ids]
