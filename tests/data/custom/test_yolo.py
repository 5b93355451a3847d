"""YOLO's segmentation labels in the layouts of Ultralytics, CVAT and Roboflow."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask2former.data import DatasetCatalog, DatasetError, MetadataCatalog, register_custom_dataset
from mask2former.data.ground_truth.geometry import Geometry
from mask2former.data.ground_truth.readers import read_instances

NAME = "custom_data_of_a_test"
HEIGHT, WIDTH = 20, 40
BOX = "1 0.25 0.2 0.5 0.2 0.5 0.6 0.25 0.6"  # columns 10 to 19, rows 4 to 11
TRIANGLE = "0 0.681 0.485 0.670 0.487 0.676 0.487"  # of the documentation
YAMLS = {
    "ultralytics": "path: ../datasets/x\ntrain: images/train\n\nnames:\n  0: person\n  1: box\n",
    "roboflow": "train: ../train/images\nval: ../valid/images\n\nnc: 2\nnames: ['person', 'box']\n",
}
LAYOUTS = [  # images, labels
    ("images/train", "labels/train"),
    ("train/images", "train/labels"),
    ("data/obj", "data/obj"),
]


@pytest.fixture(autouse=True)
def catalogs(restored_catalogs):
    """Restore the catalogs."""


def write(root, images="images/train", labels="labels/train", lines=(BOX,), names="ultralytics"):
    """Write 1.jpg with the lines, 2.jpg with an empty file and 3.png without one."""
    for folder in (images, labels):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in ("1.jpg", "2.jpg", "3.png"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / images / name)
    (root / labels / "1.txt").write_text("\n".join(lines) + "\n")
    (root / labels / "2.txt").write_text("")
    (root / "data.yaml").write_text(YAMLS[names])
    return str(root / images), str(root / labels)


def masks(number=1):
    record, metadata = DatasetCatalog.get(NAME)[number - 1], MetadataCatalog.get(NAME)
    segments = read_instances(record, metadata, (HEIGHT, WIDTH))
    return segments.classes.tolist(), segments.visible(Geometry.identity(HEIGHT, WIDTH))[1]


@pytest.mark.parametrize(("images", "labels"), LAYOUTS)
@pytest.mark.parametrize("names", YAMLS)
@pytest.mark.parametrize("by_yaml", [True, False])
def test_each_layout_is_read(tmp_path, caplog, images, labels, names, by_yaml):
    folders = write(tmp_path, images, labels, names=names)
    with caplog.at_level(logging.WARNING):
        dataset = register_custom_dataset(
            NAME, folders[0], str(tmp_path / "data.yaml") if by_yaml else folders[1]
        )
    assert (dataset.task, dataset.classes, len(dataset.images)) == ("instance", ("person", "box"), 3)
    assert not dataset.has_instance_json
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == [
        "no annotation is of the classes person"
    ]
    classes, found = masks()
    expected = np.zeros((1, HEIGHT, WIDTH), bool)
    expected[0, 4:12, 10:20] = True
    assert classes == [1]
    np.testing.assert_array_equal(found, expected)
    assert [len(record["annotations"]) for record in DatasetCatalog.get(NAME)] == [1, 0, 0]


def test_the_root_of_all_labels_will_do(tmp_path):
    images, _ = write(tmp_path)
    assert len(register_custom_dataset(NAME, images, str(tmp_path / "labels")).images) == 3
    assert masks()[0] == [1]


def test_fractions_are_of_the_upright_image(tmp_path):
    images, labels = write(tmp_path)
    image = Image.new("RGB", (HEIGHT, WIDTH))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "images/train/1.jpg", exif=exif)
    register_custom_dataset(NAME, images, labels)
    assert masks()[1][0, 4:12, 10:20].all()


def test_boxes_and_repeated_lines_are_left_out_with_a_count(tmp_path, caplog):
    lines = [BOX, "0 0.5 0.5 0.2 0.2", BOX, TRIANGLE, "", "1 0.1 0.1 0.1 0.1"]
    with caplog.at_level(logging.WARNING):
        register_custom_dataset(NAME, *write(tmp_path, lines=lines))
    assert "left out 2 boxes without a polygon" in caplog.text
    assert "left out 1 repeated lines" in caplog.text
    assert masks()[0] == [1, 0]


def test_boxes_alone_are_an_error(tmp_path):
    with pytest.raises(DatasetError, match="boxes alone cannot be trained on"):
        register_custom_dataset(NAME, *write(tmp_path, lines=["0 0.5 0.5 0.2 0.2"]))


BROKEN = [
    ("1 0.1 0.1 0.2 x 0.3 0.3", "'x' is not a number"),
    ("1 0.1 0.1 0.2 nan 0.3 0.3", "'nan' is not a number"),
    ("2 0.1 0.1 0.2 0.2 0.3 0.3", r"class 2 is not among the classes \[0, 1\]"),
    ("1.5 0.1 0.1 0.2 0.2 0.3 0.3", "class 1.5 is not among"),
    ("-1 0.1 0.1 0.2 0.2 0.3 0.3", "class -1 is not among"),
    ("1 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "7 numbers after the class, expected x y"),
    ("1 0.1 0.1", "2 numbers after the class"),
    ("1 10 10 20 10 20 20", "10 is not a fraction of the image's side, from 0 to 1"),
    ("1 -0.2 0.1 0.2 0.2 0.3 0.3", "-0.2 is not a fraction"),
]


@pytest.mark.parametrize(("line", "message"), BROKEN)
def test_broken_lines_are_errors_with_file_and_line(tmp_path, line, message):
    with pytest.raises(DatasetError, match=rf"1\.txt, line 2: {message}"):
        register_custom_dataset(NAME, *write(tmp_path, lines=[BOX, line]))


def test_names_of_classes_are_needed(tmp_path):
    images, labels = write(tmp_path)
    (tmp_path / "data.yaml").write_text("train: images/train\n")
    with pytest.raises(DatasetError, match=r"data\.yaml is not .* it has no 'names', only train"):
        register_custom_dataset(NAME, images, labels)
    (tmp_path / "data.yaml").unlink()
    with pytest.raises(DatasetError, match=r"no data\.yaml is there or up to 3 levels above"):
        register_custom_dataset(NAME, images, labels)
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    dataset = register_custom_dataset(NAME, images, labels, str(tmp_path / "names.txt"))
    assert dataset.classes == ("cat", "dog")


def test_labels_of_other_images_are_an_error(tmp_path):
    images, _ = write(tmp_path)
    _, labels = write(tmp_path / "other")
    for file in (tmp_path / "other/labels/train").iterdir():
        file.rename(file.with_stem(f"x{file.stem}"))
    with pytest.raises(DatasetError, match=r"there are no labels of the images; .*1\.txt was looked for"):
        register_custom_dataset(NAME, images, labels)


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    _, labels = write(tmp_path)
    (tmp_path / "tga").mkdir()
    (tmp_path / "tga/1.tga").touch()
    with pytest.raises(DatasetError, match=r"tga: there are no images; it holds 1 \.tga$"):
        register_custom_dataset(NAME, str(tmp_path / "tga"), labels)


def test_labels_may_differ_from_their_images_in_letter_case(tmp_path, caplog):
    images, labels = write(tmp_path)
    expected = register_custom_dataset("expected", images, labels)
    (tmp_path / "images/train/1.jpg").rename(tmp_path / "images/train/A.JPG")
    (tmp_path / "labels/train/1.txt").rename(tmp_path / "labels/train/a.TXT")
    with caplog.at_level(logging.WARNING):
        dataset = register_custom_dataset(NAME, images, labels)
    counts = [[len(r["annotations"]) for r in DatasetCatalog.get(d.name)] for d in (expected, dataset)]
    assert sorted(counts[0]) == sorted(counts[1])
    assert "1 label files differ from their images in letter case: a.TXT of A.JPG" in caplog.text
    assert "have no image" not in caplog.text


def test_a_label_of_another_letter_case_is_of_one_image_at_most(tmp_path, caplog):
    images, labels = write(tmp_path)
    for name in ("B.jpg", "b.jpg"):
        shutil.copy(tmp_path / "images/train/1.jpg", tmp_path / "images/train" / name)
    shutil.copy(tmp_path / "labels/train/1.txt", tmp_path / "labels/train/b.TXT")
    with caplog.at_level(logging.WARNING):
        dataset = register_custom_dataset(NAME, images, labels)
    objects = {Path(r["file_name"]).name: len(r["annotations"]) for r in DatasetCatalog.get(dataset.name)}
    assert objects["1.jpg"] > 0 and not objects.get("B.jpg") and not objects.get("b.jpg")
    assert "letter case" not in caplog.text


def test_some_labels_without_an_image_are_a_warning(tmp_path, caplog):
    images, labels = write(tmp_path)
    (tmp_path / "images/train/2.jpg").unlink()
    with caplog.at_level(logging.WARNING):
        register_custom_dataset(NAME, images, labels)
    assert "1 label files have no image" in caplog.text
