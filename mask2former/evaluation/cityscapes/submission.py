"""Predictions in the formats that Cityscapes' benchmark takes, written and read.

Of an image's objects a text file `<image id>_pred.txt` has a line each, `mask.png labelId score`, and the
masks lie in a folder next to it; of its label map a PNG `<image id>_pred.png` holds Cityscapes' ids.

Shapes: `H, W` the image's sides in pixels, `P` predictions.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mask2former.evaluation.cityscapes.ground_truth import InstanceMap, Labels, check_size
from mask2former.evaluation.common.json_files import SUBMISSION
from mask2former.structures import RunLengthMasks
from mask2former.utils.label_maps import Array, read_label_map
from mask2former.utils.storage import PathLike


class FoundObjects(NamedTuple):
    """The masks (P, H, W) that were found in an image, the ids of their labels, and scores."""

    masks: RunLengthMasks
    label_ids: list[int]
    scores: list[float]


def run_length_masks(masks: Tensor | RunLengthMasks) -> RunLengthMasks:
    """Masks (P, H, W), dense or not, as runs."""
    if isinstance(masks, RunLengthMasks):
        return masks.to("cpu")
    height, width = masks.shape[1:]
    return RunLengthMasks((height, width), [_runs(mask.cpu().bool().numpy()) for mask in masks])


def submission_folder(output_dir: PathLike | None, task: str) -> Path | None:
    """Where predictions of a task are written, below the folder of an evaluation."""
    return None if output_dir is None else Path(output_dir) / SUBMISSION / task


def write_labels(folder: Path, image_id: object, label_ids: Array) -> None:
    """Write the ids of labels (H, W), all below 256."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(label_ids.astype(np.uint8)).save(folder / f"{_name(image_id)}.png")


def write_objects(folder: Path, image_id: object, objects: FoundObjects) -> None:
    """Write the text file of an image and the masks it names; those of an earlier time are removed."""
    name, lines = _name(image_id), []
    (folder / name).mkdir(parents=True, exist_ok=True)
    for old in (folder / name).glob("*.png"):
        old.unlink()
    for number, (mask, label_id, score) in enumerate(zip(*objects, strict=True)):
        file = f"{name}/{number:03d}.png"
        Image.fromarray(mask.numpy()).save(folder / file)
        lines.append(f"{file} {label_id} {score}\n")
    (folder / f"{name}.txt").write_text("".join(lines), encoding="utf-8")


def read_objects(file: Path, root: PathLike, truth: InstanceMap, labels: Labels) -> FoundObjects:
    """The objects that a text file tells; the masks must lie below `root`.

    Raises:
        ValueError: a line is broken or of an unknown label, or a mask is missing, elsewhere, named twice or
            of another size than the truth.
    """
    runs, label_ids, scores = [], [], []
    for mask_file, label_id, score in _lines(file, labels):
        if not mask_file.is_relative_to(os.path.abspath(root)):
            raise ValueError(f"{file}: mask {mask_file} is outside of {root}")
        mask = read_label_map(mask_file) != 0
        check_size(mask.shape, truth, mask_file)
        runs.append(_runs(mask))
        label_ids.append(label_id)
        scores.append(score)
    height, width = truth.pixels.shape
    return FoundObjects(RunLengthMasks((height, width), runs), label_ids, scores)


def _lines(file: Path, labels: Labels) -> Iterator[tuple[Path, int, float]]:
    """Mask's file, id of the label and score of each line."""
    seen = set()
    for number, line in enumerate(_text(file).splitlines(), 1):
        words, where = line.split(), f"{file}, line {number}"
        if len(words) != 3:
            raise ValueError(f"{where}: {line!r} is not 'mask.png labelId score'")
        mask_file = Path(os.path.abspath(file.parent / words[0]))
        label_id, score = (_number(word, where) for word in words[1:])
        if label_id not in labels:
            raise ValueError(
                f"{where}: label {words[1]} is not among the known ones, {min(labels)} to {max(labels)}"
            )
        if mask_file in seen:
            raise ValueError(f"{where}: mask {words[0]} is named twice")
        seen.add(mask_file)
        yield mask_file, int(label_id), score


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not a readable text file ({error})") from error


def _number(word: str, where: str) -> float:
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where}: {word!r} is not a number")
    return number


def _name(image_id: object) -> str:
    return f"{str(image_id).replace('/', '_')}_pred"


def _runs(mask: Array) -> Tensor:
    """The runs (m, 2) of a mask (H, W) bool, as `RunLengthMasks` has them."""
    columns = np.concatenate([[False], mask.T.ravel(), [False]])
    return torch.from_numpy(np.flatnonzero(columns[1:] != columns[:-1]).reshape(-1, 2))
