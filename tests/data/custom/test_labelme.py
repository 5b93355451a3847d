"""Folders of labelme's JSONs, as labelme 5 writes them."""

import base64
import io
import logging

import numpy as np
import pytest
from PIL import Image
from synthetic_coco import rectangle, write_json

from mask2former.data import DatasetCatalog, DatasetError, MetadataCatalog, register_custom_dataset
from mask2former.data.ground_truth.geometry import Geometry
from mask2former.data.ground_truth.readers import read_instances

NAME = "custom_data_of_a_test"
SIZE = HEIGHT, WIDTH = 30, 40


@pytest.fixture(autouse=True)
def catalogs(restored_catalogs):
    """Restore the catalogs."""


def shape(label, points, kind="polygon", group=None, mask=None):
    """Return a shape with all keys that labelme 5 writes."""
    return {
        "label": label,
        "points": points,
        "group_id": group,
        "description": "",
        "shape_type": kind,
        "flags": {},
        "mask": mask,
    }


def corners(top, left, bottom, right):
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def png(mask):
    data = io.BytesIO()
    Image.fromarray(mask).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


SQUARE = shape("box", corners(2, 3, 12, 13))


def write(folder, shapes=(SQUARE,), name="1", image_folder=None, **changes):
    """Write an image and its JSON, beside it or in another folder; return both folders."""
    images = image_folder or folder
    for place in (folder, images):
        place.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(images / f"{name}.jpg")
    content = {
        "version": "5.5.0",
        "flags": {},
        "shapes": list(shapes),
        "imagePath": f"{name}.jpg",
        "imageData": None,
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
    }
    write_json(folder / f"{name}.json", {**content, **changes})
    return str(images), str(folder)


def objects(number=0):
    """Return the class names and masks (N, H, W) that training sees."""
    record, metadata = DatasetCatalog.get(NAME)[number], MetadataCatalog.get(NAME)
    segments = read_instances(record, metadata, SIZE)
    _, masks = segments.visible(Geometry.identity(*SIZE))
    return [metadata.thing_classes[i] for i in segments.classes], masks


def test_a_polygon(tmp_path):
    dataset = register_custom_dataset(NAME, *write(tmp_path))
    assert (dataset.task, dataset.classes, dataset.images) == (
        "instance",
        ("box",),
        (str(tmp_path / "1.jpg"),),
    )
    assert not dataset.has_instance_json
    names, masks = objects()
    assert names == ["box"]
    np.testing.assert_array_equal(masks[0], rectangle(SIZE, 2, 3, 12, 13))


@pytest.mark.parametrize(
    "points", [[[3, 2], [13, 12]], [[13, 12], [3, 2]], [[3, 12], [13, 2]], corners(2, 3, 12, 13)]
)
def test_a_rectangle_by_any_corners(tmp_path, points):
    register_custom_dataset(NAME, *write(tmp_path, [shape("box", points, "rectangle")]))
    np.testing.assert_array_equal(objects()[1][0], rectangle(SIZE, 2, 3, 12, 13))


def test_a_circle(tmp_path):
    register_custom_dataset(NAME, *write(tmp_path, [shape("ball", [[20, 15], [20, 25]], "circle")]))
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    distance = np.hypot(x - 20, y - 15)
    mask = objects()[1][0]
    assert mask[distance < 9].all() and not mask[distance > 11].any()


def test_a_mask_between_its_corners(tmp_path):
    patch = np.random.default_rng(0).random((5, 8)) > 0.5
    register_custom_dataset(
        NAME, *write(tmp_path, [shape("dust", [[30, 4], [37, 8]], "mask", mask=png(patch))])
    )
    expected = np.zeros(SIZE, bool)
    expected[4:9, 30:38] = patch
    np.testing.assert_array_equal(objects()[1][0], expected)


def test_a_mask_that_reaches_beyond_the_image_is_cut(tmp_path):
    patch = np.ones((6, 8), bool)
    register_custom_dataset(
        NAME, *write(tmp_path, [shape("dust", [[36, -2], [43, 3]], "mask", mask=png(patch))])
    )
    np.testing.assert_array_equal(objects()[1][0], rectangle(SIZE, 0, 36, 4, 40))


def test_shapes_of_a_group_are_one_object(tmp_path):
    patch = shape("cup", [[30, 4], [33, 8]], "mask", 1, png(np.ones((5, 4), bool)))
    parts = [shape("cup", corners(2, 3, 12, 13), group=1), shape("cup", corners(20, 3, 25, 9), group=1)]
    others = [shape("cup", corners(15, 15, 20, 20)), shape("pan", corners(2, 20, 9, 25), group=1)]
    register_custom_dataset(NAME, *write(tmp_path, [*parts, patch, *others]))
    names, masks = objects()
    assert names == ["cup", "cup", "pan"]
    whole = rectangle(SIZE, 2, 3, 12, 13) | rectangle(SIZE, 20, 3, 25, 9) | rectangle(SIZE, 4, 30, 9, 34)
    np.testing.assert_array_equal(masks[0], whole)


def test_what_is_no_object_is_left_out_with_a_count(tmp_path, caplog):
    left_out = [
        shape("__ignore__", corners(0, 0, 5, 5)),
        shape("_background_", corners(0, 0, 5, 5)),
        shape("edge", [[0, 0], [5, 5]], "line"),
        shape("edge", [[0, 0], [5, 5], [9, 9]], "linestrip"),
        shape("dot", [[3, 3]], "point"),
    ]
    with caplog.at_level(logging.WARNING):
        dataset = register_custom_dataset(NAME, *write(tmp_path, [SQUARE, *left_out]))
    assert dataset.classes == ("box",)
    for what in ("label __ignore__", "label _background_", "type 'line'", "type 'linestrip'", "type 'point'"):
        assert f"left out 1 shapes of the {what}" in caplog.text


@pytest.mark.parametrize("path", ["../images/1.jpg", "..\\images\\1.jpg", "1.jpg", "C:\\data\\1.jpg"])
def test_jsons_in_a_folder_of_their_own(tmp_path, path):
    folders = write(tmp_path / "jsons", image_folder=tmp_path / "images", imagePath=path)
    assert register_custom_dataset(NAME, *folders).images == (str(tmp_path / "images/1.jpg"),)


def test_images_of_one_name_in_several_folders(tmp_path):
    for camera in ("left", "right"):
        write(tmp_path / "jsons" / camera, image_folder=tmp_path / "images" / camera)
    dataset = register_custom_dataset(NAME, str(tmp_path / "images"), str(tmp_path / "jsons"))
    assert dataset.images == tuple(
        str(tmp_path / "images" / camera / "1.jpg") for camera in ("left", "right")
    )


def test_the_size_of_the_image_stands_in_for_a_missing_one(tmp_path):
    register_custom_dataset(NAME, *write(tmp_path, imageHeight=None, imageWidth=None))
    assert objects()[1].shape == (1, *SIZE)


def test_classes_to_test_on_are_those_trained_on(tmp_path):
    train = register_custom_dataset(
        "trained_of_a_test", *write(tmp_path / "a", [shape("ant", corners(2, 3, 9, 9)), SQUARE])
    )
    val = register_custom_dataset(NAME, *write(tmp_path / "b"), train_dataset=train)
    assert train.classes == val.classes == ("ant", "box")
    assert objects()[0] == ["box"]
    write(tmp_path / "b", [shape("cat", corners(2, 3, 9, 9))])
    with pytest.raises(DatasetError, match=r"1\.json: the label 'cat' is not among the classes ant, box"):
        register_custom_dataset(
            "other_of_a_test", str(tmp_path / "b"), str(tmp_path / "b"), train_dataset=train
        )


def test_labels_txt_names_the_classes_in_its_order(tmp_path):
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\nzebra\nbox\n")
    dataset = register_custom_dataset(NAME, *write(tmp_path / "a"), str(tmp_path / "labels.txt"))
    assert dataset.classes == ("zebra", "box")
    assert objects()[0] == ["box"]


BROKEN = [
    (shape("box", [[1, 2], [3]]), r"'points' is \[\[1, 2\], \[3\]\], expected a list of points"),
    (shape("box", [[1, 2], ["3", 4]]), "expected a list of points"),
    (shape("box", [[1, 2], [3, float("nan")], [5, 5]]), "a point that is not finite"),
    (shape("box", [[1, 2], [3, 10**400], [5, 5]]), "int too large to convert to float"),
    (shape("box", [[1, 2]], "circle"), "has 1 points, expected 2 for the type 'circle'"),
    (shape(None, corners(1, 1, 5, 5)), "'label' is None"),
    (shape("box", [[1, 2], [5, 5]], "mask", mask="x!"), "'mask' is not a PNG in base64"),
    (shape("box", [[1, 2], [5, 5]], "mask", mask=png(np.ones((3, 3), bool))), r"\(3, 3\), but its corners"),
    (shape("box", [[1e300, 2], [1e308, 5]], "mask", mask=png(np.ones((3, 3), bool))), "but its corners"),
    ({"label": "box"}, "no 'points'"),
]


@pytest.mark.parametrize(("broken", "message"), BROKEN)
def test_broken_shapes_are_errors_with_file_and_place(tmp_path, broken, message):
    with pytest.raises(DatasetError, match=rf"1\.json, shapes\[1\]: .*{message}"):
        register_custom_dataset(NAME, *write(tmp_path, [SQUARE, broken]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shapes": [3]}, "'shapes' is not a list of objects"),
        ({"imageHeight": "30"}, "'imageHeight' is '30', expected a whole number"),
        ({"imageHeight": 10**6, "imageWidth": 10**6}, "the limit is 200 megapixels"),
        ({"imagePath": None}, "'imagePath' is None, expected a text"),
        ({"imageHeight": 31}, "the annotations say"),
    ],
)
def test_broken_jsons_are_errors(tmp_path, changes, message):
    with pytest.raises(DatasetError, match=rf"1\.(json|jpg).*{message}"):
        register_custom_dataset(NAME, *write(tmp_path, **changes))


def test_another_json_in_the_folder_is_an_error(tmp_path):
    folders = write(tmp_path)
    write_json(tmp_path / "x.json", {"images": []})
    with pytest.raises(DatasetError, match=r"x\.json: its format is not labelme's, as it has no 'shapes'"):
        register_custom_dataset(NAME, *folders)
