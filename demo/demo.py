"""Draw what a trained model sees in images: `python demo/demo.py --input img.jpg`; see also `--help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # from a clone that is not installed

from mask2former.tools.demo import main

if __name__ == "__main__":
    sys.exit(main())
