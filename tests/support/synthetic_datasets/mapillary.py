"""Mapillary Vistas, in the layout of the first downloads or of the current ones.

    flat   {split}/{images,labels,instances,panoptic}
    v1.2   {split}/images, {split}/v1.2/{labels,instances,panoptic}, and the same and polygons in {split}/v2.0

Labels are indices of a palette, instances label * 256 + number in 16 bits, panoptic ids RGB. Version 2.0
has 124 classes like the real one; those beyond the first 65 are invented.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from synthetic_datasets.drawing import (
    Scene,
    color_of,
    painted,
    photograph,
    random_scene,
    read_table,
    save,
    save_json,
    segment,
    segment_colors,
)

COUNTS = {"train": 3, "val": 2, "test": 1}
FOLDERS = {"train": "training", "val": "validation", "test": "testing"}
STUFF = (13, 27, 30, 17)  # road, sky, vegetation, building
THINGS = (19, 55, 55, 1, 61)  # person, car twice, ground animal, truck
CLASSES_V2 = 124
Row = dict[str, Any]


class Version(NamedTuple):
    """A set of classes: `labels` as in the config file, the last one unlabeled."""

    name: str
    panoptic_json: str
    labels: list[Row]


def draw(root: Path, *, seed: int = 0, counts: dict[str, int] | None = None, layout: str = "flat") -> None:
    folder = root / "mapillary_vistas"
    versions = [_version_1()] if layout == "flat" else [_version_1(), _version_2()]
    for version in versions:
        name = "config.json" if layout == "flat" else f"config_{version.name}.json"
        facts = {"version": "1.1", "mapping": "public", "folder_structure": "{split}"}
        save_json({"labels": version.labels, **facts}, folder / name)
    for number, (split, count) in enumerate((counts or COUNTS).items()):
        scenes = _draw_images(folder / FOLDERS[split] / "images", [seed, number], count)
        if split == "test":
            continue
        for version in versions:
            nested = "" if layout == "flat" else version.name
            _write_truth(folder / FOLDERS[split] / nested, version, scenes)


def _draw_images(folder: Path, seed: list[int], count: int) -> dict[str, Scene]:
    """The scenes by the names of their files, which may begin with a dash."""
    scenes = {}
    for i in range(count):
        rng = np.random.default_rng([*seed, i])
        things = () if count > 1 and i == count - 1 else THINGS
        scene = random_scene(rng, (48 + 8 * i, 72), stuff=STUFF, things=things, overlap=True)
        name = f"-{seed[1]}_Fb2nUQ4K9cCg6wR5v{i:02d}"
        save(photograph(rng, scene.labels()), folder / f"{name}.jpg")
        scenes[name] = scene
    return scenes


def _version_1() -> Version:
    keys = ("name", "readable", "color", "instances", "evaluate")
    rows = read_table("mapillary_vistas_v1.2_66.json")
    return Version("v1.2", "panoptic_2018.json", [{key: row[key] for key in keys} for row in rows])


def _version_2() -> Version:
    first = _version_1().labels
    made_up = [
        {
            "name": f"object--made-up--{number}",
            "readable": f"Made Up {number}",
            "color": [int(value) for value in color_of(number)],
            "instances": number % 2 == 0,
            "evaluate": True,
        }
        for number in range(len(first) - 1, CLASSES_V2 - 1)
    ]
    return Version("v2.0", "panoptic_2020.json", [*first[:-1], *made_up, first[-1]])


def _write_truth(folder: Path, version: Version, scenes: dict[str, Scene]) -> None:
    annotations = []
    for number, (name, scene) in enumerate(scenes.items()):
        labels = scene.labels(nothing=len(version.labels) - 1)
        image = Image.fromarray(labels.astype(np.uint8))
        image.putpalette([value for row in version.labels for value in row["color"]])
        save(image, folder / "labels" / f"{name}.png")
        instances = labels * 256
        for count, mask in enumerate(scene.visible()):
            instances[mask] += count
        save(instances.astype(np.uint16), folder / "instances" / f"{name}.png")
        ids, rows = _segments(scene, special=number == 0)
        save(segment_colors(ids), folder / "panoptic" / f"{name}.png")
        annotations.append({"image_id": name, "file_name": f"{name}.png", "segments_info": rows})
        if version.name == "v2.0":
            save_json(_polygons(scene, version), folder / "polygons" / f"{name}.json")
    content = {
        "info": {"description": "synthetic", "version": version.name},
        "images": [
            {"id": name, "file_name": f"{name}.jpg", "height": scene.size[0], "width": scene.size[1]}
            for name, scene in scenes.items()
        ],
        "categories": [
            _category(number, row) for number, row in enumerate(version.labels) if row["evaluate"]
        ],
        "annotations": annotations,
    }
    save_json(content, folder / "panoptic" / version.panoptic_json)


def _segments(scene: Scene, special: bool) -> tuple[np.ndarray, list[Row]]:
    """Return ids (H, W) and rows; in special images the last thing is a crowd."""
    regions = scene.stuff + scene.things
    ids = painted(scene.size, [(region.mask, 777 * (i + 1)) for i, region in enumerate(regions)], 0)
    crowd = len(regions) - 1 if special and scene.things else None
    rows = [
        segment(ids == 777 * (i + 1), 777 * (i + 1), region.category + 1, iscrowd=int(i == crowd))
        for i, region in enumerate(regions)
        if (ids == 777 * (i + 1)).any()
    ]
    return ids, rows


def _category(number: int, label: Row) -> Row:
    return {
        "id": number + 1,
        "name": label["readable"],
        "supercategory": label["name"],
        "isthing": int(label["instances"]),
        "color": label["color"],
    }


def _polygons(scene: Scene, version: Version) -> Row:
    names = [row["name"] for row in version.labels]
    objects = [
        {"id": number, "label": names[region.category], "polygon": [list(point) for point in region.polygon]}
        for number, region in enumerate(scene.stuff + scene.things)
    ]
    return {"height": scene.size[0], "width": scene.size[1], "objects": objects, "annotation_date": ""}
