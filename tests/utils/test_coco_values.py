"""Values in COCO's JSONs: the forms of masks, colors and numbers that tools write, and what is refused."""

import numpy as np
import pytest
from pycocotools import mask as rle

from mask2former.utils import coco_values as values

SIZE = (4, 6)
SQUARE = [1, 1, 3, 1, 3, 3, 1, 3]
PAIRS = [[1, 1], [3, 1], [3, 3], [1, 3]]
POINTS = [{"x": x, "y": y} for x, y in PAIRS]
OTHER = [0, 0, 2, 0, 2, 2]


def code(mask):
    encoded = rle.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(SIZE), "counts": encoded["counts"].decode()}


@pytest.mark.parametrize(
    ("value", "polygons", "assumed"),
    [
        ([SQUARE, OTHER], [SQUARE, OTHER], None),
        (SQUARE, [SQUARE], "a flat list of numbers"),
        (PAIRS, [SQUARE], r"a list of points \[x, y\]"),
        (POINTS, [SQUARE], "a list of points {x, y}"),
        ([PAIRS, POINTS], [SQUARE, SQUARE], "polygons of points"),
        ([[SQUARE], [OTHER]], [SQUARE, OTHER], "polygons in a further list"),
        ([SQUARE, [1, 2, 3, 4]], [SQUARE], None),
    ],
)
def test_polygons_of_other_forms_are_read(value, polygons, assumed):
    read, form = values.segmentation(value, SIZE)
    assert read == polygons
    assert form is None if assumed is None else form.startswith(assumed.replace("\\", ""))


@pytest.mark.parametrize("value", [None, {}, [], [[]], [[1, 2, 3, 4]], [[1, 2]]])
def test_values_without_a_mask_give_none(value):
    assert values.segmentation(value, SIZE) == (None, None)


def test_rle_in_a_list_is_read_and_several_are_merged():
    left, right = np.zeros(SIZE, bool), np.zeros(SIZE, bool)
    left[1:3, :2], right[2:, 4:] = True, True
    assert values.segmentation([code(left)], SIZE) == (code(left), "an RLE in a list, read as the RLE")
    listed = {"size": [4.0, 6.0], "counts": [0.0, 4.0, 20]}
    merged, form = values.segmentation([code(left), code(right), listed], SIZE)
    union = left | right
    union[:, 0] = True
    np.testing.assert_array_equal(rle.decode(merged), union)
    assert form.startswith("several RLEs")
    assert values.segmentation(listed, SIZE) == ({"size": [4, 6], "counts": [0, 4, 20]}, None)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[*SQUARE, 5]], "odd number of coordinates, 9"),
        ([*SQUARE, 5], "odd number of coordinates, 9"),
        ([SQUARE, "0,0,1,1"], "'segmentation' is .*expected a list of polygons"),
        ([SQUARE, None], "'segmentation' is"),
        ([*SQUARE[:-1], "3"], "'segmentation' is"),
        ([*SQUARE[:-1], True], "'segmentation' is"),
        ([SQUARE, {"size": [4, 6], "counts": [24]}], "'segmentation' is"),
        ([{"x": 1}, {"x": 2}], "'segmentation' is"),
        ({"all_points_x": [1, 2], "all_points_y": [1, 2]}, "'segmentation' is .*all_points_x"),
        ("mask.png", "'segmentation' is 'mask.png'"),
        (7, "'segmentation' is 7"),
    ],
)
def test_unknown_forms_are_refused_by_name(value, message):
    with pytest.raises(ValueError, match=message) as caught:
        values.segmentation(value, SIZE)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"size": [6, 4], "counts": [24]}, r"\(height, width\)"),
        ({"size": [4, 6], "counts": [5, 3]}, "counts"),
        ({"size": [4, 6], "counts": [5, 3, -8, 24]}, "counts"),
        ({"size": [4, 6], "counts": ["24"]}, "counts"),
        ({"size": [4, 6], "counts": "1 2 21"}, "counts"),
        ({"size": 4, "counts": [24]}, "4"),
    ],
)
def test_run_lengths_must_fit_the_image(value, message):
    with pytest.raises(ValueError, match=message):
        values.segmentation(value, SIZE)


@pytest.mark.parametrize(
    ("value", "color"),
    [
        ("#e08585", [224, 133, 133]),
        ("red", [255, 0, 0]),
        ([224, 133.0, 133, 255], [224, 133, 133]),
        ([0.0, 0.6, 1.0], [0, 153, 255]),
        (None, None),
        ("crack", None),
        (-1, None),
        ([1, 2], None),
        ([1, 2, 300], None),
        ([1, 2, "3"], None),
        ([1, 2, float("nan")], None),
    ],
)
def test_colors_of_all_forms(value, color):
    assert values.color(value) == color


@pytest.mark.parametrize(
    ("read", "value", "message"),
    [
        (values.whole_number, "7", "a whole number"),
        (values.whole_number, 7.5, "a whole number"),
        (values.whole_number, float("nan"), "a whole number"),
        (values.whole_number, True, "a whole number"),
        (values.whole_number, None, "a whole number"),
        (values.text, 7, "a text"),
        (values.text, "", "a text"),
        (values.text, [], "a text"),
        (values.class_name, None, "a text"),
        (values.image_key, [1], "a whole number"),
        (values.flag, "0", "0 or 1"),
        (values.flag, 2, "0 or 1"),
        (values.flag, [], "0 or 1"),
        (values.rows, [3], "list of objects"),
    ],
)
def test_values_of_other_types_are_refused(read, value, message):
    with pytest.raises(ValueError, match=f"'key' is .*{message}"):
        read({"key": value}, "key")


def test_values_that_mean_the_same_are_read():
    assert values.whole_number({"key": 3.0}, "key") == 3
    assert values.image_key({"key": "000001"}, "key") == "000001"
    assert values.class_name({"key": 0}, "key") == "0"
    assert [values.flag({"key": value}, "key") for value in (True, 0.0, None)] == [1, 0, 0]


def test_masks_of_a_track_in_each_form():
    whole = {"size": list(SIZE), "counts": [0, 24]}
    row = {"segmentations": [[SQUARE], None, [], PAIRS, [whole], [[1, 1, 2, 2]]]}
    masks, assumed = values.track_masks(row, SIZE, 6)
    assert masks == [[SQUARE], None, None, [SQUARE], whole, None]
    assert [form.split(",")[0] for form in assumed] == ["a list of points [x", "an RLE in a list"]


def test_areas_of_a_track_leave_out_hidden_frames():
    assert values.track_areas({"areas": [4, None, 0, 2.5]}, 4) == [4, 0, 2.5]
    with pytest.raises(ValueError, match="'areas' has 'x', expected one for each of the video's 2 frames"):
        values.track_areas({"areas": "x"}, 2)


def test_frames_of_a_video_without_its_length():
    assert values.frame_names({"file_names": ["a", "b"]}) == ["a", "b"]
    assert values.frame_names({"file_names": ["a", "b"], "length": 2.0}) == ["a", "b"]
    with pytest.raises(ValueError, match="'length' is '2', expected a whole number"):
        values.frame_names({"file_names": ["a", "b"], "length": "2"})
