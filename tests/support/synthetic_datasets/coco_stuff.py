"""COCO-Stuff 10k, version 1.1: MATLAB files whose `S` holds labels 0..182 (0 nothing), and lists of names."""

from pathlib import Path

import numpy as np
from scipy.io import savemat

from synthetic_datasets.drawing import photograph, random_scene, read_table, save

COUNTS = {"train": 3, "test": 2}
STUFF = (106, 124, 149, 182)  # clouds, grass, road, wood
THINGS = (1, 3, 13, 90)  # person, car, stop sign, toothbrush


def draw(root: Path, *, seed: int = 0, counts: dict[str, int] | None = None) -> None:
    folder = root / "coco" / "coco_stuff_10k"
    names: dict[str, list[str]] = {}
    for number, (split, count) in enumerate((counts or COUNTS).items()):
        names[split] = [f"COCO_train2014_{1000 * number + i:012d}" for i in range(count)]
        for i, name in enumerate(names[split]):
            rng = np.random.default_rng([seed, number, i])
            things = () if count > 1 and i == count - 1 else THINGS
            scene = random_scene(rng, (48, 64 + 8 * i), stuff=STUFF, things=things, overlap=True)
            labels = scene.labels(nothing=0).astype(np.uint8)
            save(photograph(rng, labels), folder / "images" / f"{name}.jpg")
            _write_labels(folder / "annotations" / f"{name}.mat", labels)
    names["all"] = [name for split in names.values() for name in split]
    (folder / "imageLists").mkdir()
    for split, listed in names.items():
        (folder / "imageLists" / f"{split}.txt").write_text("\n".join(listed) + "\n")


def _write_labels(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    classes = np.array([row["name"] for row in read_table("coco_stuff_labels_183.json")], dtype=object)
    content = {
        "S": labels,
        "names": classes[:, None],
        "regionMapStuff": np.ones(labels.shape, np.uint16),
        "regionLabelsStuff": np.array([[0]], np.uint8),
    }
    savemat(path, content, do_compression=True)
