"""Flags of `mask2former export`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mask2former.config.ranges import NAMES
from mask2former.export.formats import FORMATS
from mask2former.options import CALIBRATION_IMAGES
from mask2former.utils.output import Parser


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags."""
    parser = Parser(
        prog="mask2former export",
        description="Write a trained model as a file that takes batches of any size (docs/export.md). "
        "A .pt2 of torch runs the operator of this project, and needs it installed; the others do not.",
        epilog="Examples: output/model_final.pth --format onnx; --model coco-panoptic-r50 --format openvino.",
    )
    flag = parser.add_argument
    flag("checkpoint", nargs="?", metavar="CHECKPOINT", help="path or URL, or a folder of transformers")
    flag("--format", required=True, choices=FORMATS, help="of ONNX, OpenVINO or torch.export")
    model = parser.add_mutually_exclusive_group().add_argument
    model("--model", metavar="NAME", help="a published model, see `mask2former zoo`, instead of CHECKPOINT")
    model("--config-file", metavar="FILE", help="config of a checkpoint that holds none, as published ones")
    flag(
        "--task",
        choices=NAMES["SOLVER.TASKS"],
        help="of a model for several tasks (SOLVER.TASKS): the one to export",
    )
    flag("--output", type=Path, metavar="PATH", help="file to write (default: beside CHECKPOINT)")
    flag("--overwrite", action="store_true", help="replace the file if it exists")
    half = "store weights in 16 bits, in half the space; inputs and outputs stay float32"
    flag("--half", action="store_true", help=half)
    flag("--int8", action="store_true", help="8-bit weights and products in backbone and pixel decoder")
    calibrate = f"with --int8: images like those to predict, of which up to {CALIBRATION_IMAGES} are read"
    flag("--calibrate", metavar="DIR", help=calibrate)
    check = "compare the file with the model at three sizes, and delete it if they differ (default: on)"
    flag("--check", action=argparse.BooleanOptionalAction, default=True, help=check)
    flag("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys to override")
    args = parser.parse_args(argv)
    if (args.checkpoint is None) == (args.model is None):
        parser.error("give either CHECKPOINT or --model NAME")
    _check_int8(parser, args)
    return args


def _check_int8(parser: Parser, args: argparse.Namespace) -> None:
    if args.int8 != (args.calibrate is not None):
        parser.error("--int8 and --calibrate DIR belong together: ranges are measured on images")
    if args.int8 and args.format == "torch":
        parser.error("--int8 is for --format onnx and openvino")
    if args.int8 and (args.half or not args.check):
        parser.error("--int8 goes with neither --half nor --no-check")
