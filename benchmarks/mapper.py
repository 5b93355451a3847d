"""Large-scale jitter to 1024x1024 of real COCO images: our mappers against plain ones.

    M2F_SHARED=<folder of the shared samples> python benchmarks/mapper.py

A plain mapper transforms the image and every mask step by step with Pillow, numpy and pycocotools: decode,
flip, resize, crop, pad. All mappers get the same images with the same flips, scales and crops. There are two
plain ways to make masks of polygons: "published" moves the corners and draws them in the padded image, as the
published mapper does (without its clipping by shapely); "drawn first" draws at the original size and resizes
each mask to the nearest pixel. If a corner lies halfway between two fifths of a pixel, to which pycocotools
rounds, the last bit of a float decides, so masks may differ slightly from published ones.

The instance samples are 38 images with 424 annotations; the panoptic samples are ten draws of two official
images. The number of threads is that of a loader worker (1), or the libraries' default.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from measure import alternate, ratio, run_alone, table
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from mask2former.config import load_config
from mask2former.data import DatasetCatalog, MetadataCatalog, register_coco_instances, register_coco_panoptic
from mask2former.data.augmentation import Crop, Flip, Resize, Scene, augment
from mask2former.data.ground_truth.geometry import Geometry
from mask2former.data.ground_truth.readers import MapGroundTruth
from mask2former.data.mapper import TrainMapper, build_train_mapper

RUNS = 5
SIDE = 1024
CONFIGS = {
    "instance": "coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml",
    "panoptic": "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml",
}
Record = dict[str, Any]
Result = tuple[Tensor, Tensor]  # image (3, SIDE, SIDE) uint8, masks (N, SIDE, SIDE) bool


class Draw(NamedTuple):
    """A sample to make: the record, its seed, and the transforms that the seed draws."""

    record: Record
    seed: int
    flip: Flip
    resize: Resize
    crop: Crop


def report() -> str:
    """Time all mappers, with one thread and with the default number of threads."""
    shared = os.environ.get("M2F_SHARED")
    if not shared:
        return "Left out: M2F_SHARED does not name the folder of the shared samples."
    samples = Path(shared) / "data" / "samples"
    default = torch.get_num_threads(), cv2.getNumThreads()
    rows = [["mapper", "threads", "plain side", "plain", "ours", "faster", *AGREEMENT]]
    tasks = {"instance": instance_draws(samples), "panoptic": panoptic_draws(samples)}
    for threads in ((1, 1), default):
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])
        for task, (mapper, draws) in tasks.items():
            rows += compared(task, "1" if threads == (1, 1) else "default", mapper, draws)
    return "Milliseconds an image, medians of runs in turns.\n\n" + table(rows)


def compared(task: str, threads: str, mapper: TrainMapper, draws: Sequence[Draw]) -> list[list[str]]:
    """Return a row for each plain mapper of the task."""
    sides = {"ours": partial(ours, mapper), **PLAIN[task]}
    seconds = alternate({name: partial(each, side, draws) for name, side in sides.items()}, RUNS)
    milliseconds = {name: total / len(draws) * 1e3 for name, total in seconds.items()}
    return [
        [
            f"coco_{task}_lsj",
            threads,
            name,
            f"{milliseconds[name]:.1f}",
            f"{milliseconds['ours']:.1f}",
            ratio(milliseconds[name], milliseconds["ours"]),
            *agreement(sides["ours"], side, draws),
        ]
        for name, side in PLAIN[task].items()
    ]


def each(side: Callable[[Draw], Result], draws: Sequence[Draw]) -> None:
    """Make all samples once."""
    for draw in draws:
        side(draw)


def ours(mapper: TrainMapper, draw: Draw) -> Result:
    """Make a sample by the project's mapper."""
    sample = mapper(draw.record, draw.seed)
    return sample["image"], sample["instances"].gt_masks


def plain_instances(draw: Draw, masks_of: Callable[[Draw], list[Tensor]]) -> Result:
    """Make a sample by plain steps; empty masks are dropped."""
    masks = masks_of(draw)
    stacked = torch.stack(masks) if masks else torch.zeros(0, SIDE, SIDE, dtype=torch.bool)
    return plain_image(draw), stacked[stacked.flatten(1).any(1)]


def moved_polygons(draw: Draw) -> list[Tensor]:
    """Flip, scale and shift the corners, then draw them in the padded image."""
    height, width = draw.record["height"], draw.record["width"]
    masks = []
    for annotation in instances(draw.record):
        polygons = []
        for points in annotation["segmentation"]:
            corners = np.array(points).reshape(-1, 2)
            if draw.flip.axis is not None:
                corners[:, 0] = width - corners[:, 0]
            corners *= (draw.resize.width / width, draw.resize.height / height)
            corners -= (draw.crop.left, draw.crop.top)
            polygons.append(corners.ravel())
        drawn = coco_mask.decode(coco_mask.frPyObjects(polygons, SIDE, SIDE))
        masks.append(torch.as_tensor(drawn).any(dim=2).bool())
    return masks


def moved_masks(draw: Draw) -> list[Tensor]:
    """Draw the polygons at the original size, then transform each mask as the image."""
    masks = []
    for annotation in instances(draw.record):
        rle = coco_mask.frPyObjects(annotation["segmentation"], draw.record["height"], draw.record["width"])
        mask = moved(coco_mask.decode(coco_mask.merge(rle)), draw, Image.Resampling.NEAREST, fill=0)
        masks.append(torch.from_numpy(mask).bool())
    return masks


def plain_panoptic(draw: Draw) -> Result:
    """Transform the image of segment ids, then compare it with each id."""
    with Image.open(draw.record["pan_seg_file_name"]) as image:
        colors = np.asarray(image.convert("RGB"))
    colors = moved(colors, draw, Image.Resampling.NEAREST, fill=0).astype(np.int32)
    ids = colors[..., 0] + 256 * colors[..., 1] + 256**2 * colors[..., 2]
    listed = [segment["id"] for segment in draw.record["segments_info"] if not segment["iscrowd"]]
    masks = torch.stack([torch.from_numpy(ids == segment_id) for segment_id in listed])
    return plain_image(draw), masks[masks.flatten(1).any(1)]


def plain_image(draw: Draw) -> Tensor:
    """Decode and transform the image."""
    with Image.open(draw.record["file_name"]) as file:
        image = np.asarray(file.convert("RGB"))
    image = moved(image, draw, Image.Resampling.BILINEAR, fill=128)
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def moved(array: np.ndarray, draw: Draw, method: Image.Resampling, fill: int) -> np.ndarray:
    """Flip, resize, crop and pad an array (H, W) or (H, W, 3)."""
    if draw.flip.axis is not None:
        array = np.flip(array, draw.flip.axis)
    image = Image.fromarray(np.ascontiguousarray(array))
    array = np.asarray(image.resize((draw.resize.width, draw.resize.height), method))
    array = array[draw.crop.top :, draw.crop.left :][:SIDE, :SIDE]
    missing = [(0, SIDE - side) for side in array.shape[:2]] + [(0, 0)] * (array.ndim - 2)
    return np.pad(array, missing, constant_values=fill)


PLAIN: dict[str, dict[str, Callable[[Draw], Result]]] = {
    "instance": {
        "published": partial(plain_instances, masks_of=moved_polygons),
        "drawn first": partial(plain_instances, masks_of=moved_masks),
    },
    "panoptic": {"published": plain_panoptic},
}
AGREEMENT = ("values off by 1 level", "off by more", "masks", "of equal number", "mean IoU", "least IoU")


def agreement(
    ours: Callable[[Draw], Result], plain: Callable[[Draw], Result], draws: Sequence[Draw]
) -> list[str]:
    """Return the columns of `AGREEMENT`."""
    off, overlaps, equal = np.zeros(256, dtype=int), [], 0
    for draw in draws:
        (image, masks), (plain_image, plain_masks) = ours(draw), plain(draw)
        off += np.bincount((image.int() - plain_image.int()).abs().flatten(), minlength=256)
        if len(masks) == len(plain_masks):
            equal += 1
            union = (masks | plain_masks).sum((1, 2))
            overlaps += ((masks & plain_masks).sum((1, 2)) / union).tolist()
    return [
        f"{off[1] / off.sum():.3%}",
        f"{off[2:].sum()}",
        f"{len(overlaps)}",
        f"{equal} of {len(draws)}",
        f"{np.mean(overlaps):.4f}",
        f"{np.min(overlaps):.4f}",
    ]


def instances(record: Record) -> list[Record]:
    """Return the annotations to train on."""
    return [annotation for annotation in record["annotations"] if not annotation["iscrowd"]]


def instance_draws(samples: Path) -> tuple[TrainMapper, list[Draw]]:
    """Return one draw of each image."""
    source = samples / "super_gradients_tinycoco"
    records = []
    for split in ("train2017", "val2017"):
        name = f"benchmark_{split}"
        json_file = source / "annotations" / f"instances_{split}.json"
        register_coco_instances(name, {}, json_file, source / "images" / split)
        records += DatasetCatalog.get(name)
    return drawn("instance", name, records)


def panoptic_draws(samples: Path) -> tuple[TrainMapper, list[Draw]]:
    """Return ten draws of each image."""
    source = samples / "panopticapi_sample"
    json_file, name = source / "panoptic_examples.json", "benchmark_panoptic"
    register_coco_panoptic(name, {}, source / "input_images", source / "panoptic_examples", json_file)
    return drawn("panoptic", name, DatasetCatalog.get(name) * 10)


def drawn(task: str, name: str, records: Sequence[Record]) -> tuple[TrainMapper, list[Draw]]:
    """Return the mapper of the task, and the samples with their index as seed."""
    mapper = build_train_mapper(load_config(CONFIGS[task]), MetadataCatalog.get(name))
    return mapper, [
        Draw(record, seed, *transforms(mapper, (record["height"], record["width"]), seed))
        for seed, record in enumerate(records)
    ]


def transforms(mapper: TrainMapper, size: tuple[int, int], seed: int) -> list[Any]:
    """Return flip, resize and crop as the mapper draws them for an image of this size."""
    taken: list[Any] = []

    def recorded(step: Any, scene: Scene, rng: np.random.Generator) -> Any:
        taken.append(step(scene, rng))
        return taken[-1]

    nothing = MapGroundTruth(np.zeros(0, int), np.zeros(0, int), np.zeros(size, np.uint8))
    scene = Scene(np.zeros((*size, 3), np.uint8), Geometry.identity(*size), nothing)
    augment(scene, [partial(recorded, step) for step in mapper.augmentations], np.random.default_rng(seed))
    return taken[:3]


if __name__ == "__main__":
    run_alone(report)
