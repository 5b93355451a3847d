"""Drawn films: scenes that do what their names say, and files in YouTube-VIS' format that agree with them."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from mask2former.data.datasets import films
from mask2former.data.datasets.drawn import LABEL_DIVISOR


def ids_of(scene, seed=0, length=21):
    """Return the segment ids of all frames, (T, H, W), things alone."""
    frames = films.draw_film(np.random.default_rng(seed), scene, length)
    ids = np.stack([frame.segment_ids for frame in frames])
    return np.where(ids // LABEL_DIVISOR <= len(films.THINGS), ids, 0)


def visible(ids):
    """Return in which frames each object can be seen, {id: (T,)}."""
    return {i: (ids == i).any((1, 2)) for i in np.unique(ids).tolist() if i}


def actors(ids):
    """Return the ids of the scene's two shapes, which are in front of the bystanders."""
    return sorted(visible(ids), key=lambda i: i % LABEL_DIVISOR)[-2:]


def ends(ids, key):
    """Return an object's mean position (y, x) in the first frame, and in the last."""
    return [np.argwhere(ids[frame] == key).mean(0) for frame in (0, -1)]


def test_a_film_follows_from_its_seed_alone():
    first, again, other = (ids_of("crossing", seed) for seed in (5, 5, 6))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@pytest.mark.parametrize("seed", range(5))
def test_crossing_shapes_pass_each_other(seed):
    ids = ids_of("crossing", seed)
    behind, front = actors(ids)
    (before, after), (before_front, after_front) = ends(ids, behind), ends(ids, front)
    assert np.sum((before - before_front) * (after - after_front)) < 0  # they have changed sides
    areas = [(frame == behind).sum() for frame in ids]
    assert min(areas) < 0.7 * max(areas)


@pytest.mark.parametrize("seed", range(5))
def test_an_occluded_shape_vanishes_inside_the_image_and_is_seen_again(seed):
    ids = ids_of("occluded", seed)
    shown = visible(ids)[actors(ids)[0]]
    assert shown[0] and shown[-1] and not shown[10]


def test_shapes_enter_leave_and_return_over_the_edge():
    ids = ids_of("entering")
    enters, leaves = (visible(ids)[actor] for actor in actors(ids))
    assert not enters[0] and enters[-1] and leaves[0] and not leaves[-1]
    ids = ids_of("returning")
    returns = actors(ids)[0]
    np.testing.assert_allclose(*ends(ids, returns), atol=2)
    assert not visible(ids)[returns][10]


def test_the_files_of_a_film_are_those_of_youtube_vis(tmp_path):
    folder = films.write_films(tmp_path, {"train": 1, "valid": 2}, length=5)
    content = json.loads((folder / "valid.json").read_text())
    assert [category["name"] for category in content["categories"]] == ["circle", "square", "triangle"]
    assert [video["id"] for video in content["videos"]] == [1, 2]
    assert [track["id"] for track in content["annotations"]] == [*range(1, 1 + len(content["annotations"]))]
    for number, video in enumerate(content["videos"], start=1):
        rng = np.random.default_rng([0, 1, number])
        frames = list(films.draw_film(rng, films.scene_of(number), length=5))
        tracks = [track for track in content["annotations"] if track["video_id"] == number]
        for t, (name, frame) in enumerate(zip(video["file_names"], frames, strict=True)):
            image = np.asarray(Image.open(folder / "valid/JPEGImages" / name))
            assert np.corrcoef(image.ravel(), frame.image.ravel())[0, 1] > 0.8  # JPEG blurs noise
            drawn = np.zeros(image.shape[:2], int)
            for track in tracks:
                if track["segmentations"][t] is None:
                    assert track["areas"][t] is track["bboxes"][t] is None
                    continue
                mask = rle.decode(track["segmentations"][t]).astype(bool)
                assert track["areas"][t] == mask.sum() and not drawn[mask].any()
                drawn[mask] = track["category_id"]
            np.testing.assert_array_equal(drawn, frame.segment_ids // LABEL_DIVISOR * (drawn > 0))
            things = frame.segment_ids // LABEL_DIVISOR <= len(films.THINGS)
            np.testing.assert_array_equal(drawn > 0, things)


def test_the_same_films_are_kept_and_others_replace_them(tmp_path):
    folder = films.write_films(tmp_path, {"valid": 1}, length=2)
    (folder / "mine.txt").touch()
    films.write_films(tmp_path, {"valid": 1}, length=2)
    assert (folder / "mine.txt").exists()
    films.write_films(tmp_path, {"valid": 1}, length=3)
    assert not (folder / "mine.txt").exists()
