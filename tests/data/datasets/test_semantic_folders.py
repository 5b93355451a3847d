"""Folders of images and label PNGs: which files belong together, and what is wrong with the others."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask2former.data import DatasetCatalog, DatasetError, MetadataCatalog, register_semantic
from mask2former.data.ground_truth.readers import semantic_map

SIZE = (6, 8)


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        labels = np.arange(48, dtype=np.uint8).reshape(SIZE) % 3
        Image.fromarray(labels).save(path)


@pytest.fixture
def roots(tmp_path, restored_catalogs):
    images, labels, table = tmp_path / "images", tmp_path / "labels", {0: 1, 1: 0, 2: 255}
    touch(images, "b.jpg", "a.png", "deep/c.JPG")
    touch(labels, "a.png", "b.png", "deep/c.tif")
    register_semantic("folders", {"stuff_classes": ["x", "y"]}, images, labels, label_ids=table)
    return images, labels


def test_files_pair_by_their_names(roots):
    images, labels = roots
    (images / "Thumbs.db").write_bytes(b"")
    (images / ".hidden.jpg").write_bytes(b"")
    touch(images, ".ipynb_checkpoints/a-checkpoint.png", "deep/.thumbnails/c.jpg")
    touch(labels, ".ipynb_checkpoints/a-checkpoint.png", "deep/.thumbnails/d.png")
    (labels / "notes.txt").write_text("")
    records = DatasetCatalog.get("folders")
    assert [record["image_id"] for record in records] == ["a", "b", "deep/c"]
    assert records[2]["file_name"] == str(images / "deep/c.JPG")
    assert records[2]["sem_seg_file_name"] == str(labels / "deep/c.tif")
    metadata = MetadataCatalog.get("folders")
    assert (metadata.evaluator_type, metadata.ignore_label) == ("sem_seg", 255)
    expected = np.array([1, 0, 255])[np.arange(48).reshape(SIZE) % 3]
    np.testing.assert_array_equal(semantic_map(records[2], metadata, SIZE), expected)


def test_images_without_labels_are_left_out_with_a_warning(roots, caplog):
    images, _ = roots
    touch(images, "lone.png")
    with caplog.at_level(logging.WARNING):
        assert len(DatasetCatalog.get("folders")) == 3
    assert "left out 1 of 4 images, which have no labels" in caplog.text and "lone" in caplog.text


def test_labels_may_differ_from_their_images_in_letter_case(roots, caplog):
    images, labels = roots
    touch(images, "IMG_1.JPG", "Two.png", "two.png")
    touch(labels, "img_1.PNG", "TWO.png")
    with caplog.at_level(logging.WARNING), pytest.raises(DatasetError, match=r"no image in .*: TWO "):
        DatasetCatalog.get("folders")
    assert (
        "labels: 1 label files are taken for those of images of another letter case: img_1 = IMG_1"
        in (caplog.messages[0])
    )
    touch(labels, "Two.png", "two.png")
    (labels / "TWO.png").unlink()
    records = {record["image_id"]: record for record in DatasetCatalog.get("folders")}
    assert records["IMG_1"]["sem_seg_file_name"] == str(labels / "img_1.PNG")
    assert records["two"]["sem_seg_file_name"] == str(labels / "two.png")


def test_labels_without_an_image_are_an_error(roots):
    _, labels = roots
    touch(labels, *(f"z{i}.png" for i in range(5)))
    with pytest.raises(
        DatasetError, match=r"labels: 5 of 8 label files have no image in .*images: z0, z1, z2, \.\.\. "
    ):
        DatasetCatalog.get("folders")


def test_two_files_of_one_name_are_an_error(roots):
    images, _ = roots
    touch(images, "a.jpg")
    with pytest.raises(DatasetError, match=r"a\.(png|jpg) and .*a\.(png|jpg) have the same name"):
        DatasetCatalog.get("folders")


def test_masks_beside_their_images(tmp_path, restored_catalogs):
    touch(tmp_path / "all", "a.jpg", "a_mask.png", "b.png", "b_mask.png", "deep/c.jpg", "deep/c_mask.png")
    (tmp_path / "link").symlink_to(tmp_path / "all")
    register_semantic("folders", {"stuff_classes": ["x", "y", "z"]}, tmp_path / "all", f"{tmp_path}/link/")
    files = [(record["file_name"], record["sem_seg_file_name"]) for record in DatasetCatalog.get("folders")]
    names = [tuple(Path(file).name for file in pair) for pair in files]
    assert names == [("a.jpg", "a_mask.png"), ("b.png", "b_mask.png"), ("c.jpg", "c_mask.png")]


def test_images_given_as_their_own_labels_are_an_error(roots):
    images, _ = roots
    register_semantic("twice", {"stuff_classes": ["x"]}, images, f"{images}/../images")
    with pytest.raises(
        DatasetError, match=r"both images and labels, but no PNG's name ends with _mask; give"
    ):
        DatasetCatalog.get("twice")


@pytest.mark.parametrize(
    ("which", "what"),
    [
        (0, r"images: there are no images; it holds 1 \.heic$"),
        (1, r"labels: there are no label files; it holds 1 \.heic$"),
    ],
)
def test_a_folder_without_images_or_labels_is_an_error(roots, which, what):
    for path in [path for path in roots[which].rglob("*") if path.is_file()]:
        path.unlink()
    (roots[which] / "a.heic").touch()
    with pytest.raises(DatasetError, match=what):
        DatasetCatalog.get("folders")


def test_registering_reads_nothing(tmp_path):
    register_semantic("not_there", {"stuff_classes": ["x"]}, tmp_path / "no", tmp_path / "neither")
    with pytest.raises(DatasetError, match=r"neither does not exist"):
        DatasetCatalog.get("not_there")
