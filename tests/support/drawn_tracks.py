"""Drawn ground truth and results of videos in YouTube-VIS' format: moving boxes, hidden frames, crowds."""

import numpy as np
from synthetic_coco import compressed_rle
from synthetic_datasets.youtube_vis import run_lengths

CATEGORIES = [{"id": 7, "name": "box"}, {"id": 2, "name": "kite"}, {"id": 5, "name": "absent"}]


def boxes_of_track(rng, frames, size):
    """Return the box (top, left, bottom, right) of each frame, None where the object is hidden."""
    height, width = rng.integers(2, size).tolist()
    start = rng.integers(0, (size[0] - height + 1, size[1] - width + 1))
    corners = start + rng.integers(-2, 3, (frames, 2)).cumsum(0)
    boxes = [(max(y, 0), max(x, 0), y + height, x + width) for y, x in corners.tolist()]
    return [None if rng.random() < 0.25 else box for box in boxes]


def mask_of(box, size):
    mask = np.zeros(size, bool)
    if box:
        top, left, bottom, right = box
        mask[top:bottom, left:right] = True
    return mask


def annotation(rng, number, video, category, boxes):
    """Return a track of the ground truth, with each form of masks that the format has."""
    size = video["height"], video["width"]
    masks = [mask_of(box, size) for box in boxes]
    forms = compressed_rle, run_lengths, polygon_of
    return {
        "id": number,
        "video_id": video["id"],
        "category_id": category,
        "iscrowd": int(rng.random() < 0.15),
        "segmentations": [forms[rng.integers(3)](mask) if mask.any() else None for mask in masks],
        "bboxes": [box and [box[1], box[0], box[3] - box[1], box[2] - box[0]] for box in boxes],
        "areas": [int(mask.sum()) or None for mask in masks],
    }


def polygon_of(mask):
    """Return the polygon of a mask that is a box."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    return [[*map(int, (left, top, right, top, right, bottom, left, bottom))]]


def draw_tracks(seed, *, videos=4, size=(300, 330), most=6):
    """Return a ground truth and results: shifted, halved and invented tracks, scores with ties."""
    rng = np.random.default_rng(seed)
    rows, annotations, results = [], [], []
    for id in rng.permutation(50)[:videos].tolist():
        frames = int(rng.integers(1, 6))
        names = [f"{id}/{frame:05}.jpg" for frame in range(frames)]
        video = {"id": id, "height": size[0], "width": size[1], "length": frames, "file_names": names}
        rows.append(video)
        for _ in range(rng.integers(0, most + 1)):
            boxes, category = boxes_of_track(rng, frames, size), int(rng.choice([7, 2]))
            annotations.append(annotation(rng, len(annotations) + 1, video, category, boxes))
            results += [result(rng, video, category, disturbed(rng, boxes)) for _ in range(rng.integers(3))]
        results += [
            result(rng, video, int(rng.choice([7, 2, 5])), boxes_of_track(rng, frames, size))
            for _ in range(rng.integers(0, 2 * most))
        ]
    order = rng.permutation(len(results))
    truth = {"videos": rows, "categories": CATEGORIES, "annotations": annotations}
    return truth, [results[place] for place in order]


def disturbed(rng, boxes):
    """Return boxes of which some are shifted, some hidden."""
    limit = int(rng.integers(1, 12))
    shifts = rng.integers(0, limit, (len(boxes), 2)).tolist()
    moved = [box and (box[0] + y, box[1] + x, *box[2:]) for box, (y, x) in zip(boxes, shifts, strict=True)]
    return [None if rng.random() < 0.1 else box for box in moved]


def result(rng, video, category, boxes):
    """Return a result; an empty mask is null or an RLE without a pixel."""
    size = video["height"], video["width"]
    masks = [mask_of(box, size) for box in boxes]
    return {
        "video_id": video["id"],
        "category_id": category,
        "score": round(float(rng.random()), 1),
        "segmentations": [
            compressed_rle(mask) if mask.any() or rng.random() < 0.5 else None for mask in masks
        ],
    }


def perfect_results(truth):
    """Return results equal to the tracks that are to be found."""
    sizes = {video["id"]: (video["height"], video["width"]) for video in truth["videos"]}
    return [
        {
            "video_id": track["video_id"],
            "category_id": track["category_id"],
            "score": 0.9,
            "segmentations": [
                box and compressed_rle(mask_of((box[1], box[0], box[1] + box[3], box[0] + box[2]), size))
                for box in track["bboxes"]
            ],
        }
        for track in truth["annotations"]
        for size in [sizes[track["video_id"]]]
        if not track["iscrowd"]
    ]
