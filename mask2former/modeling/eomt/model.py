"""EoMT, from images to losses or results.

    images (B, 3, H, W)     normalized squares
    -> backbone             tokens after the first blocks of the vision transformer
    -> sem_seg_head         the last blocks with queries, and predictions with mask features of their own
    -> criterion            that of Mask2Former

Shapes: `B` images, `H, W` the padded image's sides, `h, w` those of an image before padding.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mask2former.modeling.eomt.head import EomtHead
from mask2former.modeling.eomt.options import ARCHITECTURE, HEAD, SQUARES, build_annealing
from mask2former.modeling.eomt.squares import SquareInputs
from mask2former.modeling.mask_former import mask_former_parts
from mask2former.modeling.predictions import Predictions
from mask2former.utils.registry import META_ARCH


class Eomt(SquareInputs):
    """EoMT (CVPR 2025)."""

    def network(self, images: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> Predictions:
        """Predict from normalized, padded images (B, 3, H, W), as `MaskFormer.network`."""
        tokens, layout = self.backbone(images)
        return self.sem_seg_head(tokens, layout, self.backbone.vit)


@META_ARCH.register_as(ARCHITECTURE)
def build_eomt(cfg: Any) -> Eomt:
    """Build the model of a config.

    Raises:
        ValueError: the head is another one, or a key of MODEL.EOMT has a wrong value.
    """
    return Eomt(**eomt_parts(cfg))


def eomt_parts(cfg: Any) -> dict[str, Any]:
    """Build the arguments of `Eomt` from a config; raise ValueError as `build_eomt`."""
    squares = cfg.MODEL.EOMT.SQUARES
    if squares not in SQUARES:
        raise ValueError(f'MODEL.EOMT.SQUARES is {squares!r}; it must be "pad", "windows" or ""')
    schedule = build_annealing(cfg)
    parts = mask_former_parts(cfg)
    if not isinstance(parts["sem_seg_head"], EomtHead):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE {ARCHITECTURE} needs MODEL.SEM_SEG_HEAD.NAME {HEAD}, not "
            f"{cfg.MODEL.SEM_SEG_HEAD.NAME}"
        )
    if squares == "windows" and parts["inference"].tasks != ("semantic",):
        raise ValueError(
            f"MODEL.EOMT.SQUARES is windows, whose results are semantic alone, but the tasks are "
            f"{', '.join(parts['inference'].tasks)}; type MODEL.EOMT.SQUARES pad"
        )
    if schedule is not None:  # as it is after training, whose hook sets the probabilities of each step
        parts["sem_seg_head"].set_probabilities(schedule.probabilities(cfg.SOLVER.MAX_ITER))
    return {"squares": squares, **parts}
