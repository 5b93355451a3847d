"""Flags of `mask2former config`."""

import argparse
from collections.abc import Sequence

from mask2former.utils.output import Parser


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the config file, its overrides and `--all`."""
    parser = Parser(
        prog="mask2former config",
        description="Print every key that differs from its default, with its value and the file that set it.",
        epilog="Example: coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml SEED 1",
    )
    parser.add_argument("--all", action="store_true", help="print all keys, also those at their default")
    parser.add_argument("file", metavar="FILE", help="a YAML file, or the name of one of the project's")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to override")
    return parser.parse_intermixed_args(argv)
