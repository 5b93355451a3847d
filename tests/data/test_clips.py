"""Clips of videos: frames drawn as published, the same tracks in all frames, whole videos in evaluation."""

import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from synthetic_datasets import youtube_vis

from mask2former.config import get_cfg
from mask2former.data import (
    DatasetCatalog,
    DatasetError,
    MetadataCatalog,
    build_test_loader,
    build_train_loader,
)
from mask2former.data.clips import (
    ABSENT,
    Frames,
    build_clip_train_mapper,
    first_frame,
    frame_records,
    sample_frames,
)
from mask2former.data.records import Datasets

NAME = "ytvis_2019_train"


@pytest.fixture
def cfg(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    youtube_vis.draw(tmp_path)
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = (NAME,)
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (0,), 36
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING, cfg.INPUT.RANDOM_FLIP = "choice_by_clip", "flip_by_clip"
    cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = 2, 0
    cfg.SEED = 11
    return cfg


def test_frames_are_drawn_around_one_of_the_video():
    rng = np.random.default_rng(0)
    pairs = Counter(tuple(sample_frames(12, 2, 3, False, rng)) for _ in range(8000))
    assert all(0 < second - first <= 3 for first, second in pairs)
    # The first is uniform, the second uniform among up to six neighbors
    expected = np.zeros((12, 12))
    for first in range(12):
        near = [frame for frame in range(12) if 0 < abs(frame - first) <= 3]
        for second in near:
            expected[min(first, second), max(first, second)] += 1 / 12 / len(near)
    found = np.zeros((12, 12))
    for pair, count in pairs.items():
        found[pair] = count / 8000
    assert np.abs(found - expected).max() < 0.01


def test_several_frames_may_repeat_and_are_in_order_unless_shuffled():
    rng = np.random.default_rng(0)
    drawn = [sample_frames(30, 5, 2, False, rng) for _ in range(200)]
    assert all(frames == sorted(frames) and frames[-1] - frames[0] <= 4 for frames in drawn)
    assert any(len(set(frames)) < 5 for frames in drawn)
    shuffled = [sample_frames(30, 5, 20, True, rng) for _ in range(50)]
    assert any(frames != sorted(frames) for frames in shuffled)


def test_a_video_of_one_frame_and_clips_of_one_frame():
    rng = np.random.default_rng(0)
    assert sample_frames(1, 3, 20, False, rng) == [0, 0, 0]
    assert {frame for _ in range(100) for frame in sample_frames(4, 1, 20, False, rng)} == {0, 1, 2, 3}


def test_tracks_are_the_same_rows_in_all_frames(cfg):
    """Masks are those of the JSON, mirrored or not; absent tracks have the id -1 and an empty mask."""
    mapper = build_clip_train_mapper(cfg, MetadataCatalog.get(NAME))
    records = DatasetCatalog.get(NAME)
    absent = 0
    for record, seed in ((record, seed) for record in records for seed in range(12)):
        clip = mapper(record, seed)
        assert [clip[key] for key in ("height", "width", "length", "video_id", "seed")] == [
            *(record[key] for key in ("height", "width", "length", "video_id")),
            seed,
        ]
        assert clip["file_names"] == [record["file_names"][frame] for frame in clip["frame_indices"]]
        ids = torch.stack([instances.gt_ids for instances in clip["instances"]])
        assert (ids.amax(0) >= 0).all()
        mirrored = None
        for frame, image, instances in zip(
            clip["frame_indices"], clip["image"], clip["instances"], strict=True
        ):
            assert image.dtype == torch.uint8 and instances.image_size == (record["height"], record["width"])
            objects = {a["id"]: a for a in record["annotations"][frame] if not a["iscrowd"]}
            assert {*instances.gt_ids.tolist()} - {ABSENT} == objects.keys()
            for row, track in enumerate(ids.amax(0).tolist()):
                mask = instances.gt_masks[row].numpy()
                if instances.gt_ids[row] == ABSENT:
                    absent += 1
                    assert not mask.any()
                    continue
                expected = rle.decode(objects[track]["segmentation"]).astype(bool)
                mirrored = np.array_equal(mask, expected[:, ::-1]) if mirrored is None else mirrored
                np.testing.assert_array_equal(mask, expected[:, ::-1] if mirrored else expected)
                assert instances.gt_classes[row] == objects[track]["category_id"]
    assert absent


def test_a_seed_gives_a_clip_and_another_seed_another_one(cfg):
    cfg.INPUT.AUGMENTATIONS = ["brightness", "rotation"]
    mapper = build_clip_train_mapper(cfg, MetadataCatalog.get(NAME))
    record = DatasetCatalog.get(NAME)[0]
    first, again, other = (mapper(record, seed) for seed in (5, 5, 6))
    assert torch.equal(torch.stack(first["image"]), torch.stack(again["image"]))
    assert first["instances"] == again["instances"]
    assert not torch.equal(torch.stack(first["image"]), torch.stack(other["image"]))


def test_a_whole_video_in_evaluation(cfg):
    (first, *_), (last, *_) = [*build_test_loader(cfg, NAME)][::2]
    record = DatasetCatalog.get(NAME)[0]
    assert len(first["image"]) == youtube_vis.LENGTH and len(last["image"]) == 1
    assert all(image.shape == (3, 36, 48) for image in first["image"])
    assert (first["height"], first["width"]) == (72, 96) and "annotations" not in first
    assert first["file_names"] == record["file_names"] and first["video_id"] == record["video_id"]


def test_frames_are_a_sequence_that_is_sent_as_one_tensor():
    frames = Frames(torch.arange(24).view(4, 3, 1, 2))
    assert len(frames) == 4 and torch.equal(torch.stack([*frames]), frames.images)
    assert torch.equal(frames[-1], frames.images[3]) and len(frames[1:3]) == 2
    assert torch.equal(pickle.loads(pickle.dumps(frames)).images, frames.images)


def keys(batches):
    return [(clip["video_id"], clip["frame_indices"], clip["seed"]) for batch in batches for clip in batch]


def test_a_resumed_run_gets_the_clips_that_would_have_followed(cfg):
    stream = iter(build_train_loader(cfg))
    whole = keys(next(stream) for _ in range(4))
    resumed = iter(build_train_loader(cfg, first_step=2))
    assert keys(next(resumed) for _ in range(2)) == whole[4:]
    cfg.DATALOADER.NUM_WORKERS = 1
    assert keys([next(iter(build_train_loader(cfg)))]) == whole[:2]


def test_videos_without_tracks_are_left_out_if_the_config_says_so(cfg):
    record = DatasetCatalog.get(NAME)[0]
    crowds = [[{**a, "iscrowd": 1} for a in objects] for objects in record["annotations"]]
    datasets = Datasets()
    datasets.prepare(NAME, [record, {**record, "annotations": crowds}, {**record, "annotations": [[]] * 5}])
    loaded = datasets.load(NAME)
    assert loaded.is_empty.tolist() == [False, True, True]
    assert {*loaded.categories[0]} == {a["category_id"] for objects in record["annotations"] for a in objects}


def test_a_missing_frame_names_its_video(cfg):
    mapper = build_clip_train_mapper(cfg, MetadataCatalog.get(NAME))
    record = {**DatasetCatalog.get(NAME)[0], "file_names": ["absent.jpg"] * 5}
    with pytest.raises(DatasetError, match=r"absent\.jpg, video id 1: "):
        mapper(record, 0)


def test_a_frame_of_another_size_is_an_error(cfg):
    mapper = build_clip_train_mapper(cfg, MetadataCatalog.get(NAME))
    record = {**DatasetCatalog.get(NAME)[0], "height": 70}
    with pytest.raises(DatasetError, match=r"\.jpg, video id 1: \(height, width\) is \(72, 96\), the annot"):
        mapper(record, 0)


def test_a_set_without_tracks_cannot_be_trained_on(cfg):
    cfg.DATASETS.TRAIN = ("ytvis_2019_val",)
    with pytest.raises(DatasetError, match=r"video id \d+: the video has no 'annotations' to train on"):
        next(iter(build_train_loader(cfg)))


def test_videos_and_images_are_not_mixed(cfg, restored_catalogs):
    facts = MetadataCatalog.get(NAME).as_dict()
    classes = {key: facts[key] for key in ("thing_classes", "thing_dataset_id_to_contiguous_id")}
    DatasetCatalog.register("images", lambda: [{"file_name": "a.jpg"}])
    MetadataCatalog.get("images").set(**classes, evaluator_type="coco")
    cfg.DATASETS.TRAIN = (NAME, "images")
    with pytest.raises(DatasetError, match=f"'{NAME}' holds videos, 'images' images; DATASETS.TRAIN"):
        build_train_loader(cfg)


def test_the_first_frame_of_a_clip_is_an_image(cfg):
    clip = build_clip_train_mapper(cfg, MetadataCatalog.get(NAME))(DatasetCatalog.get(NAME)[0], 1)
    frame = first_frame(clip)
    assert torch.equal(frame["image"], clip["image"][0]) and frame["file_name"] == clip["file_names"][0]
    assert (frame["instances"].gt_ids != ABSENT).all() and len(frame["instances"])
    assert first_frame(frame) is frame


def test_frames_of_videos_as_records_of_images(cfg):
    records = DatasetCatalog.get(NAME)
    frames = frame_records([*records, {"file_name": "image.jpg"}])
    assert len(frames) == sum(record["length"] for record in records) + 1
    assert frames[-1] == {"file_name": "image.jpg"}
    assert frames[1]["annotations"] == records[0]["annotations"][1]
