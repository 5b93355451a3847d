"""Files of results that grow with a film or a folder: COCO's with ids of tracks, and YouTube-VIS' results.

What is kept until a file is complete are names and run-length codes, not masks or images.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from mask2former.result import Result
from mask2former.result_formats import image_annotations, shape_code
from mask2former.utils.atomic_files import UNFINISHED


class CocoFile:
    """A COCO file of many results, written as a context: annotations at once, the rest at the end.

    The file appears at its path when the context ends, also after an interrupt.

    Args:
        path: of the file.
        task: "panoptic" or "instance".
        rle: write run-length codes of the exact masks, not polygons; see `to_coco`.
    """

    def __init__(self, path: Path, task: str, *, rle: bool) -> None:
        self.path, self.task, self.rle = path, task, rle
        self._images: list[dict[str, Any]] = []
        self._names: Sequence[str] = ()
        self._count = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._unfinished = path.with_name(f"{UNFINISHED}-{path.name}")
        self._file: IO[str] = open(self._unfinished, "w", encoding="utf-8")  # noqa: SIM115
        self._file.write('{"annotations": [')

    def __enter__(self) -> CocoFile:
        return self

    def add(self, file_name: str, result: Result, **more: Any) -> None:
        """Add the objects of an image; `more` are further values of the image's row."""
        height, width = result.image.shape[:2]
        row = {"id": len(self._images) + 1, "file_name": file_name, "width": width, "height": height}
        self._images.append({**row, **more})
        self._names = result.class_names
        for annotation in image_annotations(result.objects(self.task), (height, width), self.rle):
            self._file.write(",\n" if self._count else "\n")
            self._count += 1
            self._file.write(json.dumps({"id": self._count, "image_id": row["id"], **annotation}))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        categories = [{"id": k, "name": name} for k, name in enumerate(self._names, start=1)]
        rest = json.dumps({"images": self._images, "categories": categories})
        self._file.write(f"\n], {rest[1:]}\n")
        self._file.close()
        self._unfinished.replace(self.path)


class _Row:
    """A track's class, scores, and codes by frame."""

    def __init__(self) -> None:
        self.class_id = 0
        self.total = 0.0
        self.codes: dict[int, dict[str, Any]] = {}

    def add(self, frame: int, class_id: int, score: float, code: dict[str, Any]) -> None:
        self.class_id = class_id
        self.total += score
        self.codes[frame] = code


class TracksFile:
    """The tracks of films as a file of YouTube-VIS' results, written as a context.

    It holds `video_id`, `score`, `category_id` and `segmentations` of each track, a code or null for each
    frame. The score is the mean over the frames in which the object was seen; a category's id is the position
    of the class plus 1.

    Args:
        path: of the file, which appears when the context ends, also after an interrupt.
        task: "panoptic" or "instance".
    """

    def __init__(self, path: Path, task: str) -> None:
        self.path, self.task = path, task
        path.parent.mkdir(parents=True, exist_ok=True)
        self._videos: list[dict[int, _Row]] = []
        self._lengths: list[int] = []

    def __enter__(self) -> TracksFile:
        return self

    def begin(self) -> None:
        """Begin the next film; ids of films count from 1."""
        self._videos.append({})
        self._lengths.append(0)

    def add(self, result: Result) -> None:
        """Add the tracks of the next frame of the film."""
        height, width = result.image.shape[:2]
        for item in result.objects(self.task):
            if item.track_id is not None:
                code = shape_code(item.shape, (height, width))
                row = self._videos[-1].setdefault(item.track_id, _Row())
                row.add(self._lengths[-1], item.class_id, item.score or 0.0, code)
        self._lengths[-1] += 1

    def rows(self) -> list[dict[str, Any]]:
        """Return what the file holds."""
        return [
            {
                "video_id": video,
                "category_id": row.class_id + 1,
                "score": row.total / len(row.codes),
                "segmentations": [row.codes.get(frame) for frame in range(length)],
            }
            for video, (tracks, length) in enumerate(zip(self._videos, self._lengths, strict=True), start=1)
            for row in tracks.values()
        ]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.path.write_text(json.dumps(self.rows()), encoding="utf-8")
