"""Readers: every kind of annotation gives the masks that were drawn; broken ones give errors."""

import copy
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools.coco import COCO
from synthetic_coco import (
    all_masks,
    compressed_rle,
    donut,
    geometry_of,
    ground_truth_of,
    polygon,
    rectangle,
    uncompressed_rle,
)

from mask2former.data import DatasetCatalog, DatasetError, MetadataCatalog
from mask2former.data.catalog import Metadata
from mask2former.data.ground_truth.geometry import Geometry
from mask2former.data.ground_truth.readers import (
    MapGroundTruth,
    draw_mask,
    read_instances,
    read_panoptic,
    read_semantic,
    semantic_map,
)
from mask2former.utils.label_maps import write_segment_ids

SIZE = (24, 32)
RECORD = {"file_name": "a.png", "image_id": 7}
READERS = {"instance": read_instances, "panoptic": read_panoptic, "semantic": read_semantic}


def decoded(segmentation, size):
    """Return the mask of a segmentation in the original image."""
    mask = np.zeros(size, dtype=bool)
    draw_mask(segmentation, size, Geometry.identity(*size), RECORD).paste(mask)
    return mask


def whole(record):
    return Geometry.identity(record["height"], record["width"])


def read(names, task, index, **changes):
    name = names["instance" if task == "instance" else "panoptic"]
    record = {**copy.deepcopy(DatasetCatalog.get(name)[index]), **changes}
    return READERS[task](record, MetadataCatalog.get(name), (record["height"], record["width"])), record


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_masks_of_any_kind_are_decoded(mask):
    for encode in (uncompressed_rle, compressed_rle, lambda mask: mask):
        np.testing.assert_array_equal(decoded(encode(mask), mask.shape), mask)


def test_polygons_are_filled_as_pycocotools_fills_them():
    curved = [[3.2, 4.1, 20.7, 2.5, 28.3, 19.9, 11.1, 22.4], [1, 15, 6, 15, 6, 21.5]]
    official = COCO()
    official.imgs = {7: {"height": SIZE[0], "width": SIZE[1]}}
    expected = official.annToMask({"image_id": 7, "segmentation": curved})
    assert expected.any()
    np.testing.assert_array_equal(decoded(curved, SIZE), expected)
    np.testing.assert_array_equal(decoded(polygon(2, 3, 10, 20), SIZE), rectangle(SIZE, 2, 3, 10, 20))


@pytest.mark.parametrize(("index", "image_id"), [(0, 1), (1, 2), (2, 3), (3, 5)])
def test_instances_are_read_without_crowd_regions(names, synthetic, index, image_id):
    segments, record = read(names, "instance", index)
    expected = [(category, mask) for category, mask, crowd in synthetic.masks[image_id] if not crowd]
    masks = all_masks(segments, whole(record))
    assert (masks.dtype, segments.classes.dtype) == (bool, np.int64)
    assert segments.classes.tolist() == [{0: 0, 7: 1}[category] for category, _ in expected]
    size = record["height"], record["width"]
    np.testing.assert_array_equal(masks, np.array([mask for _, mask in expected]).reshape(-1, *size))


@pytest.mark.parametrize(("index", "classes"), [(0, [2, 3, 0, 1]), (1, [2, 3, 1]), (2, [2, 3]), (3, [2, 3])])
def test_panoptic_segments_match_the_colors_of_the_image(names, index, classes):
    segments, record = read(names, "panoptic", index)
    image = np.asarray(Image.open(record["file_name"]))
    masks = all_masks(segments, whole(record))
    assert segments.classes.tolist() == classes
    assert masks.sum(0).max() == 1
    for mask in masks:
        colors = np.unique(image[mask], axis=0)
        assert len(colors) == 1
        np.testing.assert_array_equal((image == colors[0]).all(-1), mask)


def test_semantic_labels_are_derived_from_the_panoptic_png(names):
    segments, record = read(names, "semantic", 1)
    metadata = MetadataCatalog.get(names["panoptic"])
    labels = semantic_map(record, metadata, (20, 16))
    assert labels[0, 0] == 2  # sky
    assert labels[5, 5] == 1  # the box
    assert labels[15, 3] == 0  # the crowd of donuts counts as donut
    assert labels[11, 3] == 3  # ground, between sky and crowd
    assert segments.classes.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(all_masks(segments, whole(record)), labels == np.arange(4)[:, None, None])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pixels_of_the_ignore_label_belong_to_no_segment(tmp_path, dtype):
    labels = np.array([[0, 2, 2], [255, 255, 0]], dtype=dtype)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    record = {**RECORD, "sem_seg_file_name": tmp_path / "labels.png"}
    metadata = Metadata("m").set(stuff_classes=["a", "b", "c"], ignore_label=255)
    segments = read_semantic(record, metadata, (2, 3))
    assert segments.classes.tolist() == [0, 2]
    masks = all_masks(segments, geometry_of([0, -1], [0, 1, -1]))
    assert masks.tolist() == [[[True, False, False], [False] * 3], [[False, True, False], [False] * 3]]
    Image.fromarray(np.full_like(labels, 255)).save(tmp_path / "labels.png")
    nothing = read_semantic(record, metadata, (2, 3))
    assert nothing.visible(Geometry.identity(2, 3))[1].shape == (0, 2, 3)


def axes(size):
    """Draw any choice of pixels, with padding at both ends."""
    padding, pixels = st.lists(st.just(-1), max_size=2), st.lists(st.integers(0, size - 1), max_size=8)
    return st.tuples(padding, pixels, padding).map(lambda parts: list(itertools.chain(*parts)))


@given(st.data())
def test_both_kinds_of_ground_truth_give_the_same_masks(data):
    id_map = data.draw(
        arrays(np.int32, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.integers(0, 3))
    )
    height, width = id_map.shape
    rows, cols = data.draw(axes(height)), data.draw(axes(width))
    ids = np.array([1, 3])
    expected = np.zeros((2, len(rows), len(cols)), bool)
    for i, r, c in np.ndindex(expected.shape):
        expected[i, r, c] = rows[r] >= 0 and cols[c] >= 0 and id_map[rows[r], cols[c]] == ids[i]
    by_mask = ground_truth_of(ids, id_map == ids[:, None, None])
    for segments in (MapGroundTruth(ids, ids, id_map), by_mask):
        np.testing.assert_array_equal(all_masks(segments, geometry_of(rows, cols)), expected)


@pytest.mark.parametrize("count", [3, 255, 300])
def test_panoptic_pngs_may_have_any_number_of_segments(tmp_path, count):
    ids = (np.arange(count) * 977 + 5).reshape(1, -1)
    write_segment_ids(tmp_path / "ids.png", ids)
    infos = [{"id": int(i), "category_id": 0, "iscrowd": 0} for i in ids[0, 1:]]  # the first is void
    record = {**RECORD, "pan_seg_file_name": tmp_path / "ids.png", "segments_info": infos}
    segments = read_panoptic(record, Metadata("m").set(stuff_classes=["a"]), ids.shape)
    expected = ids == ids[0, 1:, None, None]
    np.testing.assert_array_equal(all_masks(segments, Geometry.identity(*ids.shape)), expected)


def test_a_segment_that_others_hide_is_left_out(tmp_path):
    write_segment_ids(tmp_path / "ids.png", np.array([[5, 5, 0]]))
    infos = [{"id": i, "category_id": 0, "iscrowd": 0} for i in (7, 5)]
    record = {**RECORD, "pan_seg_file_name": tmp_path / "ids.png", "segments_info": infos}
    segments = read_panoptic(record, Metadata("m").set(stuff_classes=["a"]), (1, 3))
    assert all_masks(segments, Geometry.identity(1, 3)).tolist() == [[[True, True, False]]]


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (uncompressed_rle(donut((24, 30))), r"a mask of .* \(24, 30\) for an image of \(24, 32\)"),
        (compressed_rle(donut((32, 24))), r"a mask of \(height, width\) \(32, 24\)"),
        (np.zeros((3, 3), bool), r"a mask of \(height, width\) \(3, 3\)"),
        ({"size": [24, 32], "counts": [5, 2]}, "the counts do not add up"),
        ({**compressed_rle(donut((5, 5))), "size": [24, 32]}, "the counts do not add up"),
        ({"size": [24, 32], "counts": "%%%%%%"}, "cannot be decoded"),
        ({"counts": [768]}, "no 'size' in an RLE"),
        ([[1, 2, 3, 4]], "at least three points"),
        ([], "at least three points"),
        ([[1, 2, 3, 4, 5, float("nan")]], "a point lies outside of 100 times the image's side"),
        ([[1, 2, 3, 4, 5, 1e300]], "a point lies outside"),
        ([[1, 2, 3, 4, 5, "a"]], "cannot be decoded: ValueError"),
        ([7], "at least three points"),
        (None, "'segmentation' is None: not polygons, RLE or array"),
        ("abc", "'segmentation' is 'abc'"),
    ],
)
def test_broken_masks_are_errors(segmentation, message):
    with pytest.raises(DatasetError, match=message) as caught:
        decoded(segmentation, SIZE)
    assert "a.png, image id 7: " in str(caught.value)


def stored(name, values):
    """Return a function that saves an image of these values, or a text, beside a dataset."""

    def save(synthetic):
        path = synthetic.root / name
        if isinstance(values, str):
            path.write_text(values)
        else:
            Image.fromarray(values).save(path)
        return str(path)

    return save


small_image = stored("small.png", np.zeros((3, 4, 3), np.uint8))
small_labels = stored("tiny.png", np.zeros((3, 4), np.uint8))
gray_image = stored("gray.png", np.full((24, 32), 77, np.uint8))
text_file = stored("text.png", "not an image")
SKY = {"id": 70_000, "category_id": 2, "isthing": False, "iscrowd": 0}
BROKEN = [  # task, changes to the first record, what the message says besides the image id
    ("instance", {"annotations": [{"category_id": 2}]}, r"0001\.png.*class 2, but there are 2 \(0\.\.1\)"),
    ("instance", {"annotations": [{"segmentation": []}]}, r"0001\.png.*no 'category_id' among"),
    ("panoptic", {"pan_seg_file_name": "/no/such.png"}, r"^/no/such\.png.*no such file"),
    ("panoptic", {"pan_seg_file_name": text_file}, r"text\.png.*not a readable image"),
    ("panoptic", {"pan_seg_file_name": small_image}, r"small\.png.*\(3, 4\), the image's is \(24, 32\)"),
    ("panoptic", {"pan_seg_file_name": gray_image}, r"gray\.png.*mode is L"),
    ("panoptic", {"segments_info": [{**SKY, "id": 4}]}, r"0001\.png.*no pixel has the ids 4 of segments"),
    ("panoptic", {"segments_info": [{**SKY, "category_id": 4}]}, "category_id 4 is not among the categories"),
    ("panoptic", {"segments_info": [{"category_id": 1}]}, "no 'id' in the segment {'category_id': 1}"),
    ("semantic", {"sem_seg_file_name": "/no/such.png"}, r"^/no/such\.png.*no such file"),
    ("semantic", {"sem_seg_file_name": small_image}, r"small\.png.*mode is RGB"),
    ("semantic", {"sem_seg_file_name": small_labels}, r"tiny\.png.*\(3, 4\), the image's is \(24, 32\)"),
    ("semantic", {"sem_seg_file_name": gray_image}, r"gray\.png.*label 77; valid are 0\.\.3, and 255"),
]


@pytest.mark.parametrize(("task", "changes", "message"), BROKEN)
def test_broken_records_are_errors_that_name_file_image_and_value(names, synthetic, task, changes, message):
    changes = {key: value(synthetic) if callable(value) else value for key, value in changes.items()}
    with pytest.raises(DatasetError, match=message) as caught:
        read(names, task, 0, **changes)
    assert "image id 1: " in str(caught.value)


@pytest.mark.parametrize(
    ("task", "key"),
    [("instance", "annotations"), ("panoptic", "segments_info"), ("semantic", "pan_seg_file_name")],
)
def test_records_of_another_task_are_errors(names, task, key):
    name = names["instance" if task == "instance" else "panoptic"]
    record = {k: v for k, v in DatasetCatalog.get(name)[0].items() if k != key}
    with pytest.raises(DatasetError, match=f"image id 1: no '{key}' among"):
        READERS[task](record, MetadataCatalog.get(name), SIZE)
