"""Former name of `mask2former score instances`, kept for one release."""

import sys
from functools import partial

from mask2former.evaluation.coco.ap import COCOEvaluator, LVISEvaluator, average_precision, with_boundary
from mask2former.tools import score
from mask2former.utils.aliases import run_alias

__all__ = ["COCOEvaluator", "LVISEvaluator", "average_precision", "main", "with_boundary"]

main = partial(run_alias, "python -m mask2former.evaluation.coco_ap", "score instances", score.main)

if __name__ == "__main__":
    sys.exit(main())
