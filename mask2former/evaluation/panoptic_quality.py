"""Former name of `mask2former score panoptic`, kept for one release."""

import sys
from functools import partial

from mask2former.evaluation.panoptic.quality import COCOPanopticEvaluator, panoptic_quality
from mask2former.tools import score
from mask2former.utils.aliases import run_alias

__all__ = ["COCOPanopticEvaluator", "main", "panoptic_quality"]

main = partial(run_alias, "python -m mask2former.evaluation.panoptic_quality", "score panoptic", score.main)

if __name__ == "__main__":
    sys.exit(main())
