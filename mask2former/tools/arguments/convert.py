"""Flags of `mask2former convert`."""

import argparse
from collections.abc import Sequence

from mask2former.config.ranges import NAMES
from mask2former.utils.output import Parser

SUFFIX = ".pth"  # of a checkpoint


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags."""
    parser = Parser(
        prog="mask2former convert",
        description="Convert a folder in the form of transformers to a checkpoint, or a checkpoint to such a "
        "folder (docs/hub.md). Weights stay as they are, bit for bit.",
        epilog="Examples: mask2former-swin-tiny-coco-panoptic model.pth; output/model_final.pth my_folder.",
    )
    flag = parser.add_argument
    flag("source", metavar="SOURCE", help="a folder, or a checkpoint (path or URL)")
    target = f"a checkpoint to write, NAME{SUFFIX} (of a folder, or with --task), or a folder"
    flag("target", metavar="TARGET", help=target)
    flag("--config-file", metavar="FILE", help="config of a checkpoint that holds none, as published ones")
    flag(
        "--task",
        choices=NAMES["SOLVER.TASKS"],
        help="of a model for several tasks (SOLVER.TASKS): the one to take out",
    )
    flag("--overwrite", action="store_true", help="replace TARGET if it exists")
    flag("opts", nargs="*", metavar="KEY VALUE", help="config keys to override")
    return parser.parse_intermixed_args(argv)
