"""Files in the formats that Cityscapes' benchmark takes.

The objects of an image are a text file `<image id>_pred.txt` with lines `mask.png labelId score`, and a
folder of masks next to it. The label map of an image is a PNG `<image id>_pred.png` of Cityscapes' label ids.

Shapes: `H, W` the image's sides in pixels, `P` predictions.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mask2former.evaluation.cityscapes.ground_truth import LABELS, InstanceMap, check_size
from mask2former.structures import RunLengthMasks, runs
from mask2former.utils.label_maps import Array, read_label_map, write_label_map
from mask2former.utils.storage import PathLike


class FoundObjects(NamedTuple):
    """Predicted objects of an image: masks (P, H, W), label ids and scores."""

    masks: RunLengthMasks
    label_ids: list[int]
    scores: list[float]


def run_length_masks(masks: Tensor | RunLengthMasks) -> RunLengthMasks:
    """Return masks (P, H, W), dense or not, as runs."""
    if isinstance(masks, RunLengthMasks):
        return masks.to("cpu")
    height, width = masks.shape[1:]
    return RunLengthMasks((height, width), [_mask_runs(mask.cpu().bool().numpy()) for mask in masks])


def write_labels(folder: Path, image_id: object, label_ids: Array) -> None:
    """Write a map of label ids (H, W)."""
    folder.mkdir(parents=True, exist_ok=True)
    write_label_map(folder / f"{_name(image_id)}.png", label_ids.astype(np.uint8))


def write_objects(folder: Path, image_id: object, objects: FoundObjects) -> None:
    """Write the text file and the masks of an image; remove the masks of an earlier evaluation."""
    name, lines = _name(image_id), []
    (folder / name).mkdir(parents=True, exist_ok=True)
    for old in (folder / name).glob("*.png"):
        old.unlink()
    for number, (mask, label_id, score) in enumerate(zip(*objects, strict=True)):
        file = f"{name}/{number:03d}.png"
        write_label_map(folder / file, mask.numpy())
        lines.append(f"{file} {label_id} {score}\n")
    (folder / f"{name}.txt").write_text("".join(lines), encoding="utf-8")


def read_objects(file: Path, root: PathLike, truth: InstanceMap) -> FoundObjects:
    """Read the objects of a text file.

    Raises:
        ValueError: a line is broken or has an unknown label; or a mask is missing, outside of `root`, named
            twice or of another size than the ground truth.
    """
    masks, label_ids, scores = [], [], []
    for mask_file, label_id, score in _lines(file):
        if not mask_file.is_relative_to(os.path.abspath(root)):
            raise ValueError(f"{file}: mask {mask_file} is outside of {root}")
        mask = read_label_map(mask_file) != 0
        check_size(mask.shape, truth, mask_file)
        masks.append(_mask_runs(mask))
        label_ids.append(label_id)
        scores.append(score)
    height, width = truth.pixels.shape
    return FoundObjects(RunLengthMasks((height, width), masks), label_ids, scores)


def _lines(file: Path) -> Iterator[tuple[Path, int, float]]:
    """Yield the mask file, label id and score of each line."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not a readable text file ({error})") from error
    seen = set()
    for number, line in enumerate(text.splitlines(), 1):
        where = f"{file}, line {number}"
        try:
            mask, *numbers = line.split()
            label_id, score = map(float, numbers)
        except ValueError as error:
            raise ValueError(f"{where}: {line!r} is not 'mask.png labelId score'") from error
        if not math.isfinite(score):
            raise ValueError(f"{where}: the score is {score}")
        if label_id not in LABELS:
            raise ValueError(
                f"{where}: label {label_id:g} is not among the known ones, {min(LABELS)} to {max(LABELS)}"
            )
        mask_file = Path(os.path.abspath(file.parent / mask))
        if mask_file in seen:
            raise ValueError(f"{where}: mask {mask} is named twice")
        seen.add(mask_file)
        yield mask_file, int(label_id), score


def _name(image_id: object) -> str:
    return f"{str(image_id).replace('/', '_')}_pred"


def _mask_runs(mask: Array) -> Tensor:
    """Return the runs (m, 2) of a mask (H, W) bool, as `RunLengthMasks` has them."""
    columns = mask.T.ravel()
    found = runs(columns)
    return torch.from_numpy(found[columns[found[:, 0]]])
