"""Videos in YouTube-VIS' format: records, the datasets known by name, what is wrong in a file."""

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as rle
from synthetic_datasets import youtube_vis
from synthetic_datasets.youtube_vis import COUNTS, LAYOUTS, LENGTH

from mask2former.data import DatasetCatalog, DatasetError, MetadataCatalog, register_ytvis_instances
from mask2former.data.datasets.films import write_films
from mask2former.data.load_context import LoadContext

PUBLISHED = {  # name -> JSON and folder of frames below the root
    **{
        f"ytvis_{year}_{split}": (f"ytvis_{year}/{files}.json", f"ytvis_{year}/{files}/JPEGImages")
        for year in (2019, 2021)
        for split, files in (("train", "train"), ("val", "valid"), ("test", "test"))
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_names_and_their_files(name, root):
    metadata = MetadataCatalog.get(name)
    assert (metadata.json_file, metadata.image_root) == tuple(str(root / path) for path in PUBLISHED[name])
    assert metadata.evaluator_type == "ytvis"
    assert metadata.thing_dataset_id_to_contiguous_id == {number: number - 1 for number in range(1, 41)}
    assert len(metadata.thing_colors) == 40


@pytest.mark.parametrize(
    ("year", "names"),
    [
        (2019, {0: "person", 1: "giant_panda", 5: "sedan", 10: "hand", 25: "owl", 39: "tennis_racket"}),
        (2021, {0: "airplane", 2: "bird", 13: "flying_disc", 25: "person", 31: "squirrel", 39: "zebra"}),
    ],
)
def test_official_categories(year, names):
    classes = MetadataCatalog.get(f"ytvis_{year}_val").thing_classes
    assert {place: classes[place] for place in names} == names
    assert len(set(classes)) == 40


@pytest.mark.parametrize("dataset", LAYOUTS)
def test_records(root, dataset):
    youtube_vis.draw(root, dataset=dataset)
    records = DatasetCatalog.get(f"{dataset}_train")
    content = json.loads((root / LAYOUTS[dataset].json_file.format(split="train")).read_text())
    frames = root / LAYOUTS[dataset].frames.format(split="train")
    assert len(records) == COUNTS["train"]
    for record, video in zip(records, content["videos"], strict=True):
        assert record["file_names"] == [str(frames / name) for name in video["file_names"]]
        assert all(Path(name).is_file() for name in record["file_names"])
        assert record["video_id"] == video["id"]
        assert [record[key] for key in ("height", "width", "length")] == [
            video[key] for key in ("height", "width", "length")
        ]
        tracks = {row["id"]: row for row in content["annotations"] if row["video_id"] == video["id"]}
        for frame, objects in enumerate(record["annotations"]):
            shown = {id: row for id, row in tracks.items() if row["segmentations"][frame]}
            assert [found["id"] for found in objects] == [*shown]
            for found in objects:
                row = shown[found["id"]]
                assert (found["category_id"], found["iscrowd"]) == (row["category_id"] - 1, row["iscrowd"])
                assert (found["bbox"], found["bbox_mode"]) == (row["bboxes"][frame], 1)
                mask = row["segmentations"][frame]
                expected = rle.decode(rle.frPyObjects(mask, *mask["size"]))
                np.testing.assert_array_equal(rle.decode(found["segmentation"]), expected)


@pytest.mark.parametrize("annotations", ["absent", None])
def test_a_validation_set_has_no_annotations(root, annotations):
    youtube_vis.draw(root)
    if annotations is None:
        change(root / "ytvis_2019/valid.json", lambda content: content.update(annotations=None))
    records = DatasetCatalog.get("ytvis_2019_val")
    assert len(records) == COUNTS["valid"] and not any("annotations" in record for record in records)


def test_tracks_that_are_never_seen_are_left_out_with_a_warning(root, caplog):
    youtube_vis.draw(root)
    first, *_ = DatasetCatalog.get("ytvis_2019_train")
    assert {found["id"] for objects in first["annotations"] for found in objects} == {1, 2, 3}
    assert len(first["annotations"]) == LENGTH
    assert "train.json: left out 1 tracks without a mask in any frame" in caplog.text


def test_classes_of_ovis_are_those_of_its_file(root):
    youtube_vis.draw(root, dataset="ovis")
    metadata = MetadataCatalog.get("ovis_train")
    assert metadata.thing_classes == [*youtube_vis.OVIS_NAMES]
    assert metadata.json_file == str(root / "ovis/annotations_train.json")


def test_drawn_films(root):
    write_films(root, {"train": 1, "valid": 1}, length=3)
    (record,) = DatasetCatalog.get("films_val")
    assert record["length"] == 3 and len(record["annotations"]) == 3
    assert MetadataCatalog.get("films_val").thing_classes == ["circle", "square", "triangle"]


def test_a_dataset_of_ones_own(root, restored_catalogs):
    youtube_vis.draw(root)
    register_ytvis_instances(
        "mine", {"note": 1}, root / "ytvis_2019/train.json", root / "ytvis_2019/train/JPEGImages"
    )
    metadata = MetadataCatalog.get("mine")
    assert metadata.thing_classes[:2] == ["person", "giant_panda"] and metadata.note == 1
    assert DatasetCatalog.get("mine") == DatasetCatalog.get("ytvis_2019_train")


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def set_video(**values):
    return lambda content: content["videos"][1].update(values)


def set_track(**values):
    return lambda content: content["annotations"][4].update(values)


def drop(rows, place, key):
    return lambda content: content[rows][place].pop(key)


def set_mask(frame, mask):
    def edit(content):
        content["annotations"][4]["segmentations"][frame] = mask

    return edit


BROKEN = {
    "no videos": (lambda content: content.pop("videos"), "train.json has no 'videos'"),
    "videos of numbers": (lambda content: content.update(videos=[3]), "'videos' is not a list of objects"),
    "no names": (drop("videos", 1, "file_names"), "video id 2: no 'file_names' in"),
    "names of numbers": (set_video(file_names=[1]), r"'file_names' is \[1\], expected a list of texts"),
    "other length": (set_video(length=9), "video id 2: 'length' is 9, but 'file_names' has 5 entries"),
    "no width": (drop("videos", 1, "width"), "video id 2: no 'width' in"),
    "text for height": (set_video(height="96"), "video id 2: 'height' is '96', expected a whole number"),
    "unknown video": (set_track(video_id=99), "video id 99: no such id among 'videos'"),
    "unknown class": (set_track(category_id=41), "video id 2: category_id 41 is not among the categories"),
    "no masks": (drop("annotations", 4, "segmentations"), "video id 2: no 'segmentations' in"),
    "too few masks": (
        set_track(segmentations=[None]),
        "video id 2: track 5: 'segmentations' has 1 entries, expected one for each of the video's 5 frames",
    ),
    "too few boxes": (set_track(bboxes=[None] * 4), "video id 2: track 5: 'bboxes' has 4 entries"),
    "a box of text": (set_track(bboxes=["x"] * 5), "track 5: 'bbox' is 'x', expected four numbers"),
    "an area of text": (set_track(areas=["x"] * 5), "video id 2: track 5: 'area' is 'x', expected a number"),
    "a number of areas": (
        set_track(areas=9),
        "track 5: 'areas' has 9, expected one for each of the video's 5",
    ),
    "crowd 2": (set_track(iscrowd=2), "video id 2: track 5: 'iscrowd' is 2, expected 0 or 1"),
    "short mask": (
        set_mask(3, {"size": [96, 72], "counts": [5, 3]}),
        "video id 2: track 5: frame 3: 'segmentation' is a broken RLE: .* 8 of 6912 pixels",
    ),
    "rotated mask": (
        set_mask(0, {"size": [72, 96], "counts": [6912]}),
        r"track 5: frame 0: .* \(72, 96\) for an image of \(96, 72\); 'size' must be \[height, width",
    ),
    "odd polygon": (set_mask(1, [[1, 2, 3, 4, 5, 6, 7]]), "track 5: frame 1: .* an odd number of coord"),
    "far polygon": (set_mask(1, [[1, 2, 3, 4, 5, 1e9]]), "track 5: frame 1: a point lies outside"),
    "track twice": (set_track(id=6), "video id 2: 2 tracks with the id 6"),
    "video twice": (set_video(id=1), "video id 1: 2 videos with this id"),
    "no track id": (drop("annotations", 4, "id"), "video id 2: no 'id' in"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_is_named(root, case):
    youtube_vis.draw(root)
    edit, message = BROKEN[case]
    change(root / "ytvis_2019/train.json", edit)
    with pytest.raises(DatasetError, match=message) as error:
        DatasetCatalog.get("ytvis_2019_train")
    assert "train.json" in str(error.value) and len(str(error.value)) < 600


def test_broken_videos_are_collected_and_the_others_read(root):
    youtube_vis.draw(root)
    change(root / "ytvis_2019/train.json", set_video(length=9))
    errors: list[DatasetError] = []
    records = DatasetCatalog.get("ytvis_2019_train", LoadContext(errors))
    assert [record["video_id"] for record in records] == [1, 3]
    assert "video id 2: 'length' is 9" in str(errors[0])
    assert all("no such id among 'videos'" in str(error) for error in errors[1:]) and len(errors) > 1


def test_missing_frames_folder_is_an_error(root):
    youtube_vis.draw(root)
    (root / "ytvis_2019/train").rename(root / "elsewhere")
    with pytest.raises(DatasetError, match="ytvis_2019/train/JPEGImages does not exist"):
        DatasetCatalog.get("ytvis_2019_train")
