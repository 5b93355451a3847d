"""Reading of images from paths, URLs, arrays and Pillow images, and writing of images.

An image of any format is read as a viewer shows it: rotated according to EXIF, as 8-bit RGB.

Shapes: `H, W` the image's sides in pixels.
"""

from os import PathLike, fspath
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from mask2former.utils.label_maps import Array
from mask2former.utils.storage import to_file

ImageSource = str | PathLike[str] | Array | Image.Image

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
WIDE_MODES = ("I", "I;16", "I;16B", "I;16L")  # Pillow's gray images of 16 bits
UPRIGHT = 1  # EXIF orientation of an image that needs no rotation


class ImageError(ValueError):
    """A source that is not a usable image; the message has the source and the reason."""


def read_image(source: ImageSource) -> Array:
    """Return an image as (H, W, 3) uint8 RGB.

    Gray becomes three equal channels, transparency is dropped, and 16 bits are scaled to 8. An array is
    (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), of bool, uint8 or uint16, in the order RGB.

    Raises:
        ImageError: no such file, not an image, a truncated one, or an array of another kind.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _from_pillow(source, "the given image")
    if not isinstance(source, str | PathLike):
        raise ImageError(
            f"a {type(source).__name__} is no image; give a path, a URL, an array or a Pillow image"
        )
    name = fspath(source)
    try:
        with to_file(name).open("rb") as file, Image.open(file) as image:
            return _from_pillow(image, name)
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise ImageError(f"{name}: is a folder, not an image") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name}: is not an image that Pillow can read") from None
    except ImageError:
        raise
    except Exception as error:  # Pillow reports damage by many kinds of errors
        reason = str(error).removeprefix(f"{name}: ")
        raise ImageError(f"{name}: cannot be read ({reason})") from error


def write_image(path: str | PathLike[str], image: Array) -> None:
    """Write (H, W, 3) uint8 RGB in the format of the suffix, creating the folder.

    Raises:
        ImageError: the suffix is not that of an image format.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        Image.fromarray(image).save(path, quality=95)
    except (ValueError, KeyError) as error:
        raise ImageError(f"{path}: its suffix is not that of an image format; use .png or .jpg") from error


def _from_pillow(image: Image.Image, name: str) -> Array:
    if image.getexif().get(ExifTags.Base.Orientation, UPRIGHT) != UPRIGHT:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ImageError(f"{name}: holds floats, whose range is unknown; save it with 8 or 16 bits")
    if image.mode in WIDE_MODES:
        return _from_array(np.asarray(image).clip(0, 2**16 - 1).astype(np.uint16))
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _from_array(array: Array) -> Array:
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise ImageError(f"an array of shape {array.shape} is no image; expected (H, W) or (H, W, 3)")
    if array.dtype == bool:
        array = array * np.uint8(255)
    elif array.dtype == np.uint16:
        array = (array // 257).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ImageError(f"an array of {array.dtype} is no image; expected uint8 from 0 to 255")
    return np.ascontiguousarray(np.broadcast_to(array[..., :3], (*array.shape[:2], 3)))
