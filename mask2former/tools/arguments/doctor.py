"""Flags of `mask2former doctor`."""

import argparse
from collections.abc import Sequence

from mask2former.utils.output import Parser


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags: `--help` alone."""
    parser = Parser(
        prog="mask2former doctor",
        description="Report what is installed on this machine, to paste into an issue.",
    )
    return parser.parse_args(argv)
