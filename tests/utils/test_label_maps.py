"""Label maps and segment ids, written and read in every PNG mode that labels are stored in."""

import struct
import zlib

import numpy as np
import pytest
from huge_image import save_huge_png
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import ExifTags, Image

from mask2former.utils.label_maps import (
    read_label_map,
    read_segment_ids,
    relabel,
    semantic_from_panoptic,
    write_segment_ids,
)


@given(ids=arrays(np.int32, array_shapes(min_dims=2, max_dims=2), elements=st.integers(0, 2**24 - 1)))
def test_segment_ids_are_read_as_written(tmp_path_factory, ids):
    path = tmp_path_factory.mktemp("ids") / "map.png"
    write_segment_ids(path, ids)
    np.testing.assert_array_equal(read_segment_ids(path), ids)
    red, green, blue = np.moveaxis(np.asarray(Image.open(path)).astype(int), -1, 0)
    np.testing.assert_array_equal(red + 256 * green + 65536 * blue, ids)


def test_alpha_is_ignored(tmp_path):
    Image.fromarray(np.full((2, 3, 4), [1, 2, 3, 255], np.uint8)).save(tmp_path / "alpha.png")
    assert (read_segment_ids(tmp_path / "alpha.png") == 1 + 2 * 256 + 3 * 65536).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_gray_values_are_labels(tmp_path, dtype):
    labels = np.array([[0, 1, 2], [254, 255, np.iinfo(dtype).max]], dtype)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    np.testing.assert_array_equal(read_label_map(tmp_path / "labels.png"), labels)


def test_palette_indices_and_bits_are_labels(tmp_path):
    palette = Image.fromarray(np.array([[0, 3], [1, 2]], np.uint8)).convert("P")
    palette.putpalette([9, 9, 9] * 256)
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_label_map(tmp_path / "p.png"), [[0, 3], [1, 2]])
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "1.png")
    labels = read_label_map(tmp_path / "1.png")
    np.testing.assert_array_equal(labels, [[1, 0]])
    assert labels.dtype == np.uint8


def gray_png(values, bits):
    """A gray PNG of 1 to 8 bits, as encoders other than Pillow's write it; the width fills whole bytes."""

    def chunk(kind, content):
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    height, width = values.shape
    digits = np.unpackbits(values[..., None], axis=2)[..., -bits:].reshape(height, -1)
    rows = np.insert(np.packbits(digits, axis=1), 0, 0, axis=1)  # filter type 0
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_gray_values_of_few_bits_are_not_scaled(tmp_path, bits):
    labels = (np.arange(16).reshape(2, 8) % 2**bits).astype(np.uint8)
    (tmp_path / "labels.png").write_bytes(gray_png(labels, bits))
    np.testing.assert_array_equal(read_label_map(tmp_path / "labels.png"), labels)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_tiffs_of_either_byte_order_are_labels(tmp_path, order, compression):
    labels = np.array([[0, 1, 300], [2, 255, 65535]], np.uint16)
    mode = "I;16" if order == "<" else "I;16B"
    image = Image.frombytes(mode, (3, 2), labels.astype(f"{order}u2").tobytes())
    image.save(tmp_path / "labels.tif", compression=compression)
    read = read_label_map(tmp_path / "labels.tif")
    np.testing.assert_array_equal(read, labels)
    assert read.dtype == np.uint16 and read.dtype.isnative


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
def test_label_maps_are_rotated_as_images_are(tmp_path, suffix, mode):
    labels = np.array([[0, 1, 2], [3, 4, 5]], np.uint16 if mode == "I;16" else np.uint8)
    image = Image.fromarray(labels)
    if mode == "P":
        image.putpalette([9, 9, 9] * 256)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be rotated clockwise
    image.save(tmp_path / f"labels.{suffix}", exif=exif)
    np.testing.assert_array_equal(read_label_map(tmp_path / f"labels.{suffix}"), [[3, 0], [4, 1], [5, 2]])


def test_segment_ids_are_rotated_as_images_are(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    ids = np.array([[[1, 0, 0], [2, 1, 0]]], np.uint8)
    Image.fromarray(ids).save(tmp_path / "ids.png", exif=exif)
    np.testing.assert_array_equal(read_segment_ids(tmp_path / "ids.png"), [[258, 1]])


@pytest.mark.parametrize("read", [read_label_map, read_segment_ids])
def test_jpegs_called_png_are_errors(tmp_path, read):
    Image.new("L" if read is read_label_map else "RGB", (8, 8)).save(tmp_path / "x.png", "JPEG")
    with pytest.raises(ValueError, match=r"x\.png: is compressed as JPEG, which changes values"):
        read(tmp_path / "x.png")


@pytest.mark.parametrize(
    ("read", "name", "message"),
    [
        (read_label_map, "absent", "no such file"),
        (read_segment_ids, "text", "not a readable image"),
        (read_segment_ids, "cut", "not a readable image"),
        (read_label_map, "rgb", "the image's mode is RGB"),
        (read_segment_ids, "gray", "the image's mode is L"),
    ],
)
def test_unusable_files_are_errors_with_their_name(tmp_path, read, name, message):
    (tmp_path / "text.png").write_text("not an image")
    noise = np.random.default_rng(0).integers(0, 255, (50, 50, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "rgb.png")
    Image.fromarray(noise[..., 0]).save(tmp_path / "gray.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "rgb.png").read_bytes()[:3000])
    with pytest.raises(ValueError, match=rf"{name}\.png: {message}"):
        read(tmp_path / f"{name}.png")


@pytest.mark.parametrize(("read", "mode"), [(read_label_map, "L"), (read_segment_ids, "RGB")])
def test_maps_above_the_limit_of_pixels_are_errors(tmp_path, read, mode):
    path = save_huge_png(tmp_path / "map.png", 100_000, 100_000, mode)
    with pytest.raises(ValueError, match=r"map\.png: is of 100000 x 100000 pixels, 10000 megapixels; the"):
        read(path)


def test_labels_are_derived_from_segments():
    ids = np.array([[0, 5, 7], [70000, 5, 8]], np.uint32)
    segments = [
        {"id": 5, "category_id": 2},
        {"id": 70000, "category_id": 0, "iscrowd": 1},
        {"id": 9, "category_id": 1},
    ]
    np.testing.assert_array_equal(semantic_from_panoptic(ids, segments, 65), [[65, 2, 65], [0, 2, 65]])


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32])
def test_relabel_replaces_each_value(kind):
    labels = np.array([[7, 255, 7], [0, 8, 8]], kind)
    table = {0: 255, 7: 0, 8: 1, 255: 255}
    expected = [[table[int(value)] for value in row] for row in labels]
    assert relabel(labels, table).tolist() == expected
    assert relabel(labels[:0], table).shape == (0, 3)


@pytest.mark.parametrize("label", [3, 9, 200, 70_000, -1])
def test_labels_that_the_table_lacks_are_errors(label):
    with pytest.raises(ValueError, match=f"label {label} is not among"):
        relabel(np.array([[0, 8, label]], np.int32), {0: 0, 8: 1})


def test_keys_beyond_all_labels_take_no_memory():
    assert relabel(np.array([[0, 8]], np.uint8), {0: 0, 8: 1, 10**12: 2}).tolist() == [[0, 1]]
    with pytest.raises(ValueError, match=r"label 3 is not among the known labels"):
        relabel(np.array([[0, 3]], np.uint8), {10**12: 2, 0: 0})
