"""Compute a metric from files of predictions and ground truth."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from mask2former.evaluation.cityscapes import ap as cityscapes_ap
from mask2former.evaluation.cityscapes import iou as cityscapes_iou
from mask2former.evaluation.coco.ap import with_boundary
from mask2former.evaluation.common.boundary import RATIO
from mask2former.evaluation.common.json_files import load_json
from mask2former.evaluation.common.report import metrics_json, metrics_table
from mask2former.evaluation.evaluator import Metrics
from mask2former.evaluation.panoptic.counts import Rules
from mask2former.evaluation.panoptic.quality import panoptic_quality
from mask2former.evaluation.semantic.miou import mean_iou_of_folders
from mask2former.evaluation.video.ap import track_average_precision
from mask2former.tools.flags import MAX_WORKERS, add_max_megapixels, whole_number
from mask2former.utils.image_io import set_pixel_limit
from mask2former.utils.label_maps import IGNORE_LABEL
from mask2former.utils.messages import brief
from mask2former.utils.output import Parser, print_error, tolerant_output

MAX_CLASSES = 10_000  # whose confusion matrix takes 800 MB
Compute = Callable[[argparse.Namespace], Metrics]


@tolerant_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 2 for bad input."""
    parser = Parser(prog="mask2former score", description=__doc__)
    commands = parser.add_subparsers(metavar="METRIC", required=True)
    for name, (summary, define) in METRICS.items():
        command = commands.add_parser(name, help=summary, description=f"Compute {summary}.")
        command.set_defaults(compute=define(command))
        command.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
        add_max_megapixels(command)
    args = parser.parse_args(argv)
    set_pixel_limit(args.max_megapixels)
    try:
        metrics = args.compute(args)
    except (ValueError, OSError, MemoryError) as error:
        print_error(error)
        return 2
    sys.stdout.write((metrics_json if args.json else metrics_table)(metrics) + "\n")
    return 0


def _panoptic(parser: argparse.ArgumentParser) -> Compute:
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
    return lambda args: panoptic_quality(
        *(args.gt_json, args.gt_dir, args.pred_json, args.pred_dir),
        rules=Rules(args.recount_areas, args.boundary),
        workers=args.workers,
    )


def _instances(parser: argparse.ArgumentParser) -> Compute:
    flag = parser.add_argument
    flag("--gt", required=True, help="instance JSON file of the ground truth, in COCO's format")
    flag("--results", required=True, help="JSON file of results, in COCO's format")
    _add_boundary(parser)
    flag("--lvis", action="store_true", help="follow LVIS' rules, for LVIS' annotations")
    return lambda args: with_boundary(
        load_json(args.gt, dict),
        load_json(args.results, list),
        args.boundary,
        lvis_style=args.lvis,
        gt_file=args.gt,
        results_file=args.results,
    )


def _semantic(parser: argparse.ArgumentParser) -> Compute:
    flag = parser.add_argument
    flag("--gt-dir", required=True, help="folder of the ground-truth label maps")
    flag("--pred-dir", required=True, help="folder of the predictions, with the same names")
    classes = parser.add_mutually_exclusive_group(required=True).add_argument
    number = whole_number(0, MAX_CLASSES)
    classes("--num-classes", metavar="K", type=number, help="the classes are 0 to K - 1")
    ids: dict[str, Any] = {"metavar": "IDS", "type": _labels}
    classes("--label-ids", **ids, help="labels that are classes, such as 1-150 or 7,8,11-13")
    flag("--pred-label-ids", **ids, help="their labels in the predictions, if they differ")
    flag("--ignore-label", default=IGNORE_LABEL, type=int, help="label of ignored pixels")
    return lambda args: mean_iou_of_folders(
        args.gt_dir,
        args.pred_dir,
        label_ids=range(args.num_classes) if args.label_ids is None else args.label_ids,
        pred_label_ids=args.pred_label_ids,
        ignore_label=args.ignore_label,
    )


def _cityscapes_instances(parser: argparse.ArgumentParser) -> Compute:
    _add_cityscapes_folders(parser, "text files and masks")
    parser.add_argument("--boundary", action="store_true", help="also compute boundary AP")
    _add_workers(parser)
    return lambda args: cityscapes_ap.score_folders(
        args.gt_dir, args.pred_dir, boundary=args.boundary, workers=args.workers
    )


def _cityscapes_semantic(parser: argparse.ArgumentParser) -> Compute:
    _add_cityscapes_folders(parser, "PNGs of label ids")
    return lambda args: cityscapes_iou.score_folders(args.gt_dir, args.pred_dir)


def _video(parser: argparse.ArgumentParser) -> Compute:
    flag = parser.add_argument
    flag("--gt", required=True, help="JSON file of the ground truth, in YouTube-VIS' format")
    flag("--results", required=True, help="JSON file of results, in YouTube-VIS' format")
    return lambda args: track_average_precision(
        load_json(args.gt, dict), load_json(args.results, list), gt_file=args.gt, results_file=args.results
    )


METRICS = {  # name -> summary, and the function that adds the flags
    "panoptic": ("panoptic quality: COCO, ADE20K, Cityscapes, Mapillary", _panoptic),
    "instances": ("average precision of instance masks: COCO, ADE20K, LVIS", _instances),
    "semantic": ("mean IoU of label maps", _semantic),
    "cityscapes-instances": ("Cityscapes' average precision of instance masks", _cityscapes_instances),
    "cityscapes-semantic": ("Cityscapes' IoU of label maps", _cityscapes_semantic),
    "video": ("average precision of tracks: YouTube-VIS, OVIS", _video),
}


def _add_boundary(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--boundary",
        nargs="?",
        type=float,
        const=RATIO,
        metavar="RATIO",
        help=f"also compute boundary metrics; RATIO of width to image diagonal: {RATIO}, Cityscapes: 0.005",
    )


def _add_workers(parser: argparse.ArgumentParser) -> None:
    number = whole_number(1, MAX_WORKERS)
    parser.add_argument("--workers", type=number, default=1, metavar="N", help="threads that score images")


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


if __name__ == "__main__":
    sys.exit(main())
