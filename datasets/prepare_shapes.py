"""Make the embedded dataset of shapes: `python datasets/prepare_shapes.py [--root datasets]`.

If the same dataset exists already, nothing is done.
"""

from pathlib import Path

from mask2former.data.datasets.shapes import SPLITS, write_shapes
from mask2former.utils.messages import legible
from mask2former.utils.output import Parser, tolerant_output


@tolerant_output()
def main() -> None:
    """Parse the command line and make the dataset."""
    parser = Parser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("datasets"), help="the folder of all datasets")
    for split, count in SPLITS.items():
        parser.add_argument(f"--{split}", type=int, default=count, help=f"images in {split}")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    counts = {split: getattr(arguments, split) for split in SPLITS}
    try:
        folder = write_shapes(arguments.root, counts, arguments.seed)
    except OSError as error:
        parser.exit(1, f"{parser.prog}: {legible(error)}\n")
    print(f"{folder}: {', '.join(f'{count} images in {split}' for split, count in counts.items())}")


if __name__ == "__main__":
    main()
