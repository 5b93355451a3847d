"""Compute a metric from files of predictions and ground truth."""

import argparse
import sys
from collections.abc import Callable, Sequence

from mask2former.evaluation.cityscapes import ap as cityscapes_ap
from mask2former.evaluation.cityscapes import iou as cityscapes_iou
from mask2former.evaluation.coco.ap import with_boundary
from mask2former.evaluation.common.json_files import load_json
from mask2former.evaluation.common.report import metrics_json, metrics_table
from mask2former.evaluation.evaluator import Metrics
from mask2former.evaluation.panoptic.counts import Rules
from mask2former.evaluation.panoptic.quality import panoptic_quality
from mask2former.evaluation.semantic.miou import mean_iou_of_folders
from mask2former.evaluation.video.ap import track_average_precision
from mask2former.tools.arguments.score import parse_arguments
from mask2former.utils.image_io import set_pixel_limit
from mask2former.utils.output import print_error, tolerant_output


@tolerant_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 2 for bad input."""
    return run(parse_arguments(argv))


def run(args: argparse.Namespace) -> int:
    """Print the metric that the flags ask for; return 0, or 2 for bad input."""
    set_pixel_limit(args.max_megapixels)
    try:
        metrics = METRICS[args.metric](args)
    except (ValueError, OSError, MemoryError) as error:
        print_error(error)
        return 2
    sys.stdout.write((metrics_json if args.json else metrics_table)(metrics) + "\n")
    return 0


def _panoptic(args: argparse.Namespace) -> Metrics:
    return panoptic_quality(
        *(args.gt_json, args.gt_dir, args.pred_json, args.pred_dir),
        rules=Rules(args.recount_areas, args.boundary),
        workers=args.workers,
    )


def _instances(args: argparse.Namespace) -> Metrics:
    return with_boundary(
        load_json(args.gt, dict),
        load_json(args.results, list),
        args.boundary,
        lvis_style=args.lvis,
        gt_file=args.gt,
        results_file=args.results,
    )


def _semantic(args: argparse.Namespace) -> Metrics:
    return mean_iou_of_folders(
        args.gt_dir,
        args.pred_dir,
        label_ids=range(args.num_classes) if args.label_ids is None else args.label_ids,
        pred_label_ids=args.pred_label_ids,
        ignore_label=args.ignore_label,
        workers=args.workers,
    )


def _cityscapes_instances(args: argparse.Namespace) -> Metrics:
    return cityscapes_ap.score_folders(
        args.gt_dir, args.pred_dir, boundary=args.boundary, workers=args.workers
    )


def _cityscapes_semantic(args: argparse.Namespace) -> Metrics:
    return cityscapes_iou.score_folders(args.gt_dir, args.pred_dir, args.workers)


def _video(args: argparse.Namespace) -> Metrics:
    return track_average_precision(
        load_json(args.gt, dict), load_json(args.results, list), gt_file=args.gt, results_file=args.results
    )


METRICS: dict[str, Callable[[argparse.Namespace], Metrics]] = {
    "panoptic": _panoptic,
    "instances": _instances,
    "semantic": _semantic,
    "cityscapes-instances": _cityscapes_instances,
    "cityscapes-semantic": _cityscapes_semantic,
    "video": _video,
}


if __name__ == "__main__":
    sys.exit(main())
