"""Detectron2-shaped entry point of `mask2former predict`: `python demo/demo.py --input img.jpg`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # from a clone that is not installed

from mask2former.tools.cli import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
