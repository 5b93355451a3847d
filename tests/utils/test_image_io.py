"""Reading of images of all kinds, and of files that are not images."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from huge_image import save_huge_png
from PIL import Image
from web_server import web

from mask2former.config.defaults import DEFAULTS
from mask2former.utils.image_io import (
    EXTENSIONS,
    MAX_MEGAPIXELS,
    ImageError,
    pixel_limit,
    read_image,
    set_pixel_limit,
    write_image,
)
from mask2former.utils.messages import escaped

__all__ = ["web"]

H, W = 5, 7
ROTATED_LEFT = 8  # EXIF orientation: rotate by 90 degrees counter-clockwise for display


@pytest.fixture
def rgb():
    return np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)


def saved(folder, image, name="image.png", **options):
    image.save(folder / name, **options)
    return folder / name


def test_png_by_path_string_array_and_pillow_are_the_same(tmp_path, rgb):
    path = saved(tmp_path, Image.fromarray(rgb))
    for source in (path, str(path), rgb, Image.fromarray(rgb)):
        np.testing.assert_array_equal(read_image(source), rgb)
        assert read_image(source).dtype == np.uint8 and read_image(source).flags.c_contiguous
    read_image(path)[:] = 0  # writable


@pytest.mark.parametrize(
    "wrap", [np.asarray, torch.from_numpy, lambda rgb: torch.from_numpy(rgb).movedim(2, 0)]
)
def test_arrays_and_tensors_are_rgb_or_bgr(rgb, wrap):
    np.testing.assert_array_equal(read_image(wrap(rgb)), rgb)
    bgr = rgb[..., ::-1].copy()
    np.testing.assert_array_equal(read_image(wrap(bgr), "BGR"), rgb)
    assert read_image(wrap(bgr), "BGR").flags.c_contiguous
    with pytest.raises(ValueError, match="channels is 'bgr'; type channels=\"RGB\" or"):
        read_image(wrap(rgb), "bgr")


def test_bytes_open_files_and_home_folders_are_read(tmp_path, rgb, monkeypatch):
    path = saved(tmp_path, Image.fromarray(rgb))
    monkeypatch.setenv("HOME", str(tmp_path))
    with path.open("rb") as file:
        for source in (file, file, path.read_bytes(), io.BytesIO(path.read_bytes()), "~/image.png"):
            np.testing.assert_array_equal(read_image(source), rgb)
            np.testing.assert_array_equal(read_image(source, "BGR"), rgb)
        assert not file.closed


def test_exif_rotation_is_applied(tmp_path, rgb):
    exif = Image.Exif()
    exif[0x0112] = ROTATED_LEFT
    path = saved(tmp_path, Image.fromarray(rgb), exif=exif)
    np.testing.assert_array_equal(read_image(path), np.rot90(rgb))


def test_images_of_other_modes_become_rgb(tmp_path, rgb):
    gray, mask = rgb[..., 0], rgb[..., 0] > 127
    rgba = np.dstack([rgb, np.full((H, W), 128, np.uint8)])
    for array, expected in (
        (gray, np.stack([gray] * 3, axis=-1)),
        (mask, np.stack([mask * 255] * 3, axis=-1)),
        (rgba, rgb),  # transparency is dropped
    ):
        np.testing.assert_array_equal(read_image(saved(tmp_path, Image.fromarray(array))), expected)
        np.testing.assert_array_equal(read_image(array), expected)
    np.testing.assert_array_equal(read_image(gray[..., None]), read_image(gray))
    np.testing.assert_array_equal(read_image(Image.fromarray(gray).convert("LA")), read_image(gray))


def test_palettes_are_applied(tmp_path):
    palette = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), mode="P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    image = read_image(saved(tmp_path, palette))
    assert image.tolist() == [[[10, 20, 30], [200, 100, 50]], [[200, 100, 50], [10, 20, 30]]]


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    wide = np.array([[0, 256 * 100 + 77, 65535]], np.uint16)
    path = saved(tmp_path, Image.fromarray(wide))
    for source in (path, wide):
        assert read_image(source)[0, :, 0].tolist() == [0, 99, 255]


@pytest.mark.parametrize("suffix", EXTENSIONS)
def test_every_suffix_that_folders_are_searched_for_can_be_read(tmp_path, suffix):
    image = Image.new("L" if suffix == ".pgm" else "RGB", (W, H), "gray")
    assert np.abs(read_image(saved(tmp_path, image, f"x{suffix}")).astype(int) - 128).max() <= 2


def test_eight_bits_in_an_array_of_sixteen_are_an_error():
    with pytest.raises(ImageError, match=r'no value above 255; type array\.astype\("uint8"\)'):
        read_image(np.array([[0, 255]], np.uint16))
    assert not read_image(np.zeros((2, 3), np.uint16)).any()


def test_cmyk_becomes_rgb(tmp_path):
    path = saved(tmp_path, Image.new("CMYK", (W, H), (0, 255, 255, 0)), "red.jpg", quality=95)
    assert np.abs(read_image(path).astype(int) - [255, 0, 0]).max() < 12


def test_a_png_too_short_for_its_pixels_is_an_error_before_it_is_decoded():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 12, 14_500_000, 8, 4, 0, 0, 0)  # gray and alpha
    rows = zlib.compress(bytes(4 * 25))  # the first four
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    with pytest.raises(ImageError, match=r"is truncated: 69 bytes cannot hold 12 x 14500000 pixels"):
        read_image(content)


@pytest.mark.parametrize("size", [(12, 300_000), (300_000, 12), (2000, 2000)])
def test_the_best_compressed_pngs_are_read(tmp_path, size):
    path = saved(tmp_path, Image.new("1", size), "black.png", compress_level=9)
    assert not read_image(path).any()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("image.jpg", b"not an image", "is not an image that Pillow can read"),
        ("image.jpg", b"", "is not an image that Pillow can read"),
        ("image.jpg", None, "no such file"),
        ("", None, "is a folder, not an image; it holds 1 .tiff"),
        ("a.ppm", b"P6\n4 x\n255\n", "cannot be read"),
        ("a.pgm", b"P5\n2 2\n70000\n", "cannot be read"),
        ("\0.png", None, "cannot be read"),
        ("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "is PostScript"),
        ("float.tiff", None, "holds floats"),
    ],
)
def test_errors_name_the_file(tmp_path, name, content, message):
    saved(tmp_path, Image.fromarray(np.ones((H, W), np.float32)), "float.tiff")
    path = str(tmp_path / name)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError) as error:
        read_image(path)
    assert str(error.value).startswith(f"{escaped(path)}: {message}")


@pytest.mark.parametrize("name", ["image.jpg", "image.png"])
def test_a_truncated_file_is_an_error(tmp_path, name):
    big = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(big), name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=rf"{name}: cannot be read"):
        read_image(path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, r"NoneType is not an image \(cv2.imread returns None .*\); give a path, a URL, an array"),
        (5, "int is not an image; give a path"),
        ((path for path in ("a.png",)), "generator is not an image.*or a list of these"),
        (b"a.png", "the given bytes: is not an image that Pillow can read"),
        (io.StringIO("a.png"), r'is opened as text; type open\(path, "rb"\)'),
        (np.zeros((H, W, 2), np.uint8), r"an array of shape \(5, 7, 2\) is not an image; expected"),
        (np.zeros((H,), np.uint8), r"an array of shape \(5,\) is not an image; expected"),
        (np.zeros((0, W, 3), np.uint8), r"an array of shape \(0, 7, 3\) is not an image; expected"),
        (np.zeros((3, H, W), np.uint8), r"shape \(3, 5, 7\).*; type array.transpose\(1, 2, 0\)"),
        (np.zeros((2, H, W, 3), np.uint8), r"shape \(2, 5, 7, 3\).*; type list\(array\)"),
        (
            np.zeros((H, W, 3)),
            r'an array of float64 is not an image;.* type \(array \* 255\).astype\("uint8"\)',
        ),
        (np.full((H, W), 200.0), r'of float64 is not an image; .* type array.astype\("uint8"\)'),
        (np.full((H, W), 1), r'of int64 is not an image; .* type array.astype\("uint8"\)'),
        (np.full((H, W), -1.0), "of float64 is not an image; expected uint8 from 0 to 255$"),
        (np.full((H, W), np.nan), "of float64 is not an image; expected uint8 from 0 to 255$"),
        (np.full((H, W), "a"), "of <U1 is not an image; expected uint8 from 0 to 255$"),
        (torch.ones(3, H, W, dtype=torch.bfloat16), r"of float32 is not an image; .*\(array \* 255\)"),
    ],
)
def test_other_types_and_arrays_are_errors(source, message):
    with pytest.raises(ImageError, match=message):
        read_image(source)


def test_a_url_is_read_without_a_cache(web, rgb):
    folder, url, _ = web
    for image in (rgb, rgb[::-1]):
        saved(folder, Image.fromarray(image))
        np.testing.assert_array_equal(read_image(f"{url}image.png"), image)
    with pytest.raises(ImageError, match=r"/gone\.png: cannot be read .*404"):
        read_image(f"{url}gone.png")


def test_writing_creates_the_folder_and_checks_the_suffix(tmp_path, rgb):
    write_image(tmp_path / "new/folder/image.png", rgb)
    np.testing.assert_array_equal(read_image(tmp_path / "new/folder/image.png"), rgb)
    with pytest.raises(ImageError, match=r"image\.xyz: its suffix"):
        write_image(tmp_path / "image.xyz", rgb)


def test_an_image_above_the_limit_is_refused_by_its_header(tmp_path, recwarn):
    path = save_huge_png(tmp_path / "huge.png", 20_001, 10_000)
    size = r"is of 20001 x 10000 pixels, 200.01 megapixels; the limit is 200 \(INPUT.MAX_MEGAPIXELS or"
    with path.open("rb") as file:
        for source in (path, file):
            with pytest.raises(ImageError, match=rf"huge.png: {size}"):
                read_image(source)
    with pytest.raises(ImageError, match=f"the given bytes: {size}"):
        read_image(path.read_bytes())
    with pytest.raises(ImageError, match=f"the given image: {size}"):
        read_image(Image.new("1", (20_001, 10_000)))
    with pytest.raises(ImageError, match=r"huge.png: is truncated"):  # its pixels are missing
        read_image(path, max_megapixels=201)
    assert not recwarn  # of Pillow, whose own limit is lower


def test_the_limit_of_the_process_can_be_set(tmp_path, rgb):
    path = saved(tmp_path, Image.fromarray(rgb))
    set_pixel_limit(H * W / 1e6)
    try:
        read_image(path)
        set_pixel_limit((H * W - 1) / 1e6)
        with pytest.raises(ImageError, match=r"image.png: is of 7 x 5 pixels.*the limit is 3.4e-05"):
            read_image(path)
        assert read_image(rgb) is not None  # needs no decoding
    finally:
        set_pixel_limit(MAX_MEGAPIXELS)


def test_the_default_limit_is_that_of_the_config():
    assert DEFAULTS["INPUT.MAX_MEGAPIXELS"] == MAX_MEGAPIXELS == pixel_limit()
