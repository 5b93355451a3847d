"""The command `mask2former-train`: set up, then train or evaluate, in as many processes as asked for."""

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib import import_module

from fvcore.common.config import CfgNode
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from mask2former.config import load_config, typed_keys
from mask2former.data.records import Datasets
from mask2former.engine.checkpoint.disk_space import check_writable
from mask2former.engine.checkpoint.remote import run_folder
from mask2former.engine.checkpoint.run_folder import RunFolder
from mask2former.engine.checkpoint.run_identity import is_own_run
from mask2former.engine.errors import TrainingError
from mask2former.engine.evaluate import Results, evaluate_checkpoint, verify_results
from mask2former.engine.hooks.preemption import PREEMPTED, PreemptedError, sigterm_deferred
from mask2former.engine.launch.failures import first_failure
from mask2former.engine.launch.launcher import add_arguments, launch
from mask2former.engine.logger import describe_environment, setup_logger
from mask2former.engine.setup.custom_data import Given, apply_custom_data
from mask2former.engine.setup.dataset_facts import apply_dataset_facts
from mask2former.engine.setup.device import launched_device
from mask2former.engine.setup.expected_results import expected_results
from mask2former.engine.setup.overfit import apply_overfit
from mask2former.engine.train import train
from mask2former.utils.comm import is_main_process, rank

logger = logging.getLogger("mask2former")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of Detectron2's `train_net.py`."""
    parser = argparse.ArgumentParser(
        description="Train or evaluate a model; the run is kept in OUTPUT_DIR.",
        epilog="Example: --config-file coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml SEED 1. "
        f"Exit codes: 0 done; 1 failed, or other results than expected; 2 wrong flags; {PREEMPTED} stopped "
        "by SIGTERM, with a checkpoint written: --resume continues.",
    )
    flag = parser.add_argument
    flag(
        "--config-file",
        required=True,
        metavar="FILE",
        help="a YAML file, or the name of one of the project's",
    )
    flag("--resume", action="store_true", help="continue the run in OUTPUT_DIR, if there is one")
    flag(
        "--eval-only",
        action="store_true",
        help="evaluate MODEL.WEIGHTS, or with --resume the run in OUTPUT_DIR",
    )
    flag(
        "--host",
        choices=("standalone", "detectron2"),
        default="standalone",
        help="who launches, loops and saves: this project, or an installed Detectron2",
    )
    add_data_arguments(parser)
    add_arguments(parser)
    flag("opts", nargs="*", metavar="KEY VALUE", help="config keys to override")
    return parser.parse_intermixed_args(argv)  # flags may stand after keys, too


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags for somebody's own data; docs/custom_datasets.md describes them."""
    flag = parser.add_argument_group("your own data (docs/custom_datasets.md)").add_argument
    flag("--train-images", metavar="DIR", help="a folder of images to train on,")
    flag(
        "--train-annotations",
        metavar="FILE_OR_DIR",
        help="and their annotations: a COCO instance or panoptic JSON, or a folder of label PNGs",
    )
    flag("--val-images", metavar="DIR", help="the same to test on; without it nothing is evaluated")
    flag("--val-annotations", metavar="FILE_OR_DIR")
    flag(
        "--classes", "--train-classes", metavar="FILE", help="names of the classes in label PNGs, one a line"
    )
    flag("--overfit", type=int, metavar="N", help="train and test on the first N images, to see it learn")
    flag(
        "--save-predictions", action="store_true", help="write them in the official formats, when evaluating"
    )


def setup(args: argparse.Namespace, device: str, datasets: Datasets) -> CfgNode:
    """The config of this process, complete with what the dataset and the flags decide.

    Raises:
        ValueError, OSError: something that the user gave is wrong.
    """
    typed = typed_keys(args.opts)
    cfg = load_config(args.config_file, args.opts)
    cfg.TEST.SAVE_PREDICTIONS |= args.save_predictions
    expected_results(cfg)  # a wrong row shall not show after days
    folder = run_folder(cfg.OUTPUT_DIR)
    folder.begin(training=not args.eval_only)
    if is_main_process():
        check_writable(folder.path)
    setup_logger(folder.path, rank())
    if is_main_process():
        logger.info("environment\n%s\n  command: %s", describe_environment(), " ".join(sys.argv))
    cfg.MODEL.DEVICE = launched_device(cfg.MODEL.DEVICE, device, args.num_gpus)
    given = Given(**{name: getattr(args, name) for name in Given._fields})
    apply_custom_data(cfg, given, typed, test_only=args.eval_only, datasets=datasets)
    if args.overfit is not None:
        apply_overfit(cfg, args.overfit, typed, datasets)
    if args.eval_only and cfg.DATASETS.TEST:
        cfg.DATASETS.TRAIN = ()  # nobody who evaluates needs its files: the classes are those of the test set
    apply_dataset_facts(cfg, typed, datasets)
    return cfg


def work(args: argparse.Namespace, device: str) -> int:
    """What each process does; the exit code."""
    datasets = Datasets()
    cfg = setup(args, device, datasets)
    folder = run_folder(cfg.OUTPUT_DIR)
    with folder:
        try:
            results = _run(args, cfg, folder, datasets)
        except PreemptedError as stop:
            logger.info("%s; --resume continues", stop)
            return PREEMPTED
    return 0 if not is_main_process() or verify_results(cfg, results) else 1


def _run(args: argparse.Namespace, cfg: CfgNode, folder: RunFolder, datasets: Datasets) -> Results:
    if args.eval_only:
        return evaluate_checkpoint(cfg, args.resume, datasets)
    with sigterm_deferred():
        return train(cfg, args.resume or is_own_run(folder.path), typed_keys(args.opts), datasets)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code, as `--help` explains it."""
    args = parse_arguments(argv)
    try:
        if args.host == "detectron2":
            return import_module("mask2former.detectron2_host").main(args)
        return launch(work, args)
    except (KeyboardInterrupt, SignalException):
        print("stopped; --resume continues from the last checkpoint", file=sys.stderr)
    except ChildFailedError as error:
        print(f"error: {first_failure(error)}", file=sys.stderr)
    except (TrainingError, ValueError, OSError, ModuleNotFoundError) as error:
        logger.debug("the error in full", exc_info=True)
        print(f"error: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
