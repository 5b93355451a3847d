#!/usr/bin/env python3
"""Train or evaluate: `python train_net.py --config-file FILE [--eval-only] [KEY VALUE ...]`."""

import sys

from mask2former.tools.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
