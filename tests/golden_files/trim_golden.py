"""Trim whole recorded files to tests/golden_files/golden: `python tests/golden_files/trim_golden.py DIR`."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from golden import DATA, MASKFORMER, NAMES, VIDEO, trim


def main(source: Path) -> None:
    """Write the trimmed predictions, and the drawn inference cases as they are."""
    target = DATA / "golden"
    for folder in ("inference", "maskformer", "video"):
        (target / folder).mkdir(parents=True, exist_ok=True)
    for name in (*NAMES, *(f"maskformer/{name}" for name in MASKFORMER), VIDEO):
        with np.load(source / f"{name}.npz") as file:
            np.savez_compressed(target / f"{name}.npz", **{key: trim(key, file[key]) for key in file})
    for path in sorted((source / "inference").glob("*.npz")):
        (target / "inference" / path.name).write_bytes(path.read_bytes())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
