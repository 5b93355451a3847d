"""Data given by flags: a config that trains on it and tests on it, whatever the config was made for.

Task, mapper, outputs and class count follow from the data. Augmentation stays of the config's family:
large-scale jitter where that is on, else resizing by the shorter side and cropping.
"""

import json
import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fvcore.common.config import CfgNode

from mask2former.data import DatasetCatalog, MetadataCatalog
from mask2former.data.custom.checks import check_areas
from mask2former.data.custom.dataset import CustomDataset, forget, register_as_found, register_custom_dataset
from mask2former.data.custom.instance_json import instance_json
from mask2former.data.load_context import LoadContext
from mask2former.data.records import Datasets
from mask2former.engine.checkpoint.remote import output_folder
from mask2former.engine.setup.dataset_facts import overrule
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


class Given(NamedTuple):
    """What the flags say, `--train-images` and so on."""

    train_images: str | None = None
    train_annotations: str | None = None
    val_images: str | None = None
    val_annotations: str | None = None
    classes: str | None = None


def apply_custom_data(
    cfg: CfgNode,
    given: Given,
    typed_keys: Collection[str] = (),
    *,
    test_only: bool = False,
    datasets: Datasets | None = None,
) -> None:
    """Register the data and write into `cfg` what follows from it; `typed_keys` are those the user typed.

    Raises:
        ValueError: flags without their counterparts; a typed value contradicts the data; or the config names
            data that was given by flags in another run.
        DatasetError: the data is broken.
    """
    _check_flags(given, test_only)
    for name in (TRAIN, VAL):
        forget(name)
    if given == Given():
        _check_names(cfg)
        return
    datasets = datasets or Datasets()
    with _told_once():
        train, val = _register_everywhere(given, datasets)
    own = train or val
    assert own is not None
    for key, name, data, flag in (
        ("DATASETS.TRAIN", TRAIN, train, "--train-images"),
        ("DATASETS.TEST", VAL, val, "--val-images"),
    ):
        overrule(cfg, {key: (name,) if data else ()}, typed_keys, flag if data else f"the lack of {flag}")
    source = f"dataset '{own.name}'"
    overrule(cfg, _facts(cfg, own), typed_keys, source)
    choices = {key: value for key, value in _choices(cfg, own).items() if key not in typed_keys}
    overrule(cfg, choices, (), source)
    if val and val.task == "panoptic" and val.thing_ids and cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON:
        _measure_instances(val, output_folder(cfg), datasets)


@contextmanager
def _told_once() -> Iterator[None]:
    """A process of each machine looks at the data; within this the first alone tells what it found."""
    before = logging.root.manager.disable
    logging.disable(before if is_main_process() else logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _register_everywhere(
    given: Given, datasets: Datasets
) -> tuple[CustomDataset | None, CustomDataset | None]:
    """`_register` in one process of each machine, and in the others what that one found out."""

    def look() -> tuple[list[Any], Any]:
        found = _register(given, datasets)
        return [], (found, {own.name: MetadataCatalog.get(own.name).as_dict() for own in found if own})

    _, (found, facts) = read_once_per_machine(look)
    for own in filter(None, found):
        if own.name not in DatasetCatalog:
            register_as_found(own, facts[own.name])
    return found


def _register(given: Given, datasets: Datasets) -> tuple[CustomDataset | None, CustomDataset | None]:
    """The data to train on and to test on, registered and checked."""
    context, train, val = LoadContext(), None, None
    if given.train_images and given.train_annotations:
        paths = given.train_images, given.train_annotations
        train = register_custom_dataset(TRAIN, *paths, given.classes, datasets=datasets, context=context)
    if given.val_images and given.val_annotations:
        paths = given.val_images, given.val_annotations
        val = register_custom_dataset(
            VAL, *paths, given.classes, train_dataset=train, datasets=datasets, context=context
        )
        if val.task == "instance":
            check_areas(given.val_annotations, context)
    _log(train, val)
    return train, val


def _check_flags(given: Given, test_only: bool) -> None:
    for split in ("train", "val"):
        parts = [f"{split}_images", f"{split}_annotations"]
        absent = [part for part in parts if not getattr(given, part)]
        if len(absent) == 1:
            both = " and ".join(f"--{part.replace('_', '-')}" for part in parts)
            raise ValueError(f"{both} belong together; --{absent[0].replace('_', '-')} is missing")
    if test_only and given.train_images and not given.val_images:
        raise ValueError("--eval-only needs data to test on: --val-images and --val-annotations")
    if given.val_images and not given.train_images and not test_only:
        raise ValueError("--val-images needs --train-images: classes must be the same in both")
    if given.classes and not (given.train_images or given.val_images):
        raise ValueError("--classes belongs to --train-images and --train-annotations, which are missing")


def _check_names(cfg: CfgNode) -> None:
    """Tell somebody who continues a run, with its config, what else is needed."""
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        if name.startswith((TRAIN, VAL)) and name not in DatasetCatalog:
            raise ValueError(
                f"the config names '{name}', which is data given by flags: give --train-images, "
                "--train-annotations (and --val-images, --val-annotations, --classes) again"
            )


def _log(train: CustomDataset | None, val: CustomDataset | None) -> None:
    for own in filter(None, (train, val)):
        things = f", {len(own.thing_ids)} of them things" if own.task == "panoptic" else ""
        logger.info(
            "'%s': %s data, %d images, %d classes%s: %s",
            *(own.name, own.task, len(own.images), len(own.classes), things, ", ".join(own.classes)),
        )
    if val is None:
        logger.info("without --val-images and --val-annotations nothing is evaluated")


def _facts(cfg: CfgNode, own: CustomDataset) -> dict[str, Any]:
    """Keys that cannot have another value: how annotations are read, and outputs that they cannot teach."""
    facts: dict[str, Any] = {}
    if cfg.INPUT.DATASET_MAPPER_NAME not in own.mappers:
        facts[MAPPER] = _mapper(cfg, own)
    off = {"SEMANTIC", "INSTANCE", "PANOPTIC"} - set(_outputs(own))
    return {**facts, **{f"MODEL.MASK_FORMER.TEST.{output}_ON": False for output in sorted(off)}}


def _mapper(cfg: CfgNode, own: CustomDataset) -> str:
    """The mapper of the config's family, where there is one."""
    jitter = cfg.INPUT.DATASET_MAPPER_NAME.endswith(LARGE_SCALE_JITTER)
    matching = [name for name in own.mappers if name.endswith(LARGE_SCALE_JITTER) == jitter]
    return (matching or own.mappers)[0]


def _outputs(own: CustomDataset) -> list[str]:
    """The outputs that the data teaches; none of instances where there are no things."""
    return [output for output in OUTPUTS[own.task] if output != "INSTANCE" or own.thing_ids]


def _choices(cfg: CfgNode, own: CustomDataset) -> dict[str, Any]:
    """Keys that follow from the data unless somebody typed them."""
    outputs = {f"MODEL.MASK_FORMER.TEST.{output}_ON": True for output in _outputs(own)}
    crops = cfg.INPUT.SIZE_DIVISIBILITY > 0 or cfg.INPUT.CROP.ENABLED
    return outputs if own.task != "semantic" or crops else {**outputs, **_jitter_by_crops(cfg)}


def _jitter_by_crops(cfg: CfgNode) -> dict[str, Any]:
    """Large-scale jitter, of which there is none for label maps, as resizing and cropping of such sizes."""
    size = cfg.INPUT.IMAGE_SIZE
    return {
        "INPUT.MIN_SIZE_TRAIN": (int(size * cfg.INPUT.MIN_SCALE), int(size * cfg.INPUT.MAX_SCALE)),
        "INPUT.MIN_SIZE_TRAIN_SAMPLING": "range",
        "INPUT.MAX_SIZE_TRAIN": int(4 * size * max(cfg.INPUT.MAX_SCALE, 1)),
        "INPUT.CROP.ENABLED": True,
        "INPUT.CROP.TYPE": "absolute",
        "INPUT.CROP.SIZE": [size, size],
        "INPUT.SIZE_DIVISIBILITY": size,
    }


def _measure_instances(val: CustomDataset, output_dir: Path, datasets: Datasets) -> None:
    """Give panoptic data to test on the ground truth that AP is measured against; it is written to
    `output_dir`.
    """
    target = output_dir / f"{val.name}_instances.json"
    metadata = MetadataCatalog.get(val.name)
    records = datasets.load(val.name).records
    if is_main_process():
        output_dir.mkdir(parents=True, exist_ok=True)
        content = instance_json(records, metadata)
        with atomic_write(target) as file:
            file.write(json.dumps(content).encode())
        logger.info("AP of '%s' is measured against its panoptic PNGs' things, in %s", val.name, target)
    barrier()
    metadata.json_file = str(target)
