"""Flags of `mask2former evaluate`."""

import argparse
from collections.abc import Sequence

from mask2former.tools.arguments.train import add_config_arguments, add_data_arguments
from mask2former.tools.flags import add_precision_arguments, add_tile_arguments, tile_options
from mask2former.utils.output import Parser


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags of evaluation, and complete them to those of training with `--eval-only`."""
    parser = Parser(
        prog="mask2former evaluate",
        description="Evaluate MODEL.WEIGHTS, or with --resume the run in OUTPUT_DIR, on DATASETS.TEST.",
        epilog="Example: --config-file coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml "
        "MODEL.WEIGHTS model_final.pth. Exit codes: 0 done; 1 failed, or other results than expected; "
        "2 wrong flags.",
    )
    add_config_arguments(parser)
    add_data_arguments(parser, "val")
    parser.set_defaults(eval_only=True, export=None, overfit=None, train_images=None, train_annotations=None)
    add_precision_arguments(parser)
    add_tile_arguments(parser)
    args = parser.parse_intermixed_args(argv)  # flags may also follow keys
    args.opts += map(str, tile_options(args))
    return args
