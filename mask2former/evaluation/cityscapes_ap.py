"""Former name of `mask2former score cityscapes-instances`, kept for one release."""

import sys
from functools import partial

from mask2former.evaluation.cityscapes.ap import CityscapesInstanceEvaluator, score_folders
from mask2former.tools import score
from mask2former.utils.aliases import run_alias

__all__ = ["CityscapesInstanceEvaluator", "main", "score_folders"]

main = partial(
    run_alias, "python -m mask2former.evaluation.cityscapes_ap", "score cityscapes-instances", score.main
)

if __name__ == "__main__":
    sys.exit(main())
