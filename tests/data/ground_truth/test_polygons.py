"""Polygons against a reference: corners moved step by step, then the whole image drawn by pycocotools."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from synthetic_coco import polygon
from transform_chains import transform_chains

from mask2former.data.augmentation import Crop, Flip, Pad, Resize
from mask2former.data.ground_truth.geometry import Geometry
from mask2former.data.ground_truth.polygons import draw_polygons

OFF = 0.0123456789  # keeps corners off the ties between fifths, where the last bit of a float decides


def mask_of(polygons, geometry, size):
    mask = np.zeros(geometry.size, dtype=bool)
    draw_polygons(polygons, geometry, size).paste(mask)
    return mask


def by_pycocotools(polygons, size):
    masks = [coco_mask.decode(coco_mask.frPyObjects([points], *size)[0]) for points in polygons]
    return np.any(masks, axis=0)


def moved(points, steps, size):
    """Return the corners and the image size after all steps; x is column 0."""
    corners = np.array(points, dtype=float).reshape(-1, 2)
    for step in steps:
        if isinstance(step, Flip):
            if step.axis is not None:
                column = 1 - step.axis
                corners[:, column] = size[step.axis] - corners[:, column]
        elif isinstance(step, Resize):
            corners *= (step.width / size[1], step.height / size[0])
            size = (step.height, step.width)
        else:
            corners -= (step.left, step.top)
            size = (step.height, step.width)
    return corners.ravel().tolist(), size


def flat(values):
    """Draw polygons x0, y0, x1, y1, ... of three to seven corners."""
    corners = st.lists(st.tuples(values, values), min_size=3, max_size=7)
    return corners.map(lambda points: list(itertools.chain.from_iterable(points)))


coordinates = st.integers(-80, 320).map(lambda quarters: quarters / 4 + OFF)


@settings(max_examples=300)
@given(
    transform_chains((Flip, Resize, Crop)),
    st.lists(flat(coordinates), min_size=1, max_size=3),
    st.tuples(st.integers(0, 5), st.integers(0, 5)),
)
def test_polygons_are_mapped_before_they_are_drawn(chain, polygons, padding):
    """Polygons may reach beyond the image; they are cut off there, also where padding follows."""
    first, steps = chain
    geometry = Geometry.identity(*first)
    for step in steps:
        geometry = step.apply_geometry(geometry)
    padded = Pad(*padding).apply_geometry(geometry)
    scaled, sizes = zip(*(moved(points, steps, first) for points in polygons), strict=True)
    expected = np.pad(by_pycocotools(scaled, sizes[0]), ((0, padding[0]), (0, padding[1])))
    np.testing.assert_array_equal(mask_of(polygons, padded, first), expected)


tenths = st.integers(-50, 450).map(lambda number: number / 10)


@settings(max_examples=200)
@given(st.lists(flat(tenths), min_size=1, max_size=2))
def test_ties_between_fifths_are_rounded_as_pycocotools_does(polygons):
    """A pixel may differ where a border, interpolated between corners, passes exactly between two pixels."""
    size = (30, 40)
    mask = mask_of(polygons, Geometry.identity(*size), size)
    assert np.count_nonzero(mask != by_pycocotools(polygons, size)) <= 1


def test_borders_are_smooth_when_enlarged():
    """Corners lie at half pixels, which a mask that is enlarged after drawing cannot show."""
    geometry = Resize(80, 80).apply_geometry(Geometry.identity(20, 20))
    expected = np.zeros((80, 80), dtype=bool)
    expected[10:42, 22:50] = True
    np.testing.assert_array_equal(mask_of(polygon(2.5, 5.5, 10.5, 12.5), geometry, (20, 20)), expected)


def test_polygons_outside_of_the_image_give_empty_masks():
    geometry = Crop(0, 0, 5, 5).apply_geometry(Geometry.identity(20, 20))
    assert draw_polygons(polygon(10, 10, 15, 15), geometry, (20, 20)).mask.size == 0
    for step in (Crop(0, 0, 2, 2), Pad(3, 3), Crop(2, 2, 3, 3)):
        geometry = step.apply_geometry(geometry)
    assert not mask_of(polygon(0, 0, 15, 15), geometry, (20, 20)).any()
