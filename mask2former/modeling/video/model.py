"""Mask2Former for video instance segmentation: one set of queries finds the tracks of a whole clip.

    frames (B T, 3, H, W)          normalized and padded to a common size
    -> backbone, pixel decoder     mask features and memory of each frame by itself
    -> transformer decoder         predictions for the clip, over the cells of all frames
    -> criterion                   weighted losses, in training
    -> best_tracks                 ten tracks with a mask in each frame, in evaluation

"Mask2Former for Video Instance Segmentation" (arXiv:2112.10764).

Shapes: `B` clips, `T` frames of a clip, `C` channels, `H, W` the sides of the padded frames, `h, w` those of
a frame before padding, or of a map.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mask2former.modeling.head import MaskFormerHead
from mask2former.modeling.mask_former import Inputs, MaskFormer, mask_former_parts
from mask2former.modeling.predictions import Predictions, Sizes, check_layer
from mask2former.modeling.video.clips import Clip, as_clip, chunks, frames, is_image, tracks
from mask2former.modeling.video.criterion import build_video_set_criterion
from mask2former.modeling.video.decoder import (
    ARCHITECTURE,
    DECODER_NAME,
    VideoMultiScaleMaskedTransformerDecoder,
)
from mask2former.modeling.video.maps import split_clips
from mask2former.modeling.video.tracks import best_tracks
from mask2former.utils.registry import META_ARCH


class VideoMaskFormer(MaskFormer):
    """Mask2Former for clips.

    The input is a list of dicts, one per clip: "image", a sequence of frames (3, h, w), all of one size;
    optionally "height" and "width" of the result (default h, w). In training, "instances" has for each frame
    the same tracks in the same order: `gt_classes` (N,), `gt_ids` (N,), -1 where a track is absent, and
    `gt_masks` (N, h, w); "seed" is optional; and all clips have the same number of frames.

    Images, as `MaskFormer` takes them, are clips of one frame in training. In prediction they have the
    results of `MaskFormer`.
    """

    sem_seg_head: MaskFormerHead

    def forward(self, batched_inputs: Inputs) -> Any:
        """Return weighted losses by name in training, else the tracks of the only clip, as published.

        The results of images are a list, as those of `MaskFormer`.

        Raises:
            ValueError: in evaluation, several clips; `predict` takes them.
        """
        if self.training:
            return self.losses(batched_inputs)
        results = self.predict(batched_inputs)
        if is_image(batched_inputs[0]):
            return results
        if len(results) > 1:
            raise ValueError(f"model(clips) predicts one clip, not {len(results)}; type model.predict(clips)")
        return results[0]

    def losses(self, batched_inputs: Inputs) -> dict[str, Tensor]:
        """Compute the weighted losses of a batch of clips, or of images; see `MaskFormer.losses`.

        Raises:
            ValueError: a clip or its targets do not fit, or clips differ in length; the message names a file.
        """
        clips = [as_clip(inputs) for inputs in batched_inputs]
        lengths = sorted({len(clip["image"]) for clip in clips})
        if len(lengths) > 1:
            raise ValueError(f"clips of a batch must have the same number of frames, not {lengths}")
        targets = [tracks(clip, self.num_classes).to(self.device) for clip in clips]
        images = self._images([frame for clip in clips for frame in frames(clip)])
        seeds = [clip["seed"] for clip in clips if "seed" in clip]
        predictions = self.network(images.unflatten(0, (len(clips), -1)))
        padded = (images.shape[2], images.shape[3])
        return self.criterion(predictions, targets, padded, seeds if len(seeds) == len(clips) else None)

    @torch.no_grad()
    def predict(self, batched_inputs: Inputs, *, compact: bool = False) -> list[dict[str, Any]]:
        """Return the tracks of each clip, see `best_tracks`; or the results of images.

        Raises:
            ValueError: a frame does not fit, or images and clips are mixed; the message names the file.
        """
        kinds = {is_image(inputs) for inputs in batched_inputs}
        if len(kinds) > 1:
            raise ValueError("a batch holds clips or images, not both: the results of the two differ")
        if kinds == {True}:
            return super().predict(batched_inputs, compact=compact)
        return [self._predict_clip(clip, compact) for clip in batched_inputs]

    def _predict_clip(self, clip: Clip, compact: bool) -> dict[str, Any]:
        """Return the best tracks of a clip."""
        _, height, width = next(frames(clip))["image"].shape
        size = (height, width)
        output = (clip.get("height", height), clip.get("width", width))
        with self._autocast():
            predictions = self._decode(self._clip_maps(clip), 1)
        layer = self.inference.layer
        check_layer(layer, len(predictions.layers))
        return best_tracks(
            predictions.layers[layer],
            predictions.mask_features,
            Sizes(self._padded_size([size]), size, output),
            compact=compact,
            memory_budget=self.inference.memory_budget,
        )

    def network(self, images: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> Predictions:
        """Predict from normalized, padded clips (B, T, 3, H, W), or images (B, 3, H, W).

        Mask features of clips are (B, C, T, H/4, W/4), those of images as of `MaskFormer`.
        """
        if images.ndim == 4:
            return super().network(images, sizes)
        return self._decode(self._maps(images.flatten(0, 1)), len(images))

    def _maps(self, images: Tensor) -> list[Tensor]:
        """Return mask features and memory of frames (B T, 3, H, W)."""
        mask_features, memory, *_ = self.sem_seg_head.pixel_decoder(self.backbone(images))
        return [mask_features, *memory]

    def _clip_maps(self, clip: Clip) -> list[Tensor]:
        """Return mask features and memory of all frames of a clip, computed a few frames at a time."""
        whole: list[Tensor] = []
        first = 0
        for chunk in chunks(clip):
            maps = self._maps(self._images(chunk))
            # Allocated once: to concatenate the parts in the end would take twice the memory
            whole = whole or [part.new_empty(len(clip["image"]), *part.shape[1:]) for part in maps]
            for target, part in zip(whole, maps, strict=True):
                target[first : first + len(chunk)] = part
            first += len(chunk)
        return whole

    def _decode(self, maps: list[Tensor], num_clips: int) -> Predictions:
        """Return the predictions for clips, of mask features and memory (B T, C, h, w) of their frames."""
        mask_features, *memory = (split_clips(of_frames, num_clips) for of_frames in maps)
        return self.sem_seg_head.predictor(memory, mask_features)


@META_ARCH.register_as(ARCHITECTURE)
def build_video_mask_former(cfg: Any) -> VideoMaskFormer:
    """Build the model of a config; its criterion is `VideoSetCriterion` unless the config names its own.

    Raises:
        ValueError: the decoder is not that of clips, or an output other than instances is on.
    """
    for task in ("SEMANTIC_ON", "PANOPTIC_ON"):
        if cfg.MODEL.MASK_FORMER.TEST[task]:
            raise ValueError(
                f"MODEL.MASK_FORMER.TEST.{task} is True, but MODEL.META_ARCHITECTURE {ARCHITECTURE} makes "
                f"instances alone; type MODEL.MASK_FORMER.TEST.{task} False"
            )
    parts = mask_former_parts(cfg)
    decoder = getattr(parts["sem_seg_head"], "predictor", None)
    if not isinstance(decoder, VideoMultiScaleMaskedTransformerDecoder):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE {ARCHITECTURE} needs MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME "
            f"{DECODER_NAME}, not {cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME}"
        )
    if cfg.MODEL.MASK_FORMER.CRITERION_NAME == "SetCriterion":  # the default, which is for images
        parts["criterion"] = build_video_set_criterion(cfg)
    return VideoMaskFormer(**parts)
