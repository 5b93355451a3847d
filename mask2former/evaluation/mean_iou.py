"""Former name of `mask2former score semantic`, kept for one release."""

import sys
from functools import partial

from mask2former.evaluation.semantic.miou import (
    SemSegEvaluator,
    confusion_matrix,
    mean_iou,
    mean_iou_of_folders,
    true_labels,
)
from mask2former.tools import score
from mask2former.utils.aliases import run_alias

__all__ = ["SemSegEvaluator", "confusion_matrix", "main", "mean_iou", "mean_iou_of_folders", "true_labels"]

main = partial(run_alias, "python -m mask2former.evaluation.mean_iou", "score semantic", score.main)

if __name__ == "__main__":
    sys.exit(main())
