"""Sums over a dataset against the drawn dataset counted by hand, and bins against COCO's."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.cocoeval import Params

from mask2former.data import DatasetCatalog, MetadataCatalog
from mask2former.data.checks.record import EMPTY, RecordFacts, Warned, look_into
from mask2former.data.checks.summary import SHOWN, Statistics, area_facts, repeated, size_facts
from mask2former.data.custom.duplicates import shared_images


def summed(name, names_fact, things=None):
    metadata = MetadataCatalog.get(name).snapshot()
    statistics = Statistics(metadata.get(names_fact), things)
    for record in DatasetCatalog.get(name):
        statistics.add(look_into(record, metadata))
    return statistics.card(queries=3)


def test_the_drawn_instances(names):
    card = summed(names["instance"], "thing_classes")
    assert card["images"] == 4
    assert card["broken"] == {"count": 0, "first": []}
    assert card["images_without_objects"] == 2  # the crowd alone, and stuff alone
    assert card["crowd_regions"] == 2
    assert card["representation"] == {"uncompressed RLE": 3, "polygons": 1, "RLE": 1}
    assert card["share_of_pixels_without_class"] is None
    assert card["classes"] == [
        {"name": "donut", "images": 1, "objects": 1},
        {"name": "box", "images": 2, "objects": 2},
    ]
    assert card["never_seen"] == []
    assert card["object_sizes"].keys() == {"objects"}
    assert card["object_sizes"]["objects"]["count"] == 3
    objects = card["objects_in_an_image"]
    assert (objects["mean"], objects["most"]) == (3 / 4, 2)
    assert objects["most_in"].endswith("0001.png")
    assert objects["images_with_more_than_queries"] == 0


def test_the_drawn_panoptic_images(names):
    card = summed(names["panoptic"], "stuff_classes", frozenset({0, 1}))
    assert card["share_of_pixels_without_class"] == (32 + 128 + 80 + 16) / (24 * 32 + 3 * 20 * 16)
    assert [(c["name"], c["images"], c["objects"]) for c in card["classes"]] == [
        ("donut", 1, 1),
        ("box", 2, 2),
        ("sky", 4, 4),
        ("ground", 4, 4),
    ]
    assert list(card["object_sizes"]) == ["things", "stuff"]
    things = card["object_sizes"]["things"]["area"]
    assert (things["least"], things["median"], things["most"]) == (56, 84, 100)
    assert card["object_sizes"]["stuff"]["count"] == 8
    objects = card["objects_in_an_image"]
    assert (objects["most"], objects["queries"], objects["images_with_more_than_queries"]) == (4, 3, 1)
    assert card["image_sizes"] == {
        "different": 2,
        "smallest": [20, 16],
        "largest": [24, 32],
        "commonest": [20, 16],
        "images_of_commonest": 3,
    }
    json.dumps(card)


def test_all_broken_records_are_counted_and_the_first_are_named():
    statistics = Statistics(["a", "b"])
    for number in range(SHOWN + 5):
        statistics.add(RecordFacts("x.png", error=f"broken {number}"))
    statistics.add(RecordFacts("y.png", size=(2, 2), classes=[1, 1], areas=[1, 2]))
    card = statistics.card(queries=100)
    assert card["images"] == SHOWN + 6
    assert card["broken"] == {"count": SHOWN + 5, "first": [f"broken {i}" for i in range(SHOWN)]}
    assert card["never_seen"] == ["a"]
    assert card["images_without_objects"] == 0
    assert card["objects_in_an_image"]["mean"] == 2


def test_warnings_by_kind():
    statistics = Statistics([])
    for number in range(SHOWN + 1):
        statistics.add_warning(Warned(EMPTY, str(number)))
    assert statistics.card(1)["warnings"] == {
        EMPTY: {"count": SHOWN + 1, "first": [str(number) for number in range(SHOWN)]}
    }


def test_nothing_at_all():
    card = Statistics([]).card(100)
    assert card["images"] == 0
    assert card["image_sizes"] == size_facts({}) == {}
    assert card["objects_in_an_image"]["mean"] is None


@given(st.lists(st.integers(1, 20_000), min_size=1))
def test_areas_by_the_rule_of_coco(areas):
    facts = area_facts(areas)
    for name, (low, high) in zip(
        ("small", "medium", "large"), Params(iouType="segm").areaRng[1:], strict=True
    ):
        if name == "medium":
            assert facts[name] == sum(low <= area <= high for area in areas)
        else:  # COCO counts 32^2 as small too, and 96^2 as large too: each area is told once here
            assert facts[name] == sum(low <= area <= high for area in areas if area not in (32**2, 96**2))
    assert facts["small"] + facts["medium"] + facts["large"] == facts["count"] == len(areas)
    assert facts["area"]["least"] == min(areas)
    assert facts["area"]["most"] == max(areas)
    assert set(facts["area"].values()) <= set(areas)


def test_the_commonest_size():
    facts = size_facts(Counter({(10, 20): 2, (5, 90): 3, (8, 8): 1}))
    assert (facts["smallest"], facts["largest"], facts["commonest"]) == ([8, 8], [5, 90], [5, 90])
    assert facts["images_of_commonest"] == 3


def test_what_several_records_have():
    records = [
        {"file_name": "a.png", "image_id": 1},
        {"file_name": "b.png", "image_id": 1},
        {"file_name": "b.png", "image_id": "1"},
        {"file_name": "c.png"},
        {"file_name": "d.png"},
    ]
    assert [(w.kind.split()[0], w.where) for w in repeated(records)] == [
        ("image", "1: 2 records"),
        ("images", "'b.png': 2 records"),
    ]


def test_images_that_two_datasets_share(tmp_path):
    content = {"train/a": b"one", "train/b": b"two", "train/c": b"four", "val/a": b"six", "val/z": b"two"}
    for name, what in content.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(what)
    train, val = ([str(path) for path in (tmp_path / split).iterdir()] for split in ("train", "val"))
    gone = str(tmp_path / "gone")
    assert shared_images([*train, gone], [*val, gone]) == [
        (str(tmp_path / "train/b"), str(tmp_path / "val/z"))
    ]
    assert shared_images(train, train) == [(path, path) for path in sorted(train)]


@pytest.mark.parametrize(
    ("area", "expected"), [(1023, "small"), (1024, "medium"), (9216, "medium"), (9217, "large")]
)
def test_areas_at_the_bounds(area, expected):
    facts = area_facts(np.array([area]))
    assert [name for name in ("small", "medium", "large") if facts[name]] == [expected]
