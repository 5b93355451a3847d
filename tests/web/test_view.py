"""What the page shows of a session: images, maps of regions and their names, the legend."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image
from tiny_checkpoint import METADATA, NAMES

from mask2former.drawing.regions import Region, instance_regions
from mask2former.drawing.shapes import mask_shape
from mask2former.utils.label_maps import read_segment_ids
from mask2former.web.session import Session
from mask2former.web.view import found_classes, region_map, view

SIZE = (90, 140)


@pytest.fixture(scope="module")
def session(predictor):
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    return Session(predictor, image, "beach.png", predictor.thresholds)


@pytest.fixture
def views(session):
    return {shown["task"]: shown for shown in view(session, "key")["views"]}


def content(data_url):
    return io.BytesIO(base64.b64decode(data_url.partition(",")[2]))


def test_a_region_covers_those_drawn_before_it():
    first, second = np.zeros((2, *SIZE), bool)
    first[10:50, 20:60] = True
    second[30:70, 40:80] = True
    regions = [Region(mask_shape(mask), (0, 0, 0), 0, "") for mask in (first, second, np.zeros(SIZE, bool))]
    np.testing.assert_array_equal(region_map(regions, SIZE), np.where(second, 2, first))
    assert not region_map([], SIZE).any()


def test_each_pixel_has_the_name_and_score_of_its_region(session, views, tmp_path):
    result = session.shown
    for task in result.tasks:
        path = tmp_path / f"{task}.png"
        path.write_bytes(content(views[task]["numbers"]).read())
        numbers = read_segment_ids(path)
        names = np.array(["", *views[task]["regions"]])[numbers]
        assert numbers.shape == SIZE
        if task == "semantic":
            expected = np.array(NAMES)[result.semantic]
        elif task == "panoptic":
            of_id = {s["id"]: NAMES[s["category_id"]] for s in result.panoptic.segments} | {0: ""}
            expected = np.vectorize(of_id.get)(result.panoptic.ids)
            assert all(0.8 < score <= 1 for score in session.segment_scores.values())
        else:
            regions = instance_regions(result.instances, NAMES, result.colors)
            labels = ["", *(f"{region.name} {region.note} · " for region in regions)]
            expected = np.array(labels)[region_map(regions, SIZE)]
            assert "%" in regions[0].note
        assert all(map(str.startswith, names.flat, expected.flat))
        for text, count in zip(*np.unique(names[numbers > 0], return_counts=True), strict=True):
            if task == "semantic":
                assert text.endswith(f"{count / numbers.size:.1%} of the image")


def test_views_are_the_drawn_results_as_jpeg(session, views):
    for task in session.shown.tasks:
        drawn = session.shown.draw(task, scale=3)  # 140 pixels three times are below 512
        shown = np.asarray(Image.open(content(views[task]["image"])))
        assert shown.shape == drawn.shape
        assert np.abs(shown.astype(int) - drawn).mean() < 6
    assert Image.open(content(views["original"]["image"])).size == (3 * SIZE[1], 3 * SIZE[0])


def test_the_legend_has_the_classes_found_by_any_task(session):
    result = session.shown
    ids = {s["category_id"] for s in result.panoptic.segments} | {*result.semantic.flat}
    ids |= {*result.instances.pred_classes.tolist()}
    assert found_classes(result) == sorted(ids)
    session.hidden = frozenset([2])
    shown = view(session, "key")
    session.hidden = frozenset()
    colors = [f"#{bytes(METADATA['stuff_colors'][k]).hex()}" for k in sorted(ids)]
    assert [entry["color"] for entry in shown["legend"]] == colors
    assert [entry["id"] for entry in shown["legend"] if entry["hidden"]] == [2]
    hidden_names = [name for one in shown["views"] for name in one.get("regions", []) if "grass" in name]
    assert not hidden_names


def test_the_message_tells_the_size(session):
    message = view(session, "key")["message"]
    assert re.fullmatch(r"beach\.png, 140 × 90 pixels; the network took \d+\.\d\d s", message)
