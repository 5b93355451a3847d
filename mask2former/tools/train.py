"""Train or evaluate a model, in as many processes as asked for."""

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib import import_module

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from mask2former.config import CfgNode, load_config
from mask2former.engine.build import check_host
from mask2former.engine.checkpoint.run_folder import FINAL, RunFolder
from mask2former.engine.errors import PREEMPTED, TrainingError
from mask2former.engine.evaluate import evaluate_checkpoint, verify_results
from mask2former.engine.hooks.preemption import PreemptedError, sigterm_deferred
from mask2former.engine.launch.failures import first_failure
from mask2former.engine.launch.launcher import launch
from mask2former.engine.setup.begin import begin_run
from mask2former.engine.setup.resolve import resolve_arguments
from mask2former.engine.setup.trained_model import stored_config
from mask2former.engine.train import train
from mask2former.export.check import report
from mask2former.export.evaluate import evaluate_exported
from mask2former.export.formats import FORMATS
from mask2former.export.write import export_model, model_and_metadata
from mask2former.export.writers import require_packages
from mask2former.tools.arguments.train import parse_arguments
from mask2former.utils.comm import is_main_process
from mask2former.utils.messages import Block
from mask2former.utils.output import print_error, tolerant_output
from mask2former.weights.contents import is_exported
from mask2former.weights.read import find_file, read_checkpoint

logger = logging.getLogger("mask2former")


@tolerant_output()
def work(args: argparse.Namespace, device: str) -> int:
    """Train or evaluate in this process, and return the exit code."""
    cfg = load_config(args.config_file, args.opts)
    check_host(cfg)
    check_one_task(args, cfg)
    run = begin_run(cfg.OUTPUT_DIR, training=not args.eval_only, resume=args.resume)
    if run.saved is None and cfg.MODEL.WEIGHTS and is_main_process():
        find_file(cfg.MODEL.WEIGHTS)  # a missing file must show before the data is read
    cfg = resolve_arguments(cfg, args, device, run)
    with run.folder:
        if args.eval_only:
            exported = run.saved is None and is_exported(cfg.MODEL.WEIGHTS)
            measure = evaluate_exported if exported else evaluate_checkpoint
            results = measure(cfg, run, args.precision, args.calibrate)
        else:
            try:
                with sigterm_deferred():
                    results = train(cfg, run)
            except PreemptedError as stop:
                logger.info("%s; --resume continues", stop)
                return PREEMPTED
            if args.export and is_main_process():
                export_final(run.folder, args.export)
    return 0 if not is_main_process() or verify_results(cfg, results) else 1


@tolerant_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code, as `--help` explains it."""
    return run(parse_arguments(argv))


def check_export(args: argparse.Namespace) -> None:
    """Check that `--export` can be done, before the training.

    Raises:
        ValueError: nothing is trained, or Detectron2 saves the model.
        MissingRuntimeError: a package is not installed.
    """
    if args.export is None:
        return
    if args.eval_only or args.host == "detectron2":
        other = "--eval-only" if args.eval_only else "--host detectron2"
        raise ValueError(
            f"--export is not for {other}: type `mask2former export CHECKPOINT --format {args.export}`"
        )
    require_packages(args.export)


def check_precision(args: argparse.Namespace) -> None:
    """Raise ValueError if Detectron2 is to predict in a precision of ours."""
    if args.host == "detectron2" and (args.precision != "fp32" or args.calibrate):
        raise ValueError("--precision and --calibrate are not for --host detectron2")


def check_one_task(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Raise ValueError if `--export` would meet a model for several tasks in the end."""
    if args.export and cfg.SOLVER.TASKS:
        command = f"mask2former export CHECKPOINT --format {args.export} --task TASK"
        raise ValueError(
            f"--export writes one task, and SOLVER.TASKS are several: type `{command}` afterwards"
        )


def export_final(folder: RunFolder, kind: str) -> None:
    """Write the final model of a run beside its checkpoint."""
    checkpoint = read_checkpoint(f"{folder}/{FINAL}")
    cfg = stored_config(checkpoint)
    suffixes = FORMATS[kind].suffixes
    path = (folder.path / FINAL).with_suffix(suffixes[0])
    differences = export_model(cfg, *model_and_metadata(cfg, checkpoint), path, kind)
    logger.info("%s", Block(report(path, suffixes, differences)))


def run(args: argparse.Namespace) -> int:
    """Run parsed arguments on the host of `--host`, and print what goes wrong in one line."""
    try:
        check_export(args)
        check_precision(args)
        if args.host == "detectron2":
            return import_module("mask2former.detectron2_host.running").main(args)
        return launch(work, args)
    except (KeyboardInterrupt, SignalException):
        print("stopped; --resume continues from the last checkpoint", file=sys.stderr)
    except ChildFailedError as error:
        print_error(first_failure(error))
    except (TrainingError, ValueError, OSError, ModuleNotFoundError) as error:
        logger.debug("the error in full", exc_info=True)
        print_error(error)
    return 1


if __name__ == "__main__":
    sys.exit(main())
