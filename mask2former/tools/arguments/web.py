"""Flags of `mask2former web`."""

import argparse
from collections.abc import Sequence

from mask2former.options import MOST_MEGABYTES
from mask2former.tools.flags import add_max_megapixels, add_precision_arguments, positive_number, whole_number
from mask2former.utils.output import Parser

SMALL_MODEL = "output/shapes/model_final.pth"  # of `make run`


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the flags."""
    parser = Parser(
        prog="mask2former web", description="Serve a page that shows what a model finds in images."
    )
    flag = parser.add_argument
    model = "a checkpoint, or a published model (`mask2former zoo`), which is downloaded once"
    flag("model", nargs="?", metavar="MODEL", help=f"{model}; default: {SMALL_MODEL}, of `make run`")
    local = "127.0.0.1, this machine alone"
    flag("--host", default="127.0.0.1", metavar="ADDRESS", help=f"where to listen (default: {local})")
    flag("--port", type=whole_number(0, 65535), default=7860, metavar="N", help="default: 7860; 0: any")
    flag(
        "--max-megabytes",
        type=positive_number,
        metavar="N",
        default=MOST_MEGABYTES,
        help=f"refuse larger uploads (default: {MOST_MEGABYTES})",
    )
    add_max_megapixels(parser)
    add_precision_arguments(parser)
    return parser.parse_args(argv)
