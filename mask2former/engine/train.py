"""One training run: model, optimizer, data, trainer and hooks from a config, fresh or resumed."""

import logging
import secrets
from collections.abc import Collection
from functools import partial
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn

from mask2former.data.loader import build_train_loader
from mask2former.data.records import Datasets
from mask2former.engine.build import build_model, whole_model
from mask2former.engine.checkpoint.remote import output_folder, run_folder
from mask2former.engine.checkpoint.run_folder import RunFolder
from mask2former.engine.checkpoint.run_identity import claim_run
from mask2former.engine.checkpoint.sharded import load_tensors
from mask2former.engine.evaluate import Results, check_test_datasets, evaluate
from mask2former.engine.hooks.preemption import PreemptionHook
from mask2former.engine.hooks.query_overflow import QueryOverflowHook
from mask2former.engine.hooks.standard import CheckpointHook, EvaluationHook, Hook, ProgressHook
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
from mask2former.engine.setup.schedule import apply_schedule
from mask2former.engine.trainer import Trainer, autocast_dtype
from mask2former.modeling.layers.norm import SyncBatchNorm
from mask2former.utils.atomic_files import atomic_write
from mask2former.utils.comm import barrier, broadcast_object, is_main_process, world_size
from mask2former.weights.load import load_weights, read_checkpoint

logger = logging.getLogger(__name__)


def train(
    cfg: CfgNode, resume: bool, typed_keys: Collection[str] = (), datasets: Datasets | None = None
) -> Results:
    """Train as `cfg` says, with `resume` from OUTPUT_DIR's last checkpoint; the final evaluation's results.

    What SOLVER.EPOCHS and REFERENCE_BATCH decide is written into `cfg`; see `apply_schedule`.

    Raises:
        ValueError: the config contradicts itself or the checkpoint.
        TrainingError: training cannot go on.
        PreemptedError: a process got SIGTERM; there is a checkpoint to go on from.
    """
    datasets = datasets or Datasets()
    apply_schedule(cfg, typed_keys, datasets)
    folder = run_folder(cfg.OUTPUT_DIR)
    saved = folder.load_last() if resume else None
    cfg.SEED = _common_seed(cfg.SEED, saved)
    torch.manual_seed(cfg.SEED)
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    if cfg.FLOAT32_PRECISION:
        torch.set_float32_matmul_precision(cfg.FLOAT32_PRECISION)
    # Before the model, and before its weights are fetched: data that is missing shall show at once
    first_step = 0 if saved is None else saved["iteration"] + 1
    batches = build_train_loader(cfg, first_step, datasets=datasets)
    check_test_datasets(cfg, datasets)
    model = build_model(cfg)
    if saved is None and cfg.MODEL.WEIGHTS and is_main_process():  # the others get them from there
        _begin_with_weights(cfg, model)
    _tell_of_sync_norm(model)
    logger.info("%.1f million parameters", sum(p.numel() for p in model.parameters()) / 1e6)
    trainer = build_trainer(cfg, model)
    if saved is not None:
        _restore(trainer, saved)
        del saved  # whose tensors would stay in memory beside the trainer's
    barrier()  # all have read what the main process may now move
    metrics = _open_folder(cfg, folder, trainer.done, fresh=not resume)
    evaluation = EvaluationHook(cfg.TEST.EVAL_PERIOD, lambda: _evaluate(cfg, model, datasets), metrics)
    extra = {"config": cfg.dump(), "metadata": checkpoint_metadata(cfg)}
    checkpoints = CheckpointHook(folder, cfg.SOLVER.CHECKPOINT_PERIOD, extra)
    trainer.train(batches, _hooks(cfg, metrics, checkpoints, evaluation))
    if metrics is not None:
        metrics.close()
    return evaluation.results


def _common_seed(seed: int, saved: dict[str, Any] | None) -> int:
    """SEED; where it is negative, that of the resumed run, else a random one: the same in all processes."""
    if seed >= 0:
        return seed
    if saved is not None:
        return int(saved["seed"])
    return int(broadcast_object(secrets.randbelow(2**31)))


def _begin_with_weights(cfg: CfgNode, model: nn.Module) -> None:
    checkpoint = read_checkpoint(cfg.MODEL.WEIGHTS)
    warn_of_other_classes(cfg, checkpoint)
    load_weights(model, checkpoint, strict=cfg.MODEL.WEIGHTS_STRICT)


def _tell_of_sync_norm(model: nn.Module) -> None:
    """Say what SyncBN is where torch has none."""
    on_cpu = any(isinstance(m, SyncBatchNorm) and m.weight.device.type == "cpu" for m in model.modules())
    if on_cpu and world_size() > 1:
        logger.info("SyncBN on CPUs: statistics over all processes, as on GPUs, by this project's own sums")
    elif on_cpu:
        logger.info("SyncBN of one process is plain batch norm: statistics of its own images")


def build_trainer(cfg: CfgNode, model: nn.Module) -> Trainer:
    """A trainer of `model`, without hooks, at step 0.

    Raises:
        ValueError: no steps, or fewer images in a process's share of one than pieces to split it in; or
            SOLVER.STRATEGY or another name is not known.
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


def _restore(trainer: Trainer, saved: dict[str, Any]) -> None:
    try:
        saved = load_tensors(saved, trainer.plain_model.state_dict(), trainer.parameters)
        trainer.plain_model.load_state_dict(saved["model"])
        trainer.load_state_dict(saved)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"the run in OUTPUT_DIR does not fit this config: {error}") from error


def _open_folder(cfg: CfgNode, folder: RunFolder, start: int, *, fresh: bool) -> MetricsLog | None:
    """Make the run folder this run's own; the log of its metrics (main process only)."""
    if not is_main_process():
        return None
    folder.path.mkdir(parents=True, exist_ok=True)
    if fresh:
        folder.set_earlier_run_aside()
    claim_run(folder.path)
    with atomic_write(folder.path / "config.yaml") as file:
        file.write(cfg.dump().encode())
    logger.info("config, also in %s\n%s", folder.path / "config.yaml", cfg.dump())
    logger.info("steps %d to %d, seed %d, run folder %s", start, cfg.SOLVER.MAX_ITER, cfg.SEED, folder)
    return MetricsLog(folder.path, start)


def _hooks(
    cfg: CfgNode, metrics: MetricsLog | None, checkpoints: CheckpointHook, evaluation: EvaluationHook
) -> list[Hook]:
    return [
        ProgressHook(metrics),
        checkpoints,
        VisualizationHook(
            period=cfg.VIS_PERIOD,
            names=class_names(dataset_metadata(cfg)),
            image_format=cfg.INPUT.FORMAT,
            folder=checkpoints.folder.path,
            metrics=metrics,
            whole=partial(whole_model, cfg),
        ),
        QueryOverflowHook(cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES),
        evaluation,
        PreemptionHook(checkpoints),
    ]


def _evaluate(cfg: CfgNode, model: nn.Module, datasets: Datasets) -> Results:
    """Evaluate the model as the main process has it: batch norms' statistics differ between processes."""
    model = whole_model(cfg, model)
    if world_size() > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)
    return evaluate(cfg, model, output_folder(cfg) / "inference", datasets)
