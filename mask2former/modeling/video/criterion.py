"""The training loss of clips: a query is matched to a track, and its masks are compared in all frames.

A target's masks are those of all frames; a frame without the object has an empty one. Matching reads all
frames at the same points. In the loss each frame's mask has points of its own. Terms are divided by the
number of tracks, not of masks, as published: with more frames a clip weighs more.

Shapes: as in `loss.criterion`, with `B` clips, `N` tracks of a clip, `F` frames of a clip.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mask2former.modeling.loss.criterion import MatchInputs, SetCriterion, criterion_arguments
from mask2former.modeling.loss.points import sample_maps, sample_masks_at_shared_points
from mask2former.modeling.video.maps import merge_clips, split_clips
from mask2former.utils.registry import CRITERION

CRITERION_NAME = "VideoSetCriterion"


class VideoSetCriterion(SetCriterion):
    """`SetCriterion` of clips, at points: `gt_masks` are (N, F, h, w), mask features (B, C, F, h, w)."""

    def _cells_at_points(self, inputs: MatchInputs) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield features (B, C, F P) and target values (B, N, F P) of each prediction."""
        points = self._shared_points(inputs)
        values = [
            _track_values(target.gt_masks, clip_points, inputs.image_size)
            for target, clip_points in zip(inputs.targets, points, strict=True)
        ]
        padded = pad_sequence(values, batch_first=True)  # (B, N, L, F P)
        num_clips, num_frames = len(points), inputs.features[0].shape[2]
        frames = merge_clips(inputs.features[0]).contiguous(memory_format=torch.channels_last)
        for layer in range(len(inputs.mask_embed)):
            of_frames = points[:, layer, None].repeat_interleave(num_frames, 0)
            sampled = split_clips(sample_maps(frames, of_frames), num_clips)  # (B, C, F, 1, P)
            yield sampled.flatten(2), padded[:, :, layer]

    def _terms_at_points(self, inputs: MatchInputs, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return the terms (L, T), each summed over the frames."""
        num_frames = inputs.features[0].shape[2]
        mask, dice = super()._terms_at_points(inputs, queries)
        return mask.unflatten(1, (-1, num_frames)).sum(-1), dice.unflatten(1, (-1, num_frames)).sum(-1)


def _track_values(masks: Tensor, points: Tensor, padded_size: tuple[int, int]) -> Tensor:
    """Sample the masks (N, F, h, w) of all frames at the same points (L, P, 2): (N, L, F P)."""
    values = sample_masks_at_shared_points(masks.flatten(0, 1), points, padded_size)
    return values.view(*masks.shape[:2], *values.shape[1:]).transpose(1, 2).flatten(2)


@CRITERION.register_as(CRITERION_NAME)
def build_video_set_criterion(cfg: Any) -> VideoSetCriterion:
    """Build the criterion of a config.

    Raises:
        ValueError: as for images; or masks are to be compared whole.
    """
    for key in ("MATCH_ON", "LOSS_ON"):
        if cfg.MODEL.MASK_FORMER[key] != "points":
            raise ValueError(
                f"MODEL.MASK_FORMER.{key} is {cfg.MODEL.MASK_FORMER[key]!r}, but clips are compared at "
                f"points alone; type MODEL.MASK_FORMER.{key} points"
            )
    return VideoSetCriterion(**criterion_arguments(cfg))
