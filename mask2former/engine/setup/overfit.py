"""`--overfit N`: a few images are both training and test set, as a check that learning works at all.

The images become a dataset of their own, `<name>_overfit_<N>`, whose ground truth is that of the first
training
dataset cut down to them. Nothing is augmented, training and test show an image at the same size, and the
schedule is short.
"""

import json
import logging
from collections.abc import Collection, Container
from itertools import islice
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from mask2former.data import DatasetCatalog, DatasetError, MetadataCatalog
from mask2former.data.augmentation import large_scale_jitter
from mask2former.data.catalog import Metadata, Record
from mask2former.data.mapper import MAPPERS
from mask2former.data.records import Datasets
from mask2former.engine.checkpoint.remote import output_folder
from mask2former.engine.setup.schedule import set_max_iter
from mask2former.utils.atomic_files import atomic_write
from mask2former.utils.comm import barrier, is_main_process, world_size
from mask2former.utils.storage import to_path

logger = logging.getLogger(__name__)

STEPS = 500
FOLDER = "overfit"  # below OUTPUT_DIR
TRUTH_FILES = ("json_file", "panoptic_json")  # metadata that names a JSON of COCO's kind
UNCHANGED: dict[str, Any] = {  # keys by which an image comes as it is
    "INPUT.RANDOM_FLIP": "none",
    "INPUT.CROP.ENABLED": False,
    "INPUT.COLOR_AUG_SSD": False,
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
    "A healthy run: total_loss falls to a fraction of what it was, and at the end the scores on these very "
    "images are far above those of any real test, mIoU and PQ towards 100. If the loss falls and scores "
    "stay low, images, annotations and classes do not fit together (VIS_PERIOD draws them). If the loss "
    "stays, look at SOLVER.BASE_LR and MODEL.WEIGHTS, and give SOLVER.MAX_ITER more steps"
)


def apply_overfit(
    cfg: CfgNode, number: int, typed_keys: Collection[str] = (), datasets: Datasets | None = None
) -> None:
    """Make `cfg` train on the first `number` annotated images of DATASETS.TRAIN, and test on them.

    Typed keys stay as typed. The derived dataset is registered; its ground truth is written below OUTPUT_DIR.

    Raises:
        ValueError: no image is asked for.
        DatasetError: there is no training dataset, or it cannot be read or has no annotated image.
    """
    if number < 1:
        raise ValueError(f"--overfit is {number}; it takes a number of images, at least 1")
    if not cfg.DATASETS.TRAIN:
        raise DatasetError("--overfit needs a dataset: DATASETS.TRAIN is empty")
    source = cfg.DATASETS.TRAIN[0]
    loaded = (datasets or Datasets()).load(source)
    records = [*islice(filter(shows_objects, loaded.records), number)]
    if not records:
        raise DatasetError(f"nothing to overfit on: no image of '{source}' has annotations")
    name = f"{source}_overfit_{number}"
    _register(name, records, loaded.metadata, output_folder(cfg) / FOLDER)
    settings = {**UNCHANGED, **_sizes(cfg), **_batch(cfg, len(records))}
    settings |= {"DATASETS.TRAIN": (name,), "DATASETS.TEST": (name,)}
    kept = set(typed_keys) - {"DATASETS.TRAIN", "DATASETS.TEST"}
    cfg.merge_from_list([part for key, value in settings.items() if key not in kept for part in (key, value)])
    _shorten(cfg.SOLVER, kept)
    logger.info("overfitting on %d images of '%s', tested on the same. %s", len(records), source, HEALTHY)


def shows_objects(record: Record) -> bool:
    """Whether there is something to learn from the image, as far as the record itself tells."""
    objects = record.get("annotations", record.get("segments_info"))
    return objects is None or any(not item.get("iscrowd", 0) for item in objects)


def _register(name: str, records: list[Record], source: Metadata, folder: Path) -> None:
    """Make `records` known as `name`, with the facts about the dataset they come from."""
    facts = {key: value for key, value in source.as_dict().items() if key != "name"}
    ids = {record.get("image_id") for record in records}
    for key in TRUTH_FILES:
        if to_path(facts.get(key) or "").is_file():
            facts[key] = _cut_down(facts[key], ids, folder / f"{key}.json")
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(**facts)


def _cut_down(file: str, image_ids: Container[Any], target: Path) -> str:
    """Write to `target` what a ground truth in COCO's format says of some images; its path."""
    if is_main_process():
        content = json.loads(to_path(file).read_text(encoding="utf-8"))
        for rows, key in (("images", "id"), ("annotations", "image_id")):
            if rows in content:
                content[rows] = [row for row in content[rows] if row[key] in image_ids]
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as stream:
            stream.write(json.dumps(content).encode())
    barrier()
    return str(target)


def _sizes(cfg: CfgNode) -> dict[str, Any]:
    """The keys by which training shows whole images as large as its crops were, and testing the same."""
    given = cfg.INPUT
    _, augmentations = MAPPERS.get(given.DATASET_MAPPER_NAME, (None, None))
    if augmentations is large_scale_jitter:  # it fits images into a square
        return {"INPUT.MIN_SIZE_TEST": given.IMAGE_SIZE, "INPUT.MAX_SIZE_TEST": given.IMAGE_SIZE}
    crop = min(given.CROP.SIZE) if given.CROP.ENABLED and given.CROP.TYPE == "absolute" else None
    edge = min(given.MIN_SIZE_TEST, crop or given.MIN_SIZE_TEST)
    return {
        "INPUT.MIN_SIZE_TRAIN": (edge,),
        "INPUT.MIN_SIZE_TEST": edge,
        "INPUT.MAX_SIZE_TRAIN": given.MAX_SIZE_TEST,
    }


def _batch(cfg: CfgNode, images: int) -> dict[str, Any]:
    """The keys by which no step shows an image twice, where there are images enough."""
    processes = world_size()
    batch = max(processes, min(cfg.SOLVER.IMS_PER_BATCH, images) // processes * processes)
    return {
        "SOLVER.IMS_PER_BATCH": batch,
        "SOLVER.REFERENCE_BATCH": 0,
        "SOLVER.ACCUMULATION_STEPS": min(cfg.SOLVER.ACCUMULATION_STEPS, batch // processes),
    }


def _shorten(solver: CfgNode, typed_keys: Collection[str]) -> None:
    """A schedule of some hundred steps, unless the user typed one."""
    if "SOLVER.EPOCHS" not in typed_keys:
        solver.EPOCHS = 0.0
        if "SOLVER.MAX_ITER" not in typed_keys:
            set_max_iter(solver, STEPS, scale_steps="SOLVER.STEPS" not in typed_keys)
    if "SOLVER.WARMUP_ITERS" not in typed_keys:
        solver.WARMUP_ITERS = min(solver.WARMUP_ITERS, solver.MAX_ITER // 10)
