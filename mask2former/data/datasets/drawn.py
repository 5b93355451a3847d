"""Datasets that are drawn, not downloaded: registered like COCO, and written in COCO's layout and formats.

COCO's reader reads them, so a small example runs the code that real datasets run.

Shapes: `H, W` the sides of an image in pixels.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as rle
from tqdm import tqdm

from mask2former.data.datasets.coco import (
    INSTANCE_FACTS,
    PANOPTIC_FACTS,
    Row,
    instance_categories,
    load_instances,
    load_panoptic,
    panoptic_categories,
)
from mask2former.data.datasets.registration import register_below_root
from mask2former.utils.label_maps import Array, write_segment_ids

LABEL_DIVISOR = 1000  # segment id = category id * LABEL_DIVISOR + number of the segment; 0 is void

Rng = np.random.Generator


class SyntheticImage(NamedTuple):
    """`image` (H, W, 3) uint8 RGB, and `segment_ids` (H, W) int64."""

    image: Array
    segment_ids: Array


class Instance(NamedTuple):
    """The annotation of a visible mask in the file of instances: COCO's segmentation, area and box."""

    segmentation: Any
    area: float
    bbox: list[float]


def exact_instance(mask: Array) -> Instance:
    """Return the annotation of a mask (H, W) bool as run lengths, without any loss."""
    code = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
    segmentation = {"size": code["size"], "counts": code["counts"].decode()}
    return Instance(segmentation, int(mask.sum()), [int(value) for value in rle.toBbox(code)])


def paint(rng: Rng, image: Array, where: Array, colors: Array, noise: tuple[float, float] = (8, 28)) -> None:
    """Fill the pixels `where` of `image` with `colors` (3,) or (n, 3) and noise of random strength.

    `noise` bounds its standard deviation, in gray levels.
    """
    grain = rng.normal(0, rng.uniform(*noise), (int(where.sum()), 3))
    image[where] = colors + grain


def write_once(target: Path, facts: dict[str, Any], write: Callable[[Path], None]) -> Path:
    """Let `write` fill the folder `target` unless the same dataset, by its `facts`, is there; return it.

    The folder appears whole or not at all: an interrupted run leaves nothing that looks like the dataset.
    """
    stamp, stamp_file = json.dumps(facts), target / "stamp.json"
    if stamp_file.exists() and stamp_file.read_text() == stamp:
        return target
    unfinished = target.with_name(f"{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    write(unfinished)
    (unfinished / "stamp.json").write_text(stamp)
    shutil.rmtree(target, ignore_errors=True)
    unfinished.rename(target)
    return target


class DrawnDataset(NamedTuple):
    """A dataset of which each image follows from (seed, split, number) alone.

    `splits` are the usual numbers of images. `draw` makes an image, `annotate` the instance annotation of a
    visible mask (H, W). `facts` are further attributes of the metadata. A new `version` is drawn again where
    an old one lies.
    """

    name: str
    side: int
    splits: dict[str, int]
    categories: list[Row]
    draw: Callable[[Rng], SyntheticImage]
    annotate: Callable[[Array], Instance] = exact_instance
    facts: Mapping[str, Any] = MappingProxyType({})
    version: int = 1

    @property
    def things(self) -> list[Row]:
        """Return the categories of things."""
        return [category for category in self.categories if category["isthing"]]

    def register(self) -> None:
        """Register all splits as NAME_panoptic_SPLIT, and their things as NAME_instance_SPLIT."""
        panoptic = {**PANOPTIC_FACTS, **panoptic_categories(self.categories), **self.facts}
        instance = {**INSTANCE_FACTS, **instance_categories(self.things), **self.facts}
        for split in self.splits:
            instance_paths = {
                "image_root": f"{self.name}/{split}",
                "json_file": f"{self.name}/annotations/instances_{split}.json",
            }
            panoptic_paths = {
                **instance_paths,
                "panoptic_root": f"{self.name}/panoptic_{split}",
                "panoptic_json": f"{self.name}/annotations/panoptic_{split}.json",
            }
            register_below_root(f"{self.name}_instance_{split}", instance_paths, instance, load_instances)
            register_below_root(f"{self.name}_panoptic_{split}", panoptic_paths, panoptic, load_panoptic)

    def write(self, root: Path, counts: dict[str, int] | None = None, seed: int = 0) -> Path:
        """Draw the dataset into `root`/NAME unless the same one is there already; return that folder."""
        counts = counts or self.splits

        def write_splits(folder: Path) -> None:
            for split, count in counts.items():
                _write_split(self, folder, split, count, seed)

        facts = {"version": self.version, "counts": counts, "seed": seed, "side": self.side}
        return write_once(root / self.name, facts, write_splits)


def _write_split(dataset: DrawnDataset, root: Path, split: str, count: int, seed: int) -> None:
    """Draw `count` images and write them with both kinds of annotations."""
    for folder in (split, f"panoptic_{split}", "annotations"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    images, panoptic, instances = [], [], []
    for image_id in tqdm(range(1, count + 1), desc=f"drawing {split}", unit="image"):
        # The split is part of the seed: train and val must not share images.
        rng = np.random.default_rng([seed, list(dataset.splits).index(split), image_id])
        image, segments, things = _write_image(dataset, root, split, image_id, rng)
        images.append(image)
        panoptic.append(segments)
        instances += things
    for number, instance in enumerate(instances, start=1):
        instance["id"] = number
    kinds = (("panoptic", dataset.categories, panoptic), ("instances", dataset.things, instances))
    for kind, categories, rows in kinds:
        content = {"images": images, "categories": categories, "annotations": rows}
        (root / "annotations" / f"{kind}_{split}.json").write_text(json.dumps(content))


def _write_image(
    dataset: DrawnDataset, root: Path, split: str, image_id: int, rng: Rng
) -> tuple[Row, Row, list[Row]]:
    """Draw and write an image and its PNG; return its rows of images, panoptic and instance annotations."""
    name, (image, ids) = f"{image_id:06d}", dataset.draw(rng)
    Image.fromarray(image).save(root / split / f"{name}.jpg", quality=92)
    write_segment_ids(root / f"panoptic_{split}" / f"{name}.png", ids)
    things = {category["id"] for category in dataset.things}
    segments, instances = [], []
    for segment_id in np.unique(ids[ids > 0]).tolist():
        mask = ids == segment_id
        exact = exact_instance(mask)
        category = segment_id // LABEL_DIVISOR
        facts = {"id": segment_id, "category_id": category, "iscrowd": 0}
        segments.append({**facts, "area": exact.area, "bbox": exact.bbox})
        if category in things:
            instances.append({**facts, "image_id": image_id, **dataset.annotate(mask)._asdict()})
    height, width = ids.shape
    row = {"id": image_id, "file_name": f"{name}.jpg", "height": height, "width": width}
    return row, {"image_id": image_id, "file_name": f"{name}.png", "segments_info": segments}, instances
