"""Checks of one record: its counts against those of the synthetic masks, and every way of being broken."""

import copy
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from synthetic_coco import donut, polygon, rectangle, uncompressed_rle

from mask2former.data import DatasetCatalog, DatasetError, MetadataCatalog
from mask2former.data.catalog import Metadata
from mask2former.data.checks.record import (
    EMPTY,
    HIDDEN,
    LOOSE_BOX,
    NO_LABEL_MAP,
    UNLISTED,
    annotation_kind,
    summarize_record,
)
from mask2former.data.load_context import LoadContext
from mask2former.utils.label_maps import read_segment_ids, write_segment_ids

BIG = (24, 32)


def record_of(names, task, index=0, **changes):
    return {**copy.deepcopy(DatasetCatalog.get(names[task])[index]), **changes}


def summarize(names, task, record):
    return summarize_record(record, MetadataCatalog.get(names[task]).snapshot())


def with_annotation(names, **changes):
    """Image 1, its second annotation (the box) changed."""
    record = record_of(names, "instance")
    record["annotations"][1].update(changes)
    return record


def test_instances_are_counted_without_crowds(names):
    summaries = [summarize(names, "instance", record_of(names, "instance", i)) for i in range(4)]
    assert [summary.size for summary in summaries] == [BIG, (20, 16), (20, 16), (20, 16)]
    assert [summary.classes for summary in summaries] == [[0, 1], [1], [], []]
    assert [summary.areas for summary in summaries] == [[10 * 10 - 4 * 4, 10 * 10], [7 * 8], [], []]
    assert [summary.crowds for summary in summaries] == [0, 1, 1, 0]
    assert summaries[0].forms == Counter({"uncompressed RLE": 1, "polygons": 1})
    assert summaries[1].forms == Counter({"RLE": 1, "uncompressed RLE": 1})
    assert all(summary.unlabeled is None and summary.error is None for summary in summaries)


def test_panoptic_segments_and_unlabeled_pixels_are_counted(names):
    summaries = [summarize(names, "panoptic", record_of(names, "panoptic", i)) for i in range(4)]
    assert [summary.classes for summary in summaries] == [[2, 3, 0, 1], [2, 3, 1], [2, 3], [2, 3]]
    # Sky is rows 0 to 10 and ground below it, less what lies over them.
    assert summaries[0].areas == [11 * 32 - 74 - 10, 12 * 32 - 10 - 90, 84, 100]
    assert summaries[1].areas == [11 * 16 - 56, 16, 56]
    assert summaries[3].areas == [11 * 16, 8 * 16]
    assert [summary.unlabeled for summary in summaries] == [32, 8 * 16, 16 + 8 * 8, 16]
    assert [summary.crowds for summary in summaries] == [0, 1, 1, 0]
    assert summaries[0].forms == Counter({"panoptic PNG": 1})
    assert not any(summary.warnings for summary in summaries)


def semantic(tmp_path, labels, **changes):
    """A record of a label map, and the metadata of two classes."""
    Image.fromarray(np.zeros((*labels.shape, 3), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(labels).save(tmp_path / "labels.png")
    files = {"file_name": str(tmp_path / "a.png"), "sem_seg_file_name": str(tmp_path / "labels.png")}
    return {**files, **changes}, Metadata("two").set(stuff_classes=["a", "b"], ignore_label=255)


def test_classes_of_a_label_map_are_counted(tmp_path):
    labels = np.array([[1, 1, 255], [0, 1, 255]], np.uint8)
    summary = summarize_record(*semantic(tmp_path, labels))
    assert (summary.classes, summary.areas, summary.unlabeled) == ([0, 1], [1, 3], 2)
    assert summary.forms == Counter({"label PNG": 1})
    translated = summarize_record(*semantic(tmp_path, labels, sem_seg_label_ids={0: 255, 1: 0, 255: 1}))
    assert (translated.classes, translated.areas, translated.unlabeled) == ([0, 1], [3, 2], 1)


def test_an_image_without_annotations_is_decoded(names):
    record = record_of(names, "instance")
    del record["annotations"]
    assert annotation_kind(record) is None
    summary = summarize(names, "instance", record)
    assert (summary.error, summary.size, summary.classes) == (None, BIG, [])
    Path(record["file_name"]).write_bytes(b"no image")
    assert "is not an image" in summarize(names, "instance", record).error


def test_a_box_is_compared_with_its_mask(names):
    """The boxes of the synthetic dataset are all wrong: a pixel in the corner."""
    assert [w.kind for w in summarize(names, "instance", record_of(names, "instance")).warnings] == [
        LOOSE_BOX
    ] * 2
    true, record = [20, 10, 10, 10], with_annotation(names, bbox=[20, 10, 10, 10])
    record["annotations"].pop(0)

    def warned(**changes):
        record["annotations"][0].update(changes)
        return [warning.kind for warning in summarize(names, "instance", record).warnings]

    assert warned() == []
    assert warned(bbox=[20, 10, 30, 20], bbox_mode=0) == []
    assert warned(bbox=true, bbox_mode=0) == [LOOSE_BOX]  # a size taken for a corner
    assert warned(bbox=[18, 8, 14, 14], bbox_mode=1) == []  # as loose as may be: 2 pixels and a tenth of 10
    assert warned(bbox=[16, 10, 14, 10]) == [LOOSE_BOX]
    assert warned(bbox=[10, 20, 10, 10]) == [LOOSE_BOX]  # x and y exchanged
    assert warned(bbox=None) == []


def test_an_empty_mask_is_not_counted_as_an_object(names):
    outside = with_annotation(names, segmentation=polygon(40, 50, 60, 70))
    summary = summarize(names, "instance", outside)
    assert summary.classes == [0]
    assert summary.warnings[-1] == (EMPTY, f"{outside['file_name']}: annotation 1")


def test_ids_that_only_the_png_has_give_a_warning(names):
    record = record_of(names, "panoptic")
    last = record["segments_info"].pop()
    summary = summarize(names, "panoptic", record)
    ((kind, where),) = summary.warnings
    assert kind == UNLISTED and str(last["id"]) in where
    assert summary.unlabeled == 32 + 100  # void and the box, which is not listed


def test_segments_that_others_hide_give_a_warning(names):
    record = record_of(names, "panoptic")
    objects = len(record["segments_info"])
    record["segments_info"].append({"id": 77, "category_id": 2, "iscrowd": 0, "area": 9})
    summary = summarize(names, "panoptic", record)
    ((kind, where),) = summary.warnings
    assert kind == HIDDEN and where.endswith("0001.png: ids [77]")
    assert len(summary.classes) == objects


def test_the_label_map_beside_a_panoptic_png_is_read_too(names, tmp_path):
    record = record_of(names, "panoptic", sem_seg_file_name=str(tmp_path / "labels.png"))
    assert [warning.kind for warning in summarize(names, "panoptic", record).warnings] == [NO_LABEL_MAP]
    Image.fromarray(np.zeros(BIG, np.uint8)).save(tmp_path / "labels.png")
    summary = summarize(names, "panoptic", record)
    assert (summary.error, summary.warnings) == (None, [])
    assert summary.forms == Counter({"panoptic PNG": 1, "label PNG": 1})
    Image.fromarray(np.full(BIG, 77, np.uint8)).save(tmp_path / "labels.png")
    assert "label 77" in summarize(names, "panoptic", record).error


def truncate(path):
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) // 2])


def shrink(path):
    write_segment_ids(path, np.ones((3, 4), int))


def recolor(path):
    """Give the first segment's pixels another id."""
    ids = read_segment_ids(path)
    write_segment_ids(path, np.where(ids == ids[0, 0], 77, ids))


def blacken(path):
    write_segment_ids(path, 0 * read_segment_ids(path))


def change_segment(**changes):
    return lambda record: record["segments_info"][0].update(changes)


BREAKS = {
    "missing image": ("instance", lambda r: Path(r["file_name"]).unlink(), "no such file"),
    "truncated image": ("instance", lambda r: truncate(r["file_name"]), "truncated"),
    "image of another size": ("panoptic", lambda r: r.update(height=99), "the annotations say (99, 32)"),
    "missing PNG": ("panoptic", lambda r: Path(r["pan_seg_file_name"]).unlink(), "no such file"),
    "truncated PNG": ("panoptic", lambda r: truncate(r["pan_seg_file_name"]), "not a readable image"),
    "PNG of another size": (
        "panoptic",
        lambda r: shrink(r["pan_seg_file_name"]),
        "(height, width) is (3, 4)",
    ),
    "id that the PNG lacks": (
        "panoptic",
        lambda r: recolor(r["pan_seg_file_name"]),
        "of segments_info, but some have 77, which it does not list",
    ),
    "void PNG": ("panoptic", lambda r: blacken(r["pan_seg_file_name"]), "of segments_info, but all are void"),
    "unknown class": ("panoptic", change_segment(category_id=4), "category_id 4 is not among"),
    "class of no number": ("panoptic", change_segment(category_id=None), "'category_id' is None, expected a"),
    "id as text": ("panoptic", change_segment(id="1"), "'id' is '1', expected a whole number"),
    "id of void": ("panoptic", change_segment(id=0), "'id' is 0, expected a whole number in [1, 16777215]"),
    "no area": (
        "panoptic",
        change_segment(area=None),
        "has no 'area'; PQ needs it, unless TEST.",
    ),
    "area 0": ("panoptic", change_segment(area=0), "has the 'area' 0 though it has pixels"),
    "area as text": ("panoptic", change_segment(area="9"), "'area' is '9', expected a number of pixels"),
    "id twice": (
        "panoptic",
        lambda r: r["segments_info"].append(r["segments_info"][0]),
        "segments_info lists the id",
    ),
    "no segments": ("panoptic", lambda r: r.pop("segments_info"), "segments_info"),
}
ANNOTATION_BREAKS = {
    "unknown class": ({"category_id": 2}, "class 2"),
    "mask of another size": ({"segmentation": uncompressed_rle(donut((20, 20)))}, "(20, 20)"),
    "counts that end early": ({"segmentation": {"size": [24, 32], "counts": [5, 9]}}, "do not add up"),
    "counts that are none": ({"segmentation": {"size": [24, 32], "counts": "§"}}, "no run lengths"),
    "no polygon": ({"segmentation": []}, "at least three points"),
    "polygon of two points": ({"segmentation": [[1, 2, 3, 4]]}, "at least three points"),
    "broken crowd": ({"segmentation": [], "iscrowd": 1}, "at least three points"),
    "no mask": ({"segmentation": None}, "not polygons, RLE or array"),
}


@pytest.mark.parametrize("kind", BREAKS)
def test_a_broken_record_gives_an_error_with_file_and_image(names, kind):
    task, break_it, reason = BREAKS[kind]
    record = record_of(names, task)
    break_it(record)
    summary = summarize(names, task, record)
    for part in (reason, "0001.png", "image id 1"):
        assert part in summary.error
    assert (summary.classes, summary.size, summary.warnings) == ([], (0, 0), [])


@pytest.mark.parametrize("kind", ANNOTATION_BREAKS)
def test_a_broken_annotation_gives_an_error_with_file_and_image(names, kind):
    changes, reason = ANNOTATION_BREAKS[kind]
    summary = summarize(names, "instance", with_annotation(names, **changes))
    assert reason in summary.error
    assert "0001.png, image id 1" in summary.error
    assert summary.classes == []


def test_a_label_beyond_the_classes_is_an_error(tmp_path):
    error = summarize_record(*semantic(tmp_path, rectangle((4, 5), 0, 0, 2, 2) * np.uint8(9))).error
    assert "labels.png" in error and "label 9" in error


def test_an_error_in_a_file_is_raised_or_collected():
    def odd(number):
        if number % 2 == 0:
            raise DatasetError(f"{number} is even")
        return number

    with pytest.raises(DatasetError, match="2 is even"):
        LoadContext().convert_each(odd, [1, 2, 3, 4])
    errors = []
    assert LoadContext(errors).convert_each(odd, [1, 2, 3, 4]) == [1, 3]
    assert [str(error) for error in errors] == ["2 is even", "4 is even"]
