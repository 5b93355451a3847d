"""Flags and types of values that several commands share."""

import argparse
import math
from collections.abc import Callable
from typing import Any

from mask2former.config.defaults import DEFAULTS
from mask2former.options import PREDICTION_PRECISIONS
from mask2former.utils.messages import brief

MAX_DIGITS = 20
MAX_WORKERS = 1024


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return a parser of whole numbers from `least` on, perhaps up to `most`, for argparse."""
    limits = f"of at least {least}" if most is None else f"from {least} to {most}"

    def parse(text: str) -> int:
        is_number = text.isdecimal() and len(text) <= MAX_DIGITS
        if not is_number or not least <= int(text) <= (most or math.inf):
            raise argparse.ArgumentTypeError(f"expected a whole number {limits}, not {brief(text, 30)}")
        return int(text)

    return parse


def positive_number(text: str) -> float:
    """Parse a number above 0, for argparse."""
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, not '{text}'")
    return number


def probability(text: str) -> float:
    """Parse a number from 0 to 1, for argparse."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, not '{text}'")
    return number


def add_max_megapixels(parser: argparse.ArgumentParser) -> None:
    """Add the flag that raises the limit of the sizes of images."""
    default = DEFAULTS["INPUT.MAX_MEGAPIXELS"]
    what = f"refuse larger images and label maps (default: {default:g})"
    parser.add_argument("--max-megapixels", type=positive_number, metavar="N", default=default, help=what)


def add_precision_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the precision in which a model predicts."""
    flag = parser.add_argument
    flag("--precision", choices=PREDICTION_PRECISIONS, default="fp32", help="bf16 needs fast bf16 hardware")
    flag("--calibrate", metavar="DIR", help="with --precision int8: images like those to predict")


def add_tile_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of prediction in tiles; see `tile_options`."""
    side = "predict squares of N pixels and merge the results: large images, small objects"
    parser.add_argument("--tile", type=whole_number(0), metavar="N", help=f"{side} (docs/large_images.md)")
    overlap = DEFAULTS["TEST.TILE.OVERLAP"]
    share = f"least part of a side that neighboring tiles share (default: {overlap})"
    parser.add_argument("--tile-overlap", type=float, metavar="P", help=share)


def tile_options(args: argparse.Namespace) -> list[Any]:
    """Return the keys and values `KEY VALUE ...` that the flags of tiles set."""
    given = {"TEST.TILE.SIZE": args.tile, "TEST.TILE.OVERLAP": args.tile_overlap}
    return [part for key, value in given.items() if value is not None for part in (key, value)]
