"""Colors of drawings: one for each class, a shade of it for each object, and those that contrast with it."""

import colorsys
from functools import lru_cache

import cv2
import numpy as np

Color = tuple[int, int, int]  # red, green, blue, 0 to 255

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
GOLDEN_RATIO = 0.618034  # a step around a circle after which all points so far are far apart
PLASTIC_RATIO = 1.324718  # its powers are such steps for two circles at once
LIGHTNESS = (30.0, 85.0)  # darkest and lightest shade, of 0 to 100
LIGHTNESS_SPAN = 45.0  # between the darkest and the lightest shade of one class
LABEL_LIGHTNESS = 38.0  # at most, behind white letters
MIN_CASING = 3.0  # contrast of a line and its casing
HUE_SPAN = 34.0  # degrees, between the shades of one class


def class_colors(num_classes: int) -> list[Color]:
    """Return a color for each class id; an id's color does not depend on `num_classes`."""
    hsv = (
        (k * GOLDEN_RATIO % 1, (0.9, 0.6, 0.75)[k % 3], (0.95, 0.85, 0.7)[k // 3 % 3])
        for k in range(num_classes)
    )
    return [_rgb(colorsys.hsv_to_rgb(*color)) for color in hsv]


def instance_color(color: Color, number: int) -> Color:
    """Return the shade for object `number`, such as the id of its track, of the class that has `color`.

    It depends on nothing else. Number 0 has the color itself, and numbers close to each other have shades
    that differ much: in lightness, and a little in hue.
    """
    if number == 0:
        return color
    lightness, a, b = _lab(color)
    darkest = np.clip(lightness - LIGHTNESS_SPAN / 2, LIGHTNESS[0], LIGHTNESS[1] - LIGHTNESS_SPAN)
    lightness = darkest + (lightness - darkest + number / PLASTIC_RATIO * LIGHTNESS_SPAN) % LIGHTNESS_SPAN
    turn = np.deg2rad(((number / PLASTIC_RATIO**2 + 0.5) % 1 - 0.5) * HUE_SPAN)
    turned = a * np.cos(turn) - b * np.sin(turn), a * np.sin(turn) + b * np.cos(turn)
    return _from_lab(lightness, *turned)


def casing(color: Color) -> Color:
    """Return black, or white for a dark color: of two lines in both, one contrasts with any image."""
    return WHITE if contrast(color, BLACK) < MIN_CASING else BLACK


def darkened(color: Color) -> Color:
    """Return a color of the same hue on which white letters are legible."""
    lightness, a, b = _lab(color)
    share = min(1.0, LABEL_LIGHTNESS / max(lightness, 1.0))
    return _from_lab(share * lightness, share * a, share * b)


def contrast(first: Color, second: Color) -> float:
    """Return the contrast of two colors, 1 to 21, as WCAG 2 defines it."""
    dark, light = sorted((_luminance(first), _luminance(second)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(color: Color) -> float:
    channels = (c / 255 for c in color)
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return sum(share * c for share, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _lab(color: Color) -> list[float]:
    pixel = np.array([[color]], np.float32) / 255
    return cv2.cvtColor(pixel, cv2.COLOR_RGB2Lab)[0, 0].tolist()


@lru_cache(maxsize=5000)
def _from_lab(lightness: float, a: float, b: float) -> Color:
    """Return the most saturated color of that hue, at most (a, b), that a screen can show so light."""
    saturation = np.linspace(1, 0, 21)
    lab = np.stack([np.full(21, lightness), a * saturation, b * saturation], axis=1).astype(np.float32)[None]
    rgb = cv2.cvtColor(lab, cv2.COLOR_Lab2RGB)
    errors = np.abs(cv2.cvtColor(rgb, cv2.COLOR_RGB2Lab) - lab).max(2)[0]  # large if channels were clipped
    return _rgb(rgb[0, int((errors < 1).argmax())].tolist())


def _rgb(channels: tuple[float, ...] | list[float]) -> Color:
    """Convert channels in [0, 1], clipped, to 0..255."""
    red, green, blue = (round(255 * min(max(channel, 0.0), 1.0)) for channel in channels)
    return red, green, blue
