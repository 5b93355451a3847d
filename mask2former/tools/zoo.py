"""The command `mask2former zoo`: list the published models."""

import argparse
import json
import sys
from collections.abc import Sequence

from tabulate import tabulate

from mask2former.tools.arguments.zoo import parse_arguments
from mask2former.weights.model_zoo import license_notice, published_models

FIGURES = ("PQ", "AP", "mIoU")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(parse_arguments(argv))


def run(args: argparse.Namespace) -> int:
    """Print the table, or all facts as JSON; return 0."""
    models = published_models().values()
    if args.json:
        print(json.dumps([model._asdict() for model in models], indent=1))
        return 0
    rows = [
        [
            *(model.name, model.dataset, model.task, model.backbone),
            *(model.figures.get(figure) for figure in FIGURES),
            *(model.config, model.weights),
        ]
        for model in models
    ]
    heads = ["name", "dataset", "task", "backbone", *FIGURES, "config", "weights"]
    print(tabulate(rows, heads, floatfmt=".1f", missingval="-"))
    print("", *dict.fromkeys(license_notice(model.weights) for model in models), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
