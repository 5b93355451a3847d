"""Flags of `mask2former zoo`."""

import argparse
from collections.abc import Sequence

from mask2former.utils.output import Parser


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse `--json`."""
    parser = Parser(
        prog="mask2former zoo",
        description="List the published models, with the figures that their authors report.",
        epilog='Use a NAME as in `mask2former predict --model NAME` or `Predictor.from_zoo("NAME")`.',
    )
    parser.add_argument("--json", action="store_true", help="print all that is known of each model as JSON")
    return parser.parse_args(argv)
