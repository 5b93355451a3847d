"""Flags of `mask2former score`: a subcommand for each metric."""

import argparse
import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

from mask2former.config.defaults import DEFAULTS
from mask2former.engine.setup.cores import usable_cores
from mask2former.options import BOUNDARY_RATIO
from mask2former.tools.flags import MAX_WORKERS, add_max_megapixels, whole_number
from mask2former.utils.messages import brief
from mask2former.utils.output import Parser

MAX_CLASSES = 10_000  # whose confusion matrix takes 800 MB


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags; `metric` is a key of METRICS."""
    parser = Parser(
        prog="mask2former score",
        description="Compute a metric from files of predictions and ground truth.",
    )
    commands = parser.add_subparsers(metavar="METRIC", dest="metric", required=True)
    for name, (summary, add_flags) in METRICS.items():
        command = commands.add_parser(name, help=summary, description=f"Compute {summary}.")
        add_flags(command)
        command.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
        add_max_megapixels(command)
    return parser.parse_args(argv)


def _panoptic(parser: argparse.ArgumentParser) -> None:
    flag = parser.add_argument
    flag("--gt-json", required=True, help="panoptic JSON file of the ground truth")
    flag("--gt-dir", required=True, help="folder of its PNGs")
    flag("--pred-json", required=True, help="panoptic JSON file of the predictions")
    flag("--pred-dir", required=True, help="folder of their PNGs")
    _add_boundary(parser)
    flag(
        "--recount-areas", action="store_true", help="count ground-truth areas in the PNGs, ignore the JSON's"
    )
    _add_workers(parser)


def _instances(parser: argparse.ArgumentParser) -> None:
    flag = parser.add_argument
    flag("--gt", required=True, help="instance JSON file of the ground truth, in COCO's format")
    flag("--results", required=True, help="JSON file of results, in COCO's format")
    _add_boundary(parser)
    flag("--lvis", action="store_true", help="follow LVIS' rules, for LVIS' annotations")


def _semantic(parser: argparse.ArgumentParser) -> None:
    flag = parser.add_argument
    flag("--gt-dir", required=True, help="folder of the ground-truth label maps")
    flag("--pred-dir", required=True, help="folder of the predictions, with the same names")
    classes = parser.add_mutually_exclusive_group(required=True).add_argument
    number = whole_number(0, MAX_CLASSES)
    classes("--num-classes", metavar="K", type=number, help="the classes are 0 to K - 1")
    ids: dict[str, Any] = {"metavar": "IDS", "type": _labels}
    classes("--label-ids", **ids, help="labels that are classes, such as 1-150 or 7,8,11-13")
    flag("--pred-label-ids", **ids, help="their labels in the predictions, if they differ")
    ignored = DEFAULTS["MODEL.SEM_SEG_HEAD.IGNORE_VALUE"]
    flag("--ignore-label", default=ignored, type=int, help="label of ignored pixels")
    _add_workers(parser)


def _cityscapes_instances(parser: argparse.ArgumentParser) -> None:
    _add_cityscapes_folders(parser, "text files and masks")
    parser.add_argument("--boundary", action="store_true", help="also compute boundary AP")
    _add_workers(parser)


def _cityscapes_semantic(parser: argparse.ArgumentParser) -> None:
    _add_cityscapes_folders(parser, "PNGs of label ids")
    _add_workers(parser)


def _video(parser: argparse.ArgumentParser) -> None:
    flag = parser.add_argument
    flag("--gt", required=True, help="JSON file of the ground truth, in YouTube-VIS' format")
    flag("--results", required=True, help="JSON file of results, in YouTube-VIS' format")


METRICS = {  # name -> summary, and the function that adds the flags
    "panoptic": ("panoptic quality: COCO, ADE20K, Cityscapes, Mapillary", _panoptic),
    "instances": ("average precision of instance masks: COCO, ADE20K, LVIS", _instances),
    "semantic": ("mean IoU of label maps", _semantic),
    "cityscapes-instances": ("Cityscapes' average precision of instance masks", _cityscapes_instances),
    "cityscapes-semantic": ("Cityscapes' IoU of label maps", _cityscapes_semantic),
    "video": ("average precision of tracks: YouTube-VIS, OVIS", _video),
}


def _add_boundary(parser: argparse.ArgumentParser) -> None:
    ratios = f"RATIO of width to image diagonal: {BOUNDARY_RATIO}, Cityscapes: 0.005"
    parser.add_argument(
        "--boundary",
        nargs="?",
        type=float,
        const=BOUNDARY_RATIO,
        metavar="RATIO",
        help=f"also compute boundary metrics; {ratios}",
    )


def _add_workers(parser: argparse.ArgumentParser) -> None:
    number = whole_number(1, MAX_WORKERS)
    what = "threads that score images (default: one for each core)"
    parser.add_argument("--workers", type=number, default=usable_cores(), metavar="N", help=what)


def _add_cityscapes_folders(parser: argparse.ArgumentParser, predictions: str) -> None:
    flag = parser.add_argument
    flag("--gt-dir", required=True, help="folder of the ground truth's *_instanceIds.png files")
    flag("--pred-dir", required=True, help=f"folder of the predictions' {predictions}")


def _labels(text: str) -> list[int]:
    """Parse "1-3,7" into [1, 2, 3, 7]; labels have at most six digits."""
    if not re.fullmatch(r"\d{1,6}(-\d{1,6})?(,\d{1,6}(-\d{1,6})?)*", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{brief(text)} is not like 1-150 or 7,8,11-13")
    parts = [[int(end) for end in part.split("-")] for part in text.split(",")]
    ranges = [range(ends[0], ends[-1] + 1) for ends in parts]
    if not all(ranges):
        raise argparse.ArgumentTypeError(f"{brief(text)} has a range that ends before it begins")
    if sum(map(len, ranges)) > MAX_CLASSES:
        raise argparse.ArgumentTypeError(f"{brief(text)} has more than {MAX_CLASSES} labels")
    return list(chain(*ranges))
