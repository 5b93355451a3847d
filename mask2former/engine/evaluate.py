"""Measuring a model on the datasets of DATASETS.TEST, and which metrics each dataset has.

The table is Detectron2's: a dataset's `evaluator_type` and the outputs that are on decide.
"""

import inspect
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, cast

from fvcore.common.config import CfgNode
from torch import nn

from mask2former.data import MetadataCatalog
from mask2former.data.catalog import Metadata
from mask2former.data.datasets.files import require_path
from mask2former.data.loader import Loader, Samples, build_test_loader
from mask2former.data.records import Datasets
from mask2former.engine.build import build_model
from mask2former.engine.checkpoint.sharded import PATH, load_tensors
from mask2former.engine.hooks.standard import flatten_results
from mask2former.engine.logger import RESULT
from mask2former.engine.setup.begin import Run
from mask2former.engine.setup.dataset_facts import dataset_metadata, warn_of_other_classes
from mask2former.engine.setup.expected_results import expected_results
from mask2former.engine.setup.precision import apply_precision, images_for_precision
from mask2former.engine.tta import AugmentedModel, check_augmentation
from mask2former.evaluation.cityscapes.ap import CityscapesInstanceEvaluator
from mask2former.evaluation.cityscapes.iou import CityscapesSemSegEvaluator
from mask2former.evaluation.coco.ap import COCOEvaluator, LVISEvaluator
from mask2former.evaluation.common.report import metrics_table
from mask2former.evaluation.evaluator import DatasetEvaluators, Results, inference_on_dataset
from mask2former.evaluation.panoptic.quality import COCOPanopticEvaluator
from mask2former.evaluation.semantic.miou import SemSegEvaluator
from mask2former.evaluation.video.ap import YTVISEvaluator
from mask2former.modeling.mask_former import MaskFormer
from mask2former.modeling.postprocessing.inference import TASKS
from mask2former.tiling.model import TiledModel, check_tiling
from mask2former.utils.comm import is_main_process
from mask2former.utils.messages import Block
from mask2former.weights.load import load_weights, read_checkpoint, restore_weights

logger = logging.getLogger(__name__)

ALL_TASKS: dict[str, type] = {
    "semantic": SemSegEvaluator,
    "instance": COCOEvaluator,
    "panoptic": COCOPanopticEvaluator,
}
EVALUATORS: dict[str, dict[str, type]] = {
    "coco": {"instance": COCOEvaluator},
    "sem_seg": {"semantic": SemSegEvaluator},
    "lvis": {"instance": LVISEvaluator},
    "ytvis": {"instance": YTVISEvaluator},
    "coco_panoptic_seg": ALL_TASKS,
    "ade20k_panoptic_seg": ALL_TASKS,
    "mapillary_vistas_panoptic_seg": {"semantic": SemSegEvaluator, "panoptic": COCOPanopticEvaluator},
    "cityscapes_instance": {"instance": CityscapesInstanceEvaluator},
    "cityscapes_sem_seg": {"semantic": CityscapesSemSegEvaluator},
    "cityscapes_panoptic_seg": {
        "semantic": CityscapesSemSegEvaluator,
        "instance": CityscapesInstanceEvaluator,
        "panoptic": COCOPanopticEvaluator,
    },
}
NEED_INSTANCE_IDS = {CityscapesInstanceEvaluator, CityscapesSemSegEvaluator}  # of every image
# Metadata that names files of ground truth.
GROUND_TRUTH = {"instance": ["json_file"], "panoptic": ["panoptic_json", "panoptic_root"]}
# Keys of TEST that are arguments of evaluators, there in lower case.
OPTIONS = ("SAVE_PREDICTIONS", "BOUNDARY", "RECOUNT_AREAS", "PROPOSALS")


class Evaluation:
    """The datasets of DATASETS.TEST, read and checked once, on which a model is measured any number of times.

    Files of predictions are written below `output_dir`.

    Raises:
        ValueError: a dataset cannot be evaluated, or not with TEST.AUG or TEST.TILE; or a file is missing.
    """

    def __init__(self, cfg: CfgNode, output_dir: str | Path, datasets: Datasets | None = None) -> None:
        check_augmentation(cfg)
        check_tiling(cfg)
        datasets = datasets or Datasets()
        self.cfg = cfg
        self.datasets: list[tuple[str, Loader, DatasetEvaluators]] = []
        for name in cfg.DATASETS.TEST:
            folder = Path(output_dir) / name if len(cfg.DATASETS.TEST) > 1 else Path(output_dir)
            # The loader before the evaluator: reading a dataset completes its metadata.
            loader = build_test_loader(cfg, name, datasets=datasets)
            _check_instance_ids(cfg, name, cast(Samples, loader.dataset).records)
            self.datasets.append((name, loader, build_evaluator(cfg, name, folder)))

    def __call__(self, model: nn.Module) -> Results:
        """Return task -> metric -> value; with several datasets, dataset -> task -> metric -> value.

        The results are on the main process only.

        Raises:
            ValueError: TEST.AUG is on, and the model is not one of this project.
        """
        by_dataset: OrderedDict[str, Any] = OrderedDict()
        predict = compact_predict(self.cfg, model)
        for name, loader, evaluator in self.datasets:
            results = inference_on_dataset(model, loader, evaluator, predict)
            evaluator.reset()  # so that predictions do not fill the memory until the next evaluation
            by_dataset[name] = results
            if is_main_process():
                for task, metrics in results.items():
                    table = Block(metrics_table(metrics, per_class=False))
                    logger.info("%s on %s\n%s", task, name, table, extra=RESULT)
        return next(iter(by_dataset.values())) if len(by_dataset) == 1 else by_dataset


def evaluate(
    cfg: CfgNode, model: nn.Module, output_dir: str | Path, datasets: Datasets | None = None
) -> Results:
    """Measure a model once on DATASETS.TEST; see `Evaluation`."""
    return Evaluation(cfg, output_dir, datasets)(model)


def compact_predict(
    cfg: CfgNode, model: nn.Module
) -> Callable[[Sequence[Mapping[str, Any]]], list[dict[str, Any]]] | None:
    """Return the function that predicts a test batch with compact results; None for other projects' models.

    Raises:
        ValueError: TEST.AUG is undefined for the model or its tasks, or TEST.TILE for the model.
    """
    if cfg.TEST.TILE.SIZE:
        return TiledModel(cfg, model).predict
    predictor = AugmentedModel(cfg, model) if cfg.TEST.AUG.ENABLED else model
    if isinstance(predictor, AugmentedModel | MaskFormer):
        return partial(predictor.predict, compact=True)
    return None


def _check_instance_ids(cfg: CfgNode, dataset: str, records: Iterable[dict[str, Any]]) -> None:
    """Raise ValueError if Cityscapes' own metrics are measured, and an image lacks their ground truth."""
    chosen = choose_evaluators(MetadataCatalog.get(dataset), tasks_on(cfg)).values()
    if cfg.TEST.SAVE_PREDICTIONS or not NEED_INSTANCE_IDS & set(chosen):
        return
    for record in records:
        if "instance_ids_file_name" not in record:
            raise ValueError(
                f"'{dataset}': {record['file_name']} has no *_gtFine_instanceIds.png, by which Cityscapes' "
                "metrics are measured. TEST.SAVE_PREDICTIONS True saves predictions for them, unscored"
            )


def tasks_on(cfg: CfgNode) -> list[str]:
    """Return the tasks whose outputs are on."""
    return [task for task in TASKS if cfg.MODEL.MASK_FORMER.TEST[f"{task.upper()}_ON"]]


def build_evaluator(cfg: CfgNode, dataset: str, output_dir: Path) -> DatasetEvaluators:
    """Build the evaluators of `dataset` for the tasks that are on.

    Raises:
        ValueError: as `choose_evaluators`; or files of ground truth are missing.
    """
    metadata = MetadataCatalog.get(dataset)
    chosen = choose_evaluators(metadata, tasks_on(cfg))
    for task in chosen:
        for path in filter(None, map(metadata.get, GROUND_TRUTH.get(task, ()))):
            require_path(path)  # its message names the command that makes the file
    if unmeasured := [task for task in tasks_on(cfg) if task not in chosen]:
        logger.info(
            "%s output is not measured: '%s' has no ground truth for it", ", ".join(unmeasured), dataset
        )
    made = []
    ineffective = {key for key in OPTIONS if cfg.TEST[key]}
    for make in chosen.values():
        keys = {key for key in OPTIONS if key.lower() in inspect.signature(make).parameters}
        options = {key.lower(): cfg.TEST[key] for key in keys}
        made.append(make(metadata=metadata, output_dir=str(output_dir), **options))
        ineffective -= keys
    for key in sorted(ineffective):
        logger.warning("TEST.%s changes nothing that is measured on '%s'", key, dataset)
    return DatasetEvaluators(made)


def choose_evaluators(metadata: Metadata, tasks: Sequence[str]) -> dict[str, type]:
    """Return task -> class of evaluator for the tasks that a dataset can measure.

    Raises:
        ValueError: the dataset's metadata has no known evaluator type, or none for these tasks.
    """
    kind = metadata.get("evaluator_type")
    if kind not in EVALUATORS:
        known = ", ".join(EVALUATORS)
        raise ValueError(f"dataset '{metadata.name}' has evaluator_type '{kind}'; known are: {known}")
    chosen = {task: EVALUATORS[kind][task] for task in tasks if task in EVALUATORS[kind]}
    if not chosen:
        raise ValueError(
            f"dataset '{metadata.name}' ({kind}) has no metric for what the model makes, "
            f"{', '.join(tasks) or 'nothing'}: see MODEL.MASK_FORMER.TEST.*_ON"
        )
    if len(chosen) > 1 and chosen.get("instance") is COCOEvaluator and metadata.get("json_file") is None:
        del chosen["instance"]
    return chosen


def evaluate_checkpoint(
    cfg: CfgNode, run: Run, precision: str = "fp32", calibrate: str | PathLike[str] | None = None
) -> Results:
    """Evaluate the checkpoint of a run or, if it has none, MODEL.WEIGHTS.

    `precision` and the folder `calibrate` are those of `trained_model`.

    Raises:
        ValueError: there are no weights, or only those of a backbone; or the precision cannot be had.
        ImageError: a file in the folder is not an image.
    """
    images = images_for_precision(precision, calibrate)
    model = build_model(cfg).eval()
    if run.saved is not None:
        weights = load_tensors(run.saved, model.state_dict())["model"]
        restore_weights(model, weights, run.saved[PATH])
    else:
        load_trained_weights(cfg, model)
    apply_precision(cfg, model, precision, images)
    return evaluate(cfg, model, run.folder.path / "inference", run.datasets)


def load_trained_weights(cfg: CfgNode, model: nn.Module) -> None:
    """Load MODEL.WEIGHTS, which must hold more than a backbone, into `model`.

    Raises:
        ValueError: there are no weights, or only those of a backbone.
    """
    if not cfg.MODEL.WEIGHTS:
        raise ValueError("--eval-only needs weights: give MODEL.WEIGHTS FILE, or --resume for OUTPUT_DIR's")
    checkpoint = read_checkpoint(cfg.MODEL.WEIGHTS)
    warn_of_other_classes(dataset_metadata(cfg), checkpoint)
    if not load_weights(model, checkpoint, strict=cfg.MODEL.WEIGHTS_STRICT).has_trained_head:
        raise ValueError(f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS} holds no trained head: nothing to evaluate")


def verify_results(cfg: CfgNode, results: Results) -> bool:
    """Return True if all rows of TEST.EXPECTED_RESULTS hold; log those that do not.

    A row is [task, metric, value, tolerance]. With several datasets a row's task is "dataset/task".
    """
    found = flatten_results(results)
    hold = True
    for task, metric, expected, tolerance in expected_results(cfg.TEST.EXPECTED_RESULTS):
        actual = found.get(f"{task}/{metric}", math.nan)
        if not abs(actual - expected) <= tolerance:
            failure = f"{task}/{metric} is {actual}, expected {expected} +- {tolerance}"
            logger.error("TEST.EXPECTED_RESULTS: %s", failure)
            hold = False
    return hold
