"""Annotations of stored pixels of images that EXIF or TIFF tags rotate, against Pillow's own rotation."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask
from synthetic_coco import compressed_rle, uncompressed_rle, write_json

from mask2former.data import DatasetCatalog, DatasetError, MetadataCatalog, register_custom_dataset
from mask2former.data.checks.record import summarize_record
from mask2former.data.custom.instance_json import instance_json
from mask2former.data.ground_truth.geometry import Geometry
from mask2former.data.ground_truth.readers import read_instances, read_panoptic, read_semantic
from mask2former.data.mapper import TestMapper, record_image
from mask2former.evaluation.panoptic.quality import COCOPanopticEvaluator
from mask2former.evaluation.semantic.miou import SemSegEvaluator

NAME = "custom_data_of_a_test"
SIZE = (12, 20)  # of the stored pixels
BOX = (3, 2, 11, 6)  # left, top, right, bottom; the rest of the image is black
AREA = 32


@pytest.fixture(autouse=True)
def catalogs(restored_catalogs):
    """Restore the catalogs."""


def stored_mask(size=SIZE):
    mask = np.zeros(size, bool)
    mask[BOX[1] : BOX[3], BOX[0] : BOX[2]] = True
    return mask


def polygon():
    left, top, right, bottom = BOX
    return [[left, top, right, top, right, bottom, left, bottom]]


FORMS = {
    "polygon": lambda mask: polygon(),
    "points": lambda mask: np.reshape(polygon()[0], (-1, 2)).tolist(),
    "rle": compressed_rle,
    "counts": uncompressed_rle,
    "list": lambda mask: [uncompressed_rle(mask)],
}


def write(folder, orientations, form="polygon", suffix="jpg", size=SIZE, upright=()):
    """Write an image for each orientation, whose white box is its object, and a JSON in stored pixels.

    Rows of images whose number is in `upright` have the upright size.
    """
    (folder / "images").mkdir()
    images, annotations = [], []
    for number, orientation in enumerate(orientations, start=1):
        image = Image.fromarray(stored_mask(size).astype(np.uint8) * 255).convert("RGB")
        exif = image.getexif()
        exif[0x0112] = orientation
        name = f"{number}.{suffix}"
        image.save(folder / "images" / name, exif=exif, **({"quality": 100} if suffix == "jpg" else {}))
        height, width = size[::-1] if number in upright and orientation > 4 else size
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        left, top, right, bottom = BOX
        row = {"id": number, "image_id": number, "category_id": 3, "iscrowd": 0, "area": AREA}
        box = [left, top, right - left, bottom - top]
        annotations.append({**row, "bbox": box, "segmentation": FORMS[form](stored_mask(size))})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "box"}]}
    write_json(folder / "set.json", content)


def register(folder):
    return register_custom_dataset(NAME, str(folder / "images"), str(folder / "set.json"))


def check_masks_and_boxes(number):
    """Compare the masks and boxes of the records with what the upright images show."""
    records, metadata = DatasetCatalog.get(NAME), MetadataCatalog.get(NAME)
    assert len(records) == number
    truth = {row["image_id"]: row for row in instance_json(records, metadata)["annotations"]}
    for record in records:
        image = record_image(record)
        _, masks = read_instances(record, metadata, image.shape[:2]).visible(
            Geometry.identity(*image.shape[:2])
        )
        np.testing.assert_array_equal(masks[0], image[..., 0] > 128)
        rows, cols = np.flatnonzero(masks[0].any(1)), np.flatnonzero(masks[0].any(0))
        tight = [cols[0], rows[0], len(cols), len(rows)]
        assert record["annotations"][0]["bbox"] == tight
        row = truth[record["image_id"]]
        np.testing.assert_array_equal(coco_mask.decode(row["segmentation"]), masks[0])
        assert (row["category_id"], row["area"], row["bbox"]) == (3, AREA, tight)


@pytest.mark.parametrize("form", FORMS)
def test_annotations_of_stored_pixels_are_turned_with_the_image(tmp_path, caplog, form):
    write(tmp_path, range(1, 9), form)
    with caplog.at_level(logging.WARNING):
        assert not register(tmp_path).has_instance_json
    assert caplog.text.count("7 annotations of 7 images are of the stored pixels") == 1
    check_masks_and_boxes(8)


def test_tiff_images_too(tmp_path):
    write(tmp_path, [1, 3, 6, 8], suffix="tif")
    register(tmp_path)
    check_masks_and_boxes(4)


def test_an_rle_of_stored_pixels_is_turned_where_the_size_of_the_image_is_upright(tmp_path):
    write(tmp_path, [6, 8], "rle", upright=(1, 2))
    register(tmp_path)
    check_masks_and_boxes(2)


def test_square_images_follow_the_others(tmp_path):
    write(tmp_path, [6], size=(20, 20))
    assert register(tmp_path).has_instance_json  # nothing tells: it is upright


def test_upright_annotations_stay_as_they_are(tmp_path, caplog):
    write(tmp_path, [1, 6, 3], upright=(1, 2, 3))
    with caplog.at_level(logging.WARNING):
        assert register(tmp_path).has_instance_json
    assert "stored" not in caplog.text
    content = json.loads((tmp_path / "set.json").read_text())
    assert [r["annotations"][0]["segmentation"] for r in DatasetCatalog.get(NAME)] == [
        row["segmentation"] for row in content["annotations"]
    ]


def test_a_size_that_fits_neither_way_is_an_error_that_names_the_orientation(tmp_path):
    write(tmp_path, [6])
    content = json.loads((tmp_path / "set.json").read_text())
    content["images"][0].update(height=13)
    write_json(tmp_path / "set.json", content)
    message = r"is \(20, 12\), the annotations say \(13, 20\); .*stored as \(12, 20\) with .* orientation 6"
    with pytest.raises(DatasetError, match=message):
        register(tmp_path)


def test_a_broken_mask_of_a_rotated_image_is_an_error(tmp_path):
    write(tmp_path, [6], "counts")
    content = json.loads((tmp_path / "set.json").read_text())
    content["annotations"][0]["segmentation"]["counts"].pop()
    write_json(tmp_path / "set.json", content)
    with pytest.raises(DatasetError, match="1: 'segmentation' is a broken RLE: the counts do not add"):
        register(tmp_path)


def test_pillow_turns_the_same_way(tmp_path):
    """The images of these tests are rotated by their tags, so the comparison is not empty."""
    write(tmp_path, [6])
    with Image.open(tmp_path / "images/1.jpg") as image:
        assert ImageOps.exif_transpose(image).size == SIZE


def write_labels(folder, kind, orientations, upright=(), size=SIZE):
    """Write a rotated image for each orientation, and its label or panoptic PNG in stored pixels.

    PNGs of images whose number is in `upright` are upright.
    """
    write(folder, orientations, size=size)
    (folder / "labels").mkdir()
    content = json.loads((folder / "set.json").read_text())
    annotations = []
    for number, orientation in enumerate(orientations, start=1):
        ids = stored_mask(size).astype(np.uint8)
        image = Image.fromarray(ids if kind == "semantic" else np.stack([ids + 1, 0 * ids, 0 * ids], axis=2))
        if number in upright:
            image.getexif()[0x0112] = orientation
            ImageOps.exif_transpose(image, in_place=True)
        image.save(folder / "labels" / f"{number}.png")
        segments = [{"id": i + 1, "category_id": i, "area": int((ids == i).sum())} for i in (0, 1)]
        annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": segments})
    categories = [{"id": 0, "name": "rest", "isthing": 0}, {"id": 1, "name": "box", "isthing": 1}]
    write_json(folder / "labels.json", {**content, "annotations": annotations, "categories": categories})
    return str(folder / ("labels" if kind == "semantic" else "labels.json"))


LABELS = {  # kind -> its reader in training, its evaluator, and the output of a perfect model
    "semantic": (
        read_semantic,
        SemSegEvaluator,
        lambda box: {"label_map": torch.from_numpy(box.astype(np.int64))},
    ),
    "panoptic": (
        read_panoptic,
        COCOPanopticEvaluator,
        lambda box: {
            "panoptic_seg": (
                torch.from_numpy(box.astype(np.int32) + 1),
                [{"id": i + 1, "category_id": i, "isthing": i == 1} for i in (0, 1)],
            )
        },
    ),
}


@pytest.mark.parametrize("kind", LABELS)
def test_label_pngs_of_stored_pixels_are_turned_for_training_checks_and_evaluation(tmp_path, caplog, kind):
    read, evaluator, output = LABELS[kind]
    labels = write_labels(tmp_path, kind, range(1, 9))
    with caplog.at_level(logging.WARNING):
        register_custom_dataset(NAME, str(tmp_path / "images"), labels)
    assert caplog.text.count("labels of 7 images are of the stored pixels") == 1
    metadata = MetadataCatalog.get(NAME)
    mapper, measured = TestMapper(edges=(12,), max_size=99, image_format="RGB"), evaluator(metadata=metadata)
    for record in DatasetCatalog.get(NAME):
        image = record_image(record)
        box = image[..., 0] > 128
        truth = read(record, metadata, image.shape[:2])
        masks = truth.visible(Geometry.identity(*image.shape[:2]))[1]
        np.testing.assert_array_equal(masks[truth.classes.tolist().index(1)], box)
        assert summarize_record(record, metadata).error is None
        measured.process([mapper(record)], [output(box)])
    (metrics,) = measured.evaluate().values()
    assert metrics["mIoU" if kind == "semantic" else "PQ"] == 100


@pytest.mark.parametrize("kind", LABELS)
def test_upright_label_pngs_stay_as_they_are(tmp_path, caplog, kind):
    labels = write_labels(tmp_path, kind, [3, 6, 8], upright=(1, 2, 3))
    if kind == "panoptic":  # its sizes are those of the stored pixels
        content = json.loads((tmp_path / "labels.json").read_text())
        for row in content["images"][1:]:
            row.update(height=SIZE[1], width=SIZE[0])
        write_json(tmp_path / "labels.json", content)
    with caplog.at_level(logging.WARNING):
        register_custom_dataset(NAME, str(tmp_path / "images"), labels)
    assert "stored" not in caplog.text
    assert not any("label_orientation" in record for record in DatasetCatalog.get(NAME))


@pytest.mark.parametrize("kind", LABELS)
def test_a_label_png_that_fits_neither_way_is_an_error_that_names_the_orientation(tmp_path, kind):
    labels = write_labels(tmp_path, kind, [6])
    with Image.open(tmp_path / "labels/1.png") as image:
        image.crop((0, 0, 19, 12)).save(tmp_path / "labels/1.png")
    message = (
        r"1\.png.*is \(12, 19\), the image's is \(20, 12\); .*stored as \(12, 20\) with .* orientation 6"
    )
    with pytest.raises(DatasetError, match=message):
        register_custom_dataset(NAME, str(tmp_path / "images"), labels)
