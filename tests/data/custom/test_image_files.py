"""Paths of images as annotation tools write them, found below the folder of images."""

import logging

import pytest
from PIL import Image

from mask2former.data import DatasetError
from mask2former.data.custom.image_files import image_finder


@pytest.fixture
def folder(tmp_path):
    """Images a.png, sub/b.png, left/c.png and right/c.png, and d.png beside the folder."""
    for path in ("a.png", "sub/b.png", "left/c.png", "right/c.png", "../d.png"):
        file = tmp_path / "images" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(file)
    return tmp_path / "images"


def found(folder, *names, row=0):
    rows = [{"file_name": name} for name in names]
    return image_finder(rows, folder, "set.json")(rows[row])


@pytest.mark.parametrize(
    ("name", "path"), [("a.png", "a.png"), ("./left/../a.png", "a.png"), ("left\\c.png", "left/c.png")]
)
def test_paths_that_exist_are_taken_as_they_are(folder, caplog, name, path):
    with caplog.at_level(logging.WARNING):
        assert found(folder, name) == path
        assert found(folder, str(folder / "sub" / "b.png")) == "sub/b.png"
    assert not caplog.text


PREFIXED = [
    "/data/upload/3/abc/b.png",
    "project/images/b.png",
    "b.png",
    "../x/b.png",
    "..\\..\\media\\b.png",
    "C:\\Users\\me\\b.png",
    "s3://bucket/b.png",
    "http://localhost:8080/data/upload/1/b.png",
    "/data/local-files/?d=images%2Fb.png",
    "https://host/storage/b.png?token=a/c",
]


@pytest.mark.parametrize("name", PREFIXED)
def test_a_prefix_is_ignored_where_one_file_has_the_name(folder, caplog, name):
    with caplog.at_level(logging.WARNING):
        assert found(folder, name, "a.png") == "sub/b.png"
    assert "set.json: 1 of 2 files are taken for the only file of their name" in caplog.text
    assert "= sub/b.png" in caplog.text


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("A.PNG", "a.png"),
        ("SUB/b.Png", "sub/b.png"),
        ("x/B.PNG", "sub/b.png"),
        ("Left/C.png", "left/c.png"),  # there is a right/c.png too
        ("e\u0301.png", "\u00e9.png"),  # an accent of its own, as macOS writes it
    ],
)
def test_names_in_another_letter_case_are_found_with_a_warning(folder, caplog, name, path):
    (folder / "\u00e9.png").touch()
    with caplog.at_level(logging.WARNING):
        assert found(folder, name, "a.png" if path != "a.png" else "sub/b.png") == path
    (message,) = caplog.messages
    assert "set.json: 1 of 2 files are taken" in message and "in any letter case" in message


def test_names_that_differ_in_letter_case_alone_are_several_files(folder, caplog):
    (folder / "A.png").touch()
    with caplog.at_level(logging.WARNING):
        assert found(folder, "A.png", "a.png") == "A.png"
    assert not caplog.text
    with pytest.raises(DatasetError, match=r"files of its name there: A\.png, a\.png"):
        found(folder, "a.PNG")
    with pytest.raises(DatasetError, match=r"is another one's: sub/b\.png"):
        found(folder, "sub/B.png", "sub/b.png")


@pytest.mark.parametrize("name", ["x/c.png", "/data/c.png", "c.png", "../c.png"])
def test_several_files_of_a_name_are_an_error_that_lists_them(folder, name):
    with pytest.raises(DatasetError, match=r"files of its name there: left/c\.png, right/c\.png"):
        found(folder, name)


@pytest.mark.parametrize("others", [["sub/b.png"], ["y/b.png"]])
def test_no_file_is_two_images(folder, others):
    with pytest.raises(DatasetError, match=r"'x/b\.png' does not exist .* is another one's: sub/b\.png"):
        found(folder, "x/b.png", *others)


@pytest.mark.parametrize("name", ["../d.png", "{}/d.png", "sub/../../d.png"])
def test_no_path_leads_out_of_the_folder(folder, name):
    path = found(folder, name.format(folder.parent))
    assert (folder / path).resolve().is_relative_to(folder)
    assert not (folder / path).is_file()


@pytest.mark.parametrize("name", ["..", "/", "sub/", "\\"])
def test_a_folder_is_no_image(folder, name):
    with pytest.raises(DatasetError, match="which is a folder"):
        found(folder, name)


def test_a_text_is_needed(folder):
    with pytest.raises(ValueError, match="'file_name' is 7, expected a text"):
        found(folder, 7)
