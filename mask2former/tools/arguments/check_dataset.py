"""Flags of `mask2former check-dataset`."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from mask2former.config.defaults import DEFAULTS
from mask2former.tools.flags import MAX_WORKERS, add_max_megapixels, whole_number
from mask2former.utils.output import Parser


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the flags: the dataset, by its name or by its files, and how to check it."""
    parser = Parser(
        prog="mask2former check-dataset",
        description="Read a dataset as training does, summarize it, report what is broken and draw samples.",
        epilog="Exit code 0: no record is broken; 1: records are broken, or samples cannot be written; "
        "2: no such dataset, or wrong flags.",
    )
    flag = parser.add_argument
    queries = DEFAULTS["MODEL.MASK_FORMER.NUM_OBJECT_QUERIES"]
    flag("name", nargs="?", metavar="NAME", help="a registered dataset, such as coco_2017_train")
    flag("--images", metavar="DIR", help="the folder of images of a custom dataset, instead of NAME")
    flag("--annotations", metavar="FILE_OR_DIR", help="its JSON, data.yaml or folder of labels")
    flag("--classes", metavar="FILE", help="names of its classes, if the annotations have none")
    flag("--crowds-as-objects", action="store_true", help="ignore 'iscrowd' in an instance JSON")
    flag("--against", metavar="NAME", help="another dataset that should share no image with this one")
    flag(
        "--output",
        metavar="DIR",
        type=Path,
        help="folder of drawn samples (default: output/check_dataset/NAME)",
    )
    flag("--limit", metavar="N", type=whole_number(1), help="check the first N records only")
    flag(
        "--workers",
        metavar="N",
        type=whole_number(1, MAX_WORKERS),
        default=os.cpu_count() or 1,
        help="processes that read images",
    )
    flag(
        "--queries",
        metavar="N",
        type=whole_number(1),
        default=queries,
        help="queries of the model (default: %(default)s)",
    )
    add_max_megapixels(parser)
    flag("--json", action="store_true", help="print the report as JSON")
    args = parser.parse_args(argv)
    if bool(args.name) == bool(args.images or args.annotations):
        parser.error("give either the NAME of a dataset, or --images and --annotations")
    if not args.name and not (args.images and args.annotations):
        parser.error("--images and --annotations belong together")
    if args.classes and args.name:
        parser.error("--classes belongs to --images and --annotations; a registered dataset has its classes")
    if args.crowds_as_objects and args.name:
        parser.error("--crowds-as-objects belongs to --images and --annotations")
    return args
