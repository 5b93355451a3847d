"""Reading of images from paths, URLs, arrays, tensors, Pillow images and open files, and writing of images.

An image of any format is read as a viewer shows it: rotated according to EXIF, as 8-bit RGB.

Shapes: `H, W` the image's sides in pixels.
"""

import io
import mmap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from math import prod
from os import PathLike, fspath
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from mask2former.utils.atomic_files import write_errors_named
from mask2former.utils.memory import IN_MEMORY, file_of, new_array, release_pages
from mask2former.utils.messages import InputError
from mask2former.utils.storage import contents_of, to_file

Array = np.ndarray[Any, np.dtype[Any]]
ImageSource = str | PathLike[str] | Array | Tensor | Image.Image | bytes | BinaryIO

EXTENSIONS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
    ".gif",
    ".ppm",
    ".pgm",
    ".jfif",
    ".jp2",
    ".avif",
)
WIDE_MODES = ("I", "I;16", "I;16B", "I;16L")  # Pillow's gray images of 16 bits
STRIP_PIXELS = 2**20  # pixels of a large image that are converted at a time
MAX_DEFLATION = 1032  # bytes that a byte of a PNG can stand for
PNG_LEVEL = 4  # of 9: in less than half the time of Pillow's 6, files a few percent larger
UPRIGHT = 1  # EXIF orientation of an image that needs no rotation
SIDEWAYS = range(5, 9)  # EXIF orientations of images that are rotated by 90 degrees
TIFF_WIDTH, TIFF_HEIGHT = 256, 257  # tags
MAX_MEGAPIXELS = 200.0  # default of INPUT.MAX_MEGAPIXELS
LIMIT_NAMES = "(INPUT.MAX_MEGAPIXELS or --max-megapixels)"  # in messages

_limit = MAX_MEGAPIXELS  # of this process
_pillow_limit = threading.Lock()  # held while Pillow's own limit of pixels is switched off


class ImageError(InputError):
    """A source that is not a usable image; the message has the source and the reason."""


class Header(NamedTuple):
    """The size (H, W) of the pixels as a file stores them, and the EXIF orientation, 1 to 8."""

    stored: tuple[int, int]
    orientation: int

    @property
    def upright(self) -> tuple[int, int]:
        """Return (H, W) as a viewer shows the image."""
        return self.stored[::-1] if self.orientation in SIDEWAYS else self.stored


class Turn(NamedTuple):
    """How stored pixels become upright: rows and columns are swapped first, then each is reversed or not."""

    swaps: bool
    flips_x: bool
    flips_y: bool

    def points(self, xy: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Return points (n, 2) of the stored image in the upright image of `size` (H, W)."""
        turned = xy[:, ::-1].copy() if self.swaps else xy.copy()
        for axis, flips in enumerate((self.flips_x, self.flips_y)):
            if flips:
                turned[:, axis] = size[1 - axis] - turned[:, axis]
        return turned

    def mask(self, stored: np.ndarray) -> np.ndarray:
        """Return the mask (H, W) of a mask of the stored pixels."""
        turned = stored.T if self.swaps else stored
        return turned[:: -1 if self.flips_y else 1, :: -1 if self.flips_x else 1]


TURNS = {  # by EXIF orientation
    2: Turn(False, True, False),
    3: Turn(False, True, True),
    4: Turn(False, False, True),
    5: Turn(True, False, False),
    6: Turn(True, True, False),
    7: Turn(True, True, True),
    8: Turn(True, False, True),
}


def set_pixel_limit(megapixels: float) -> None:
    """Set the most megapixels of images and label maps that this process decodes."""
    global _limit
    _limit = megapixels


def pixel_limit() -> float:
    """Return the most megapixels of images and label maps that this process decodes."""
    return _limit


@contextmanager
def open_image(file: Any, name: Any, max_megapixels: float | None = None) -> Iterator[ImageFile]:
    """Open an image by its header, which must not promise more pixels than the limit; close it at the end.

    The limit is `max_megapixels`, or that of the process. It stands in for Pillow's, which warns and advises.

    Raises:
        ImageError: the image is larger, or PostScript, which Pillow would let Ghostscript run.
    """
    with _pillow_limit:
        pillow_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(file)
        finally:
            Image.MAX_IMAGE_PIXELS = pillow_limit
    with image:
        if image.format == "EPS":
            raise ImageError(f"{name}: is PostScript, a program that would have to be run; save it as PNG")
        _check_size(image, name, max_megapixels)
        _check_length(image, name)
        yield image


def read_header(path: str | PathLike[str]) -> Header:
    """Return the size and orientation of an image file, which is not decoded.

    Raises:
        ImageError: it is missing, no image, or too large.
    """
    try:
        with to_file(path).open("rb") as file, open_image(file, path) as image:
            width, height = image.size
            if isinstance(image, TiffImageFile):  # some versions of Pillow give the size after rotation
                width, height = image.tag_v2[TIFF_WIDTH], image.tag_v2[TIFF_HEIGHT]
            orientation = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
            return Header((height, width), orientation if orientation in range(1, 9) else UPRIGHT)
    except ImageError:
        raise
    except Exception as error:  # Pillow reports damage by many kinds of error
        raise ImageError(f"{path}: not a readable image ({error})") from error


def _check_size(image: Image.Image, name: Any, max_megapixels: float | None) -> None:
    limit = _limit if max_megapixels is None else max_megapixels
    if image.width * image.height > limit * 1e6:
        size = f"{image.width} x {image.height} pixels, {image.width * image.height / 1e6:g} megapixels"
        raise ImageError(f"{name}: is of {size}; the limit is {limit:g} {LIMIT_NAMES}")


def _check_length(image: ImageFile, name: Any) -> None:
    """Refuse a PNG too short for its pixels, which Pillow would fill with zeros."""
    if image.format != "PNG" or image.fp is None:
        return
    place = image.fp.tell()
    length = image.fp.seek(0, io.SEEK_END)
    image.fp.seek(place)
    if image.height * (1 + image.width / 8) > MAX_DEFLATION * length:  # a byte a row, and a bit a pixel
        size = f"{image.width} x {image.height} pixels"
        raise ImageError(f"{name}: is truncated: {length} bytes cannot hold {size}")


def read_image(
    source: ImageSource,
    channels: str = "RGB",
    max_megapixels: float | None = None,
    *,
    in_files: bool = False,
) -> Array:
    """Return an image as (H, W, 3) uint8 RGB.

    Arrays and tensors are RGB, or BGR as OpenCV's with `channels="BGR"`. They are (H, W), (H, W, 1),
    (H, W, 3) or (H, W, 4), of bool, uint8 or uint16; a tensor may also be (1 or 3 or 4, H, W). Gray becomes
    three equal channels, transparency is dropped, and 16 bits are scaled to 8. Files, also bytes of one and
    files opened to read binary, tell their order themselves. `max_megapixels` is the limit of files and
    Pillow images, by default that of the process. With `in_files`, a large array lies in a file: in the image
    itself, if that holds RGB as it is (TIFF and PPM without compression), or in a temporary one.

    Raises:
        ImageError: no such file, not an image, a truncated one, one above the limit, or an array of another
            kind.
        ValueError: another `channels`.
    """
    if channels not in ("RGB", "BGR"):
        raise ValueError(f'channels is {channels!r}; type channels="RGB" or channels="BGR"')
    if isinstance(source, Tensor):
        source = _array(source)
    if isinstance(source, np.ndarray):
        _check_range(source)
        image = _from_array(source)
        return image if channels == "RGB" else np.ascontiguousarray(image[..., ::-1])
    if isinstance(source, Image.Image):
        _check_size(source, "the given image", max_megapixels)
        return _from_pillow(source, "the given image", in_files)
    if isinstance(source, bytes | bytearray):
        return _from_file(lambda: io.BytesIO(source), "the given bytes", max_megapixels, in_files)
    if isinstance(source, str | PathLike):
        name = fspath(source)
        return _from_file(lambda: to_file(name).open("rb"), name, max_megapixels, in_files)
    if isinstance(source, io.TextIOBase):
        raise ImageError(f'{getattr(source, "name", "the file")}: is opened as text; type open(path, "rb")')
    if hasattr(source, "read"):
        name = str(getattr(source, "name", "the given file"))
        return _from_file(lambda: nullcontext(source), name, max_megapixels, in_files)
    hint = ""
    if source is None:
        hint = " (cv2.imread returns None for a file that it cannot read)"
    raise ImageError(
        f"{type(source).__name__} is not an image{hint}; give a path, a URL, an array, a tensor, "
        "a Pillow image, bytes or an open file, or a list of these"
    )


def write_image(path: str | PathLike[str], image: Array) -> None:
    """Write (H, W, 3) uint8 RGB in the format of the suffix, creating the folder.

    Raises:
        ImageError: the suffix is not that of an image format.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if file_of(image) is not None:
        return write_in_strips(path, image.shape, lambda rows: image[rows], image)
    try:
        with write_errors_named(path):
            Image.fromarray(image).save(path, quality=95, compress_level=PNG_LEVEL)
    except (ValueError, KeyError) as error:
        raise ImageError(f"{path}: its suffix is not that of an image format; use .png or .jpg") from error


def write_in_strips(
    path: str | PathLike[str], shape: tuple[int, ...], strip: Callable[[slice], Array], *sources: Array
) -> None:
    """Write an image of `shape`, (H, W) or (H, W, 3) RGB, larger than memory, of strips given by their rows.

    It takes a temporary file of that size, which OpenCV encodes row by row. `sources` are the arrays that the
    strips are made of.

    Raises:
        ImageError: the suffix is not that of an image format, or the format has no images of this size.
    """
    pixels = new_array(shape, strip(slice(0, 1)).dtype)
    for rows in _strips(shape):
        values = strip(rows)
        pixels[rows] = values[..., ::-1] if values.ndim == 3 else values
        for array in (pixels, *sources):
            release_pages(array)
    is_png = Path(path).suffix.lower() == ".png"
    options = [cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL] if is_png else []  # JPEG: of quality 95
    try:
        with write_errors_named(path):
            written = cv2.imwrite(str(path), pixels, options)
    except cv2.error:
        written = False
    if not written:
        size = f"{shape[1]} x {shape[0]} pixels"
        raise ImageError(f"{path}: an image of {size} cannot be written there; use .png, .tif or .jpg")


def _from_file(opened: Callable[[], Any], name: str, max_megapixels: float | None, in_files: bool) -> Array:
    """Return the image of a file; `opened` returns a context manager of it."""
    try:
        with opened() as file, open_image(file, name, max_megapixels) as image:
            mapped = _stored_pixels(image) if in_files else None
            return _from_pillow(image, name, in_files) if mapped is None else mapped
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise ImageError(f"{name}: is a folder, not an image; {contents_of(name)}") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name}: is not an image that Pillow can read") from None
    except ImageError:
        raise
    except Exception as error:  # Pillow reports damage by many kinds of errors
        reason = str(error).removeprefix(f"{name}: ")
        raise ImageError(f"{name}: cannot be read ({reason})") from error


def _stored_pixels(image: ImageFile) -> Array | None:
    """Return the pixels (H, W, 3) of a large upright file that holds them as they are, None for others."""
    shape = image.height, image.width, 3
    upright = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT) == UPRIGHT
    plain = [tile for tile in image.tile if tile[0] == "raw" and tile[3] in ("RGB", ("RGB", 0, 1))]
    if not upright or not plain or len(plain) != len(image.tile) or prod(shape) <= IN_MEMORY:
        return None
    row, first = 3 * image.width, plain[0][2]
    strips = [(*tile[1][:3], tile[2]) for tile in plain if tile[1]]
    if any(x or right != image.width or offset != first + y * row for x, y, right, offset in strips):
        return None  # tiles, or strips that do not follow each other
    try:
        mapped = mmap.mmap(image.fp.fileno(), 0, access=mmap.ACCESS_READ)  # type: ignore[union-attr]
        return np.frombuffer(mapped, np.uint8, prod(shape), first).reshape(shape)
    except (OSError, ValueError):  # no file of the system, or a truncated one, which Pillow reports
        return None


def _from_pillow(image: Image.Image, name: str, in_files: bool = False) -> Array:
    if image.getexif().get(ExifTags.Base.Orientation, UPRIGHT) != UPRIGHT:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ImageError(f"{name}: holds floats, whose range is unknown; save it with 8 or 16 bits")
    shape = image.height, image.width, 3
    array = new_array(shape, np.uint8) if in_files else np.empty(shape, np.uint8)
    for rows in _strips(shape):
        array[rows] = _rgb(image.crop((0, rows.start, image.width, rows.stop)))
        release_pages(array)
    return array


def _strips(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield the rows of strips of (H, W, ...) that have about STRIP_PIXELS each."""
    step = max(1, STRIP_PIXELS // shape[1])
    return (slice(top, min(top + step, shape[0])) for top in range(0, shape[0], step))


def _rgb(image: Image.Image) -> Array:
    if image.mode in WIDE_MODES:
        return _from_array(np.asarray(image).clip(0, 2**16 - 1).astype(np.uint16))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _array(tensor: Tensor) -> Array:
    """Return a tensor as an array, channels last."""
    if tensor.ndim == 3 and tensor.shape[0] in (1, 3, 4):
        tensor = tensor.movedim(0, -1)
    return (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().numpy()


def _check_range(array: Array) -> None:
    """Raise ImageError for 8 bits in an array of 16, which would be a nearly black image."""
    if array.dtype == np.uint16 and 0 < array.max(initial=0) <= 255:
        raise ImageError('an array of uint16 has no value above 255; type array.astype("uint8")')


def _from_array(array: Array) -> Array:
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise ImageError(f"an array of shape {array.shape} is not an image; {_shape_advice(array.shape)}")
    if array.dtype == bool:
        array = array * np.uint8(255)
    elif array.dtype == np.uint16:
        array = (array // 257).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ImageError(f"an array of {array.dtype} is not an image; {_dtype_advice(array)}")
    return np.ascontiguousarray(np.broadcast_to(array[..., :3], (*array.shape[:2], 3)))


def _shape_advice(shape: tuple[int, ...]) -> str:
    if len(shape) == 3 and shape[0] in (1, 3, 4) and 0 not in shape:
        return "type array.transpose(1, 2, 0), which puts the channels last"
    if len(shape) == 4 and 0 not in shape:
        return "type list(array) if it is a batch of images"
    return "expected (H, W) or (H, W, 3)"


def _dtype_advice(array: Array) -> str:
    expected = "expected uint8 from 0 to 255"
    if array.dtype.kind not in "iuf" or not (array.min() >= 0 and array.max() <= 255):
        return expected
    scaled = array.dtype.kind == "f" and array.max() <= 1
    return f'{expected}: type {"(array * 255)" if scaled else "array"}.astype("uint8")'
