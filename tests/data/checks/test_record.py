"""A record looked into: its counts against those of the drawn masks, and every way of being broken."""

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
    LOOSE_BOX,
    NO_LABEL_MAP,
    TWICE_LISTED,
    UNLISTED,
    look_into,
    task_of,
)
from mask2former.data.errors import each_converted, errors_collected
from mask2former.utils.label_maps import read_segment_ids, write_segment_ids

BIG = (24, 32)


def record_of(names, task, index=0, **changes):
    return {**copy.deepcopy(DatasetCatalog.get(names[task])[index]), **changes}


def look(names, task, record):
    return look_into(record, MetadataCatalog.get(names[task]).snapshot())


def with_annotation(names, **changes):
    """Image 1, its second annotation (the box) changed."""
    record = record_of(names, "instance")
    record["annotations"][1].update(changes)
    return record


def test_instances_are_counted_without_crowds(names):
    facts = [look(names, "instance", record_of(names, "instance", i)) for i in range(4)]
    assert [fact.size for fact in facts] == [BIG, (20, 16), (20, 16), (20, 16)]
    assert [fact.classes for fact in facts] == [[0, 1], [1], [], []]
    assert [fact.areas for fact in facts] == [[10 * 10 - 4 * 4, 10 * 10], [7 * 8], [], []]
    assert [fact.crowds for fact in facts] == [0, 1, 1, 0]
    assert facts[0].forms == Counter({"uncompressed RLE": 1, "polygons": 1})
    assert facts[1].forms == Counter({"RLE": 1, "uncompressed RLE": 1})
    assert all(fact.unlabeled is None and fact.error is None for fact in facts)


def test_panoptic_segments_are_counted_and_what_they_leave(names):
    facts = [look(names, "panoptic", record_of(names, "panoptic", i)) for i in range(4)]
    assert [fact.classes for fact in facts] == [[2, 3, 0, 1], [2, 3, 1], [2, 3], [2, 3]]
    # Sky is rows 0 to 10 and ground below it, less what lies over them.
    assert facts[0].areas == [11 * 32 - 74 - 10, 12 * 32 - 10 - 90, 84, 100]
    assert facts[1].areas == [11 * 16 - 56, 16, 56]
    assert facts[3].areas == [11 * 16, 8 * 16]
    assert [fact.unlabeled for fact in facts] == [32, 8 * 16, 16 + 8 * 8, 16]
    assert [fact.crowds for fact in facts] == [0, 1, 1, 0]
    assert facts[0].forms == Counter({"panoptic PNG": 1})
    assert not any(fact.warnings for fact in facts)


def semantic(tmp_path, labels, **changes):
    """A record of a label map, and the metadata of two classes."""
    Image.fromarray(np.zeros((*labels.shape, 3), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(labels).save(tmp_path / "labels.png")
    files = {"file_name": str(tmp_path / "a.png"), "sem_seg_file_name": str(tmp_path / "labels.png")}
    return {**files, **changes}, Metadata("two").set(stuff_classes=["a", "b"], ignore_label=255)


def test_the_classes_of_a_label_map(tmp_path):
    labels = np.array([[1, 1, 255], [0, 1, 255]], np.uint8)
    facts = look_into(*semantic(tmp_path, labels))
    assert (facts.classes, facts.areas, facts.unlabeled) == ([0, 1], [1, 3], 2)
    assert facts.forms == Counter({"label PNG": 1})
    translated = look_into(*semantic(tmp_path, labels, sem_seg_label_ids={0: 255, 1: 0, 255: 1}))
    assert (translated.classes, translated.areas, translated.unlabeled) == ([0, 1], [3, 2], 1)


def test_an_image_alone_is_decoded(names):
    record = record_of(names, "instance")
    del record["annotations"]
    assert task_of(record) is None
    facts = look(names, "instance", record)
    assert (facts.error, facts.size, facts.classes) == (None, BIG, [])
    Path(record["file_name"]).write_bytes(b"no image")
    assert "is not an image" in look(names, "instance", record).error


def test_the_box_of_a_mask(names):
    """The drawn boxes are all wrong: a pixel in the corner."""
    assert [w.kind for w in look(names, "instance", record_of(names, "instance")).warnings] == [LOOSE_BOX] * 2
    true, record = [20, 10, 10, 10], with_annotation(names, bbox=[20, 10, 10, 10])
    record["annotations"].pop(0)

    def warned(**changes):
        record["annotations"][0].update(changes)
        return [warning.kind for warning in look(names, "instance", record).warnings]

    assert warned() == []
    assert warned(bbox=[20, 10, 30, 20], bbox_mode=0) == []
    assert warned(bbox=true, bbox_mode=0) == [LOOSE_BOX]  # a size taken for a corner
    assert warned(bbox=[18, 8, 14, 14], bbox_mode=1) == []  # as loose as may be: 2 pixels and a tenth of 10
    assert warned(bbox=[16, 10, 14, 10]) == [LOOSE_BOX]
    assert warned(bbox=[10, 20, 10, 10]) == [LOOSE_BOX]  # x and y exchanged
    assert warned(bbox=None) == []


def test_an_empty_mask_is_no_object(names):
    outside = with_annotation(names, segmentation=polygon(40, 50, 60, 70))
    facts = look(names, "instance", outside)
    assert facts.classes == [0]
    assert facts.warnings[-1].kind == EMPTY
    assert facts.warnings[-1].where == f"{outside['file_name']}: annotation 1"


def test_ids_that_are_not_listed_or_twice(names):
    record = record_of(names, "panoptic")
    last = record["segments_info"].pop()
    (warning,) = look(names, "panoptic", record).warnings
    assert warning.kind == UNLISTED
    assert str(last["id"]) in warning.where
    record["segments_info"].append(record["segments_info"][0])
    facts = look(names, "panoptic", record)
    assert {w.kind for w in facts.warnings} == {UNLISTED, TWICE_LISTED}
    assert facts.unlabeled == 32 + 100  # void and the box, which is not listed


def test_the_label_map_beside_a_panoptic_png_is_read_too(names, tmp_path):
    record = record_of(names, "panoptic", sem_seg_file_name=str(tmp_path / "labels.png"))
    assert [warning.kind for warning in look(names, "panoptic", record).warnings] == [NO_LABEL_MAP]
    Image.fromarray(np.zeros(BIG, np.uint8)).save(tmp_path / "labels.png")
    facts = look(names, "panoptic", record)
    assert (facts.error, facts.warnings) == (None, [])
    assert facts.forms == Counter({"panoptic PNG": 1, "label PNG": 1})
    Image.fromarray(np.full(BIG, 77, np.uint8)).save(tmp_path / "labels.png")
    assert "label 77" in look(names, "panoptic", record).error


def truncate(path):
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) // 2])


def recolor(path):
    """Take away the first segment's pixels."""
    ids = read_segment_ids(path)
    write_segment_ids(path, np.where(ids == ids[0, 0], 0, ids))


BREAKS = {
    "missing image": ("instance", lambda r: Path(r["file_name"]).unlink(), "no such file"),
    "truncated image": ("instance", lambda r: truncate(r["file_name"]), "truncated"),
    "image of another size": ("panoptic", lambda r: r.update(height=99), "the annotations say (99, 32)"),
    "missing PNG": ("panoptic", lambda r: Path(r["pan_seg_file_name"]).unlink(), "no such file"),
    "truncated PNG": ("panoptic", lambda r: truncate(r["pan_seg_file_name"]), "not a readable image"),
    "PNG of another size": (
        "panoptic",
        lambda r: write_segment_ids(r["pan_seg_file_name"], np.ones((3, 4), int)),
        "(height, width) is (3, 4)",
    ),
    "id that the PNG lacks": ("panoptic", lambda r: recolor(r["pan_seg_file_name"]), "no pixel has the id"),
    "unknown class": ("panoptic", lambda r: r["segments_info"][0].update(category_id=4), "class 4"),
    "class of no number": ("panoptic", lambda r: r["segments_info"][0].update(category_id=None), "TypeError"),
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
def test_a_broken_record(names, kind):
    task, break_it, reason = BREAKS[kind]
    record = record_of(names, task)
    break_it(record)
    facts = look(names, task, record)
    assert reason in facts.error
    assert "0001.png" in facts.error
    assert "image id 1" in facts.error
    assert (facts.classes, facts.size, facts.warnings) == ([], (0, 0), [])


@pytest.mark.parametrize("kind", ANNOTATION_BREAKS)
def test_a_broken_annotation(names, kind):
    changes, reason = ANNOTATION_BREAKS[kind]
    facts = look(names, "instance", with_annotation(names, **changes))
    assert reason in facts.error
    assert "0001.png, image id 1" in facts.error
    assert facts.classes == []


def test_a_label_beyond_the_classes(tmp_path):
    facts = look_into(*semantic(tmp_path, rectangle((4, 5), 0, 0, 2, 2) * np.uint8(9)))
    assert "labels.png" in facts.error
    assert "label 9" in facts.error


def test_errors_of_a_whole_file_stop_it_or_are_collected():
    def odd(number):
        if number % 2 == 0:
            raise DatasetError(f"{number} is even")
        return number

    with pytest.raises(DatasetError, match="2 is even"):
        each_converted(odd, [1, 2, 3, 4])
    with errors_collected() as errors:
        assert each_converted(odd, [1, 2, 3, 4]) == [1, 3]
    assert [str(error) for error in errors] == ["2 is even", "4 is even"]
    with pytest.raises(DatasetError):
        each_converted(odd, [2])
