"""One training run: model, optimizer, data, trainer and hooks from a resolved config, fresh or resumed."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn

from mask2former.config import config_from_text
from mask2former.data.loader import build_train_loader
from mask2former.engine.build import construct_model, whole_model
from mask2former.engine.checkpoint.run_identity import claim_run
from mask2former.engine.checkpoint.sharded import PATH, UNAVERAGED, load_tensors, optimizer_tensors
from mask2former.engine.evaluate import Evaluation
from mask2former.engine.hooks.best import BestModel
from mask2former.engine.hooks.evaluation import EvaluationHook
from mask2former.engine.hooks.mask_annealing import MaskAnnealing
from mask2former.engine.hooks.preemption import PreemptionHook
from mask2former.engine.hooks.query_overflow import QueryOverflowHook
from mask2former.engine.hooks.standard import CheckpointHook, ProgressHook
from mask2former.engine.hooks.visualization import VisualizationHook
from mask2former.engine.loggers import build_loggers
from mask2former.engine.metrics_log import MetricsLog
from mask2former.engine.optim import (
    build_clipper,
    build_optimizer,
    build_scheduler,
    has_same_groups,
    other_groups,
)
from mask2former.engine.parallel import parallelize
from mask2former.engine.setup.begin import Run
from mask2former.engine.setup.dataset_facts import (
    checkpoint_metadata,
    class_names,
    dataset_metadata,
    warn_of_other_classes,
)
from mask2former.engine.trainer import Trainer, autocast_dtype
from mask2former.engine.weight_average import WeightAverage
from mask2former.evaluation.evaluator import Results
from mask2former.modeling.layers.norm import SyncBatchNorm
from mask2former.utils.atomic_files import atomic_write
from mask2former.utils.comm import barrier, is_main_process, world_size
from mask2former.utils.messages import Block
from mask2former.weights.load import (
    WeightsError,
    check_values,
    load_weights,
    read_checkpoint,
    restore_weights,
)

logger = logging.getLogger(__name__)


def train(cfg: CfgNode, run: Run) -> Results:
    """Train a model from scratch or from `run.saved`; `cfg` comes from `resolve_config`.

    Returns:
        The results of the final evaluation, on the main process.

    Raises:
        ValueError: the config contradicts itself or the checkpoint, or it is not resolved.
        TrainingError: training cannot go on.
        PreemptedError: a process got SIGTERM; there is a checkpoint to go on from.
    """
    if not cfg.is_frozen():
        raise ValueError("train() takes a config from mask2former.engine.setup.resolve.resolve_config")
    torch.manual_seed(cfg.SEED)
    # Before the model is built and its weights are downloaded: missing data must show at once.
    first_step = 0 if run.saved is None else run.saved["iteration"] + 1
    batches = build_train_loader(cfg, first_step, datasets=run.datasets)
    evaluation = Evaluation(cfg, run.folder.path / "inference", run.datasets)
    model = construct_model(cfg)
    metadata = dataset_metadata(cfg)
    saved_metadata = checkpoint_metadata(metadata, cfg.MODEL.MASK_FORMER.THING_IDS)
    # The other processes get the weights in `parallelize`.
    if run.saved is None and cfg.MODEL.WEIGHTS and is_main_process():
        checkpoint = read_checkpoint(cfg.MODEL.WEIGHTS)
        warn_of_other_classes(metadata, checkpoint)
        load_weights(model, checkpoint, strict=cfg.MODEL.WEIGHTS_STRICT)
    _log_model(model)
    trainer = build_trainer(cfg, model)
    if run.saved is not None:
        _restore(trainer, run.saved, cfg)
        run.saved = None  # its tensors would stay in memory in addition to the trainer's
    barrier()  # all processes have read the files that the main process may move now
    config = cfg.dump()
    metrics = _open_folder(cfg, run, trainer) if is_main_process() else None
    whole = partial(whole_model, cfg)
    images = VisualizationHook(
        period=cfg.VIS_PERIOD,
        names=class_names(metadata),
        image_format=cfg.INPUT.FORMAT,
        folder=run.folder.path,
        metrics=metrics,
        whole=whole,
    )
    overflow = _overflow_hooks(cfg)
    extra = {"config": config, "metadata": saved_metadata}
    checkpoints = CheckpointHook(run.folder, cfg.SOLVER.CHECKPOINT_PERIOD, extra)
    measure = partial(_evaluate, evaluation, whole, model, trainer.average)
    best = None
    if metric := cfg.TEST.BEST_METRIC:
        patience = cfg.SOLVER.EARLY_STOPPING
        best = BestModel(metric=metric, patience=patience, folder=run.folder, extra=extra, metrics=metrics)
    evaluations = EvaluationHook(cfg.TEST.EVAL_PERIOD, measure, metrics, best)
    hooks = [ProgressHook(metrics), checkpoints, images, *overflow, evaluations, PreemptionHook(checkpoints)]
    trainer.train(batches, [MaskAnnealing(cfg), *hooks])
    if metrics is not None:
        metrics.close()
    return evaluations.results


def _overflow_hooks(cfg: CfgNode) -> list[QueryOverflowHook]:
    """Return the hook that warns of too few queries, if objects compete for queries."""
    if cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor":
        return []
    queries = cfg.MODEL.MASK_FORMER
    own_for_stuff = cfg.MODEL.SEM_SEG_HEAD.NAME == "KNetHead"  # each of its stuff classes has a kernel
    return [QueryOverflowHook(queries.NUM_OBJECT_QUERIES, queries.THING_IDS if own_for_stuff else None)]


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
    scheduler, clip = build_scheduler(cfg, optimizer), build_clipper(cfg)
    return Trainer(
        model=wrapped,
        optimizer=optimizer,
        scheduler=scheduler,
        clip=clip,
        max_iter=solver.MAX_ITER,
        dtype=autocast_dtype(cfg, next(model.parameters()).device),
        accumulation=solver.ACCUMULATION_STEPS,
        seed=cfg.SEED,
        ema_decay=solver.EMA_DECAY,
    )


def _log_model(model: nn.Module) -> None:
    """Log the model's size, and how SyncBN works on CPUs, where torch has none."""
    on_cpu = any(isinstance(m, SyncBatchNorm) and m.weight.device.type == "cpu" for m in model.modules())
    if on_cpu and world_size() > 1:
        logger.info("SyncBN on CPUs: this project computes the statistics over all processes, as on GPUs")
    elif on_cpu:
        logger.info("SyncBN of one process is plain batch norm: statistics of its own images")
    logger.info("%.1f million parameters", sum(p.numel() for p in model.parameters()) / 1e6)


def _restore(trainer: Trainer, saved: dict[str, Any], cfg: CfgNode) -> None:
    """Load a checkpoint; raise ValueError if it does not fit."""
    try:
        saved = load_tensors(saved, trainer.plain_model.state_dict(), trainer.parameters)
        check_values(saved[PATH], {name: (t, t) for name, t in optimizer_tensors(saved).items()})
        restore_weights(trainer.plain_model, saved["model"], saved[PATH])
        trainer.average.restart()
        if UNAVERAGED in saved:
            trained = saved["model"] | saved[UNAVERAGED]
            restore_weights(trainer.plain_model, trained, saved[PATH])
        if not has_same_groups(trainer.optimizer, saved["optimizer"]):
            raise other_groups(cfg.SOLVER, config_from_text(saved["config"], str(saved[PATH])).SOLVER)
        trainer.load_state_dict(saved)
    except WeightsError:
        raise
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"the run in OUTPUT_DIR does not fit this config: {error}") from error


def _open_folder(cfg: CfgNode, run: Run, trainer: Trainer) -> MetricsLog:
    """Prepare the run folder for this run, and return the log of its metrics; main process only."""
    folder, config = run.folder.path, cfg.dump()
    folder.mkdir(parents=True, exist_ok=True)
    if not run.is_continued:
        run.folder.set_earlier_run_aside()
    claim_run(folder)
    with atomic_write(folder / "config.yaml") as file:
        file.write(config.encode())
    logger.info("config, also in %s\n%s", folder / "config.yaml", Block(config))
    logger.info(
        "steps %d to %d, seed %d, folder %s", trainer.done, trainer.max_iter, trainer.seed, run.folder
    )
    return MetricsLog(folder, trainer.done, build_loggers(cfg, folder, trainer.done))


def _evaluate(
    evaluation: Evaluation,
    whole: Callable[[nn.Module], nn.Module],
    model: nn.Module,
    average: WeightAverage,
) -> Results:
    """Measure the averaged model with the main process's buffers: processes have different statistics."""
    with average.in_model():
        model = whole(model)
        if world_size() > 1:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)
        return evaluation(model)
