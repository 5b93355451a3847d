"""Summaries of datasets: the synthetic dataset counted by hand, and bins against COCO's."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.cocoeval import Params

from mask2former.data import DatasetCatalog, MetadataCatalog
from mask2former.data.checks.record import EMPTY, DataWarning, RecordSummary, summarize_record
from mask2former.data.checks.summary import SHOWN, area_report, repeated, size_report, summarize_dataset


def summarized(name, names_fact, things=None):
    metadata = MetadataCatalog.get(name).snapshot()
    records = [summarize_record(record, metadata) for record in DatasetCatalog.get(name)]
    return summarize_dataset(records, metadata.get(names_fact), things=things, queries=3)


def test_instances_are_summarized(names):
    report = summarized(names["instance"], "thing_classes")
    assert report["images"] == 4
    assert report["broken"] == {"count": 0, "first": []}
    assert report["images_without_objects"] == 2  # the crowd alone, and stuff alone
    assert report["crowd_regions"] == 2
    assert report["representation"] == {"uncompressed RLE": 3, "polygons": 1, "RLE": 1}
    assert report["share_of_pixels_without_class"] is None
    assert [tuple(entry.values()) for entry in report["classes"]] == [("donut", 1, 1), ("box", 2, 2)]
    assert report["never_seen"] == []
    assert report["object_sizes"].keys() == {"objects"}
    assert report["object_sizes"]["objects"]["count"] == 3
    objects = report["objects_in_an_image"]
    assert (objects["mean"], objects["most"]) == (3 / 4, 2)
    assert objects["most_in"].endswith("0001.png")
    assert objects["images_with_more_than_queries"] == 0


def test_panoptic_images_are_summarized(names):
    report = summarized(names["panoptic"], "stuff_classes", {0, 1})
    assert report["share_of_pixels_without_class"] == (32 + 128 + 80 + 16) / (24 * 32 + 3 * 20 * 16)
    counts = {entry["name"]: (entry["images"], entry["objects"]) for entry in report["classes"]}
    assert counts == {"donut": (1, 1), "box": (2, 2), "sky": (4, 4), "ground": (4, 4)}
    assert list(report["object_sizes"]) == ["things", "stuff"]
    things = report["object_sizes"]["things"]["area"]
    assert (things["least"], things["median"], things["most"]) == (56, 84, 100)
    assert report["object_sizes"]["stuff"]["count"] == 8
    objects = report["objects_in_an_image"]
    assert (objects["most"], objects["queries"], objects["images_with_more_than_queries"]) == (4, 3, 1)
    sizes = {"smallest": [20, 16], "largest": [24, 32], "commonest": [20, 16]}
    assert report["image_sizes"] == {"different": 2, **sizes, "images_of_commonest": 3}
    json.dumps(report)


def test_all_broken_records_are_counted_and_the_first_are_named():
    records = [RecordSummary("x.png", error=f"broken {number}") for number in range(SHOWN + 5)]
    records.append(RecordSummary("y.png", size=(2, 2), classes=[1, 1], areas=[1, 2]))
    report = summarize_dataset(records, ["a", "b"], queries=100, errors=["broken JSON"])
    assert report["images"] == SHOWN + 6
    assert report["broken"] == {"count": SHOWN + 6, "first": [f"broken {i}" for i in range(SHOWN)]}
    assert report["never_seen"] == ["a"]
    assert report["images_without_objects"] == 0
    assert report["objects_in_an_image"]["mean"] == 2


def test_warnings_are_grouped_by_kind():
    record = RecordSummary("x.png", warnings=[DataWarning(EMPTY, str(number)) for number in range(SHOWN)])
    other = DataWarning("other", "there")
    report = summarize_dataset([record], [], queries=1, warnings=[DataWarning(EMPTY, "last"), other])
    assert report["warnings"] == {
        EMPTY: {"count": SHOWN + 1, "first": [str(number) for number in range(SHOWN)]},
        "other": {"count": 1, "first": ["there"]},
    }


def test_a_dataset_without_records_is_summarized():
    report = summarize_dataset([], [], queries=100)
    assert report["images"] == 0
    assert report["image_sizes"] == size_report({}) == {}
    assert report["objects_in_an_image"]["mean"] is None


@given(st.lists(st.integers(1, 20_000), min_size=1))
def test_areas_are_binned_as_coco_does(areas):
    report = area_report(areas)
    for name, (low, high) in zip(
        ("small", "medium", "large"), Params(iouType="segm").areaRng[1:], strict=True
    ):
        if name == "medium":
            assert report[name] == sum(low <= area <= high for area in areas)
        else:  # COCO counts 32^2 as small too, and 96^2 as large too: each area is counted once here
            assert report[name] == sum(low <= area <= high for area in areas if area not in (32**2, 96**2))
    assert report["small"] + report["medium"] + report["large"] == report["count"] == len(areas)
    assert report["area"]["least"] == min(areas)
    assert report["area"]["most"] == max(areas)
    assert set(report["area"].values()) <= set(areas)


def test_the_most_common_size_is_reported():
    report = size_report(Counter({(10, 20): 2, (5, 90): 3, (8, 8): 1}))
    assert (report["smallest"], report["largest"], report["commonest"]) == ([8, 8], [5, 90], [5, 90])
    assert report["images_of_commonest"] == 3


def test_repeated_ids_and_images_give_warnings():
    records = [
        {"file_name": name, "image_id": number} for name, number in zip("abb", (1, 1, "1"), strict=True)
    ]
    records += [{"file_name": "c"}, {"file_name": "d"}]
    warnings = [(warning.kind.split()[0], warning.where) for warning in repeated(records)]
    assert warnings == [("image", "1: 2 records"), ("images", "'b': 2 records")]


@pytest.mark.parametrize(
    ("area", "expected"), [(1023, "small"), (1024, "medium"), (9216, "medium"), (9217, "large")]
)
def test_areas_at_the_bounds_of_bins(area, expected):
    report = area_report(np.array([area]))
    assert [name for name in ("small", "medium", "large") if report[name]] == [expected]
