"""`mask2former check-dataset` on videos: each frame as an image, and the numbers of videos and tracks."""

import json

import pytest
from dataset_reports import report_of
from synthetic_datasets import youtube_vis

from mask2former.tools.check_dataset import main

NAME = "ytvis_2019_train"


@pytest.fixture
def content(monkeypatch, tmp_path):
    """Draw the videos and return the content of the training set's JSON."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    youtube_vis.draw(tmp_path)
    return json.loads((tmp_path / "ytvis_2019/train.json").read_text())


def test_the_report_agrees_with_the_annotation_file(content, capsys):
    report = report_of(capsys, NAME, "--workers", "1")
    seen = [track for track in content["annotations"] if any(track["segmentations"])]
    counted = [track for track in seen if not track["iscrowd"]]
    per_video = [sum(t["video_id"] == video["id"] for t in counted) for video in content["videos"]]
    assert report["videos"] == {
        "count": 3,
        "frames_in_a_video": {"least": 1, "most": youtube_vis.LENGTH},
        "tracks": len(counted),
        "tracks_in_a_video": {"least": min(per_video), "most": max(per_video)},
        "crowds": 1,
    }
    masks = [mask for track in counted for mask in track["segmentations"] if mask]
    assert report["images"] == 11 and report["object_sizes"]["objects"]["count"] == len(masks)
    assert sum(found["objects"] for found in report["classes"]) == len(masks)
    assert report["broken"]["count"] == 0 and len(report["samples"]) == 8


def test_the_report_for_people(content, capsys):
    assert main([NAME, "--workers", "1"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "videos 3, of 1 to 5 frames" in lines
    assert any(line.startswith("tracks 10, at most 4 in a video, and 1 crowd") for line in lines)


def test_broken_videos_and_frames_are_reported(content, tmp_path, capsys):
    content["videos"][1]["length"] = 9
    (tmp_path / "ytvis_2019/train.json").write_text(json.dumps(content))
    frame = tmp_path / "ytvis_2019/train/JPEGImages" / content["videos"][0]["file_names"][2]
    frame.write_bytes(b"")
    assert main([NAME, "--workers", "1"]) == 1
    text = capsys.readouterr().out
    assert f"{frame}, video id 1: " in text
    assert "video id 2: 'length' is 9, but 'file_names' has 5 entries" in text


def test_a_validation_set_is_frames_alone(content, capsys):
    report = report_of(capsys, "ytvis_2019_val", "--workers", "1")
    assert (report["videos"]["count"], report["videos"]["tracks"], report["images"]) == (2, 0, 6)
