"""Images and results that lie in files: read, predicted, drawn and written as those in memory."""

import gc
import os

import numpy as np
import pytest
from PIL import Image
from tiny_checkpoint import save_tiny_checkpoint

from mask2former import Predictor
from mask2former.drawing import large
from mask2former.drawing.overlay import LINES_PER_IMAGE, paint_regions
from mask2former.tiling import blending
from mask2former.utils import image_io, memory
from mask2former.utils.image_io import ImageError, read_image, write_in_strips
from mask2former.utils.label_maps import read_label_map, read_segment_ids
from mask2former.utils.memory import file_of, new_array, release_pages


@pytest.fixture
def all_in_files(monkeypatch):
    """Let every array be too large for memory."""
    for module in (memory, image_io):
        monkeypatch.setattr(module, "IN_MEMORY", 0)
    monkeypatch.setattr(blending, "KEPT_IN_MEMORY", 0)
    monkeypatch.setattr(image_io, "STRIP_PIXELS", 1000)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    checkpoint = save_tiny_checkpoint(tmp_path_factory.mktemp("model") / "model.pth")
    return Predictor(checkpoint, tile=64, score_threshold=0)


def noise(height, width):
    coarse = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return coarse.repeat(8, 0).repeat(8, 1)[:height, :width]


def test_an_array_in_a_file_keeps_its_values_when_its_pages_are_released():
    array = new_array((50, 40), np.int32, in_memory=0)
    assert (array == 0).all()
    array[10:20] = np.arange(40)
    release_pages(array)
    assert (array[10:20] == np.arange(40)).all() and array.sum() == 10 * sum(range(40))
    assert file_of(array) is file_of(array[3:, ::2]) is not None
    assert file_of(new_array((50, 40), np.int32)) is None
    release_pages(np.zeros(3))  # nothing to do


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_the_file_of_an_array_ends_with_it():
    before = len(os.listdir("/proc/self/fd"))
    array = new_array((50, 40), np.int32, in_memory=0)
    view = array[2:]
    del array
    assert len(os.listdir("/proc/self/fd")) > before
    del view
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("name", ["a.tif", "a.ppm", "a.png", "a.jpg"])
def test_a_file_is_read_as_into_memory(tmp_path, all_in_files, name):
    Image.fromarray(noise(90, 110)).save(tmp_path / name)
    mapped = read_image(tmp_path / name, in_files=True)
    assert file_of(mapped) is not None
    assert np.array_equal(mapped, read_image(tmp_path / name))
    assert file_of(read_image(tmp_path / name)) is None


def test_files_that_do_not_hold_pixels_as_they_are(tmp_path, all_in_files):
    """Compressed, turned, gray, in strips apart: all are decoded."""
    image = Image.fromarray(noise(90, 110))
    image.save(tmp_path / "lzw.tif", compression="tiff_lzw")
    exif = Image.Exif()
    exif[274] = 6
    image.save(tmp_path / "turned.tif", exif=exif)
    image.convert("L").save(tmp_path / "gray.tif")
    image.save(tmp_path / "bottom_up.bmp")
    for name in ("lzw.tif", "turned.tif", "gray.tif", "bottom_up.bmp"):
        mapped = read_image(tmp_path / name, in_files=True)
        assert np.array_equal(mapped, read_image(tmp_path / name)), name


def test_results_in_files_are_those_in_memory(tmp_path, predictor, all_in_files, monkeypatch):
    Image.fromarray(noise(100, 130)).save(tmp_path / "image.tif")
    in_files = predictor(tmp_path / "image.tif")
    for array in (in_files.image, in_files.semantic, in_files.panoptic.ids):
        assert file_of(array) is not None
    monkeypatch.undo()
    in_memory = predictor(tmp_path / "image.tif")
    assert in_files == in_memory and file_of(in_memory.semantic) is None
    for what, name in (("semantic", "s.png"), ("panoptic", "p.png"), ("overlay", "o.png")):
        in_files.save(tmp_path / name, what)
        in_memory.save(tmp_path / f"memory_{name}", what)
    assert np.array_equal(read_label_map(tmp_path / "s.png"), read_label_map(tmp_path / "memory_s.png"))
    assert np.array_equal(read_segment_ids(tmp_path / "p.png"), read_segment_ids(tmp_path / "memory_p.png"))
    assert (tmp_path / "p.json").is_file()
    drawn = np.asarray(Image.open(tmp_path / "o.png"))
    assert drawn.shape == (100, 130, 3)
    assert (drawn == np.asarray(Image.open(tmp_path / "memory_o.png"))).mean() > 0.9  # all but labels


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_a_drawing_in_windows_is_the_one_in_one_piece(predictor, monkeypatch, task):
    result = predictor(noise(100, 130))
    regions = result.regions(task)
    assert len(regions) > 1
    whole = result.image.copy()
    paint_regions(whole, regions, (100 * 130) ** 0.5 / LINES_PER_IMAGE)
    monkeypatch.setattr(large, "WINDOW", 40)
    monkeypatch.setattr(large, "_write_labels", lambda *_: None)
    assert np.array_equal(large.draw_large(result.image, regions), whole)


def test_labels_of_a_large_drawing_are_placed_in_a_reduced_image(predictor, monkeypatch):
    result = predictor(noise(120, 150))
    regions = result.regions("semantic")
    monkeypatch.setattr(large, "WINDOW", 64)
    monkeypatch.setattr(large, "LABELED_SIDE", 75)
    monkeypatch.setattr(large, "paint_regions", lambda *_: None)
    written = (large.draw_large(result.image, regions) != result.image).any(-1)
    assert 0.005 < written.mean() < 0.5


def test_a_format_that_cannot_hold_the_image_is_an_error(tmp_path):
    with pytest.raises(ImageError, match=r"an image of 5 x 4 pixels cannot be written there; use \.png"):
        write_in_strips(tmp_path / "a.txt", (4, 5), lambda rows: np.zeros((4, 5), np.uint8)[rows])
