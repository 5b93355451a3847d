"""Validation of COCO's two forms of masks, polygons and run lengths, for training and evaluation.

pycocotools checks neither: it loops forever over run lengths that end early, and allocates without limit for
points that are far away.

Each character of compressed run lengths minus 48 holds five bits of a number, lowest first, and a sixth bit
that is set if more characters follow; the highest of the five bits in the last one is the sign. From the
fourth run on, the number is the difference to the run before the previous one.

Shapes: `H, W` the image's sides in pixels, `P` corners of polygons.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mask2former.utils.messages import brief

FAR = 100  # times the image's longer side: the farthest point
LONGEST_BORDER = 1000  # times the image's longer side: the longest border of a polygon
MAX_BORDER = 10_000_000  # pixels, of which pycocotools keeps 80 bytes each
MAX_DIGITS = 7  # of a number in a compressed code: 35 bits, more than pycocotools stores
MAX_PIXELS = 2**32 - 1  # of a mask in pycocotools
CODES_AT_ONCE = 1024  # whose sums of 35-bit numbers fit into 64 bits for a million numbers each


def is_polygon(points: Any) -> bool:
    """Return True for a flat list or array x0, y0, x1, y1, x2, y2, ... of at least three points."""
    flat = points.ndim == 1 if isinstance(points, np.ndarray) else isinstance(points, list)
    return flat and len(points) >= 6 and len(points) % 2 == 0


def check_points(polygons: Sequence[Any], size: tuple[int, int]) -> np.ndarray:
    """Return the corners (P, 2) of polygons of an image of `size` (H, W).

    Raises:
        ValueError: a point is not a number, not finite or far outside, or a border is so long that drawing it
            would take too much memory.
    """
    corners = np.concatenate([np.fromiter(points, np.float64) for points in polygons]).reshape(-1, 2)
    if not (np.abs(corners) <= FAR * max(size)).all():
        raise ValueError(f"a point lies outside of {FAR} times the image's side")
    limit = min(LONGEST_BORDER * max(size), MAX_BORDER)
    steps = np.abs(np.diff(corners, axis=0)).max(axis=1)  # (P - 1,), also from a polygon to the next
    if steps.sum() > limit:
        ends = np.cumsum([len(points) // 2 for points in polygons])
        steps = np.append(steps, 0)
        steps[ends - 1] = 0
        longest = np.add.reduceat(steps, np.append(0, ends[:-1])).max()
        if longest > limit:
            raise ValueError(f"a polygon's border is {longest:.3g} pixels long; the limit is {limit:.3g}")
    return corners


def sound_polygons(masks: Sequence[Any], sizes: Sequence[tuple[int, int]]) -> set[int]:
    """Return the places of masks that are lists of polygons and surely pass `check_points`.

    For many masks this takes a fifth of its time. Masks with very long borders are left to it.

    Args:
        masks: values of any form.
        sizes: height and width of the image of each mask.
    """
    places = [
        place
        for place, mask in enumerate(masks)
        if isinstance(mask, list)
        and mask
        and all(isinstance(part, list) and is_polygon(part) for part in mask)
    ]
    values = [value for place in places for points in masks[place] for value in points]
    if not places or not {*map(type, values)} <= {int, float}:
        return set()
    try:
        distances = np.abs(np.array(values, np.float64))
    except OverflowError:  # of a whole number
        return set()
    counts = np.array([sum(map(len, masks[place])) for place in places])
    largest = np.maximum.reduceat(distances, counts.cumsum() - counts)
    sides = np.array([max(sizes[place]) for place in places])
    # No border is longer than twice the largest distance for each corner
    fits = (largest <= FAR * sides) & (largest * counts <= np.minimum(LONGEST_BORDER * sides, MAX_BORDER))
    return {place for place, fit in zip(places, fits.tolist(), strict=True) if fit}


def checked_rle(code: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Return an RLE of an image of `size` (H, W) for pycocotools; the runs of a list become integers.

    Raises:
        ValueError: the size is another one, or the counts do not cover the image; the message says what they
            look like.
    """
    for key in ("size", "counts"):
        if key not in code:
            raise ValueError(f"no '{key}' in an RLE")
    given, counts, pixels = code["size"], code["counts"], math.prod(size)
    given = tuple(given) if isinstance(given, list) else given
    if given != size:
        rotated = given == size[::-1]
        hint = "; 'size' must be [height, width], not [width, height]" if rotated else ""
        raise ValueError(f"a mask of (height, width) {brief(given)} for an image of {size}{hint}")
    if pixels > MAX_PIXELS:
        raise ValueError(f"a mask of (height, width) {size} has too many pixels for an RLE")
    if isinstance(counts, list):
        counts = [_run(value) for value in counts]
        total = sum(counts)
    elif isinstance(counts, (str, bytes)):
        total = count_pixels(counts)
    else:
        raise ValueError(f"the counts are {brief(counts)}, expected a list or a text")
    if total != pixels:
        what = f"the counts do not add up to the size: {brief(total)} of {pixels} pixels"
        raise ValueError(what + _what_counts_look_like(counts, pixels))
    return {"size": list(size), "counts": counts}


def _run(value: Any) -> int:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0 and value % 1 == 0:
        return int(value)
    pairs = "; (start, length) pairs are not COCO's" if isinstance(value, list) and len(value) == 2 else ""
    raise ValueError(f"the counts hold {brief(value)}, which is not the length of a run{pairs}")


def _what_counts_look_like(counts: list[int] | str | bytes, pixels: int) -> str:
    """Return the probable mistake in counts with a wrong sum, as part of a message."""
    if isinstance(counts, list) and len(counts) >= 4 and len(counts) % 2 == 0:
        starts, ends = counts[::2], [sum(counts[i : i + 2]) for i in range(0, len(counts), 2)]
        if all(end < start for end, start in zip(ends, starts[1:], strict=False)) and ends[-1] <= pixels + 1:
            return "; they look like (start, length) pairs, but must be lengths of runs only"
    total = sum(counts) if isinstance(counts, list) else count_pixels(counts)
    return "; the runs end early, perhaps the last one is missing" if total < pixels else ""


def count_pixels(counts: str | bytes) -> int:
    """Return the sum of the runs, which is the number of pixels of the mask if the code is valid.

    Raises:
        ValueError: these are no run lengths, or one is negative.
    """
    try:
        return int(_sums_of_runs([counts])[0])
    except ValueError as error:
        listed = re.fullmatch(rb"[\s\[]*\d+([\s,]+\d+)+[\s\]]*", _as_bytes(counts))
        hint = " but numbers as text, which must be a list" if listed else ""
        raise ValueError(f"{error}{hint}") from None


def pixel_counts(codes: Sequence[str | bytes]) -> list[int]:
    """Return the `count_pixels` of each code, -1 for what it refuses; many codes take half the time."""
    totals = []
    for start in range(0, len(codes), CODES_AT_ONCE):
        chunk = codes[start : start + CODES_AT_ONCE]
        try:
            totals += _sums_of_runs(chunk).tolist()
        except ValueError:  # of some code; which one, is found one by one
            totals += [_count_or_refuse(code) for code in chunk]
    return totals


def whole_codes(masks: Sequence[Any], sizes: Sequence[tuple[int, int]]) -> set[int]:
    """Return the places of the masks that are compressed RLEs of their image's size, as `checked_rle` takes.

    Args:
        masks: values of any form.
        sizes: height and width of the image of each mask.
    """
    codes = [
        (place, mask, size)
        for place, (mask, size) in enumerate(zip(masks, sizes, strict=True))
        if isinstance(mask, dict) and isinstance(mask.get("counts"), (str, bytes))
    ]
    totals = pixel_counts([mask["counts"] for _, mask, _ in codes])
    return {
        place
        for (place, mask, (height, width)), total in zip(codes, totals, strict=True)
        if total == height * width and mask.get("size") == [height, width]
    }


def _count_or_refuse(code: str | bytes) -> int:
    try:
        return int(_sums_of_runs([code])[0])
    except ValueError:
        return -1


def _as_bytes(counts: str | bytes) -> bytes:
    return counts.encode(errors="surrogatepass") if isinstance(counts, str) else counts


def _joined(codes: Sequence[str | bytes]) -> bytes:
    try:
        return "".join(codes).encode(errors="surrogatepass")  # type: ignore[arg-type]
    except TypeError:  # some are bytes
        return b"".join(map(_as_bytes, codes))


def _sums_of_runs(codes: Sequence[str | bytes]) -> np.ndarray:
    """Return the sum of the runs of each code (n,) int64; raise ValueError if one is no valid code."""
    digits = np.frombuffer(_joined(codes), np.uint8) - np.uint8(48)  # characters below "0" become large
    lengths = np.array([*map(len, codes)])
    continues, code_ends = digits > 31, lengths.cumsum()
    is_ascii = len(digits) == code_ends[-1]
    if not is_ascii or not lengths.all() or digits.max() > 63 or continues[code_ends - 1].any():
        raise ValueError("the counts are no run lengths")
    continued, first = np.flatnonzero(continues), code_ends - lengths
    numbers = _numbers(digits, continues, continued)
    return _sums(numbers, first - np.searchsorted(continued, first))


def _numbers(digits: np.ndarray, continues: np.ndarray, continued: np.ndarray) -> np.ndarray:
    """Return the numbers (m,), int64 if one is wide and else int32, of digits (d,); most have one digit.

    `continues` (d,) is True at the digits in front of the last of their number; `continued` are their places.
    """
    signed = (digits & 15).view(np.int8) - (digits & 16).view(np.int8)
    numbers = signed[~continues].astype(np.int32)
    rest, owners = continued, continued - np.arange(len(continued))
    for distance in range(1, MAX_DIGITS):  # from the last digit of the number
        if distance == MAX_DIGITS - 1 and len(rest):  # 30 bits have fitted
            numbers = numbers.astype(np.int64)
        follows = continues[rest + distance]
        at, owner = rest[~follows], owners[~follows]
        numbers[owner] = (numbers[owner] << 5) + (digits[at] & 31)
        rest, owners = rest[follows], owners[follows]
    if len(rest):
        raise ValueError("the counts hold a run that is too long")
    return numbers


def _sums(numbers: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Return the sums of the runs of codes whose first numbers are at the places `first`; changes `numbers`.

    From the fourth on, a number is the difference to the run before the previous one. So runs are the sums of
    every second number, where the first of a code, which no other refers to, counts as 0.
    """
    totals = numbers[first].astype(np.int64)
    least = totals.min()
    numbers[first] = 0
    for column in (0, 1):  # of every second number, across all codes
        runs = numbers[column::2].cumsum(dtype=np.int64)  # each too large by that before its code
        starts = (first + 1 - column) // 2
        counts = np.diff(starts, append=len(runs))
        has_some = counts > 0
        starts, counts = starts[has_some], counts[has_some]
        if len(starts):
            before = np.where(starts > 0, runs[starts - 1], 0)
            totals[has_some] += np.add.reduceat(runs, starts) - before * counts
            least = min(least, (np.minimum.reduceat(runs, starts) - before).min())
    if least < 0:
        raise ValueError("the counts hold a negative run")
    return totals
