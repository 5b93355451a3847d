"""Result of a prediction for an image: label map, segments and instances, to be drawn, saved and passed on.

Shapes: `H, W` the original image's sides in pixels, `K` classes, `N` instances.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image, ImageShow

from mask2former import result_formats
from mask2former.drawing.colors import Color, class_colors
from mask2former.drawing.labels import letter_height
from mask2former.drawing.large import draw_large
from mask2former.drawing.legend import Entry, draw_legend, legend_entries
from mask2former.drawing.overlay import draw_regions
from mask2former.drawing.regions import Region, result_regions
from mask2former.evaluation.common.rle import encode_masks
from mask2former.options import COUNTED
from mask2former.structures import Instances, equal
from mask2former.utils.image_io import write_image
from mask2former.utils.label_maps import Array, write_label_map, write_segment_ids
from mask2former.utils.memory import file_of

if TYPE_CHECKING:
    import supervision

# Task -> field of `Result`
FIELDS = {"panoptic": "panoptic", "instance": "instances", "semantic": "semantic"}
# Other names of tasks: of the field here, and of the result in Detectron2
TASK_OF = {"instances": "instance", "panoptic_seg": "panoptic", "sem_seg": "semantic"}

# Name in Detectron2, transformers or mmdetection -> name here
NAMES_HERE = {
    "boxes": "instances.pred_boxes",
    "bboxes": "instances.pred_boxes",
    "classes": "class_names",
    "instance": "instances",
    "labels": "instances.pred_classes",
    "masks": "instances.pred_masks",
    "names": "class_names",
    "panoptic_seg": "panoptic",
    "plot": "draw()",
    "pred_boxes": "instances.pred_boxes",
    "pred_classes": "instances.pred_classes",
    "pred_instances": "instances",
    "pred_masks": "instances.pred_masks",
    "pred_panoptic_seg": "panoptic",
    "pred_sem_seg": "semantic",
    "scores": "instances.scores",
    "segmentation": "panoptic.ids",
    "segments": "panoptic.segments",
    "segments_info": "panoptic.segments",
    "sem_seg": "semantic",
    "visualize": "draw()",
}


class Panoptic(NamedTuple):
    """Segment ids (H, W) int32, 0 for no segment, and `{id, isthing, category_id}` of each segment."""

    ids: Array
    segments: list[dict[str, Any]]

    def __getattr__(self, name: str) -> Any:
        here = {"segments_info": "segments", "segmentation": "ids", "panoptic_seg": "ids"}.get(name)
        raise AttributeError(
            f"Panoptic has no '{name}'; {f'type .{here}' if here else 'it has ids, segments'}"
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Panoptic) and equal(tuple(self), tuple(other))

    def __ne__(self, other: object) -> bool:  # a tuple has its own
        return not self == other

    def __repr__(self) -> str:
        return f"Panoptic(ids of {self.ids.shape}, {len(self.segments)} segments)"


class Thresholds(NamedTuple):
    """What decides which parts of a prediction are in a result; each is from 0 to 1.

    Those of instances are the arguments of `Predictor`. Those of panoptic segments are OBJECT_MASK_THRESHOLD
    and OVERLAP_THRESHOLD in MODEL.MASK_FORMER.TEST.
    """

    score: float
    duplicate_iou: float
    object_mask: float
    overlap: float


@dataclass(frozen=True, eq=False)
class Result:
    """Prediction for one image at its original size; tasks that the model is not set to are None.

    Args:
        image: (H, W, 3) uint8 RGB.
        class_names: K names; the class ids below are positions in it.
        semantic: (H, W) class ids.
        panoptic: segment ids and segments.
        instances: those above the score threshold, by decreasing score: `pred_masks` (`RunLengthMasks`:
            iterating gives (H, W) bool tensors, `dense()` all of them as one), `pred_boxes` (N, 4) XYXY in
            pixels, `scores` (N,), `pred_classes` (N,), and of a frame of a film `track_ids` (N,).
        colors: RGB of each class.
        empty_reasons: for each task without a find, the reason.

    A notebook shows the overlay of a result that is a cell's last line. Results are equal if all their values
    are.
    """

    image: Array
    class_names: Sequence[str]
    semantic: Array | None = None
    panoptic: Panoptic | None = None
    instances: Instances | None = None
    colors: Sequence[Color] = ()
    empty_reasons: dict[str, str] = field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Result):
            return NotImplemented
        return equal(vars(self), vars(other))

    def __repr__(self) -> str:
        height, width = self.image.shape[:2]
        counts = "".join(f", {task}: {self.count(task)} {COUNTED[task]}" for task in self.tasks)
        return f"Result({height}x{width} pixels{counts})"

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        Image.fromarray(self.draw()).save(file, "PNG")
        return file.getvalue()

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"a Result has no '{name}'; {_advice(name)}")

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, int):
            raise TypeError("this is the Result of one image; predictor([image]) gives a list of them")
        raise TypeError(f"a Result has attributes, not keys; {_advice(str(key))}")

    @property
    def tasks(self) -> list[str]:
        """Return the tasks with a result, in the order "panoptic", "instance", "semantic"."""
        return [task for task, name in FIELDS.items() if getattr(self, name) is not None]

    @property
    def track_ids(self) -> dict[str, list[int | None]]:
        """Return the id of each object's track for the tasks that have some, None for stuff.

        The keys are "instance" and "panoptic"; ids are in the order of instances and segments. An object has
        one id in all frames and tasks. Only results of `Predictor.track` have any.
        """
        found: dict[str, list[int | None]] = {}
        if self.instances is not None and self.instances.has("track_ids"):
            found["instance"] = self.instances.track_ids.tolist()
        segments = [] if self.panoptic is None else self.panoptic.segments
        if any("track_id" in segment for segment in segments):
            found["panoptic"] = [segment.get("track_id") for segment in segments]
        return found

    def count(self, task: str | None = None) -> int:
        """Return the number of segments, instances or classes found."""
        task = task or self.tasks[0]
        found = self._get(task)
        if task == "semantic":
            seen = np.zeros(len(self.class_names), bool)
            for row in found:
                seen[row] = True
            return int(seen.sum())
        return len(found.segments if task == "panoptic" else found)

    def why_empty(self, task: str | None = None) -> str | None:
        """Return the reason that nothing was found (best score and threshold); None if something was."""
        return self.empty_reasons.get(task or self.tasks[0])

    def draw(
        self,
        task: str | None = None,
        *,
        scale: int = 1,
        ids: Sequence[int | None] | None = None,
        legend: bool = False,
    ) -> Array:
        """Return (scale * H, scale * W, 3) uint8 RGB: a task's result, by default the first, over the image.

        Args:
            task: "panoptic", "instance" or "semantic".
            scale: above 1, it keeps labels from covering a tiny image.
            ids: of each segment or instance (None: it has none), by default those of its track. They are
                shown in the labels, and each id has one shade of its class's color in all images. Without
                them, neighbors have different shades.
            legend: draw the legend, too; it makes the image wider.

        Raises:
            ValueError: the model is not set to that task, or `ids` do not fit its result.
        """
        regions = self.regions(task, ids)
        large = scale == 1 and file_of(self.image) is not None
        drawn = (
            draw_large(self.image, regions, self._maps) if large else draw_regions(self.image, regions, scale)
        )
        if not legend:
            return drawn
        beside = draw_legend(self._legend(task), letter_height(drawn.shape[:2]), height=len(drawn))
        return np.concatenate([drawn, beside], axis=1)

    def draw_legend(self, task: str | None = None) -> Array:
        """Return (h, w, 3) uint8 RGB: the classes found, with their colors and share of the image's pixels.

        The most frequent come first. For "panoptic" and "instance", the number of objects is shown.

        Raises:
            ValueError: the model is not set to that task.
        """
        return draw_legend(self._legend(task), letter_height(self._size))

    def regions(self, task: str | None = None, ids: Sequence[int | None] | None = None) -> list[Region]:
        """Return what `draw` draws: the shape, color, class and label of each class or object found.

        Raises:
            ValueError: as `draw`.
        """
        task = task or self.tasks[0]
        ids = self.track_ids.get(task) if ids is None else ids
        return result_regions(task, self._get(task), self.class_names, self._class_colors, ids)

    def _legend(self, task: str | None) -> list[Entry]:
        counted = (task or self.tasks[0]) != "semantic"
        regions = self.regions(task)
        return legend_entries(regions, self.class_names, self._class_colors, self._size, counted=counted)

    @property
    def _class_colors(self) -> Sequence[Color]:
        return self.colors or class_colors(len(self.class_names))

    def show(self, task: str | None = None) -> None:
        """Open the overlay in the image viewer of this machine.

        Raises:
            RuntimeError: there is no image viewer.
        """
        if not ImageShow.show(Image.fromarray(self.draw(task))):
            raise RuntimeError('there is no image viewer here; type result.save("overlay.png")')

    def save(self, path: str | Path, what: str = "overlay") -> None:
        """Write the result to `path`, creating its folder.

        `what` is "overlay", the visualization; "legend", its classes and colors; "semantic", a PNG of class
        ids; "panoptic", a PNG of segment ids (R + 256 G + 65536 B) and a JSON file of the same name; or
        "instances", a JSON list in COCO's result format. Class ids are positions in `class_names`.

        Raises:
            ValueError: another `what`, a task that the model is not set to, or a wrong file suffix.
        """
        if what not in _WRITERS:
            task = TASK_OF.get(what, what)
            advice = f'; type "{FIELDS[task]}"' if task in FIELDS else ""
            raise ValueError(f"cannot save '{what}'; it can be one of {', '.join(_WRITERS)}{advice}")
        path = Path(path).expanduser()
        if what in ("semantic", "panoptic") and path.suffix.lower() != ".png":
            raise ValueError(f"{path}: ids are saved as .png, which keeps them exactly")
        path.parent.mkdir(parents=True, exist_ok=True)
        _WRITERS[what](self, path)

    def to_coco(self, file_name: str, task: str | None = None, *, rle: bool = False) -> dict[str, Any]:
        """Return the objects as the content of a COCO instance file; see `to_coco` for several images."""
        return to_coco({file_name: self}, task, rle=rle)

    def to_supervision(self, task: str | None = None) -> supervision.Detections:
        """Return the objects of "panoptic" or "instance", by default the first, as supervision's Detections.

        They have `xyxy`, `mask` (N, H, W), `class_id`, `data["class_name"]` and, if they are instances,
        `confidence`.

        Raises:
            ImportError: supervision is not installed.
            ValueError: there is no such result.
        """
        return result_formats.supervision_detections(self.objects(task), self._size, self.class_names)

    @property
    def _maps(self) -> list[Array]:
        maps = self.semantic, self.panoptic.ids if self.panoptic else None
        return [array for array in maps if array is not None]

    @property
    def _size(self) -> tuple[int, int]:
        height, width, _ = self.image.shape
        return height, width

    def objects(self, task: str | None = None) -> list[result_formats.Found]:
        """Return the shape, class, score and track of each object of a task, by default the first.

        Raises:
            ValueError: there is no such result, or it is semantic.
        """
        task = TASK_OF.get(task or self.tasks[0], task or self.tasks[0])
        if task == "semantic":
            raise ValueError('a semantic result has no objects; type result.save("map.png", "semantic")')
        return result_formats.found_objects(task, self._get(task))

    def _get(self, task: str) -> Any:
        if task not in self.tasks:
            advice = f'; type "{TASK_OF[task]}"' if task in TASK_OF else ""
            raise ValueError(f"there is no {task} result; there is: {', '.join(self.tasks)}{advice}")
        return getattr(self, FIELDS[task])


def to_coco(
    results: Mapping[str, Result] | Iterable[tuple[str, Result]],
    task: str | None = None,
    *,
    rle: bool = False,
) -> dict[str, Any]:
    """Return the objects of several images as the content of one COCO instance file, ready for JSON.

    CVAT, Label Studio, FiftyOne and this project's training read it. A category's id is its position in
    `class_names` plus 1. Instances have a "score".

    Args:
        results: each image's file name and result, all of one model: pairs, which are not kept, or a dict.
        task: "panoptic" or "instance"; by default the first that the model is set to.
        rle: write exact masks, as run-length codes. Otherwise they are polygons within half a pixel, which
            people can edit and Label Studio needs; holes are lost.

    Raises:
        ValueError: there is no such result, or class names differ.
    """
    pairs = results.items() if isinstance(results, Mapping) else results
    images = (
        result_formats.Image(file_name, result._size, result.objects(task), result.class_names)
        for file_name, result in pairs
    )
    return result_formats.coco_file(images, rle=rle)


def _advice(name: str) -> str:
    fields = [entry.name for entry in dataclasses.fields(Result)]
    if here := NAMES_HERE.get(name, name if name in fields else None):
        return f"type result.{here}"
    return f"it has {', '.join(fields)}"


def _write_semantic(result: Result, path: Path) -> None:
    kind = np.uint8 if len(result.class_names) < 256 else np.uint16
    write_label_map(path, result._get("semantic"), kind)


def _write_panoptic(result: Result, path: Path) -> None:
    ids, segments = result._get("panoptic")
    things = {segment["category_id"]: segment["isthing"] for segment in segments}
    names = [{"id": k, "name": result.class_names[k], "isthing": things[k]} for k in sorted(things)]
    content = {"file_name": path.name, "segments_info": segments, "categories": names}
    write_segment_ids(path, ids)
    path.with_suffix(".json").write_text(json.dumps(content, indent=1), encoding="utf-8")


def _write_instances(result: Result, path: Path) -> None:
    found = []
    for instance in result._get("instance"):
        left, top, right, bottom = instance.pred_boxes[0].tolist()
        category = int(instance.pred_classes[0])
        item = {
            "category_id": category,
            "category_name": result.class_names[category],
            "score": float(instance.scores[0]),
            "bbox": [left, top, right - left, bottom - top],
            "segmentation": encode_masks(instance.pred_masks)[0],
        }
        found.append(item)
    path.write_text(json.dumps(found), encoding="utf-8")


_WRITERS: dict[str, Callable[[Result, Path], None]] = {
    "overlay": lambda result, path: write_image(path, result.draw()),
    "legend": lambda result, path: write_image(path, result.draw_legend()),
    "semantic": _write_semantic,
    "panoptic": _write_panoptic,
    "instances": _write_instances,
}
