"""Which metrics a dataset is measured by, and measuring a model on the datasets of DATASETS.TEST.

The table is Detectron2's: a dataset's `evaluator_type` and the outputs that are on decide.
"""

import inspect
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from fvcore.common.config import CfgNode
from torch import nn

from mask2former.data import MetadataCatalog
from mask2former.data.datasets.files import require_path
from mask2former.data.loader import Samples, build_test_loader
from mask2former.data.records import Datasets
from mask2former.engine.build import build_model
from mask2former.engine.checkpoint.remote import output_folder, run_folder
from mask2former.engine.checkpoint.sharded import load_tensors
from mask2former.engine.hooks.standard import flatten_results
from mask2former.engine.setup.dataset_facts import warn_of_other_classes
from mask2former.engine.setup.expected_results import expected_results
from mask2former.engine.tta import AugmentedModel, check_augmentation
from mask2former.evaluation.cityscapes.ap import CityscapesInstanceEvaluator
from mask2former.evaluation.cityscapes.iou import CityscapesSemSegEvaluator
from mask2former.evaluation.coco.ap import COCOEvaluator, LVISEvaluator
from mask2former.evaluation.common.report import metrics_table
from mask2former.evaluation.evaluator import DatasetEvaluators, Results, inference_on_dataset
from mask2former.evaluation.panoptic.quality import COCOPanopticEvaluator
from mask2former.evaluation.semantic.miou import SemSegEvaluator
from mask2former.modeling.mask_former import MaskFormer
from mask2former.modeling.postprocessing.inference import TASKS
from mask2former.utils.comm import is_main_process
from mask2former.weights.load import load_weights, read_checkpoint

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
NEED_INSTANCE_IDS = {CityscapesInstanceEvaluator, CityscapesSemSegEvaluator}  # of each image that is scored
TRUTH = {"instance": ["json_file"], "panoptic": ["panoptic_json", "panoptic_root"]}  # facts that are paths
OPTIONS = {  # of evaluators: name -> key of TEST
    "save_predictions": "SAVE_PREDICTIONS",
    "boundary": "BOUNDARY",
    "recount_areas": "RECOUNT_AREAS",
}


def tasks_on(cfg: CfgNode) -> list[str]:
    """The tasks whose outputs the model makes."""
    return [task for task in TASKS if cfg.MODEL.MASK_FORMER.TEST[f"{task.upper()}_ON"]]


def build_evaluator(cfg: CfgNode, dataset: str, output_dir: Path) -> DatasetEvaluators:
    """The evaluators of `dataset` for the tasks that are on.

    Raises:
        ValueError: its metadata names no evaluator type that is known, or none for these tasks, or files of
            ground truth are not there.
    """
    metadata = MetadataCatalog.get(dataset)
    kind = metadata.get("evaluator_type")
    if kind not in EVALUATORS:
        raise ValueError(
            f"dataset '{dataset}' has evaluator_type '{kind}'; known are: {', '.join(EVALUATORS)}"
        )
    table = EVALUATORS[kind]
    tasks = [task for task in tasks_on(cfg) if task in table]
    if not tasks:
        outputs = ", ".join(tasks_on(cfg)) or "nothing"
        raise ValueError(
            f"dataset '{dataset}' ({kind}) has no metric for what the model makes, {outputs}: "
            "see MODEL.MASK_FORMER.TEST.*_ON"
        )
    if len(tasks) > 1 and table.get("instance") is COCOEvaluator and metadata.get("json_file") is None:
        tasks = [task for task in tasks if task != "instance"]
    if unmeasured := [task for task in tasks_on(cfg) if task not in tasks]:
        logger.info(
            "%s output is not measured: '%s' has no ground truth for it", ", ".join(unmeasured), dataset
        )
    for path in (metadata.get(key) for task in tasks for key in TRUTH.get(task, ())):
        if path is not None:
            require_path(path)  # says which command makes it
    makers = [table[task] for task in tasks]
    _warn_of_idle_options(cfg, dataset, makers)
    return DatasetEvaluators(
        make(metadata=metadata, output_dir=str(output_dir), **_options(cfg, make)) for make in makers
    )


def _options(cfg: CfgNode, make: type) -> dict[str, Any]:
    """The options among `OPTIONS` that an evaluator's constructor has, as the config sets them."""
    known = inspect.signature(make).parameters
    return {name: cfg.TEST[key] for name, key in OPTIONS.items() if name in known}


def _warn_of_idle_options(cfg: CfgNode, dataset: str, makers: list[type]) -> None:
    taken = {name for make in makers for name in _options(cfg, make)}
    for name, key in OPTIONS.items():
        if cfg.TEST[key] and name not in taken:
            logger.warning("TEST.%s changes nothing that is measured on '%s'", key, dataset)


def check_test_datasets(cfg: CfgNode, datasets: Datasets | None = None) -> None:
    """Read what an evaluation starts with, so that no run ends, after days, at a file that is missing.

    Raises:
        ValueError: a dataset of DATASETS.TEST cannot be evaluated, or not as TEST.AUG asks.
    """
    check_augmentation(cfg)
    for dataset in cfg.DATASETS.TEST:
        loader = build_test_loader(cfg, dataset, datasets=datasets)
        build_evaluator(cfg, dataset, output_folder(cfg))
        table = EVALUATORS[MetadataCatalog.get(dataset).evaluator_type]
        measures = {table.get(task) for task in tasks_on(cfg)}
        if measures & NEED_INSTANCE_IDS and not cfg.TEST.SAVE_PREDICTIONS:
            _check_instance_ids(cast(Samples, loader.dataset).records, dataset)


def _check_instance_ids(records: Iterable[dict[str, Any]], dataset: str) -> None:
    """A ValueError unless images have the one kind of ground truth that all metrics of Cityscapes' own
    need.
    """
    for record in records:
        if "instance_ids_file_name" not in record:
            raise ValueError(
                f"'{dataset}': {record['file_name']} has no *_gtFine_instanceIds.png, by which Cityscapes' "
                "metrics are measured. TEST.SAVE_PREDICTIONS True saves predictions for them, unscored"
            )


def compact_predict(
    cfg: CfgNode, model: nn.Module
) -> Callable[[Sequence[Mapping[str, Any]]], list[dict[str, Any]]] | None:
    """Return the function that predicts a test batch with compact results; None for other projects' models.

    Raises:
        ValueError: TEST.AUG is undefined for the model or its tasks.
    """
    predictor = AugmentedModel(cfg, model) if cfg.TEST.AUG.ENABLED else model
    if isinstance(predictor, AugmentedModel | MaskFormer):
        return partial(predictor.predict, compact=True)
    return None


def evaluate(
    cfg: CfgNode, model: nn.Module, output_dir: str | Path, datasets: Datasets | None = None
) -> Results:
    """Task -> metric -> value on DATASETS.TEST; with several datasets, dataset -> task -> metric -> value.

    Results stand on the main process only. The files of predictions are written below `output_dir`.

    Raises:
        ValueError: a dataset cannot be evaluated, or not as TEST.AUG asks.
    """
    by_dataset: OrderedDict[str, Any] = OrderedDict()
    predict = compact_predict(cfg, model)
    for dataset in cfg.DATASETS.TEST:
        folder = Path(output_dir) / dataset if len(cfg.DATASETS.TEST) > 1 else Path(output_dir)
        # The loader before the evaluator: reading the dataset completes its metadata
        loader = build_test_loader(cfg, dataset, datasets=datasets)
        evaluator = build_evaluator(cfg, dataset, folder)
        by_dataset[dataset] = inference_on_dataset(model, loader, evaluator, predict)
        if is_main_process():
            for task, metrics in by_dataset[dataset].items():
                logger.info("%s on %s\n%s", task, dataset, metrics_table(metrics, per_class=False))
    return next(iter(by_dataset.values())) if len(by_dataset) == 1 else by_dataset


def evaluate_checkpoint(cfg: CfgNode, resume: bool, datasets: Datasets | None = None) -> Results:
    """Evaluate the weights of MODEL.WEIGHTS or, with `resume`, of the run in OUTPUT_DIR.

    Raises:
        ValueError: there are no weights, or they are those of a backbone only.
    """
    model = build_model(cfg)
    saved = run_folder(cfg.OUTPUT_DIR).load_last() if resume else None
    if saved is not None:
        model.load_state_dict(load_tensors(saved, model.state_dict())["model"])
    else:
        load_trained_weights(cfg, model)
    return evaluate(cfg, model, output_folder(cfg) / "inference", datasets)


def load_trained_weights(cfg: CfgNode, model: nn.Module) -> None:
    """Fill `model` from MODEL.WEIGHTS, which must hold more than a backbone.

    Raises:
        ValueError: there are no weights, or they are those of a backbone only.
    """
    if not cfg.MODEL.WEIGHTS:
        raise ValueError("--eval-only needs weights: give MODEL.WEIGHTS FILE, or --resume for OUTPUT_DIR's")
    checkpoint = read_checkpoint(cfg.MODEL.WEIGHTS)
    warn_of_other_classes(cfg, checkpoint)
    if not load_weights(model, checkpoint, strict=cfg.MODEL.WEIGHTS_STRICT).has_trained_head:
        raise ValueError(f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS} holds no trained head: nothing to evaluate")


def verify_results(cfg: CfgNode, results: Results) -> bool:
    """Whether each row [task, metric, value, tolerance] of TEST.EXPECTED_RESULTS holds; says which do not.

    With several datasets a row's task is "dataset/task".
    """
    found = flatten_results(results)
    failures = []
    for task, metric, expected, tolerance in expected_results(cfg):
        actual = found.get(f"{task}/{metric}", math.nan)
        if not abs(actual - expected) <= tolerance:
            failures.append(f"{task}/{metric} is {actual}, expected {expected} +- {tolerance}")
    for failure in failures:
        logger.error("TEST.EXPECTED_RESULTS: %s", failure)
    return not failures
