"""`--overfit N`: a few images are both training and test set, to check that the model learns at all.

The images become the dataset `<name>_overfit_<N>`, with the ground truth of the first training dataset for
these images. Nothing is augmented, training and test show an image at the same size, and the schedule is
short.
"""

import json
import logging
from collections.abc import Container
from itertools import islice
from pathlib import Path
from typing import Any

from mask2former.config import CfgNode
from mask2former.data import DatasetCatalog, DatasetError, MetadataCatalog
from mask2former.data.augmentation_recipes import large_scale_jitter
from mask2former.data.catalog import Record
from mask2former.data.datasets.files import load_json
from mask2former.data.mapper import MAPPERS
from mask2former.data.records import Datasets, record_annotations
from mask2former.engine.setup.schedule import EPOCHS, MAX_ITER, scaled_steps
from mask2former.utils.atomic_files import atomic_write
from mask2former.utils.comm import barrier, is_main_process
from mask2former.utils.storage import to_path

logger = logging.getLogger(__name__)

MAX_STEPS = 500
JSON_FACTS = ("json_file", "panoptic_json")  # metadata that names a JSON in COCO's format
UNCHANGED: dict[str, Any] = {  # keys that switch off augmentation and anything periodic
    "INPUT.RANDOM_FLIP": "none",
    "INPUT.CROP.ENABLED": False,
    "INPUT.COLOR_AUG_SSD": False,
    "INPUT.COPY_PASTE.PROBABILITY": 0.0,
    "INPUT.AUGMENTATIONS": [],
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
    "INPUT.SIZE_DIVISIBILITY": -1,
    "INPUT.MIN_SCALE": 1.0,
    "INPUT.MAX_SCALE": 1.0,
    "DATALOADER.SAMPLER_TRAIN": "TrainingSampler",
    "TEST.AUG.ENABLED": False,
    "TEST.EVAL_PERIOD": 0,
    "TEST.EXPECTED_RESULTS": [],
}
HEALTHY = (
    "A healthy run: total_loss falls to a small fraction of its first value, and at the end the scores on "
    "these same images are far above those of any real test, with mIoU and PQ near 100. If the loss falls "
    "but scores stay low, images, annotations and classes do not fit together (VIS_PERIOD draws them). If "
    "the loss does not fall, check SOLVER.BASE_LR and MODEL.WEIGHTS, and increase SOLVER.MAX_ITER"
)


def register_overfit(source: str, number: int, folder: Path, datasets: Datasets) -> tuple[str, int]:
    """Register the first `number` annotated images of `source`; return the new dataset's name and size.

    Its ground truth is written to `folder`.

    Raises:
        ValueError: `number` is not positive.
        DatasetError: the dataset cannot be read or has no annotated image.
    """
    if number < 1:
        raise ValueError(f"--overfit is {number}; it takes a number of images, at least 1")
    loaded = datasets.load(source)
    records = [*islice(filter(has_ground_truth, loaded.records), number)]
    if not records:
        raise DatasetError(f"nothing to overfit on: no image of '{source}' has annotations")
    name = f"{source}_overfit_{number}"
    facts = {key: value for key, value in loaded.metadata.as_dict().items() if key != "name"}
    for key in JSON_FACTS:
        if to_path(facts.get(key) or "").is_file():
            ids = {record.get("image_id", record.get("video_id")) for record in records}
            facts[key] = _write_subset(facts[key], ids, folder / f"{key}.json")
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(**facts)
    logger.info("overfitting on %d images of '%s', tested on the same. %s", len(records), source, HEALTHY)
    return name, len(records)


def overfit_choices(cfg: CfgNode, images: int, processes: int) -> dict[str, Any]:
    """Return the keys for training on so few images, unless they are typed: sizes, batch and schedule."""
    choices = {**UNCHANGED, **_sizes(cfg)}
    batch = max(processes, min(cfg.SOLVER.IMS_PER_BATCH, images) // processes * processes)
    choices["SOLVER.IMS_PER_BATCH"] = batch  # no step shows an image twice, if there are enough images
    if cfg.SOLVER.ACCUMULATION_STEPS != "auto":
        choices["SOLVER.ACCUMULATION_STEPS"] = min(cfg.SOLVER.ACCUMULATION_STEPS, batch // processes)
    if not cfg.is_typed(EPOCHS):
        choices[EPOCHS] = 0.0
        choices |= {} if cfg.is_typed(MAX_ITER) else scaled_steps(cfg.SOLVER, MAX_STEPS)
    steps = choices.get(MAX_ITER, cfg.SOLVER.MAX_ITER)
    for key in ("WARMUP_ITERS", "VIT_WARMUP_ITERS"):
        choices[f"SOLVER.{key}"] = min(cfg.SOLVER[key], steps // 10)
    return choices


def has_ground_truth(record: Record) -> bool:
    """Return True if the image has something to learn from, judged by its record alone."""
    if record.get("annotations", record.get("segments_info")) is None:
        return True
    objects = record_annotations(record) or record.get("segments_info") or ()
    return any(not item.get("iscrowd", 0) for item in objects)


def _write_subset(file: str, ids: Container[Any], target: Path) -> str:
    """Write the entries of some images or videos of a ground-truth file; return the new path."""
    if is_main_process():
        content = load_json(file)
        subject = "video" if "videos" in content else "image"
        for rows, key in ((f"{subject}s", "id"), ("annotations", f"{subject}_id")):
            if content.get(rows) is not None:
                content[rows] = [row for row in content[rows] if row[key] in ids]
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as stream:
            stream.write(json.dumps(content).encode())
    barrier()
    return str(target)


def _sizes(cfg: CfgNode) -> dict[str, Any]:
    """Return the keys by which training and test show whole images, at the size of training's crops."""
    keys = cfg.INPUT
    recipe = MAPPERS.get(keys.DATASET_MAPPER_NAME)
    if recipe and recipe.augmentations is large_scale_jitter:  # it fits images into a square
        return {"INPUT.MIN_SIZE_TEST": keys.IMAGE_SIZE, "INPUT.MAX_SIZE_TEST": keys.IMAGE_SIZE}
    crop = min(keys.CROP.SIZE) if keys.CROP.ENABLED and keys.CROP.TYPE == "absolute" else None
    edge = min(keys.MIN_SIZE_TEST, crop or keys.MIN_SIZE_TEST)
    return {
        "INPUT.MIN_SIZE_TRAIN": (edge,),
        "INPUT.MIN_SIZE_TEST": edge,
        "INPUT.MAX_SIZE_TRAIN": keys.MAX_SIZE_TEST,
    }
