"""One training run: model, optimizer, data, trainer and hooks from a resolved config, fresh or resumed."""

import logging
from functools import partial
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn

from mask2former.data.loader import build_train_loader
from mask2former.data.records import Datasets
from mask2former.engine.build import build_model, whole_model
from mask2former.engine.checkpoint.remote import run_folder
from mask2former.engine.checkpoint.run_folder import RunFolder
from mask2former.engine.checkpoint.run_identity import claim_run
from mask2former.engine.checkpoint.sharded import load_tensors
from mask2former.engine.evaluate import Evaluation
from mask2former.engine.hooks.preemption import PreemptionHook
from mask2former.engine.hooks.query_overflow import QueryOverflowHook
from mask2former.engine.hooks.standard import CheckpointHook, EvaluationHook, ProgressHook
from mask2former.engine.hooks.visualization import VisualizationHook
from mask2former.engine.metrics_log import MetricsLog
from mask2former.engine.optim import build_clipper, build_optimizer, build_scheduler
from mask2former.engine.parallel import parallelize
from mask2former.engine.setup.dataset_facts import (
    checkpoint_metadata,
    class_names,
    dataset_metadata,
    warn_of_other_classes,
)
from mask2former.engine.trainer import Trainer, autocast_dtype
from mask2former.evaluation.evaluator import Results
from mask2former.modeling.layers.norm import SyncBatchNorm
from mask2former.utils.atomic_files import atomic_write
from mask2former.utils.comm import barrier, is_main_process, world_size
from mask2former.weights.load import load_weights, read_checkpoint

logger = logging.getLogger(__name__)


def train(
    cfg: CfgNode,
    datasets: Datasets | None = None,
    saved: dict[str, Any] | None = None,
    *,
    fresh: bool = True,
) -> Results:
    """Train a model, and return the results of the final evaluation (on the main process).

    Args:
        cfg: a config from `resolve_config`.
        datasets: the datasets that `resolve_config` has read.
        saved: the checkpoint to continue from, as `RunFolder.load_last` returns it.
        fresh: set an earlier run in OUTPUT_DIR aside; False continues its files.

    Raises:
        ValueError: the config contradicts itself or the checkpoint, or it is not resolved.
        TrainingError: training cannot go on.
        PreemptedError: a process got SIGTERM; there is a checkpoint to go on from.
    """
    if not cfg.is_frozen():
        raise ValueError("train() takes a config from mask2former.engine.setup.resolve.resolve_config")
    datasets = datasets or Datasets()
    torch.manual_seed(cfg.SEED)
    folder = run_folder(cfg.OUTPUT_DIR)
    # Before the model is built and its weights are downloaded: missing data must show at once.
    first_step = 0 if saved is None else saved["iteration"] + 1
    batches = build_train_loader(cfg, first_step, datasets=datasets)
    evaluation = Evaluation(cfg, folder.path / "inference", datasets)
    model = build_model(cfg)
    metadata = dataset_metadata(cfg)
    if saved is None and cfg.MODEL.WEIGHTS and is_main_process():  # `parallelize` sends them to the others
        checkpoint = read_checkpoint(cfg.MODEL.WEIGHTS)
        warn_of_other_classes(metadata, checkpoint)
        load_weights(model, checkpoint, strict=cfg.MODEL.WEIGHTS_STRICT)
    _log_model(model)
    trainer = build_trainer(cfg, model)
    if saved is not None:
        _restore(trainer, saved)
        del saved  # its tensors would stay in memory in addition to the trainer's
    barrier()  # all processes have read the files that the main process may move now
    metrics = _open_folder(folder, cfg.dump(), trainer, fresh=fresh) if is_main_process() else None
    whole = partial(whole_model, cfg, model)
    evaluations = EvaluationHook(cfg.TEST.EVAL_PERIOD, lambda: evaluation(_synchronized(whole())), metrics)
    extra = {"config": cfg.dump(), "metadata": checkpoint_metadata(cfg)}
    checkpoints = CheckpointHook(folder, cfg.SOLVER.CHECKPOINT_PERIOD, extra)
    images = VisualizationHook(
        period=cfg.VIS_PERIOD,
        names=class_names(metadata),
        image_format=cfg.INPUT.FORMAT,
        folder=folder.path,
        metrics=metrics,
        whole=partial(whole_model, cfg),
    )
    overflow = QueryOverflowHook(cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES)
    preemption = PreemptionHook(checkpoints)
    trainer.train(batches, [ProgressHook(metrics), checkpoints, images, overflow, evaluations, preemption])
    if metrics is not None:
        metrics.close()
    return evaluations.results


def build_trainer(cfg: CfgNode, model: nn.Module) -> Trainer:
    """Build a trainer of `model`, without hooks, at step 0.

    Raises:
        ValueError: SOLVER.STRATEGY or another name is unknown; or there are no steps, or a process has fewer
            images of a step than micro-batches.
    """
    solver = cfg.SOLVER
    for key in ("MAX_ITER", "ACCUMULATION_STEPS"):
        if solver[key] < 1:
            raise ValueError(f"SOLVER.{key} is {solver[key]}; it must be at least 1")
    if world_size() * solver.ACCUMULATION_STEPS > solver.IMS_PER_BATCH:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH {solver.IMS_PER_BATCH} is too small for {world_size()} processes x "
            f"SOLVER.ACCUMULATION_STEPS {solver.ACCUMULATION_STEPS}"
        )
    wrapped = parallelize(cfg, model)
    optimizer = build_optimizer(cfg, model)
    return Trainer(
        model=wrapped,
        optimizer=optimizer,
        scheduler=build_scheduler(cfg, optimizer),
        clip=build_clipper(cfg),
        max_iter=solver.MAX_ITER,
        dtype=autocast_dtype(cfg, next(model.parameters()).device),
        accumulation=solver.ACCUMULATION_STEPS,
        seed=cfg.SEED,
    )


def _log_model(model: nn.Module) -> None:
    """Log the model's size, and how SyncBN works on CPUs, where torch has none."""
    on_cpu = any(isinstance(m, SyncBatchNorm) and m.weight.device.type == "cpu" for m in model.modules())
    if on_cpu and world_size() > 1:
        logger.info("SyncBN on CPUs: this project computes the statistics over all processes, as on GPUs")
    elif on_cpu:
        logger.info("SyncBN of one process is plain batch norm: statistics of its own images")
    logger.info("%.1f million parameters", sum(p.numel() for p in model.parameters()) / 1e6)


def _restore(trainer: Trainer, saved: dict[str, Any]) -> None:
    """Load a checkpoint; raise ValueError if it does not fit."""
    try:
        saved = load_tensors(saved, trainer.plain_model.state_dict(), trainer.parameters)
        trainer.plain_model.load_state_dict(saved["model"])
        trainer.load_state_dict(saved)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"the run in OUTPUT_DIR does not fit this config: {error}") from error


def _open_folder(folder: RunFolder, config: str, trainer: Trainer, *, fresh: bool) -> MetricsLog:
    """Prepare the run folder for this run, and return the log of its metrics; main process only."""
    folder.path.mkdir(parents=True, exist_ok=True)
    if fresh:
        folder.set_earlier_run_aside()
    claim_run(folder.path)
    with atomic_write(folder.path / "config.yaml") as file:
        file.write(config.encode())
    logger.info("config, also in %s\n%s", folder.path / "config.yaml", config)
    logger.info("steps %d to %d, seed %d, folder %s", trainer.done, trainer.max_iter, trainer.seed, folder)
    return MetricsLog(folder.path, trainer.done)


def _synchronized(model: nn.Module) -> nn.Module:
    """Return the model with the main process's buffers: batch-norm statistics differ between processes."""
    if world_size() > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)
    return model
