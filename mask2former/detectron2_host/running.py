"""`mask2former train --host detectron2`: the standalone host's flags and configs, run by Detectron2.

The config is resolved from the same files, flags and dataset facts as without `--host`. Detectron2's
launcher, loop and checkpointer then use it.
"""

import os
from argparse import Namespace
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode as HostCfgNode
from detectron2.config import get_cfg
from detectron2.engine import default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from mask2former.config import CfgNode, add_maskformer2_config, load_config, resolve_config_file, with_values
from mask2former.config.detectron2_keys import HOST_MODELS
from mask2former.config.yaml_files import flatten
from mask2former.detectron2_host.trainer import Trainer, check_output_dir
from mask2former.engine.evaluate import Evaluation, load_trained_weights
from mask2former.engine.launch.launcher import plan_processes, started_by_torchrun
from mask2former.engine.launch.slurm import slurm_task
from mask2former.engine.setup.begin import begin_run
from mask2former.engine.setup.device import resolve_device
from mask2former.engine.setup.resolve import resolve_arguments


def main(args: Namespace) -> int:
    """Train or evaluate by the parsed flags of `mask2former train`, and return the exit code.

    Raises:
        ValueError, OSError: something that the user gave is wrong.
    """
    _use_slurm(args)
    plan = plan_processes(args, torch.cuda.device_count())
    if plan.device == "cpu" and plan.per_machine * plan.machines > 1:
        raise ValueError("--host detectron2 runs several processes on GPUs only; see --num-gpus")
    if args.max_restarts:
        raise ValueError("--max-restarts is not for --host detectron2: its launcher restarts nothing")
    check_output_dir(load_config(args.config_file, args.opts))
    launch(
        work,
        plan.per_machine,
        num_machines=plan.machines,
        machine_rank=plan.machine_rank,
        dist_url=plan.dist_url,
        timeout=timedelta(seconds=args.timeout),
        args=(args, plan.device),
    )
    return 0


def _use_slurm(args: Namespace) -> None:
    """Let each SLURM task be a machine; raise ValueError if the task or torchrun is to be one process."""
    task = None if started_by_torchrun() else slurm_task(os.environ, args.dist_url)
    if task and args.num_gpus:
        args.num_machines, args.machine_rank, args.dist_url = task.total, task.number, task.url
    elif task or started_by_torchrun():
        raise ValueError(
            "--host detectron2 starts the processes of a machine itself: run one command per machine, with "
            "--num-gpus, not one per GPU as torchrun or srun does"
        )


def work(args: Namespace, device: str) -> None:
    """Train or evaluate in this process; exit with code 1 if TEST.EXPECTED_RESULTS do not hold."""
    given = load_config(args.config_file, args.opts)
    run = begin_run(given.OUTPUT_DIR, training=not args.eval_only)
    Trainer.datasets = run.datasets
    cfg = resolve_arguments(given, args, device, run)
    Evaluation(cfg, cfg.OUTPUT_DIR, run.datasets)  # report missing files before training, not after it
    # Detectron2's trainer chooses a random seed itself, or takes the seed of the run that it continues.
    cfg = with_values(cfg, {"SEED": given.SEED}, given.source("SEED"))
    node = host_config(cfg, args.config_file, args.opts)
    # Without the file's name, which default_setup would open: it may be the name of one of our configs.
    default_setup(node, Namespace(**{**vars(args), "config_file": ""}))
    if args.eval_only:
        evaluate(node, args.resume)
    else:
        trainer = Trainer(node)
        trainer.resume_or_load(resume=args.resume)
        trainer.train()


def evaluate(cfg: HostCfgNode, resume: bool) -> None:
    """Evaluate MODEL.WEIGHTS or, with `resume`, the run in OUTPUT_DIR, by Detectron2's loop.

    Raises:
        ValueError: there are no weights, or only those of a backbone.
    """
    model = Trainer.build_model(cfg)
    checkpointer = DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
    if resume and checkpointer.has_checkpoint():
        checkpointer.resume_or_load("", resume=True)
    elif cfg.MODEL.WEIGHTS and cfg.MODEL.META_ARCHITECTURE in HOST_MODELS:
        checkpointer.load(cfg.MODEL.WEIGHTS)
    else:
        load_trained_weights(cfg, model)
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)


def host_config(cfg: CfgNode, config_file: str | Path, opts: Sequence[Any] = ()) -> HostCfgNode:
    """Return a config of ours as Detectron2's, with a concrete MODEL.DEVICE and Detectron2's other keys.

    Those are at their defaults under our model. A model of Detectron2 takes them from `config_file` and
    `opts`, which `cfg` was read from, and the number of classes from `cfg`.
    """
    node = get_cfg()
    add_maskformer2_config(node)
    values = {**flatten(cfg), "MODEL.DEVICE": str(resolve_device(cfg.MODEL.DEVICE))}
    if cfg.MODEL.META_ARCHITECTURE in HOST_MODELS:
        node.merge_from_file(str(resolve_config_file(config_file)))
        node.merge_from_list(list(opts))
        values["MODEL.ROI_HEADS.NUM_CLASSES"] = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    return with_values(node, values, "the standalone host's config")
