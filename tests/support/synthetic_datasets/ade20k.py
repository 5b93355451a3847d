"""ADEChallengeData2016, with the archive of instances unpacked into it.

Labels: 0 nothing, else 1..150. Instances: R the class of 1..100, G the number in the image. As in the real
files instances may lie over pixels that the labels call stuff, and things of the labels may have no instance.
"""

from pathlib import Path

import numpy as np

from synthetic_datasets.drawing import Scene, photograph, random_scene, read_table, save

COUNTS = {"train": 3, "val": 2}
FOLDERS = {"train": "training", "val": "validation"}
STUFF = (0, 1, 2, 3)  # wall, building, sky, floor
THINGS = (7, 12, 20, 20, 15)  # bed, person, car twice, table
SIZES = ((48, 64), (64, 48))


def draw(root: Path, *, seed: int = 0, counts: dict[str, int] | None = None) -> None:
    folder = root / "ADEChallengeData2016"
    for number, (split, count) in enumerate((counts or COUNTS).items()):
        for i in range(count):
            empty = count > 1 and i == count - 1
            name = f"ADE_{split}_{i + 1:08d}"
            _draw_image(folder, FOLDERS[split], name, np.random.default_rng([seed, number, i]), i, empty)
    _write_object_info(folder)


def _draw_image(
    folder: Path, split: str, name: str, rng: np.random.Generator, number: int, empty: bool
) -> None:
    scene = random_scene(rng, SIZES[number % 2], stuff=STUFF, things=() if empty else THINGS, overlap=True)
    image = photograph(rng, scene.labels())
    save(image.convert("L") if number == 1 else image, folder / "images" / split / f"{name}.jpg")
    # The labels lack the first thing: its pixels are those of the stuff behind it.
    labels = Scene(scene.size, scene.stuff, scene.things[1:]).labels() + 1
    save(labels.astype(np.uint8), folder / "annotations" / split / f"{name}.png")
    save(_instances(scene), folder / "annotations_instance" / split / f"{name}.png")


def _instances(scene: Scene) -> np.ndarray:
    """Return the instances without the last thing."""
    classes = {row["id"]: row["instance100_id"] for row in read_table("ade20k_150.json")}
    rgb = np.zeros((*scene.size, 3), np.uint8)
    for i, mask in enumerate(scene.visible()[:-1]):
        rgb[mask] = (classes[scene.things[i].category], i + 1, 0)
    return rgb


def _write_object_info(folder: Path) -> None:
    rows = [
        f"{row['png_value']}\t{row['pixel_ratio']:.4f}\t0\t0\t{row['objectinfo_name']}"
        for row in read_table("ade20k_150.json")
    ]
    (folder / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]) + "\n")
