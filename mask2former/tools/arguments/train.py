"""Flags of `mask2former train`, and those that `mask2former evaluate` shares."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from mask2former.engine.errors import PREEMPTED
from mask2former.engine.launch.flags import add_arguments
from mask2former.export.formats import FORMATS
from mask2former.utils.output import Parser


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags of Detectron2's `train_net.py`."""
    parser = Parser(
        prog="mask2former train",
        description="Train or evaluate a model; the run is kept in OUTPUT_DIR.",
        epilog="Example: --config-file coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml SEED 1. "
        f"Exit codes: 0 done; 1 failed, or other results than expected; 2 wrong flags; {PREEMPTED} stopped "
        "by SIGTERM, with a checkpoint written: --resume continues.",
    )
    flag = parser.add_argument
    add_config_arguments(parser)
    eval_only = "evaluate MODEL.WEIGHTS, or with --resume the run in OUTPUT_DIR"
    flag("--eval-only", action="store_true", help=eval_only)
    exported = "at the end, also write model_final in this format, compared with the model (docs/export.md)"
    flag("--export", choices=FORMATS, help=exported)
    data = add_data_arguments(parser, "train", "val")
    parser.set_defaults(precision="fp32", calibrate=None)  # flags of `mask2former evaluate`
    data("--overfit", type=int, metavar="N", help="train and test on the first N images, to see it learn")
    return parser.parse_intermixed_args(argv)  # flags may also follow keys


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of training and evaluation: config, keys, run folder, host and processes."""
    flag = parser.add_argument
    name = "a YAML file, or the name of one of the project's"
    flag("--config-file", required=True, metavar="FILE", help=name)
    flag("--resume", action="store_true", help="continue or evaluate the run in OUTPUT_DIR")
    flag("--save-predictions", action="store_true", help="save predictions in the official formats")
    host = "who launches, loops and saves: this project, or an installed Detectron2"
    flag("--host", choices=("standalone", "detectron2"), default="standalone", help=host)
    add_arguments(parser)
    flag("opts", nargs="*", metavar="KEY VALUE", help="config keys to override")


def add_data_arguments(parser: argparse.ArgumentParser, *splits: str) -> Callable[..., Any]:
    """Add the flags of a custom dataset (docs/custom_datasets.md); return what adds more to their group."""
    annotations = (
        "their annotations: a COCO instance or panoptic JSON, YOLO's data.yaml, or a folder of labels"
    )
    flag = parser.add_argument_group("custom dataset (docs/custom_datasets.md)").add_argument
    for split in splits:
        flag(f"--{split}-images", metavar="DIR", help=f"the folder of {split} images")
        flag(f"--{split}-annotations", metavar="FILE_OR_DIR", help=annotations)
    names = "names of the classes in label PNGs, labelme or YOLO labels, one a line"
    flag("--classes", "--train-classes", metavar="FILE", help=names)
    flag("--crowds-as-objects", action="store_true", help="ignore 'iscrowd' in instance JSONs")
    return flag
