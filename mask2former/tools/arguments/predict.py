"""Flags of `mask2former predict`."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mask2former.options import (
    COUNTED,
    DUPLICATE_IOU,
    MAX_ABSENT,
    SCORE_THRESHOLD,
    USUAL_RATE,
)
from mask2former.tools.flags import (
    add_max_megapixels,
    add_precision_arguments,
    add_tile_arguments,
    positive_number,
    probability,
    whole_number,
)
from mask2former.utils.output import Parser

DEFAULT_CONFIG = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
WEIGHTS = "MODEL.WEIGHTS"


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the flags, which are those of the published demo and `--model`."""
    parser = Parser(
        prog="mask2former predict",
        description="Segment images with a trained model and draw the results.",
        epilog=f"Examples: --model coco-panoptic-r50 --input a.jpg; --input a.jpg --opts {WEIGHTS} model.pth",
    )
    flag = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True).add_argument
    source("--input", nargs="+", metavar="FILE", default=[], help="images, films, folders, globs or URLs")
    add_film_flags(parser, source)
    flag("--output", default="output", help="folder, or for one image or film a file (default: ./output)")
    flag("--coco", type=Path, metavar="FILE", help="also write all objects as one COCO file")
    model = parser.add_mutually_exclusive_group().add_argument
    model("--model", metavar="NAME", help="a published model, see `mask2former zoo`; downloaded once")
    model("--config-file", metavar="FILE", help=f"default: the checkpoint's own, else {DEFAULT_CONFIG}")
    flag("--task", choices=COUNTED, help="what to draw; default: the first of these that the model is set to")
    flag("--legend", action="store_true", help="draw the classes found and their shares beside the image")
    flag(
        "--confidence-threshold",
        type=probability,
        metavar="P",
        help=f"draw instances scored P or more (default: {SCORE_THRESHOLD}) and panoptic segments above P "
        "(default: the config's)",
    )
    flag(
        "--duplicate-iou",
        type=probability,
        default=DUPLICATE_IOU,
        metavar="P",
        help="of instances whose masks have an IoU above P, draw the one with the best score "
        f"(default: {DUPLICATE_IOU}; 1 draws all)",
    )
    add_tile_arguments(parser)
    add_max_megapixels(parser)
    parser.set_defaults(max_megapixels=None)  # the config's
    add_precision_arguments(parser)
    flag("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys to override")
    return parser.parse_args(argv)


def add_film_flags(parser: argparse.ArgumentParser, source: Callable[..., Any]) -> None:
    """Add the flags of films; `source` adds those that stand in the place of --input."""
    source("--webcam", type=whole_number(0), metavar="N", help="track what webcam N shows, until Ctrl-C")
    flag = parser.add_argument
    flag("--track", action="store_true", help="images are the frames of one film; films always are tracked")
    flag("--tracks", type=Path, metavar="FILE", help="also write the tracks as YouTube-VIS' results")
    flag(
        "--max-absent",
        type=whole_number(0),
        default=MAX_ABSENT,
        metavar="N",
        help=f"an object that was not seen for N frames gets a new id (default: {MAX_ABSENT})",
    )
    what = f"frames per second of a film made of images (default: {USUAL_RATE:g})"
    flag("--fps", type=positive_number, default=USUAL_RATE, metavar="N", help=what)
