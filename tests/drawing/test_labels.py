"""Labels: inside the image, apart from each other, legible at any size, and off small objects."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mask2former.drawing.labels import letter_height, place_labels, write_labels
from mask2former.drawing.placement import MOST_COVERED
from mask2former.drawing.regions import Region
from mask2former.drawing.shapes import mask_shape


def region(mask, name="cat", note="", mark=""):
    return Region(mask_shape(mask), (200, 0, 50), 0, name, note, mark)


def square(side, top, left, size):
    mask = np.zeros((side, side), bool)
    mask[top : top + size, left : left + size] = True
    return mask


def covered(label, mask):
    """Return the pixels of a mask under a label."""
    left, top, right, bottom = label.box
    return int(mask[top:bottom, left:right].sum())


@pytest.mark.parametrize("side", [128, 512, 4000])
def test_labels_are_legible_and_inside_at_every_size(side):
    mask = square(side, side // 2, side // 4, side // 3)
    (label,) = place_labels((side, side), [region(mask)])
    left, top, right, bottom = label.box
    assert label.text == "cat"
    assert max(11, side / 60) <= label.letter <= max(11, side / 40)
    assert mask[(top + bottom) // 2, (left + right) // 2]


@pytest.mark.parametrize(
    ("name", "shown"), [("a\nb\x1b[31m", r"a\nb\x1b[31m"), ("\ud800", r"\ud800"), ("c" * 5000, "ccc")]
)
def test_names_of_classes_may_be_anything(name, shown):
    (label,) = place_labels((1500, 1500), [region(square(1500, 0, 0, 1500), name)])
    assert label.text.startswith(shown) and len(label.text) <= 100
    write_labels(np.zeros((1500, 1500, 3), np.uint8), [region(square(1500, 0, 0, 1500), name)])


def test_the_label_of_a_ring_is_on_it():
    ring = square(300, 30, 30, 240) & ~square(300, 90, 90, 150)
    (label,) = place_labels((300, 300), [region(ring, "a")])
    left, top, right, bottom = label.box
    assert covered(label, ring) == (right - left) * (bottom - top)


def test_the_label_of_a_large_region_leaves_the_objects_on_it_free():
    """The region's middle, where its label would be, is full of small objects."""
    wall = square(600, 0, 0, 600)
    small = [square(600, top, left, 12) for top in range(200, 400, 20) for left in range(200, 400, 20)]
    labels = place_labels((600, 600), [region(mask, "dot") for mask in small] + [region(wall, "wall")])
    (label,) = [label for label in labels if label.text == "wall"]
    assert not any(covered(label, mask) for mask in small)


def test_the_label_of_a_small_object_touches_it_from_outside():
    mask = square(600, 300, 300, 30)
    (label,) = place_labels((600, 600), [region(mask, "bottle", "97%")])
    left, top, right, bottom = label.box
    assert label.text == "bottle 97%"
    assert covered(label, mask) == 0
    assert left <= 330 and right >= 300 and top <= 330 + 6 and bottom >= 300 - 6


def test_a_label_without_room_is_shortened_and_at_last_left_out():
    """In ever smaller images, which the object fills, the label loses its note, its end, and is gone."""
    texts = []
    for width in range(400, 10, -5):
        filled = region(np.ones((60, width), bool), "dining table", "97%", "#12")
        texts.append([label.text for label in place_labels((60, width), [filled])])
    different = [text for text, before in zip(texts, [None, *texts], strict=False) if text != before]
    shown = ["dining table #12, 97%", "dining table #12", "dining\N{HORIZONTAL ELLIPSIS} #12"]
    assert different == [*([text] for text in shown), []]


def test_of_two_objects_the_larger_gets_the_only_place():
    left, right = np.zeros((2, 40, 60), bool)
    left[:, :35], right[:, 35:] = True, True
    texts = [label.text for label in place_labels((40, 60), [region(right, "b"), region(left, "a")])]
    assert texts[0] == "a"


boxes = st.tuples(st.integers(0, 380), st.integers(0, 480), st.integers(3, 200), st.integers(3, 200))
layouts = st.lists(boxes, min_size=1, max_size=25)


def masks_of(layout):
    for top, left, height, width in layout:
        mask = np.zeros((400, 500), bool)
        mask[top : top + height, left : left + width] = True
        yield mask


@settings(max_examples=40, deadline=None)
@given(layouts, st.sampled_from(["cat", "traffic light", "floor-other-merged"]))
def test_in_any_layout_labels_are_apart_and_objects_stay_visible(layout, name):
    regions = [region(mask, name, f"{i}%") for i, mask in enumerate(masks_of(layout))]
    labels = place_labels((400, 500), regions)
    shown = np.zeros((400, 500), int)
    for left, top, right, bottom in (label.box for label in labels):
        assert 0 <= left < right <= 500 and 0 <= top < bottom <= 400
        shown[top:bottom, left:right] += 1
    assert shown.max() <= 1
    assert labels == place_labels((400, 500), regions)
    # what is visible of an object: small ones lie on top
    visible = np.full((400, 500), -1)
    for number, mask in sorted(enumerate(masks_of(layout)), key=lambda item: -item[1].sum()):
        visible[mask] = number
    for number in range(len(layout)):
        own = visible == number
        if own.sum() >= letter_height((400, 500)) ** 2:  # the cells of the grid are small beside it
            assert shown[own].mean() <= 1.5 * MOST_COVERED
