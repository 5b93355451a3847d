"""Make drawn films with their tracks: `python datasets/prepare_films.py [--root datasets]`.

If the same films exist already, nothing is done.
"""

from pathlib import Path

from mask2former.data.datasets.films import LENGTH, SPLITS, write_films
from mask2former.utils.messages import legible
from mask2former.utils.output import Parser, tolerant_output


@tolerant_output()
def main() -> None:
    """Parse the command line and make the films."""
    parser = Parser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("datasets"), help="the folder of all datasets")
    for split, count in SPLITS.items():
        parser.add_argument(f"--{split}", type=int, default=count, help=f"films in {split}")
    parser.add_argument("--length", type=int, default=LENGTH, help="frames of a film")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    counts = {split: getattr(arguments, split) for split in SPLITS}
    try:
        folder = write_films(arguments.root, counts, arguments.seed, arguments.length)
    except OSError as error:
        parser.exit(1, f"{parser.prog}: {legible(error)}\n")
    print(f"{folder}: {', '.join(f'{count} films in {split}' for split, count in counts.items())}")


if __name__ == "__main__":
    main()
