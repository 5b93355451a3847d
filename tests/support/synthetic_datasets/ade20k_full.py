"""ADE20K_2021_17_01: images in folders of scenes; *_seg.png: class R // 10 * 256 + G, instance B."""

from pathlib import Path

import numpy as np

from synthetic_datasets.drawing import Scene, photograph, random_scene, save, save_json

COUNTS = {"train": 3, "val": 2}
FOLDERS = {"train": "training", "val": "validation"}
SCENES = ("urban/street", "home_or_hotel/bedroom")
STUFF = (2978, 312, 2420, 976)  # wall, building, sky, floor: indices of all of ADE20K, from 1
THINGS = (165, 1831, 401, 3)  # bed, person, car, and a class that is not among the 847


def draw(root: Path, *, seed: int = 0, counts: dict[str, int] | None = None) -> None:
    folder = root / "ADE20K_2021_17_01" / "images" / "ADE"
    for number, (split, count) in enumerate((counts or COUNTS).items()):
        for i in range(count):
            rng = np.random.default_rng([seed, number, i])
            things = () if count > 1 and i == count - 1 else THINGS
            scene = random_scene(rng, (48 + 8 * i, 64), stuff=STUFF, things=things, overlap=True)
            path = folder / FOLDERS[split] / SCENES[i % 2] / f"ADE_{split}_{i + 1:08d}"
            _write_image(path, scene, rng)


def _write_image(path: Path, scene: Scene, rng: np.random.Generator) -> None:
    labels = scene.labels(nothing=0)
    save(photograph(rng, labels), path.with_suffix(".jpg"))
    rgb = np.stack([labels // 256 * 10, labels % 256, np.zeros_like(labels)], axis=-1)
    for number, mask in enumerate(scene.visible(), start=1):
        rgb[mask, 2] = number
    save(rgb.astype(np.uint8), path.with_name(f"{path.name}_seg.png"))
    save(np.zeros((*labels.shape, 3), np.uint8), path.with_name(f"{path.name}_parts_1.png"))
    for number, thing in enumerate(scene.things):
        save((thing.mask * 255).astype(np.uint8), path / f"instance_{number:03d}_{path.name}.png")
    objects = [
        {
            "id": number,
            "name_ndx": region.category,
            "instance_mask": f"{path.name}/instance_{number:03d}_{path.name}.png",
        }
        for number, region in enumerate(scene.things)
    ]
    annotation = {"filename": f"{path.name}.jpg", "imsize": [*labels.shape, 3], "object": objects}
    save_json({"annotation": annotation}, path.with_suffix(".json"))
