"""Flags of `mask2former analyze`."""

import argparse
from collections.abc import Sequence

from mask2former.tools.flags import whole_number
from mask2former.utils.output import Parser


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the flags: one config with its keys, all published configs, or the papers' tables."""
    parser = Parser(
        prog="mask2former analyze",
        description="Report parameters, multiply-adds, activations and times of the parts of a model.",
        epilog="Example: --config-file coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml --runs 0",
    )
    flag = parser.add_argument
    flag("--config-file", metavar="FILE", help="a YAML file, or the name of one of the project's")
    flag("--published", action="store_true", help="print the tables of all published configs, untimed")
    flag("--tables", action="store_true", help="print the papers' tables, with the costs and configs here")
    flag(
        "--recount",
        nargs="?",
        const="",
        metavar="TEXT",
        help="first count all configs of both tables anew, or those with TEXT in their name; takes minutes",
    )
    flag(
        "--size",
        nargs=2,
        type=whole_number(1),
        metavar=("H", "W"),
        help="of the image, in pixels; default: the most common of the dataset, resized as for evaluation",
    )
    flag(
        "--runs", type=whole_number(0), default=5, metavar="N", help="timed runs, after one untimed; 0: none"
    )
    flag("opts", nargs="*", metavar="KEY VALUE", help="config keys to override")
    args = parser.parse_intermixed_args(argv)
    if [args.published, args.tables, bool(args.config_file)].count(True) != 1:
        parser.error("give either --config-file or --published or --tables")
    if not args.config_file and (args.size or args.opts):
        parser.error("--size and keys need --config-file: the tables show the configs as they are")
    if args.config_file and args.recount is not None:
        parser.error("--recount needs --published or --tables")
    return args
