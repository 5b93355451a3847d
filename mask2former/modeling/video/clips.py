"""Clips as the model gets them: their frames, and their tracks as targets.

Shapes: `T` frames of a clip, `N` tracks of a clip, `h, w` the sides of a frame.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mask2former.modeling.mask_former import check_masks, check_range
from mask2former.structures import Instances

Clip = Mapping[str, Any]

ABSENT = -1  # the id of a track in a frame without it
PIXELS_AT_ONCE = 2**20  # of frames that are processed together in prediction


def is_image(inputs: Clip) -> bool:
    """Return True if an input is an image, as `MaskFormer` takes it, and not a clip."""
    return isinstance(inputs["image"], Tensor)


def as_clip(inputs: Clip) -> Clip:
    """Return a clip as it is, and an image as a clip of one frame."""
    if not is_image(inputs):
        return inputs
    lists = {"image": "image", "instances": "instances", "file_name": "file_names"}
    return {**inputs, **{many: [inputs[one]] for one, many in lists.items() if one in inputs}}


def frames(clip: Clip) -> Iterator[dict[str, Any]]:
    """Yield the frames of a clip as images, with "instances" and "file_name" if the clip has them.

    Raises:
        ValueError: there is no frame, or one has another size than the first.
    """
    size = None
    for i, image in enumerate(clip["image"]):
        names = clip.get("file_names")
        frame = {"image": image, "file_name": names[i] if names else f"frame {i} of {clip_name(clip)}"}
        if "instances" in clip:
            frame["instances"] = clip["instances"][i]
        size = size or image.shape
        if image.shape != size:
            raise ValueError(
                f"{frame['file_name']}: is {tuple(image.shape)}, the first frame of its clip {tuple(size)}"
            )
        yield frame
    if size is None:
        raise ValueError(f"{clip_name(clip)} has no frames")


def chunks(clip: Clip) -> Iterator[list[dict[str, Any]]]:
    """Yield the frames of a clip, as many at a time as PIXELS_AT_ONCE allows."""
    chunk: list[dict[str, Any]] = []
    for frame in frames(clip):
        chunk.append(frame)
        if (len(chunk) + 1) * frame["image"][0].numel() > PIXELS_AT_ONCE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def clip_name(clip: Clip) -> str:
    """Return how messages call a clip."""
    return f"video {clip['video_id']}" if "video_id" in clip else "a clip of the batch"


def tracks(clip: Clip, num_classes: int) -> Instances:
    """Return the tracks that some frame has: `gt_classes` (N,), and `gt_masks` (N, T, h, w).

    The class of a track is that of the first frame which has it. (The public code takes the last frame's,
    which is "no object" where the track has ended.)

    Raises:
        ValueError: frames lack instances or have different numbers of them, masks are not of a frame's size,
            or a class is out of range.
    """
    if len(clip.get("instances", ())) != len(clip["image"]):
        raise ValueError(
            f'{clip_name(clip)}: training needs "instances" for each of the {len(clip["image"])} frames'
        )
    counts = sorted({len(instances) for instances in clip["instances"]})
    if len(counts) > 1:
        raise ValueError(f"{clip_name(clip)}: its frames must have the same tracks, but have {counts}")
    for frame in frames(clip):
        check_masks(frame)
    present = torch.stack([_present(instances) for instances in clip["instances"]])  # (T, N)
    classes = torch.stack([instances.gt_classes for instances in clip["instances"]])
    kept = present.any(0)
    labels = classes.gather(0, present.int().argmax(0, keepdim=True))[0, kept]
    check_range(f"{clip_name(clip)}: gt_classes", labels.tolist(), num_classes)
    masks = torch.stack([instances.gt_masks[kept] for instances in clip["instances"]], dim=1)
    return Instances(clip["instances"][0].image_size, gt_classes=labels, gt_masks=masks)


def _present(instances: Instances) -> Tensor:
    """Return which tracks a frame has, (N,) bool; without ids, all."""
    if instances.has("gt_ids"):
        return instances.gt_ids != ABSENT
    return torch.ones_like(instances.gt_classes, dtype=torch.bool)
