"""LVIS v1: one JSON a split, whose images lie where their `coco_url` says; some of val's are in train2017.

The names of the 1203 classes are invented.
"""

from pathlib import Path
from typing import Any

import numpy as np

from synthetic_datasets.coco import SIZES, fill_as_coco, head, image_row, instance_row
from synthetic_datasets.drawing import photograph, random_scene, save, save_json

COUNTS = {"train": 3, "val": 2}
CLASSES = 1203
FREQUENCIES = "rcf"  # rare, common, frequent
STUFF = (0, 1)
THINGS = (3, 7, 500, 1203, 3)


def draw(root: Path, *, seed: int = 0, counts: dict[str, int] | None = None) -> None:
    for number, (split, count) in enumerate((counts or COUNTS).items()):
        images, annotations = [], []
        for i in range(count):
            rng = np.random.default_rng([seed, number, i])
            things = () if count > 1 and i == count - 1 else THINGS
            scene = random_scene(rng, SIZES[i % 2], stuff=STUFF, things=things, fill=fill_as_coco)
            image_id, folder = 50_000 + 1000 * number + i, "train2017" if i == 0 else f"{split}2017"
            save(photograph(rng, scene.labels()), root / "coco" / folder / f"{image_id:012d}.jpg")
            row = image_row(image_id, scene.size, folder)
            del row["file_name"]  # the real files have none; class 9 is absent, class 3 partly annotated
            partly = [3] if scene.things else []
            images.append({**row, "neg_category_ids": [9], "not_exhaustive_category_ids": partly})
            annotations += [instance_row(thing, image_id) for thing in scene.things]
        content = {
            **head("LVIS v1"),
            "images": images,
            "annotations": [{**row, "id": number} for number, row in enumerate(annotations, start=1)],
            "categories": [_category(number) for number in range(1, CLASSES + 1)],
        }
        save_json(content, root / "lvis" / f"lvis_v1_{split}.json")


def _category(number: int) -> dict[str, Any]:
    name = f"class_{number:04d}"
    return {
        "id": number,
        "name": name,
        "synset": f"{name}.n.01",
        "synonyms": [name],
        "def": f"made-up class {number}",
        "image_count": 3,
        "instance_count": 5,
        "frequency": FREQUENCIES[number % 3],
    }
