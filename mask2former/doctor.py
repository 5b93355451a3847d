"""Former place of `mask2former doctor`, kept for one release."""

import sys

from mask2former.tools.doctor import main, report
from mask2former.utils.aliases import run_alias

__all__ = ["main", "report"]

if __name__ == "__main__":
    sys.exit(run_alias("python -m mask2former.doctor", "doctor", main))
