"""What the page shows of a session, as values that its script puts into the page as text and images.

Shapes: `h, w` the sides in pixels of the image as it is shown.
"""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from mask2former.drawing.overlay import legible_scale
from mask2former.drawing.regions import Region
from mask2former.drawing.shapes import enlarge
from mask2former.options import COUNTED
from mask2former.result import Result
from mask2former.utils.image_io import Array
from mask2former.utils.label_maps import segment_channels
from mask2former.utils.messages import legible
from mask2former.web.downloads import KINDS
from mask2former.web.session import Session

JPEG = {"format": "JPEG", "quality": 90, "subsampling": 0}  # thin colored outlines stay sharp
NAME_LENGTH = 80
Json = dict[str, Any]


def view(session: Session, key: str | None) -> Json:
    """Return the value of the page's viewer: views of the original and of each task, and the legend.

    Each view has an image, a map of region numbers, and the names of the regions.
    """
    height, width = session.image.shape[:2]
    name = legible(session.name, NAME_LENGTH)
    return {
        "session": key,
        "message": f"{name}, {width} × {height} pixels; the network took {session.seconds:.2f} s",
        "views": [_original(session), *(_view_of(session, task) for task in session.shown.tasks)],
        "legend": _legend(session),
    }


def region_map(regions: Sequence[Region], size: tuple[int, int]) -> Array:
    """Return the number of the region, from 1, that is drawn last at each pixel, (h, w) int32; 0 for none."""
    numbers = np.zeros(size, np.int32)
    for number, region in enumerate(regions, start=1):
        if box := region.shape.box:
            left, top, right, bottom = box
            numbers[top:bottom, left:right][region.shape.inside(box)] = number
    return numbers


def found_classes(result: Result) -> list[int]:
    """Return the ids of the classes that any task has found, in order."""
    found: set[int] = set()
    if result.panoptic is not None:
        found.update(segment["category_id"] for segment in result.panoptic.segments)
    if result.instances is not None:
        found.update(result.instances.pred_classes.tolist())
    if result.semantic is not None:
        found.update(np.unique(result.semantic).tolist())
    return sorted(found)


def _original(session: Session) -> Json:
    image = session.shown.image
    alike = enlarge(image, legible_scale(image))  # as the overlays are
    return {"task": "original", "title": "Original", "image": _jpeg(alike), "files": []}


def _view_of(session: Session, task: str) -> Json:
    result = session.visible(session.shown)
    regions = result.regions(task)
    return {
        "task": task,
        "title": task.capitalize(),
        "note": session.shown.why_empty(task) or f"{session.shown.count(task)} {COUNTED[task]}",
        "image": _jpeg(result.draw(task, scale=legible_scale(result.image))),
        "numbers": _png(region_map(regions, (result.image.shape[0], result.image.shape[1]))),
        "regions": _labels(session, result, task, regions),
        "files": [{"kind": kind, "words": words} for kind, words in KINDS[task].items()],
    }


def _labels(session: Session, result: Result, task: str, regions: Sequence[Region]) -> list[str]:
    """Return each region's name, its score if it has one, and its share of the image."""
    notes = [region.note for region in regions]
    if task == "panoptic" and result.panoptic is not None:  # the regions are in the order of the segments
        notes = [f"{session.segment_scores[segment['id']]:.0%}" for segment in result.panoptic.segments]
    pixels = result.image[..., 0].size
    labels = []
    for region, note in zip(regions, notes, strict=True):
        name = f"{legible(region.name, NAME_LENGTH)} {note}".rstrip()
        labels.append(f"{name} · {region.shape.area / pixels:.1%} of the image")
    return labels


def _legend(session: Session) -> list[Json]:
    result = session.shown
    return [
        {
            "id": k,
            "name": legible(result.class_names[k], NAME_LENGTH),
            "color": "#{:02x}{:02x}{:02x}".format(*result.colors[k]),
            "hidden": k in session.hidden,
        }
        for k in found_classes(result)
    ]


def _jpeg(image: Array) -> str:
    return _data_url(Image.fromarray(image), **JPEG)


def _png(numbers: Array) -> str:
    return _data_url(Image.fromarray(segment_channels(numbers)), format="PNG", compress_level=1)


def _data_url(image: Image.Image, **options: Any) -> str:
    file = io.BytesIO()
    image.save(file, **options)
    return f"data:image/{options['format'].lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
