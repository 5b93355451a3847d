"""YouTube-VIS 2019 and 2021, and OVIS: videos of things that move, with their tracks in the training set.

The first video has a thing that is hidden in its second frame, another that shows from the second frame on,
a crowd, and one that is never seen. The last video of a split of two or more has a single frame.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from synthetic_datasets.drawing import Region, box_of, photograph, random_scene, read_table, save, save_json

COUNTS = {"train": 3, "valid": 2, "test": 1}
LENGTH = 5
SIZES = ((72, 96), (96, 72))
STUFF = (1001, 1002)  # colors of the background; classes of things are 1, 2, ...
CROWD, NEVER_SEEN = 2, 3  # places of these things in the first video
OVIS_NAMES = (
    *("Person", "Bird", "Cat", "Dog", "Horse", "Sheep", "Cow", "Elephant", "Bear", "Zebra", "Giraffe"),
    *("Poultry", "Giant_panda", "Lizard", "Parrot", "Monkey", "Rabbit", "Tiger", "Fish", "Turtle", "Bicycle"),
    *("Motorcycle", "Airplane", "Boat", "Vehicle"),
)


class Layout(NamedTuple):
    """Where a dataset's files lie below the root, for `split` train, valid or test; and its classes."""

    json_file: str
    frames: str
    names: tuple[str, ...]


def _youtube_vis(year: int) -> Layout:
    names = tuple(row["name"] for row in read_table(f"youtube_vis_{year}_40.json"))
    return Layout(f"ytvis_{year}/{{split}}.json", f"ytvis_{year}/{{split}}/JPEGImages", names)


LAYOUTS = {
    "ytvis_2019": _youtube_vis(2019),
    "ytvis_2021": _youtube_vis(2021),
    "ovis": Layout("ovis/annotations_{split}.json", "ovis/{split}", OVIS_NAMES),
}


def draw(
    root: Path, *, seed: int = 0, counts: dict[str, int] | None = None, dataset: str = "ytvis_2019"
) -> None:
    layout = LAYOUTS[dataset]
    for number, (split, count) in enumerate((counts or COUNTS).items()):
        videos, annotations = [], []
        for i in range(count):
            rng = np.random.default_rng([seed, number, i])
            length = 1 if count > 1 and i == count - 1 else LENGTH
            names = [f"{number}{i}f{seed:04d}/{5 * frame:05d}.jpg" for frame in range(length)]
            video = {"id": 10 * number + i + 1, "file_names": names, "length": length}
            masks, categories = _draw_frames(rng, root / layout.frames.format(split=split), names, i)
            height, width = SIZES[i % 2]
            videos.append({"license": 1, "width": width, "height": height, **video})
            for place, category in enumerate(categories):
                crowd = int(i == 0 and place == CROWD)
                row = {"video_id": video["id"], "category_id": category, "iscrowd": crowd}
                annotations.append({**row, **_per_frame(masks[place]), "id": len(annotations) + 1})
        categories = [
            {"supercategory": "object", "id": n, "name": name} for n, name in enumerate(layout.names, 1)
        ]
        content: dict[str, Any] = {"info": {}, "licenses": [], "videos": videos, "categories": categories}
        if split == "train":  # a server has the others
            content["annotations"] = annotations
        save_json(content, root / layout.json_file.format(split=split))


def _draw_frames(
    rng: np.random.Generator, folder: Path, names: list[str], video: int
) -> tuple[list[list[np.ndarray]], list[int]]:
    """Write the frames; return the visible masks (H, W) of each thing, frame by frame, and its class."""
    size = SIZES[video % 2]
    scene = random_scene(rng, size, stuff=STUFF, things=rng.integers(1, 26, 4).tolist())
    masks: list[list[np.ndarray]] = [[] for _ in scene.things]
    for frame, name in enumerate(names):
        moved = [
            np.roll(thing.mask, 2 * frame * (-1) ** place, axis=1) for place, thing in enumerate(scene.things)
        ]
        if video == 0:
            moved[0] &= frame != 1
            moved[1] &= frame >= 1
            moved[NEVER_SEEN] &= False
        things = [
            Region(thing.category, thing.polygon, mask)
            for thing, mask in zip(scene.things, moved, strict=True)
        ]
        shown = scene.__class__(size, scene.stuff, things)
        save(photograph(rng, shown.labels()), folder / name)
        for track, mask in zip(masks, shown.visible(), strict=True):
            track.append(mask)
    return masks, [thing.category for thing in scene.things]


def _per_frame(masks: list[np.ndarray]) -> dict[str, list[Any]]:
    """Return the lists of a track, null where it has no pixel; masks are run lengths, as in real files."""
    shown = [mask if mask.any() else None for mask in masks]
    return {
        "segmentations": [None if mask is None else run_lengths(mask) for mask in shown],
        "bboxes": [None if mask is None else [float(side) for side in box_of(mask)] for mask in shown],
        "areas": [None if mask is None else int(mask.sum()) for mask in shown],
    }


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """Return a mask as an RLE with a list of counts, the first of which is of zeros."""
    columns = np.concatenate([[False], mask.ravel(order="F")])
    counts = np.diff([0, *np.flatnonzero(np.diff(columns)), mask.size]).tolist()
    return {"size": [*mask.shape], "counts": counts}
