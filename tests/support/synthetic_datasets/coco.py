"""COCO 2017: instances and panoptic annotations, with the archives of panoptic PNGs unpacked.

The first image of a split has a crowd (RLE, uncompressed) and a thing of two polygons. Things never
overlap, so panoptic segments and instances are the same pixels.
"""

from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from synthetic_datasets.drawing import (
    Polygon,
    Region,
    Scene,
    Size,
    box_of,
    painted,
    photograph,
    random_scene,
    read_table,
    save,
    save_json,
    segment,
    segment_colors,
)

COUNTS = {"train": 3, "val": 2}
STUFF = (119, 125, 184, 187)  # flower, gravel, tree-merged, sky-other-merged
THINGS = (1, 3, 18, 90, 1)  # person, car, dog, toothbrush, person
SIZES = ((48, 64), (64, 48))
Row = dict[str, Any]


def draw(root: Path, *, seed: int = 0, counts: dict[str, int] | None = None) -> None:
    for number, (split, count) in enumerate((counts or COUNTS).items()):
        images = {}
        for i in range(count):
            rng = np.random.default_rng([seed, number, i])
            things = () if count > 1 and i == count - 1 else THINGS
            scene = random_scene(rng, SIZES[i % 2], stuff=STUFF, things=things, fill=fill_as_coco)
            image_id = 1000 * (number + 1) + 17 * i
            images[image_id] = scene
            save(photograph(rng, scene.labels()), root / "coco" / f"{split}2017" / f"{image_id:012d}.jpg")
        _write_instances(root / "coco", split, images)
        _write_panoptic(root / "coco", split, images)


def fill_as_coco(polygon: Polygon, size: Size) -> np.ndarray:
    """The pixels inside by COCO's rule, (H, W) bool."""
    points = [float(value) for point in polygon for value in point]
    return coco_mask.decode(coco_mask.frPyObjects([points], *size))[..., 0] > 0


def image_row(image_id: int, size: Size, folder: str) -> Row:
    """A row of `images` as the 2017 files have it."""
    name = f"{image_id:012d}.jpg"
    return {
        "license": 4,
        "file_name": name,
        "coco_url": f"http://images.cocodataset.org/{folder}/{name}",
        "height": size[0],
        "width": size[1],
        "date_captured": "2013-11-14 17:02:52",
        "flickr_url": f"http://farm1.staticflickr.com/1/{name}",
        "id": image_id,
    }


def instance_row(thing: Region, image_id: int) -> Row:
    """A row of `annotations`, as a polygon; the caller adds the id."""
    return {
        "segmentation": [[float(value) for point in thing.polygon for value in point]],
        "area": float(thing.mask.sum()),
        "image_id": image_id,
        "bbox": [float(value) for value in box_of(thing.mask)],
        "category_id": thing.category,
    }


def head(description: str) -> Row:
    return {"info": {"description": description, "year": 2017}, "licenses": [{"id": 4, "name": "CC BY 2.0"}]}


def _instances(scene: Scene, image_id: int, special: bool) -> list[Row]:
    rows = [{**instance_row(thing, image_id), "iscrowd": 0} for thing in scene.things]
    if special:  # the last thing is a crowd, the first one is cut in two
        rows[-1] |= {"iscrowd": 1, "segmentation": _run_lengths(scene.things[-1].mask)}
        rows[0]["segmentation"].append(_inside(rows[0]["segmentation"][0]))
    return rows


def _inside(points: list[float]) -> list[float]:
    """A smaller polygon inside the other: a second part which adds no pixel."""
    xy = np.array(points).reshape(-1, 2)
    return [float(value) for value in (xy.mean(0) + (xy - xy.mean(0)) / 2).ravel()]


def _run_lengths(mask: np.ndarray) -> Row:
    """Uncompressed RLE, column by column from a run of zeros."""
    flat = np.concatenate([[0], mask.ravel(order="F"), [1 - int(mask[-1, -1])]])
    ends = np.flatnonzero(np.diff(flat))
    return {"counts": [int(n) for n in np.diff(np.concatenate([[0], ends]))], "size": [*mask.shape]}


def _write_instances(folder: Path, split: str, images: dict[int, Scene]) -> None:
    rows = [
        row
        for number, (image_id, scene) in enumerate(images.items())
        for row in _instances(scene, image_id, special=number == 0 and bool(scene.things))
    ]
    things = [row for row in read_table("coco_panoptic_133.json") if row["isthing"]]
    content = {
        **head("COCO 2017 Dataset"),
        "images": [image_row(i, scene.size, f"{split}2017") for i, scene in images.items()],
        "annotations": [{**row, "id": 900_000 + number} for number, row in enumerate(rows)],
        "categories": [{key: row[key] for key in ("supercategory", "id", "name")} for row in things],
    }
    save_json(content, folder / "annotations" / f"instances_{split}2017.json")


def _write_panoptic(folder: Path, split: str, images: dict[int, Scene]) -> None:
    annotations = []
    for number, (image_id, scene) in enumerate(images.items()):
        ids, rows = _segments(scene, special=number == 0)
        name = f"{image_id:012d}.png"
        save(segment_colors(ids), folder / f"panoptic_{split}2017" / name)
        annotations.append({"segments_info": rows, "file_name": name, "image_id": image_id})
    content = {
        **head("COCO 2018 Panoptic Dataset"),
        "images": [image_row(i, scene.size, f"{split}2017") for i, scene in images.items()],
        "annotations": annotations,
        "categories": read_table("coco_panoptic_133.json"),
    }
    save_json(content, folder / "annotations" / f"panoptic_{split}2017.json")


def _segments(scene: Scene, special: bool) -> tuple[np.ndarray, list[Row]]:
    """Return segment ids (H, W) that need all three bytes, and their rows."""
    layers = [(region, 1 + 70_001 * (i + 1)) for i, region in enumerate(scene.stuff + scene.things)]
    ids = painted(scene.size, [(region.mask, number) for region, number in layers], 0)
    crowd = layers[-1][1] if special and scene.things else None
    rows = [
        segment(ids == number, number, region.category, iscrowd=int(number == crowd))
        for region, number in layers
        if (ids == number).any()
    ]
    return ids, rows
