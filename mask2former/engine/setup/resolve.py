"""From what the user gave to the one config of a run.

No other module changes a config after its files and command line are merged. Two kinds of values are set
here. A fact, such as the dataset's class count, replaces the value of a config file, and contradicting it on
the command line is an error. A choice, such as the schedule of --overfit, yields to a typed key.
"""

import logging
import secrets
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from mask2former.config import CfgNode, with_values
from mask2former.config.node import Node
from mask2former.config.ranges import check_ranges
from mask2former.config.yaml_files import flatten
from mask2former.data import DatasetCatalog, DatasetError
from mask2former.data.loader import accumulation_steps, expected_epoch_size
from mask2former.data.records import Datasets
from mask2former.engine.checkpoint.remote import run_folder
from mask2former.engine.loggers import check_loggers
from mask2former.engine.setup.begin import Run
from mask2former.engine.setup.cores import usable_cores
from mask2former.engine.setup.custom_data import (
    NO_DATA,
    DataFlags,
    check_registered,
    custom_data_choices,
    custom_data_facts,
    register_custom_data,
    write_instance_ground_truth,
)
from mask2former.engine.setup.dataset_facts import (
    check_architecture,
    dataset_facts,
    dataset_metadata,
    dataset_names,
    new_facts,
)
from mask2former.engine.setup.device import launched_device
from mask2former.engine.setup.expected_results import expected_results
from mask2former.engine.setup.overfit import overfit_choices, register_overfit
from mask2former.engine.setup.schedule import EPOCHS, MAX_ITER, STEPS, epoch_schedule
from mask2former.utils.comm import broadcast_object, world_size
from mask2former.utils.image_io import set_pixel_limit

logger = logging.getLogger(__name__)

ACCUMULATION, WORKERS = "SOLVER.ACCUMULATION_STEPS", "DATALOADER.NUM_WORKERS"
OVERFIT_FOLDER = "overfit"  # below OUTPUT_DIR


def resolve_config(
    cfg: CfgNode,
    datasets: Datasets | None = None,
    *,
    data: DataFlags = NO_DATA,
    overfit: int | None = None,
    save_predictions: bool = False,
    eval_only: bool = False,
    launched_on: str | None = None,
    num_gpus: int | None = None,
    resumed_seed: int | None = None,
) -> CfgNode:
    """Return the frozen config of this process's run; every process must call it.

    `cfg` has the values of the files and the command line, and is left as it is. Datasets that are read are
    added to `datasets`. `data` are the flags of a custom dataset, which is registered, as are the first
    `overfit` images, written below OUTPUT_DIR. `launched_on` is "cuda" or "cpu" if the process was launched
    for one; see `launched_device`. A negative SEED becomes `resumed_seed`, that of the run to continue.

    Raises:
        ValueError, OSError: something that the user gave is wrong or contradicts itself.
    """
    datasets = datasets or Datasets()
    cfg = cfg.clone()
    cfg.defrost()
    check_ranges(cfg)
    set_pixel_limit(cfg.INPUT.MAX_MEGAPIXELS)
    expected_results(cfg.TEST.EXPECTED_RESULTS)  # a wrong row must not show only after days
    if save_predictions:
        cfg.set_value("TEST.SAVE_PREDICTIONS", True, "--save-predictions")
    if launched_on:
        device = launched_device(cfg.MODEL.DEVICE, launched_on, num_gpus)
        cfg.set_value("MODEL.DEVICE", device, f"a process launched on {launched_on}")
    workers = {WORKERS: min(cfg.DATALOADER.NUM_WORKERS, usable_cores())}
    _apply_choices(cfg, workers, "the number of processor cores")
    _apply_custom_data(cfg, datasets, data, eval_only, overfits=overfit is not None)
    if overfit is not None:
        _apply_overfit(cfg, datasets, overfit)
    if eval_only and cfg.DATASETS.TEST:  # evaluation needs no training files: the test set has the classes
        cfg.set_value("DATASETS.TRAIN", (), "--eval-only")
    if (names := dataset_names(cfg)) and names[0] in DatasetCatalog:
        datasets.load(names[0])  # its files also hold facts
        _apply_facts(cfg, dataset_facts(dataset_metadata(cfg)), f"dataset '{names[0]}'")
        check_architecture(cfg)
    if not eval_only:
        _check_best_metric(cfg)
        check_loggers(cfg.LOGGERS)
        _apply_schedule(cfg, datasets)
    if cfg.SEED < 0:
        seed = broadcast_object(secrets.randbelow(2**31)) if resumed_seed is None else resumed_seed
        cfg.set_value("SEED", int(seed), "random" if resumed_seed is None else "the run that is continued")
    cfg.freeze()
    return cfg


def resolve_arguments(cfg: CfgNode, args: Namespace, launched_on: str, run: Run) -> CfgNode:
    """Return `resolve_config` with the flags of `mask2former train` and `evaluate`."""
    return resolve_config(
        cfg,
        run.datasets,
        data=DataFlags(**{name: getattr(args, name) for name in DataFlags._fields}),
        overfit=args.overfit,
        save_predictions=args.save_predictions,
        eval_only=args.eval_only,
        launched_on=launched_on,
        num_gpus=args.num_gpus,
        resumed_seed=run.saved["seed"] if run.saved else None,
    )


def with_schedule(cfg: Node, datasets: Datasets) -> Node:
    """Return `cfg`, ours or Detectron2's, with SOLVER.EPOCHS and ACCUMULATION_STEPS as numbers of steps."""
    ours = CfgNode(cfg)
    _apply_schedule(ours, datasets)
    keys = (EPOCHS, MAX_ITER, STEPS, ACCUMULATION)
    return with_values(cfg, {key: value for key, value in flatten(ours).items() if key in keys}, "SOLVER")


def _apply_facts(cfg: CfgNode, facts: Mapping[str, Any], source: str) -> None:
    for key, value in new_facts(cfg, facts, source).items():
        cfg.set_value(key, value, source)


def _apply_choices(cfg: CfgNode, choices: Mapping[str, Any], source: str) -> None:
    _apply_facts(cfg, {key: value for key, value in choices.items() if not cfg.is_typed(key)}, source)


def _apply_custom_data(
    cfg: CfgNode, datasets: Datasets, flags: DataFlags, eval_only: bool, *, overfits: bool
) -> None:
    train, val = register_custom_data(flags, datasets, eval_only=eval_only)
    data = train or val
    if data is None:
        check_registered(dataset_names(cfg))
        return
    for key, dataset, flag in (
        ("DATASETS.TRAIN", train, "--train-images"),
        ("DATASETS.TEST", val, "--val-images"),
    ):
        names = (dataset.name,) if dataset else ()
        _apply_facts(cfg, {key: names}, flag if dataset else f"the lack of {flag}")
    source = f"dataset '{data.name}'"
    _apply_facts(cfg, custom_data_facts(cfg, data), source)
    _apply_choices(cfg, custom_data_choices(cfg, data), source)
    for tested in (val, train if overfits else None) if cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON else ():
        if tested and tested.thing_ids and not tested.has_instance_json:
            write_instance_ground_truth(tested, run_folder(cfg.OUTPUT_DIR).path, datasets)


def _apply_overfit(cfg: CfgNode, datasets: Datasets, number: int) -> None:
    if not cfg.DATASETS.TRAIN:
        raise DatasetError("--overfit needs a dataset: DATASETS.TRAIN is empty")
    source = f"--overfit {number}"
    folder = run_folder(cfg.OUTPUT_DIR).path / OVERFIT_FOLDER
    name, images = register_overfit(cfg.DATASETS.TRAIN[0], number, folder, datasets)
    _apply_choices(cfg, overfit_choices(cfg, images, world_size()), source)
    for key in ("DATASETS.TRAIN", "DATASETS.TEST"):
        cfg.set_value(key, (name,), source)


def _check_best_metric(cfg: CfgNode) -> None:
    """Raise ValueError if TEST.BEST_METRIC or SOLVER.EARLY_STOPPING would do nothing."""
    metric, patience = cfg.TEST.BEST_METRIC, cfg.SOLVER.EARLY_STOPPING
    if patience and not metric:
        raise ValueError(
            f"SOLVER.EARLY_STOPPING is {patience}, but TEST.BEST_METRIC is empty: name the metric that is to "
            "improve, as panoptic_seg/PQ"
        )
    if metric and not cfg.DATASETS.TEST:
        raise ValueError(f"TEST.BEST_METRIC is '{metric}', but DATASETS.TEST is empty: nothing is measured")
    if metric and not cfg.TEST.EVAL_PERIOD:
        raise ValueError(
            f"TEST.BEST_METRIC is '{metric}', but TEST.EVAL_PERIOD is 0, and only the final model would be "
            "measured: set it to a number of steps"
        )


def _apply_schedule(cfg: CfgNode, datasets: Datasets) -> None:
    choices = epoch_schedule(cfg, lambda: expected_epoch_size(cfg, datasets))
    _apply_choices(cfg, choices, f"the given {MAX_ITER}" if EPOCHS in choices else EPOCHS)
    if cfg.SOLVER.ACCUMULATION_STEPS == "auto":
        steps = accumulation_steps(cfg.SOLVER, world_size())
        shared = f"{cfg.SOLVER.IMS_PER_BATCH} images a step on {world_size()} processes"
        logger.info("%s: %d, for %s, instead of auto", ACCUMULATION, steps, shared)
        cfg.set_value(ACCUMULATION, steps, shared)
