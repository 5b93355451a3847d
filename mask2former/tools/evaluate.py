"""Evaluate a trained model on the datasets of a config."""

import sys
from collections.abc import Sequence

from mask2former.tools.arguments.evaluate import parse_arguments
from mask2former.tools.train import run
from mask2former.utils.output import tolerant_output


@tolerant_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code, as `--help` explains it."""
    return run(parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
