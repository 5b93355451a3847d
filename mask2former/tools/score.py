"""Compute a metric from files of predictions and ground truth."""

import argparse
import sys
from collections.abc import Sequence

from mask2former.evaluation.cityscapes import ap, iou
from mask2former.evaluation.coco import ap as coco_ap
from mask2former.evaluation.common.report import metrics_json, metrics_table
from mask2former.evaluation.panoptic import quality
from mask2former.evaluation.semantic import miou

METRICS = {  # command -> module, summary
    "panoptic": (quality, "panoptic quality: COCO, ADE20K, Cityscapes, Mapillary"),
    "instances": (coco_ap, "average precision of instance masks: COCO, ADE20K, LVIS"),
    "semantic": (miou, "mean IoU of label maps"),
    "cityscapes-instances": (ap, "Cityscapes' average precision of instance masks"),
    "cityscapes-semantic": (iou, "Cityscapes' IoU of label maps"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(prog="mask2former score", description=__doc__)
    commands = parser.add_subparsers(metavar="METRIC", required=True)
    for name, (module, summary) in METRICS.items():
        command = commands.add_parser(name, help=summary, description=f"Compute {summary}.")
        module.add_arguments(command)
        command.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
        command.set_defaults(score=module.score)
    args = parser.parse_args(argv)
    try:
        results = args.score(args)
    except (ValueError, OSError, MemoryError) as error:
        message = " ".join(str(error).split())
        sys.stderr.write(f"error: {message}\n")
        return 2
    sys.stdout.write((metrics_json if args.json else metrics_table)(results) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
