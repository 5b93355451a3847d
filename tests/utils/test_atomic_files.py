"""Files that appear complete or not at all, and errors that name them."""

import numpy as np
import pytest
from full_disk import files_no_larger_than

from mask2former.evaluation.common.json_files import write_json
from mask2former.utils.atomic_files import atomic_write
from mask2former.utils.image_io import write_image
from mask2former.utils.label_maps import write_label_map, write_segment_ids
from mask2former.weights.hub.folder import write_folder

IDS = np.zeros((4, 4), np.uint8)


def write_file(path):
    with atomic_write(path) as file:
        file.write(b"new")


@pytest.mark.parametrize(
    "write",
    [
        write_file,
        lambda path: write_json(path, [1]),
        lambda path: write_image(path, np.zeros((4, 4, 3), np.uint8)),
        lambda path: write_segment_ids(path, IDS),
        lambda path: write_label_map(str(path), IDS),
        lambda path: write_folder(path.parent, {}, {}, {}),
    ],
    ids=["file", "json", "image", "segments", "labels", "hub"],
)
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, write):
    with files_no_larger_than(0), pytest.raises(OSError, match=rf"{tmp_path}/\w+\.\w+.*") as error:
        write(tmp_path / "x.png")
    assert "File too large" in str(error.value) and str(error.value).count(str(tmp_path)) == 1


def test_a_file_is_replaced_when_it_is_complete(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with files_no_larger_than(0), pytest.raises(OSError, match="too large"):
        write_file(path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("x", b"old")]
    write_file(path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("x", b"new")]
