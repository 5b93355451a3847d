"""Drawn films: moving circles, squares and triangles, with their tracks in YouTube-VIS' layout and format.

They look as the images of the dataset `shapes`, so that a model trained on those images can be tried on them.
Each film follows from (seed, split, number) alone. It plays one of four scenes:

    crossing    two shapes pass in opposite directions, one in front of the other
    occluded    a small shape passes behind a large one and cannot be seen for some frames
    entering    one shape comes in over the edge, another leaves
    returning   a shape leaves over the edge and comes back

A shape keeps its id for the whole film, also where it cannot be seen.

Shapes: `T` frames of a film, `H, W` the sides of a frame in pixels.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as rle
from tqdm import tqdm

from mask2former.data.datasets.coco import Row
from mask2former.data.datasets.drawn import LABEL_DIVISOR, Rng, SyntheticImage, write_once
from mask2former.data.datasets.shapes import MAX_ROTATION, SIDE, THINGS, draw_background, form_mask
from mask2former.utils.label_maps import Array

LENGTH = 30  # frames of a film
SPLITS = {"train": 200, "valid": 20}
NOISE = (8, 28)  # standard deviations of a shape's noise, from and to


class Course(NamedTuple):
    """What a shape does: its radius, and where it begins and ends, relative to the side and the center.

    If `returns`, it is at `end` in the middle of the film, and at `start` again in the end.
    """

    radius: float
    start: tuple[float, float]
    end: tuple[float, float]
    returns: bool = False

    def place(self, time: float) -> Array:
        """Return (x, y) at a time from 0 to 1."""
        start, end = np.array([self.start, self.end])
        share = 1 - abs(2 * time - 1) if self.returns else time
        return start + share * (end - start)


class Shape(NamedTuple):
    """A shape of a film: its category, course, color, strength of noise, and rotations at both ends."""

    category: Row
    course: Course
    color: Array
    noise: float
    rotations: Array


def _crossing(rng: Rng) -> list[Course]:
    first, second = rng.uniform(0.1, 0.16, 2)
    apart = rng.uniform(0.0, 0.5) * min(first, second)  # of their paths, so that one hides most of the other
    return [Course(first, (-0.36, -apart), (0.36, -apart)), Course(second, (0.36, apart), (-0.36, apart))]


def _occluded(rng: Rng) -> list[Course]:
    radius, height = rng.uniform(0.07, 0.08), rng.uniform(-0.02, 0.02)
    return [Course(radius, (-0.42, height), (0.42, height)), Course(0.18, (0.0, 0.0), (0.0, 0.0))]


def _entering(rng: Rng) -> list[Course]:
    first, second = rng.uniform(0.1, 0.16, 2)
    return [Course(first, (-0.75, -0.22), (0.2, -0.22)), Course(second, (-0.2, 0.22), (0.75, 0.22))]


def _returning(rng: Rng) -> list[Course]:
    first, second = rng.uniform(0.1, 0.16, 2)
    return [Course(first, (0.1, -0.2), (0.8, -0.2), returns=True), Course(second, (-0.3, 0.2), (0.3, 0.2))]


SCENES: dict[str, Callable[[Rng], list[Course]]] = {
    "crossing": _crossing,
    "occluded": _occluded,
    "entering": _entering,
    "returning": _returning,
}


def film_shapes(rng: Rng, scene: str) -> list[Shape]:
    """Return the shapes of a scene, which is turned by a random angle, the hindmost first."""
    bystanders = [
        Course(rng.uniform(0.08, 0.13), tuple(start), tuple(start + rng.uniform(-0.15, 0.15, 2)))
        for start in rng.uniform(-0.36, 0.36, (int(rng.integers(1, 3)), 2))
    ]
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    actors = [
        course._replace(start=tuple(course.start @ turn), end=tuple(course.end @ turn))
        for course in SCENES[scene](rng)
    ]
    return [
        Shape(
            category=THINGS[rng.integers(len(THINGS))],
            course=course,
            color=rng.uniform(0, 255, 3),
            noise=rng.uniform(*NOISE),
            rotations=rng.uniform(-MAX_ROTATION, MAX_ROTATION, 2),
        )
        for course in bystanders + actors
    ]


def draw_film(rng: Rng, scene: str, length: int = LENGTH, side: int = SIDE) -> Iterator[SyntheticImage]:
    """Yield the T frames; a shape's segment id is the same in all of them. Noise differs between frames."""
    background, ids = draw_background(rng, side)
    shapes = film_shapes(rng, scene)
    for time in np.linspace(0, 1, length):
        frame, frame_ids = background + rng.normal(0, 4, background.shape), ids.copy()
        for number, shape in enumerate(shapes, start=1):
            rotation = shape.rotations[0] + time * (shape.rotations[1] - shape.rotations[0])
            center = side * (shape.course.place(time) + 0.5)
            mask = form_mask(shape.category["name"], center, shape.course.radius, rotation, side)
            frame[mask] = shape.color + rng.normal(0, shape.noise, (int(mask.sum()), 3))
            frame_ids[mask] = shape.category["id"] * LABEL_DIVISOR + number
        yield SyntheticImage(np.clip(frame, 0, 255).astype(np.uint8), frame_ids)


def scene_of(number: int) -> str:
    """Return the scene of film `number`, from 1: the scenes take turns."""
    return list(SCENES)[(number - 1) % len(SCENES)]


def film_tracks(frames: list[Array]) -> list[dict[str, Any]]:
    """Return the tracks of the segment ids of T frames (H, W), without "id" and "video_id".

    `segmentations`, `bboxes` and `areas` have one entry a frame, None where the object cannot be seen.
    """
    tracks: dict[int, dict[str, Any]] = defaultdict(
        lambda: {key: [None] * len(frames) for key in ("segmentations", "bboxes", "areas")}
    )
    things = {category["id"] for category in THINGS}
    for number, ids in enumerate(frames):
        for segment_id in np.unique(ids).tolist():
            if segment_id // LABEL_DIVISOR in things:
                code = rle.encode(np.asfortranarray(ids == segment_id, dtype=np.uint8))
                track = tracks[segment_id]
                track["bboxes"][number] = [int(value) for value in rle.toBbox(code)]
                track["areas"][number] = int(rle.area(code))
                track["segmentations"][number] = {"size": code["size"], "counts": code["counts"].decode()}
    height, width = frames[0].shape
    common = {"iscrowd": 0, "length": len(frames), "height": height, "width": width}
    return [{"category_id": key // LABEL_DIVISOR, **common, **tracks[key]} for key in sorted(tracks)]


def _write_film(root: Path, split: str, number: int, rng: Rng, length: int) -> tuple[Row, list[Row]]:
    """Draw and write the frames of a film; return its row of videos, and its tracks without "id"."""
    name = f"{number:04d}_{scene_of(number)}"
    folder = root / split / "JPEGImages" / name
    folder.mkdir(parents=True)
    files, ids = [], []
    for frame, (image, frame_ids) in enumerate(draw_film(rng, scene_of(number), length)):
        Image.fromarray(image).save(folder / f"{frame:05d}.jpg", quality=92)
        files.append(f"{name}/{frame:05d}.jpg")
        ids.append(frame_ids)
    video = {"id": number, "file_names": files, "length": length, "height": SIDE, "width": SIDE}
    return video, [{"video_id": number, **track} for track in film_tracks(ids)]


def _write_split(root: Path, split: str, count: int, seed: int, length: int) -> None:
    """Draw `count` films and write them with `split`.json."""
    videos, tracks = [], []
    for number in tqdm(range(1, count + 1), desc=f"drawing {split}", unit="film"):
        rng = np.random.default_rng([seed, list(SPLITS).index(split), number])
        video, of_video = _write_film(root, split, number, rng, length)
        videos.append(video)
        tracks += of_video
    annotations = [{"id": number, **track} for number, track in enumerate(tracks, start=1)]
    content = {"videos": videos, "categories": THINGS, "annotations": annotations}
    (root / f"{split}.json").write_text(json.dumps(content))


def write_films(
    root: Path, counts: dict[str, int] | None = None, seed: int = 0, length: int = LENGTH
) -> Path:
    """Draw films into `root`/films unless the same are there already; return that folder.

    The layout is that of YouTube-VIS: `train.json`, and `train/JPEGImages/<video>/<frame>.jpg`.
    """
    counts = counts or SPLITS

    def write(folder: Path) -> None:
        for split, count in counts.items():
            _write_split(folder, split, count, seed, length)

    facts = {"version": 1, "counts": counts, "seed": seed, "length": length, "side": SIDE}
    return write_once(root / "films", facts, write)
