"""Images that hold labels instead of colors: semantic label maps and panoptic segment ids.

A panoptic PNG is RGB; the id of a pixel's segment is R + 256 * G + 65536 * B, and 0 is void.

Shapes: `H, W` the image's sides in pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from PIL.ImageFile import ImageFile

from mask2former.utils.atomic_files import write_errors_named
from mask2former.utils.image_io import (
    TURNS,
    UPRIGHT,
    Array,
    ImageError,
    open_image,
    write_in_strips,
)
from mask2former.utils.memory import file_of
from mask2former.utils.messages import brief
from mask2former.utils.storage import PathLike, to_file

VOID = 0
UNKNOWN = -1  # no label is negative
LABEL_ORIENTATION = "label_orientation"  # key of records whose PNGs show the stored pixels: EXIF's value
IGNORE_LABEL = 255  # of label maps by default
MAX_SEGMENT_ID = 256**3 - 1
LABEL_MODES = ("1", "L", "P", "I", "I;16", "I;16B")
SCALES = {"L;2": 255 // 3, "L;4": 255 // 15}  # by which Pillow multiplies gray values of 2 and 4 bits
LOSSY = ("JPEG", "MPO", "jpeg")  # formats, also under the suffix .png, and a compression of TIFF
SEGMENT_MODES = ("RGB", "RGBA")


def read_label_map(path: PathLike) -> Array:
    """Read the label of each pixel, (H, W) integers: gray values of up to 16 bits, or palette indices.

    Raises:
        ImageError: the file is missing, not a readable image, compressed as JPEG, or has color channels.
    """
    image, scale = _open(path, LABEL_MODES)
    labels = np.asarray(image)
    if scale > 1:
        return labels // np.uint8(scale)
    return labels.astype(np.uint8 if labels.dtype == bool else labels.dtype.newbyteorder("="), copy=False)


def relabel(labels: Array, table: Mapping[int, int]) -> Array:
    """Replace each label (H, W) by its value in `table`, which must not be empty; int32.

    Raises:
        ValueError: the table lacks a label.
    """
    assert min(table) >= 0  # else it would be counted from the end
    top = max(0, min(max(table), int(labels.max(initial=0))))  # a larger key may be larger than memory
    shown = {label: value for label, value in table.items() if label <= top}
    lookup = np.full(top + 1, UNKNOWN, np.int32)
    lookup[list(shown)] = list(shown.values())
    within = labels.min(initial=0) >= 0 and labels.max(initial=0) < len(lookup)
    found = lookup[labels] if within else np.full(1, UNKNOWN, np.int32)
    if found.min(initial=0) == UNKNOWN:
        unknown = labels[~np.isin(labels, list(table))][0]
        raise ValueError(f"label {unknown} is not among the known labels {brief(sorted(table))}")
    return found


def read_segment_ids(path: PathLike) -> Array:
    """Read the segment id of each pixel of a panoptic PNG, (H, W) uint32; 0 is void.

    Raises:
        ImageError: the file is missing, not a readable image, compressed as JPEG, or not in color.
    """
    image, _ = _open(path, SEGMENT_MODES)
    if image.mode != "RGB":
        image = image.convert("RGB")  # drops alpha
    four_bytes = np.frombuffer(image.tobytes("raw", "RGBX"), "<u4")
    return four_bytes.reshape(image.height, image.width) & np.uint32(MAX_SEGMENT_ID)


def upright(labels: Array, record: Mapping[str, Any]) -> Array:
    """Return the labels or ids of a record's PNG as the upright image shows them."""
    orientation = record.get(LABEL_ORIENTATION, UPRIGHT)
    if orientation == UPRIGHT:
        return labels
    return np.ascontiguousarray(TURNS[orientation].mask(labels))


def semantic_from_panoptic(ids: Array, segments: Sequence[Mapping[str, Any]], ignore_label: int) -> Array:
    """Convert ids (H, W) to labels (H, W) int32: the class of each listed segment, crowd regions included."""
    labels = np.full(ids.shape, ignore_label, np.int32)
    for segment in segments:
        labels[ids == segment["id"]] = segment["category_id"]
    return labels


def segment_channels(ids: Array) -> Array:
    """Return the pixels (H, W, 3) uint8 of a panoptic PNG; `ids` (H, W) are integers in [0, 2^24)."""
    assert np.all((ids >= 0) & (ids <= MAX_SEGMENT_ID))
    channels = np.ascontiguousarray(ids, "<u4").view(np.uint8).reshape(*ids.shape, 4)[..., :3]
    return np.ascontiguousarray(channels)


def write_segment_ids(path: PathLike, ids: Array) -> None:
    """Write a panoptic PNG; `ids` (H, W) are integers in [0, 2^24)."""
    if file_of(ids) is not None:
        return write_in_strips(path, (*ids.shape, 3), lambda rows: segment_channels(ids[rows]), ids)
    with write_errors_named(path):
        Image.fromarray(segment_channels(ids)).save(path)


def write_label_map(path: PathLike, labels: Array, kind: Any = None) -> None:
    """Write labels (H, W), bool, uint8 or uint16, as a gray PNG or TIFF of the same depth.

    Others must fit into `kind`, one of these.
    """
    if file_of(labels) is not None:
        return write_in_strips(path, labels.shape, lambda rows: labels[rows].astype(kind), labels)
    labels = labels if kind is None else labels.astype(kind)
    with write_errors_named(path):
        Image.fromarray(labels).save(path)


def nearest_pixels(size: int, new_size: int) -> Array:
    """Return the indices (new_size,) that Pillow's NEAREST takes when it resizes a line of `size` pixels."""
    line = Image.fromarray(np.arange(size, dtype=np.int32)[None])
    return np.asarray(line.resize((new_size, 1), Image.Resampling.NEAREST))[0]


def _open(path: PathLike, modes: tuple[str, ...]) -> tuple[Image.Image, int]:
    """Return an image, rotated according to EXIF as images are, and the factor that scales its values."""
    try:
        with to_file(path).open("rb") as file, open_image(file, path) as image:
            kinds = image.format, image.info.get("compression")
            scale = _scale(image)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except ImageError:
        raise
    except Exception as error:  # Pillow raises many kinds of error for damaged files
        reason = str(error).removeprefix(f"{path}: ")
        raise ImageError(f"{path}: not a readable image ({reason})") from error
    if any(kind in LOSSY for kind in kinds):
        raise ImageError(f"{path}: is compressed as JPEG, which changes values; labels must be PNG")
    if image.mode not in modes:
        raise ImageError(f"{path}: the image's mode is {image.mode}, expected one of {', '.join(modes)}")
    return image, scale


def _scale(image: ImageFile) -> int:
    """Return the factor by which Pillow will multiply the gray values of an image not decoded yet."""
    arguments = image.tile[0][3] if image.tile else None
    layout = arguments[0] if isinstance(arguments, tuple) else arguments
    return SCALES.get(str(layout)[:3], 1)
