"""Files that visitors of the page download, at the image's own size and without the hidden classes."""

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from PIL import Image

from mask2former.drawing.overlay import legible_scale
from mask2former.drawing.shapes import label_shapes
from mask2former.result import Panoptic, Result
from mask2former.utils.image_io import PNG_LEVEL, Array
from mask2former.utils.label_maps import segment_channels
from mask2former.web.session import Session

# Task -> kinds of its files, and the words on their buttons
KINDS = {
    "panoptic": {"overlay": "Overlay", "ids": "PNG and JSON"},
    "instance": {"overlay": "Overlay", "coco": "COCO JSON"},
    "semantic": {"overlay": "Overlay"},
}


class Download(NamedTuple):
    """A file: its name and content."""

    name: str
    content: bytes


def download(session: Session, task: str, kind: str) -> Download:
    """Return a file of a task's result: one of its KINDS.

    "overlay" is a PNG of `Result.draw`, "coco" a COCO file of instances, and "ids" a ZIP of COCO's panoptic
    format, a PNG of segment ids and its JSON.

    Raises:
        ValueError: the task has no such file, or the session no such task.
    """
    result = session.visible(session.full_result())
    if task not in result.tasks or kind not in KINDS[task]:
        raise ValueError(f"there is no file '{kind}' of a {task} result")
    stem = PurePath(session.name).stem or "image"
    if kind == "overlay":
        overlay = _png(result.draw(task, scale=legible_scale(result.image)))
        return Download(f"{stem}_{task}.png", overlay)
    if kind == "coco":
        return Download(f"{stem}_instances.json", _json(result.to_coco(session.name, "instance")))
    assert result.panoptic is not None
    things = session.predictor.model.inference.thing_ids
    content = coco_panoptic(session.name, f"{stem}.png", result, things)
    files = {f"{stem}.png": _png(segment_channels(result.panoptic.ids)), f"{stem}.json": _json(content)}
    return Download(f"{stem}_panoptic.zip", _zip(files))


def coco_panoptic(image_name: str, png_name: str, result: Result, thing_ids: Sequence[int]) -> dict[str, Any]:
    """Return the content of a panoptic result's JSON in COCO's format.

    A category's id is its position in `class_names` plus 1, as in `Result.to_coco`.
    """
    assert result.panoptic is not None
    height, width = result.panoptic.ids.shape
    return {
        "images": [{"id": 1, "file_name": image_name, "width": width, "height": height}],
        "annotations": [
            {"image_id": 1, "file_name": png_name, "segments_info": _segments(result.panoptic)},
        ],
        "categories": [
            {"id": k + 1, "name": name, "isthing": int(k in thing_ids)}
            for k, name in enumerate(result.class_names)
        ],
    }


def _segments(panoptic: Panoptic) -> list[dict[str, Any]]:
    shapes = label_shapes(panoptic.ids, [segment["id"] for segment in panoptic.segments])
    infos = []
    for segment, shape in zip(panoptic.segments, shapes, strict=True):
        left, top, right, bottom = shape.box or (0, 0, 0, 0)
        info = {
            "id": segment["id"],
            "category_id": segment["category_id"] + 1,
            "area": shape.area,
            "bbox": [left, top, right - left, bottom - top],
            "iscrowd": 0,
        }
        infos.append(info)
    return infos


def _png(image: Array) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=PNG_LEVEL)
    return file.getvalue()


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode()


def _zip(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()
