"""Colors: stable, different for classes and for neighboring numbers of a class, and legible."""

import colorsys

import cv2
import numpy as np
import pytest

from mask2former.drawing.colors import WHITE, casing, class_colors, contrast, darkened, instance_color

EXTREMES = [(0, 0, 0), (255, 255, 255), (255, 255, 0), (0, 0, 142), (0, 255, 0), (127, 127, 127), (9, 9, 11)]
COLORS = [*class_colors(150), *EXTREMES]


def test_class_colors_do_not_depend_on_their_number_and_differ():
    many = class_colors(200)
    assert class_colors(7) == many[:7]
    assert len(set(many)) == 200
    distances = np.abs(np.diff(np.array(many), axis=0)).sum(1)
    assert distances.min() > 60


@pytest.mark.parametrize("color", EXTREMES)
def test_the_first_object_of_a_class_has_its_color_and_the_others_have_shades(color):
    shades = [instance_color(color, number) for number in range(20)]
    assert shades[0] == color
    steps = np.abs(np.diff(np.array(shades), axis=0)).max(1)
    assert steps.min() >= 20  # of 255, in some channel
    assert all(0 <= channel <= 255 for shade in shades for channel in shade)


def test_shades_are_those_of_a_number_in_any_order():
    numbers = [7, 0, 123456, 7, 3]
    assert [instance_color((200, 100, 50), n) for n in numbers] == [
        instance_color((200, 100, 50), n) for n in [7, 0, 123456, 7, 3]
    ]


@pytest.mark.parametrize("hue", np.arange(0, 1, 0.125))
def test_shades_keep_about_the_hue_of_their_class(hue):
    color = tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, 0.7, 0.8))
    for number in range(1, 30):
        shade = colorsys.rgb_to_hsv(*(channel / 255 for channel in instance_color(color, number)))
        assert abs((shade[0] - hue + 0.5) % 1 - 0.5) < 0.15


def test_the_shades_of_one_image_differ():
    """Any two of the first eight shades differ, by the distance of colors in CIELAB."""
    for color in class_colors(40):
        shades = np.array([[instance_color(color, number) for number in range(8)]], np.float32) / 255
        lab = cv2.cvtColor(shades, cv2.COLOR_RGB2Lab)[0]
        distances = np.linalg.norm(lab[:, None] - lab[None], axis=2)[np.triu_indices(8, 1)]
        assert distances.min() > 2 * 2.3  # 2.3 is just noticeable


def test_the_contrast_is_that_of_wcag():
    assert contrast((0, 0, 0), WHITE) == pytest.approx(21)
    assert contrast(WHITE, (119, 119, 119)) == pytest.approx(4.48, abs=0.005)  # the well-known gray
    assert contrast((255, 0, 0), WHITE) == contrast(WHITE, (255, 0, 0)) == pytest.approx(4.0, abs=0.005)


@pytest.mark.parametrize("gray", range(0, 256, 15))
def test_on_any_background_a_line_or_its_casing_shows(gray):
    for color in COLORS:
        shown = max(contrast(line, (gray, gray, gray)) for line in (color, casing(color)))
        assert shown >= 1.7


def test_white_letters_are_legible_on_darkened_colors():
    assert min(contrast(darkened(color), WHITE) for color in COLORS) > 6
    assert darkened((20, 30, 40)) == (20, 30, 40)
