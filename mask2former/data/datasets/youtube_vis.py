"""Datasets of videos in YouTube-VIS' format: YouTube-VIS 2019 and 2021, OVIS, and the drawn films.

A JSON lists videos with the files of their frames, and tracks with one mask a frame, null where the object
cannot be seen. Validation sets come without tracks: a server has them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from pycocotools import mask as rle

from mask2former.data.catalog import Metadata, Record
from mask2former.data.clips import VIDEOS
from mask2former.data.datasets.coco import (
    XYWH,
    below,
    categories_in,
    convert_rows,
    instance_categories,
    known_id,
    register_instance_json,
)
from mask2former.data.datasets.files import datasets_root, load_json, require_path, table
from mask2former.data.datasets.registration import Facts, register, register_below_root
from mask2former.data.errors import DatasetError
from mask2former.data.load_context import LoadContext
from mask2former.utils import coco_values as values
from mask2former.utils.coco_values import Row
from mask2former.utils.messages import brief
from mask2former.utils.storage import PathLike

logger = logging.getLogger(__name__)
FACTS: Facts = {"evaluator_type": VIDEOS}
SPLITS = {"train": "train", "val": "valid", "test": "test"}  # part of a dataset's name -> of its files' names

# Datasets whose classes are known, and others, which have them in their files: paths below the root
YOUTUBE_VIS = {
    f"ytvis_{year}_{split}": {
        "json_file": f"ytvis_{year}/{files}.json",
        "image_root": f"ytvis_{year}/{files}/JPEGImages",
    }
    for year in (2019, 2021)
    for split, files in SPLITS.items()
}
OTHERS = {
    **{
        f"ovis_{split}": {"json_file": f"ovis/annotations_{files}.json", "image_root": f"ovis/{files}"}
        for split, files in SPLITS.items()
    },
    **{
        f"films_{split}": {"json_file": f"films/{files}.json", "image_root": f"films/{files}/JPEGImages"}
        for split, files in SPLITS.items()
        if split != "test"
    },
}


def register_ytvis_instances(name: str, metadata: Facts, json_file: PathLike, image_root: PathLike) -> None:
    """Register a JSON in YouTube-VIS' format and its folder of frames as `name`.

    `metadata` holds further facts. The classes are the JSON's `categories`.
    """
    register_instance_json(name, {**FACTS, **metadata}, json_file, image_root, load_videos)


def register_videos() -> None:
    """Register YouTube-VIS 2019 and 2021 under their published names, OVIS, and the drawn films."""
    for name, paths in YOUTUBE_VIS.items():
        classes = instance_categories(table(f"youtube_vis_{name.split('_')[1]}_40"))
        register_below_root(name, paths, {**FACTS, **classes}, load_videos)
    for name, paths in OTHERS.items():
        register(name, FACTS, partial(_facts_in_files, paths), load_videos)


def _facts_in_files(paths: dict[str, str], context: LoadContext) -> Facts:
    places = {key: str(datasets_root() / path) for key, path in paths.items()}
    return {**places, **instance_categories(categories_in(places["json_file"], context=context))}


def load_videos(metadata: Metadata, context: LoadContext) -> list[Record]:
    """Return the records of `json_file` and `image_root`, one for each video that the JSON lists.

    Without `annotations`, as in validation sets, records have none. Tracks that no frame shows are left out.

    Raises:
        DatasetError: a file or folder is missing, or the JSON is broken.
    """
    path, ids = metadata.json_file, metadata.thing_dataset_id_to_contiguous_id
    content = load_json(path, "videos", context=context)
    root = require_path(metadata.image_root)
    records = convert_rows(path, content, "videos", partial(_video_record, root=root), context, "video")
    _report_repeated(path, ((record["video_id"], "videos with this id") for record in records), context)
    if content.get("annotations") is None:
        return records
    videos = {record["video_id"]: record for record in records}
    assumed: Counter[str] = Counter()
    convert = partial(_track, videos=videos, ids=ids, assumed=assumed)
    tracks = convert_rows(path, content, "annotations", convert, context, "video")
    if empty := sum(not any(track["segmentations"]) for track in tracks):
        logger.warning("%s: left out %d tracks without a mask in any frame", path, empty)
    for form, count in assumed.items():
        logger.warning("%s: %d masks in 'segmentations' are %s", path, count, form)
    for record in records:
        record["annotations"] = [[] for _ in record["file_names"]]
    for track in tracks:
        _add_track(videos[track["video_id"]]["annotations"], track)
    numbers = ((track["video_id"], f"tracks with the id {track['common']['id']}") for track in tracks)
    _report_repeated(path, numbers, context)
    return records


def _report_repeated(path: str, items: Iterable[tuple[Any, str]], context: LoadContext) -> None:
    """Report as an error what occurs twice, of pairs (video id, what it is)."""
    for (video_id, what), count in Counter(items).items():
        if count > 1:
            context.report(DatasetError(f"{path}, video id {brief(video_id)}: {count} {what}"))


def _video_record(video: Row, root: Path) -> Record:
    names = values.frame_names(video)
    height, width = values.sides(video)
    return {
        "file_names": [str(below(root, name)) for name in names],
        "video_id": values.image_key(video, "id"),
        "height": height,
        "width": width,
        "length": len(names),
    }


def _track(row: Row, videos: dict[Any, Record], ids: dict[int, int], assumed: Counter[str]) -> Row:
    """Return a track's `video_id`, facts of its objects, and `segmentations` and `bboxes` of each frame."""
    video = videos[known_id(row, "video", videos)]
    size, frames = (video["height"], video["width"]), video["length"]
    try:
        masks, forms = values.track_masks(row, size, frames)
        boxes = values.per_frame(row, "bboxes", frames) if row.get("bboxes") else [None] * frames
        boxes = [values.box({"bbox": box}) for box in boxes]
        if row.get("areas"):  # which AP reads
            values.track_areas(row, frames)
        crowd = values.flag({"iscrowd": 0, **row}, "iscrowd")
    except ValueError as error:
        raise DatasetError(f"track {row.get('id')!r}: {error}") from error
    assumed.update(forms)
    return {
        "video_id": video["video_id"],
        "common": {
            "id": values.whole_number(row, "id", least=0),
            "category_id": ids[values.category_id(row, ids)],
            "iscrowd": crowd,
        },
        "segmentations": [_compressed(mask, size) for mask in masks],
        "bboxes": boxes,
    }


def _compressed(mask: Any, size: tuple[int, int]) -> Any:
    """Return a mask as it is, or a list of run lengths compressed: a tenth of the memory."""
    is_list = isinstance(mask, dict) and isinstance(mask["counts"], list)
    return rle.frPyObjects(mask, *size) if is_list else mask


def _add_track(frames: list[list[Row]], track: Row) -> None:
    """Add a track's objects to the annotations of the frames that show it."""
    for objects, mask, box in zip(frames, track["segmentations"], track["bboxes"], strict=True):
        if mask is not None:
            place = {} if box is None else {"bbox": box, "bbox_mode": XYWH}
            objects.append({**track["common"], "segmentation": mask, **place})
