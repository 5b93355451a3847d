"""One training run: model, optimiser, data, trainer and hooks from a config, fresh or resumed."""

import logging
import secrets
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn

from mask2former.data.loader import build_train_loader
from mask2former.distributed import barrier, is_main_process, sum_over_processes, world_size
from mask2former.engine.build import (
    build_model,
    checkpoint_metadata,
    class_names,
    dataset_metadata,
    warn_of_other_classes,
)
from mask2former.engine.checkpoint import RunFolder, atomic_write
from mask2former.engine.checkpoint_parts import with_tensors
from mask2former.engine.crowded import CrowdedPicturesHook
from mask2former.engine.evaluate import Results, check_test_datasets, evaluate
from mask2former.engine.hooks import CheckpointHook, EvaluationHook, Hook, ProgressHook
from mask2former.engine.metrics_log import MetricsLog
from mask2former.engine.pictures import PictureHook
from mask2former.engine.preemption import PreemptionHook
from mask2former.engine.restart import note_job
from mask2former.engine.schedule import apply_schedule
from mask2former.engine.sharding import in_parts_as, synchronised, whole_model
from mask2former.engine.solver import build_clipper, build_optimizer, build_scheduler
from mask2former.engine.trainer import Trainer, autocast_dtype
from mask2former.engine.weights import load_weights, read_checkpoint
from mask2former.engine.whereabouts import noted

logger = logging.getLogger(__name__)


def train(cfg: CfgNode, resume: bool, typed_keys: Collection[str] = ()) -> Results:
    """Train as `cfg` says, with `resume` from OUTPUT_DIR's last checkpoint; the final evaluation's results.

    What SOLVER.EPOCHS and REFERENCE_BATCH decide is written into `cfg`; see `apply_schedule`.

    Raises:
        ValueError: the config contradicts itself or the checkpoint.
        TrainingError: training cannot go on.
    """
    apply_schedule(cfg, typed_keys)
    folder = RunFolder(cfg.OUTPUT_DIR)
    saved = folder.load_last() if resume else None
    _check_shared(saved)
    cfg.SEED = _common_seed(cfg.SEED, saved)
    torch.manual_seed(cfg.SEED)
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    if cfg.FLOAT32_PRECISION:
        torch.set_float32_matmul_precision(cfg.FLOAT32_PRECISION)
    # Before the model, and before its weights are fetched: data that is missing shall show at once
    batches = build_train_loader(cfg, first_step=0 if saved is None else saved["iteration"] + 1)
    check_test_datasets(cfg)
    model = build_model(cfg)
    if saved is None and cfg.MODEL.WEIGHTS and is_main_process():  # the others get them from there
        checkpoint = read_checkpoint(cfg.MODEL.WEIGHTS)
        warn_of_other_classes(cfg, checkpoint)
        load_weights(model, checkpoint, strict=cfg.MODEL.WEIGHTS_STRICT)
    logger.info("%.1f million parameters", sum(p.numel() for p in model.parameters()) / 1e6)
    trainer = build_trainer(cfg, model)
    if saved is not None:
        _restore(trainer, saved)
    barrier()  # all have read what the main process may now move
    metrics = _open_folder(cfg, folder, trainer.done, fresh=not resume)
    evaluation = EvaluationHook(cfg.TEST.EVAL_PERIOD, lambda: _evaluate(cfg, model), metrics)
    trainer.hooks = _hooks(cfg, folder, metrics, evaluation)
    trainer.train(noted(batches, trainer.done))
    if metrics is not None:
        metrics.close()
    return evaluation.results


def _common_seed(seed: int, saved: dict[str, Any] | None) -> int:
    """SEED; where it is negative, that of the resumed run, else a random one: the same in all processes."""
    if seed >= 0:
        return seed
    if saved is not None:
        return int(saved["seed"])
    drawn = secrets.randbelow(2**31) if is_main_process() else 0
    return int(sum_over_processes(torch.tensor(drawn, device=_collective_device())))


def _collective_device() -> str:
    """Where tensors must be for the processes to exchange them: NCCL knows GPUs only."""
    return "cuda" if world_size() > 1 and torch.distributed.get_backend() == "nccl" else "cpu"


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
    wrapped = synchronised(cfg, model)
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


def _check_shared(saved: dict[str, Any] | None) -> None:
    """A ValueError unless all processes found a checkpoint of the same step, or none."""
    done = 0 if saved is None else saved["iteration"] + 1
    if int(sum_over_processes(torch.tensor(done, device=_collective_device()))) != done * world_size():
        raise ValueError(
            "the processes found different checkpoints: OUTPUT_DIR must be one folder shared by all"
        )


def _restore(trainer: Trainer, saved: dict[str, Any]) -> None:
    try:
        like = trainer.plain_model.state_dict()
        saved = with_tensors(saved, like, trainer.parameters)
        weights = {name: in_parts_as(tensor, like.get(name)) for name, tensor in saved["model"].items()}
        trainer.plain_model.load_state_dict(weights)
        trainer.load_state_dict(saved)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"the run in OUTPUT_DIR does not fit this config: {error}") from error


def _open_folder(cfg: CfgNode, folder: RunFolder, start: int, *, fresh: bool) -> MetricsLog | None:
    """Make the run folder this run's own; the log of its metrics (main process only)."""
    if not is_main_process():
        return None
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.remove_unfinished()
    if fresh:
        folder.set_earlier_run_aside()
    note_job(folder.path)
    with atomic_write(folder.path / "config.yaml") as file:
        file.write(cfg.dump().encode())
    logger.info("config, also in %s\n%s", folder.path / "config.yaml", cfg.dump())
    logger.info("steps %d to %d, seed %d, run folder %s", start, cfg.SOLVER.MAX_ITER, cfg.SEED, folder.path)
    return MetricsLog(folder.path, start)


def _hooks(
    cfg: CfgNode, folder: RunFolder, metrics: MetricsLog | None, evaluation: EvaluationHook
) -> list[Hook]:
    extra = {"config": cfg.dump(), "metadata": checkpoint_metadata(cfg)}
    checkpoints = CheckpointHook(folder, cfg.SOLVER.CHECKPOINT_PERIOD, extra)
    return [
        ProgressHook(metrics),
        checkpoints,
        PreemptionHook(checkpoints),
        PictureHook(
            period=cfg.VIS_PERIOD,
            names=class_names(dataset_metadata(cfg)),
            image_format=cfg.INPUT.FORMAT,
            folder=folder.path,
            metrics=metrics,
            whole=partial(whole_model, cfg),
        ),
        CrowdedPicturesHook(cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES),
        evaluation,
    ]


def _evaluate(cfg: CfgNode, model: nn.Module) -> Results:
    """Evaluate the model as the main process has it: batch norms' statistics differ between processes."""
    model = whole_model(cfg, model)
    if world_size() > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)
    return evaluate(cfg, model, Path(cfg.OUTPUT_DIR) / "inference")
