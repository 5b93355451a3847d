"""Make the drawn dataset of scenes: `python datasets/prepare_scenes.py [--root datasets]`.

If the same dataset exists already, nothing is done.
"""

from pathlib import Path

from mask2former.data.datasets.scenes import SCENES
from mask2former.utils.messages import legible
from mask2former.utils.output import Parser, tolerant_output


@tolerant_output()
def main() -> None:
    """Parse the command line and make the dataset."""
    parser = Parser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("datasets"), help="the folder of all datasets")
    arguments = parser.parse_args()
    try:
        folder = SCENES.write(arguments.root)
    except OSError as error:
        parser.exit(1, f"{parser.prog}: {legible(error)}\n")
    print(f"{folder}: {', '.join(f'{count} images in {split}' for split, count in SCENES.splits.items())}")


if __name__ == "__main__":
    main()
