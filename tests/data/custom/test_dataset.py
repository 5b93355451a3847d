"""Custom datasets: their formats, what follows from them, and label PNGs with and without a classes file."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from synthetic_coco import write_json

from mask2former.data import DatasetCatalog, DatasetError, MetadataCatalog, register_custom_dataset
from mask2former.data.custom.instance_json import instance_json
from mask2former.data.ground_truth.geometry import Geometry
from mask2former.data.ground_truth.readers import read_semantic

NAME = "custom_data_of_a_test"


@pytest.fixture
def draw_labels(tmp_path):
    """Return a function that writes images and label PNGs of one row each, and returns both folders."""

    def draw(*images, mode=np.uint8, folder="train"):
        roots = tmp_path / folder / "images", tmp_path / folder / "labels"
        for root in roots:
            root.mkdir(parents=True)
        for number, values in enumerate(images):
            labels = np.repeat(np.array(values, mode)[None], 3, axis=0)
            Image.fromarray(labels).save(roots[1] / f"{number}.png")
            Image.new("RGB", labels.shape[::-1]).save(roots[0] / f"{number}.jpg")
        return str(roots[0]), str(roots[1])

    return draw


def classes_read(record, ignore_label=255):
    """Contiguous classes as training reads them, pixel by pixel of the first row."""
    metadata = MetadataCatalog.get(NAME)
    height, width = np.asarray(Image.open(record["sem_seg_file_name"])).shape
    segments = read_semantic(record, metadata, (height, width))
    which, masks = segments.visible(Geometry.identity(height, width))
    row = np.full(width, ignore_label)
    for index, mask in zip(which, masks, strict=True):
        row[mask[0]] = segments.classes[index]
    return row.tolist()


def test_an_instance_json_is_recognized(synthetic):
    dataset = register_custom_dataset(NAME, str(synthetic.images), str(synthetic.instances_json))
    assert (dataset.task, dataset.evaluator_type) == ("instance", "coco")
    assert dataset.mappers == ("coco_instance_lsj", "mask_former_instance")
    assert (dataset.classes, dataset.thing_ids) == (("donut", "box"), (0, 1))  # ids 0 and 7
    assert len(DatasetCatalog.get(NAME)) == len(dataset.images) == 4


def test_a_panoptic_json_is_recognized(synthetic):
    dataset = register_custom_dataset(NAME, str(synthetic.images), str(synthetic.panoptic_json))
    assert (dataset.task, dataset.evaluator_type) == ("panoptic", "coco_panoptic_seg")
    assert dataset.mappers == ("coco_panoptic_lsj", "mask_former_panoptic", "detr_panoptic")
    assert (dataset.classes, dataset.thing_ids) == (("donut", "box", "sky", "ground"), (0, 1))


@pytest.mark.parametrize(("isthing", "things"), [(0, ()), (1, (0, 1, 2, 3))])
def test_panoptic_without_things_or_without_stuff(synthetic, isthing, things):
    content = json.loads(synthetic.panoptic_json.read_text())
    content["categories"] = [{**category, "isthing": isthing} for category in content["categories"]]
    write_json(synthetic.panoptic_json, content)
    assert (
        register_custom_dataset(NAME, str(synthetic.images), str(synthetic.panoptic_json)).thing_ids == things
    )


def test_panoptic_pngs_may_differ_from_the_json_in_letter_case(synthetic, caplog):
    register_custom_dataset("exact", str(synthetic.images), str(synthetic.panoptic_json))
    for file in synthetic.panoptic_root.iterdir():
        file.rename(file.with_suffix(".PNG"))
    with caplog.at_level(logging.WARNING):
        register_custom_dataset(NAME, str(synthetic.images), str(synthetic.panoptic_json))
    assert "files are taken for the only file of their name, in any letter case" in caplog.text
    pngs = [[record["pan_seg_file_name"] for record in DatasetCatalog.get(name)] for name in ("exact", NAME)]
    assert pngs[1] == [png.replace(".png", ".PNG") for png in pngs[0]]
    (synthetic.panoptic_root / "0001.PNG").unlink()  # its image of the same name is no PNG of segments
    with pytest.raises(DatasetError, match=r"is in none of|do not exist"):
        register_custom_dataset("without", str(synthetic.images), str(synthetic.panoptic_json))


def test_panoptic_pngs_are_found_where_coco_has_them(synthetic):
    (synthetic.root / "annotations").mkdir()
    moved = str(synthetic.panoptic_json.rename(synthetic.root / "annotations/panoptic.json"))
    register_custom_dataset(NAME, str(synthetic.images), moved)
    assert MetadataCatalog.get(NAME).panoptic_root == str(synthetic.panoptic_root)
    synthetic.panoptic_root.rename(synthetic.root / "elsewhere")
    with pytest.raises(DatasetError, match=r"its PNG 0001\.png is in none of .*annotations/panoptic, "):
        register_custom_dataset(NAME + "_2", str(synthetic.images), moved)


def test_the_ground_truth_for_ap_is_the_things_of_the_pngs(synthetic):
    register_custom_dataset(NAME, str(synthetic.images), str(synthetic.panoptic_json))
    truth = instance_json(DatasetCatalog.get(NAME), MetadataCatalog.get(NAME))
    assert truth["categories"] == [{"id": 0, "name": "donut"}, {"id": 7, "name": "box"}]
    assert [image["id"] for image in truth["images"]] == [1, 2, 3, 5]
    expected = [
        (image, category, int(crowd), int(mask.sum()))
        for image, masks in synthetic.masks.items()
        for category, mask, crowd in masks
    ]
    found = [(a["image_id"], a["category_id"], a["iscrowd"], a["area"]) for a in truth["annotations"]]
    assert sorted(found) == sorted(expected)
    assert len({annotation["id"] for annotation in truth["annotations"]}) == len(expected)


def test_labels_without_names_are_the_values_found(draw_labels):
    dataset = register_custom_dataset(NAME, *draw_labels([0, 9, 9, 255], [9, 40, 40, 40]))
    assert (dataset.task, dataset.evaluator_type) == ("semantic", "sem_seg")
    assert dataset.mappers == ("mask_former_semantic",)
    assert (dataset.classes, dataset.thing_ids) == (("label 0", "label 9", "label 40"), ())
    assert [classes_read(record) for record in DatasetCatalog.get(NAME)] == [[0, 1, 1, 255], [1, 2, 2, 2]]
    assert MetadataCatalog.get(NAME).official_label_ids == [0, 9, 40]


def test_one_class_with_the_value_0(draw_labels):
    assert register_custom_dataset(NAME, *draw_labels([0, 0])).classes == ("label 0",)


def test_masks_of_0_and_255_are_two_classes_with_a_warning(draw_labels, caplog):
    dataset = register_custom_dataset(NAME, *draw_labels([0, 255], [0, 0]))
    assert dataset.classes == ("background", "foreground")
    assert "0 and 255: taken for background and foreground" in caplog.text
    assert [classes_read(record) for record in DatasetCatalog.get(NAME)] == [[0, 1], [0, 0]]


@pytest.mark.parametrize(
    ("values", "warning"),
    [
        ([0, 64, 127, 255], "each of the label values 0, 64, 127 is a class, and 255 is not trained on"),
        (
            [*range(256)],
            "each of the label values 0, 1, 2, ... (255 in all) is a class, and 255 is not trained on",
        ),
        (
            [*range(5), *range(180, 221)],
            "each of the label values 0, 1, 2, ... (46 in all) is a class; masks",
        ),
        ([0, 1, 2, 255], None),
        ([1, 2, 255], None),
        ([0, 9, 40], None),
    ],
)
def test_masks_with_soft_edges_cause_a_warning(draw_labels, caplog, values, warning):
    register_custom_dataset(NAME, *draw_labels(values))
    assert warning in caplog.text if warning else "is a class" not in caplog.text


CAR_AND_SKY = '[{"id": 9, "name": "sky"}, {"id": 4, "name": "car"}]'
CLASS_FILES = [  # name, content, values in a PNG, classes, how the values are read
    ("c.txt", "sky\n\nroad\n", [0, 1, 255], ("sky", "road"), [0, 1, 255]),
    ("c.txt", "sky\nroad\n", [0, 255, 255], ("sky", "road"), [0, 1, 1]),
    ("c.txt", "sky\nroad\ncar\n", [0, 255, 255], ("sky", "road", "car"), [0, 255, 255]),
    ("c.txt", "7 road\n3: sky, blue\n", [3, 7, 255], ("sky, blue", "road"), [0, 1, 255]),
    ("c.txt", "0 intact\n255 crack\n", [0, 255, 255], ("intact", "crack"), [0, 1, 1]),
    ("c.txt", "0 ignore\n255 crack\n", [0, 255, 255], ("crack",), [255, 0, 0]),
    ("c.txt", "ignore\nsky\nroad\n", [0, 1, 2], ("sky", "road"), [255, 0, 1]),
    ("c.txt", "\ufeffsky\n3 wheeler\n", [0, 1, 1], ("sky", "3 wheeler"), [0, 1, 1]),
    ("c.json", '["sky", "road"]', [0, 1, 255], ("sky", "road"), [0, 1, 255]),
    ("c.json", CAR_AND_SKY, [4, 9, 255], ("car", "sky"), [0, 1, 255]),
]


@pytest.mark.parametrize(("file", "content", "values", "classes", "expected"), CLASS_FILES)
def test_a_classes_file_names_the_values(draw_labels, tmp_path, file, content, values, classes, expected):
    (tmp_path / file).write_text(content, encoding="utf-8")
    dataset = register_custom_dataset(NAME, *draw_labels(values), str(tmp_path / file))
    assert dataset.classes == classes
    assert classes_read(DatasetCatalog.get(NAME)[0]) == expected


def test_names_of_values_that_no_label_has_cause_a_warning(draw_labels, tmp_path, caplog):
    (tmp_path / "c.txt").write_text("ignore\nsky\nroad\ncar\ntree\n")
    register_custom_dataset(NAME, *draw_labels([1, 1], [2, 255]), str(tmp_path / "c.txt"))
    assert "c.txt: the labels in 2 of 2 files have none of the values 3 car, 4 tree" in caplog.text


@pytest.mark.parametrize("value", [-1, 70_000])
def test_labels_beyond_16_bits_are_errors(draw_labels, value):
    images, labels = draw_labels([0, 1])
    Path(labels, "0.png").unlink()
    Image.fromarray(np.full((3, 2), value, np.int32)).save(f"{labels}/0.tif")
    with pytest.raises(DatasetError, match=rf"0\.tif: label {value} is not a value from 0 to 65535"):
        register_custom_dataset(NAME, images, labels)


def test_more_classes_than_a_byte_has_values(draw_labels):
    values = [*range(400)]
    dataset = register_custom_dataset(NAME, *draw_labels(values, mode=np.uint16))
    assert len(dataset.classes) == 399  # 255 is left out, as it is elsewhere
    expected = [number - (number > 255) if number != 255 else 65535 for number in values]
    assert classes_read(DatasetCatalog.get(NAME)[0], ignore_label=65535) == expected


WRONG_CLASS_FILES = [
    ("c.txt", "sky\n", [0, 255], "names one class, and labels are 0 and 255"),
    ("c.txt", "sky\nroad\n", [0, 1, 2], r"0\.png: label 2 has no name in .*c\.txt, which names 0\.\.1"),
    ("c.txt", "0 sky\n9 road\n", [0, 4], r"label 4 has no name in .*, which names 0, 9"),
    ("c.txt", "\n", [0], r"c\.txt: there is no class in it"),
    ("c.txt", "0 sky\n0 road\n", [0], "the value 0 occurs twice"),
    ("c.txt", "Idx Name\n1 wall\n2 sky\n", [1, 2], "'Idx Name' has no value, as the other lines have"),
    ("c.txt", "sky\nsky\n", [0], "two classes are called 'sky'"),
    ("c.txt", "0 ignore\n", [0], "there is no class, all is to be ignored"),
    ("c.json", "{", [0], r"c\.json is not a classes file"),
    ("c.json", '{"names": 3}', [0], "expected a list of names"),
    ("c.json", '[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]', [1], "the value 1 occurs twice"),
]


@pytest.mark.parametrize(("file", "content", "values", "message"), WRONG_CLASS_FILES)
def test_a_wrong_classes_file_is_an_error(draw_labels, tmp_path, file, content, values, message):
    (tmp_path / file).write_text(content)
    with pytest.raises(DatasetError, match=message):
        register_custom_dataset(NAME, *draw_labels(values), str(tmp_path / file))
    assert NAME not in DatasetCatalog


def test_a_classes_file_is_for_labels_alone(synthetic, tmp_path):
    with pytest.raises(DatasetError, match=r"names its classes; c\.txt is for annotations that do"):
        register_custom_dataset(NAME, str(synthetic.images), str(synthetic.instances_json), "c.txt")


def test_labels_to_test_on_have_the_classes_trained_on(draw_labels):
    trained = register_custom_dataset(NAME, *draw_labels([0, 9, 40]))
    val = draw_labels([40, 40, 255], folder="val")
    dataset = register_custom_dataset(NAME + "_val", *val, train_dataset=trained)
    assert dataset.classes == trained.classes
    assert DatasetCatalog.get(NAME + "_val")[0]["sem_seg_label_ids"][40] == 2
    with pytest.raises(DatasetError, match="label 41 has no name in the labels trained on"):
        register_custom_dataset(NAME + "_2", *draw_labels([41], folder="other"), train_dataset=trained)


def test_masks_beside_their_images(draw_labels, caplog):
    images, labels = draw_labels([0, 1], [1, 2])
    for label in Path(labels).iterdir():
        label.rename(Path(images, f"{label.stem}_mask.png"))
    dataset = register_custom_dataset(NAME, images, images)
    assert [Path(image).name for image in dataset.images] == ["0.jpg", "1.jpg"]
    assert dataset.classes == ("label 0", "label 1", "label 2")
    assert not caplog.records


WRONG_LABELS = [  # mode, size and value of the second label PNG; message
    ("RGB", (2, 3), 0, r"1\.png: the image's mode is RGB.*one number a pixel"),
    ("L", (5, 4), 0, r"labels/1\.png, image id '1': \(height, width\) is \(4, 5\), the"),
    ("L", (2, 3), 255, "there is no class, all is to be ignored"),
]


@pytest.mark.parametrize(("mode", "size", "value", "message"), WRONG_LABELS)
def test_wrong_label_pngs_are_errors(draw_labels, mode, size, value, message):
    images, labels = draw_labels([255, 255], [0, 1])
    Image.new(mode, size, value).save(f"{labels}/1.png")
    with pytest.raises(DatasetError, match=message):
        register_custom_dataset(NAME, images, labels)


def test_labels_without_images_and_images_without_labels(draw_labels, caplog, tmp_path):
    images, labels = draw_labels([0, 1], [0, 1])
    (tmp_path / "train/labels/1.png").unlink()
    with caplog.at_level(logging.WARNING):
        assert len(register_custom_dataset(NAME, images, labels).images) == 1
    assert "left out 1 of 2 images, which have no labels" in caplog.text
    (tmp_path / "train/images/0.jpg").unlink()
    with pytest.raises(DatasetError, match="label files have no image"):
        register_custom_dataset(NAME + "_2", images, labels)


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_sizes_follow_the_exif_orientation(draw_labels, suffix):
    images, labels = draw_labels([0, 1])  # 3 high, 2 wide
    exif = Image.Exif()
    exif[0x0112] = 6
    Path(images, "0.jpg").unlink()
    Image.new("RGB", (3, 2)).save(f"{images}/0.{suffix}", exif=exif)
    assert register_custom_dataset(NAME, images, labels).classes == ("label 0", "label 1")
