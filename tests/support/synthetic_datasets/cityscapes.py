"""Cityscapes: leftImg8bit and gtFine. All labels are rasterized from polygons, as the authors' tools do.

The first image of train and val has groups, a license plate (label -1, which is left out), ego vehicle and
caravan (ignored), a person below 100 pixels and things that hide others. The ground truth of test is a dummy.
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mask2former.utils.cityscapes_labels import label_table
from synthetic_datasets.drawing import Polygon, photograph, random_scene, save, save_json

COUNTS = {"train": 3, "val": 3, "test": 1}
CITIES = {"train": ("aachen", "bochum"), "val": ("frankfurt", "munster"), "test": ("berlin",)}
SIZE = (80, 160)  # the real ones have (1024, 2048)
LABELS: dict[str, dict[str, Any]] = {row["name"]: row for row in label_table()}
STUFF = ("road", "building", "vegetation", "sky", "sidewalk")
THINGS = ("car", "person", "rider", "bicycle", "car", "truck")

Object = tuple[str, Polygon]  # label and polygon


def _box(left: int, top: int, right: int, bottom: int) -> Polygon:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


EGO_VEHICLE: Object = ("ego vehicle", _box(0, 72, 159, 79))
SPECIAL: list[Object] = [
    ("cargroup", _box(100, 2, 130, 20)),
    ("bicyclegroup", _box(2, 2, 20, 12)),
    ("caravan", _box(70, 2, 90, 16)),
    ("person", _box(60, 60, 66, 67)),  # 56 pixels
    ("license plate", _box(105, 10, 110, 14)),
]


def draw(root: Path, *, seed: int = 0, counts: dict[str, int] | None = None) -> None:
    for number, (split, count) in enumerate((counts or COUNTS).items()):
        for i in range(count):
            cities = CITIES[split]
            city, rng = cities[i % len(cities)], np.random.default_rng([seed, number, i])
            things = () if count > 1 and i == count - 1 else THINGS
            dummies = [("out of roi", _box(0, 0, 159, 4)), EGO_VEHICLE]
            objects = dummies if split == "test" else _objects(rng, things, special=i == 0)
            name = f"{city}_{i:06d}_000019"
            _write_truth(root / "cityscapes" / "gtFine" / split / city, name, objects)
            image = photograph(rng, _rasterized(objects, "ids").astype(np.int64))
            save(image, root / "cityscapes" / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png")


def _objects(rng: np.random.Generator, things: tuple[str, ...], *, special: bool) -> list[Object]:
    """Return the objects in the order of drawing."""
    names = [name for name, row in LABELS.items() if row["id"] >= 0]
    stuff, categories = ([names.index(name) for name in kinds] for kinds in (STUFF, things))
    scene = random_scene(rng, SIZE, stuff=stuff, things=categories, overlap=True)
    objects = [(names[region.category], region.polygon) for region in scene.stuff + scene.things]
    return [*objects, *(SPECIAL if special else []), EGO_VEHICLE]


def _value(objects: list[Object], number: int, kind: str) -> Any:
    """What the object's pixels hold; instances of a label are counted in the order of the objects."""
    name = objects[number][0]
    label = LABELS[name.removesuffix("group")]
    if kind == "color":
        return (*label["color"], 255)
    if kind == "ids" or not label["hasInstances"] or name.endswith("group"):
        return label["id"]
    return label["id"] * 1000 + sum(other == name for other, _ in objects[:number])


def _rasterized(objects: list[Object], kind: str) -> np.ndarray:
    """The objects over one another: (H, W), or (H, W, 4) for `color`."""
    mode, background = ("RGBA", (0, 0, 0, 255)) if kind == "color" else ("I", 0)
    image = Image.new(mode, SIZE[::-1], background)
    for number, (name, polygon) in enumerate(objects):
        if name != "license plate":  # its id is negative
            ImageDraw.Draw(image).polygon(polygon, fill=_value(objects, number, kind))
    return np.asarray(image)


def _write_truth(folder: Path, name: str, objects: list[Object]) -> None:
    save(_rasterized(objects, "color"), folder / f"{name}_gtFine_color.png")
    save(_rasterized(objects, "ids").astype(np.uint8), folder / f"{name}_gtFine_labelIds.png")
    save(_rasterized(objects, "instances").astype(np.uint16), folder / f"{name}_gtFine_instanceIds.png")
    rows = [{"label": label, "polygon": [list(point) for point in polygon]} for label, polygon in objects]
    content = {"imgHeight": SIZE[0], "imgWidth": SIZE[1], "objects": rows}
    save_json(content, folder / f"{name}_gtFine_polygons.json")
