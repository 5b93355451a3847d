"""Files of tracks: opened by pycocotools and by the reader of YouTube-VIS' results."""

import json

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO

from mask2former.evaluation.video.ap import track_average_precision
from mask2former.result import Panoptic, Result, to_coco
from mask2former.structures import Instances, RunLengthMasks
from mask2former.tracking.formats import CocoFile, TracksFile

NAMES = ["circle", "square", "grass"]
SIZE = (20, 30)
# Of each frame: track id -> class, score, left side of a square of 5 pixels
FRAMES = [{1: (0, 0.9, 2), 2: (1, 0.8, 12)}, {2: (1, 0.6, 14)}, {}, {1: (1, 0.7, 6), 3: (0, 0.5, 20)}]


def mask_at(left):
    mask = np.zeros(SIZE, bool)
    mask[3:8, left : left + 5] = True
    return mask


def instance_result(objects):
    codes = [
        torch.from_numpy(np.flatnonzero(np.diff(np.pad(mask_at(x).T.ravel(), 1).astype(int))).reshape(-1, 2))
        for _, _, x in objects.values()
    ]
    masks = RunLengthMasks(SIZE, codes)
    instances = Instances(
        SIZE,
        pred_masks=masks,
        pred_boxes=masks.boxes(),
        scores=torch.tensor([score for _, score, _ in objects.values()], dtype=torch.float64),
        pred_classes=torch.tensor([k for k, _, _ in objects.values()], dtype=torch.int64),
        track_ids=torch.tensor(list(objects), dtype=torch.int64),
    )
    return Result(np.zeros((*SIZE, 3), np.uint8), NAMES, instances=instances)


def panoptic_result(objects):
    ids = np.full(SIZE, 9, np.int32)
    segments = [{"id": 9, "isthing": False, "category_id": 2}]
    for number, (track, (k, score, left)) in enumerate(objects.items(), start=1):
        ids[mask_at(left)] = number
        segments.append({"id": number, "isthing": True, "category_id": k, "track_id": track, "score": score})
    return Result(np.zeros((*SIZE, 3), np.uint8), NAMES, panoptic=Panoptic(ids, segments))


RESULTS = {"instance": instance_result, "panoptic": panoptic_result}


@pytest.mark.parametrize("task", RESULTS)
def test_tracks_are_youtube_vis_results(tmp_path, task):
    path = tmp_path / "new/tracks.json"
    with TracksFile(path, task) as tracks:
        for frames in (FRAMES, FRAMES[:1]):
            tracks.begin()
            for objects in frames:
                tracks.add(RESULTS[task](objects))
    rows = json.loads(path.read_text())
    assert [(row["video_id"], row["category_id"]) for row in rows] == [(1, 2), (1, 2), (1, 1), (2, 1), (2, 2)]
    assert [row["score"] for row in rows] == pytest.approx([0.8, 0.7, 0.5, 0.9, 0.8])
    for row, track in zip(rows, [1, 2, 3], strict=False):
        assert len(row["segmentations"]) == 4
        for code, objects in zip(row["segmentations"], FRAMES, strict=True):
            if track not in objects:
                assert code is None
            else:
                np.testing.assert_array_equal(rle.decode(code).astype(bool), mask_at(objects[track][2]))


@pytest.mark.parametrize("task", RESULTS)
def test_tracks_are_scored_by_the_evaluator_of_youtube_vis(tmp_path, task):
    with TracksFile(tmp_path / "tracks.json", task) as tracks:
        tracks.begin()
        for objects in FRAMES:
            tracks.add(RESULTS[task](objects))
    rows = json.loads((tmp_path / "tracks.json").read_text())
    truth = {
        "videos": [{"id": 1, "height": 20, "width": 30, "length": 4, "file_names": list("abcd")}],
        "categories": [{"id": k, "name": name} for k, name in enumerate(NAMES, start=1)],
        "annotations": [
            {
                **{"id": i, "video_id": 1, "category_id": row["category_id"], "iscrowd": 0},
                "segmentations": row["segmentations"],
                "areas": [code and 25 for code in row["segmentations"]],
                "bboxes": [code and [0, 0, 5, 5] for code in row["segmentations"]],
            }
            for i, row in enumerate(rows, start=1)
        ],
    }
    assert track_average_precision(truth, rows)["AP"] == pytest.approx(100)


@pytest.mark.parametrize("codes", [True, False])
@pytest.mark.parametrize("task", RESULTS)
def test_a_coco_file_holds_what_to_coco_returns(tmp_path, task, codes):
    results = [RESULTS[task](objects) for objects in FRAMES]
    with CocoFile(tmp_path / "new/coco.json", task, rle=codes) as coco:
        for number, result in enumerate(results):
            coco.add(f"{number}.jpg", result, frame_id=number)
    content = json.loads((tmp_path / "new/coco.json").read_text())
    assert [row.pop("frame_id") for row in content["images"]] == [0, 1, 2, 3]
    expected = to_coco({f"{number}.jpg": result for number, result in enumerate(results)}, rle=codes)
    assert content == json.loads(json.dumps(expected))
    found = COCO(tmp_path / "new/coco.json")
    things = [row for row in found.loadAnns(found.getAnnIds()) if row["category_id"] < 3]
    assert [row["track_id"] for row in things] == [1, 2, 2, 1, 3]
    assert [row["score"] for row in things] == [0.9, 0.8, 0.6, 0.7, 0.5]
    np.testing.assert_array_equal(found.annToMask(things[0]).astype(bool), mask_at(2))


@pytest.mark.parametrize("kind", [CocoFile, TracksFile])
def test_an_interrupted_file_is_complete(tmp_path, kind):
    options = {"rle": True} if kind is CocoFile else {}
    with pytest.raises(KeyboardInterrupt), kind(tmp_path / "found.json", "instance", **options) as file:
        if kind is TracksFile:
            file.begin()
        file.add(*(["a.jpg"] if kind is CocoFile else []), RESULTS["instance"](FRAMES[0]))
        raise KeyboardInterrupt
    assert json.loads((tmp_path / "found.json").read_text())
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_without_results_is_empty(tmp_path):
    with CocoFile(tmp_path / "coco.json", "instance", rle=True), TracksFile(tmp_path / "t.json", "instance"):
        pass
    empty = {"images": [], "annotations": [], "categories": []}
    assert json.loads((tmp_path / "coco.json").read_text()) == empty
    assert json.loads((tmp_path / "t.json").read_text()) == []


def test_supervision_gets_the_ids():
    pytest.importorskip("supervision")
    assert RESULTS["instance"](FRAMES[0]).to_supervision().tracker_id.tolist() == [1, 2]
    assert RESULTS["panoptic"](FRAMES[0]).to_supervision().tracker_id is None  # stuff has none
