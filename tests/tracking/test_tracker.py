"""Ids of scripted objects: discs that move, with embeddings made up for each of them."""

import numpy as np
import pytest

from mask2former.tracking.tracker import Objects, Tracker

SIDE = 40
CLASSES = 3


def disc(x, y, radius=5):
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


def embedding(name, noise=0.0, seed=0):
    """Return the embedding of an object by its name, whose letters look alike if the first is the same."""
    base = np.random.default_rng(ord(name[0])).normal(size=16)
    own = np.random.default_rng([ord(letter) for letter in name]).normal(size=16)
    return base + own + noise * np.random.default_rng(seed).normal(size=16)


def frame(*objects, noise=0.0, seed=0):
    """Return the objects (name, class, x, y) of a frame."""
    probabilities = np.full((len(objects), CLASSES), 0.1)
    for row, (_, label, _, _) in zip(probabilities, objects, strict=True):
        row[label] = 0.8
    return Objects(
        np.array([embedding(name, noise, seed + i) for i, (name, *_) in enumerate(objects)]).reshape(-1, 16),
        probabilities,
        np.array([disc(x, y) for *_, x, y in objects]).reshape(-1, SIDE, SIDE).astype(bool),
    )


def follow(frames, **options):
    tracker = Tracker(**options)
    return [[track.id for track in tracker.update(objects)] for objects in frames]


def test_ids_begin_at_1_and_stay_in_any_order():
    rng = np.random.default_rng(0)
    objects = [("a", 0, 8, 8), ("b", 0, 20, 20), ("c", 1, 32, 30)]
    names = {"a": 1, "b": 2, "c": 3}
    orders = [[0, 1, 2], *(rng.permutation(3) for _ in range(10))]
    ids = follow([frame(*(objects[i] for i in order), noise=0.3, seed=t) for t, order in enumerate(orders)])
    assert ids == [[names[objects[i][0]] for i in order] for order in orders]


@pytest.mark.parametrize("apart", [0, 3])
@pytest.mark.parametrize("names", ["ab", ["aa", "ab"]], ids=["different", "alike"])
def test_ids_stay_through_a_crossing(apart, names):
    times = np.linspace(6, 34, 15)
    frames = [
        frame((names[0], 0, x, 20 - apart), (names[1], 0, SIDE - x, 20 + apart), noise=0.2, seed=t)
        for t, x in enumerate(times)
    ]
    assert follow(frames) == [[1, 2]] * len(frames)


def test_an_object_hidden_during_a_crossing_comes_back_with_its_id():
    times = np.linspace(6, 34, 15)
    frames = []
    for t, x in enumerate(times):
        objects = [("a", 0, x, 20), ("b", 0, SIDE - x, 20)]
        frames.append(frame(*(objects[:1] if abs(x - 20) < 6 else objects), noise=0.2, seed=t))
    ids = follow(frames)
    assert ids[0] == ids[-1] == [1, 2]
    assert {len(row) for row in ids} == {1, 2} and all(row[0] == 1 for row in ids)


@pytest.mark.parametrize(("absent", "back"), [(0, 1), (3, 1), (4, 2)])
def test_an_object_comes_back_with_its_id_within_the_limit(absent, back):
    here, gone = frame(("a", 0, 20, 20)), frame()
    ids = follow([here, *[gone] * absent, here], max_absent=3)
    assert ids == [[1], *[[]] * absent, [back]]


def test_others_do_not_take_the_id_of_an_object_that_is_gone():
    here, gone = frame(("a", 0, 20, 20)), frame()
    assert follow([here, gone, frame(("b", 0, 20, 20))]) == [[1], [], [2]]  # looks different
    assert follow([here, gone, frame(("a", 0, 36, 4))]) == [[1], [], [2]]  # too far for two frames
    far = [gone] * 5
    assert follow([here, *far, frame(("a", 0, 36, 4))])[-1] == [1]  # within reach by now


def test_entering_objects_get_new_ids():
    frames = [frame(("a", 0, 8, 8)), frame(("a", 0, 9, 8), ("b", 0, 36, 36)), frame(("c", 0, 5, 30))]
    assert follow(frames) == [[1], [1, 2], [3]]


def test_the_class_is_that_of_the_mean_probabilities():
    tracker = Tracker()
    labels = [0, 1, 0, 2, 0]
    for label in labels:
        (track,) = tracker.update(frame(("a", label, 20, 20)))
    expected = np.mean([[0.8 if k == label else 0.1 for k in range(CLASSES)] for label in labels], axis=0)
    np.testing.assert_allclose(track.probabilities, expected)
    assert track.class_among([0, 1, 2]) == 0 and track.class_among([1, 2]) in (1, 2)


def test_a_frame_of_another_size_begins_anew():
    small = Objects(
        *(values[:, ::2, ::2] if values.ndim == 3 else values for values in frame(("a", 0, 8, 8)))
    )
    assert follow([frame(("a", 0, 8, 8)), small, small]) == [[1], [2], [2]]


def test_memory_holds_the_tracks_of_the_last_frames_alone():
    tracker = Tracker(max_absent=5)
    for t in range(200):
        tracker.update(frame((chr(100 + t), 0, 5 + 30 * (t % 2), 8)))  # another object in each frame
        assert len(tracker.tracks) <= 7
    assert tracker.count > 100


@pytest.mark.parametrize("value", [-1, 1.5, "3", None])
def test_the_limit_is_a_number_of_frames(value):
    with pytest.raises(ValueError, match=f"max_absent is {value!r}; it must be a number of frames"):
        Tracker(value)
