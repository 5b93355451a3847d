"""`python -m mask2former`: the command `mask2former`."""

import sys

from mask2former.tools.cli import main

if __name__ == "__main__":
    sys.exit(main())
