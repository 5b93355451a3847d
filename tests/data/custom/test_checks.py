"""Broken custom datasets: an error before training that names the problem, or a decision that is logged."""

import json
import logging
import shutil

import pytest
from PIL import Image
from synthetic_coco import write_json

from mask2former.data import DatasetCatalog, DatasetError, MetadataCatalog, register_custom_dataset
from mask2former.data.custom.dataset import forget
from mask2former.data.custom.formats import find_format

NAME = "custom_broken_data_of_a_test"


def changed(path, change):
    content = json.loads(path.read_text())
    change(content)
    write_json(path, content)


def register(synthetic, task="instance", **options):
    path = {"instance": synthetic.instances_json, "panoptic": synthetic.panoptic_json}[task]
    return register_custom_dataset(NAME, str(synthetic.images), str(path), **options)


def set_all_polygons(points):
    """A change that leaves one annotation, with these points."""

    def change(content):
        content["annotations"] = content["annotations"][:1]
        content["annotations"][0]["segmentation"] = [points]

    return change


def set_all_crowds(content):
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1


ERRORS = [  # task, change of the JSON, message
    ("instance", lambda c: c["images"][1].update(id=1), "images: the id 1 occurs more than once"),
    ("instance", lambda c: c["categories"][1].update(id=0), "categories: the id 0 occurs twice"),
    ("instance", lambda c: c["annotations"][0].update(image_id=77), "image id 77: no such id among 'images'"),
    ("instance", lambda c: c["annotations"][0].update(category_id=3), "category_id 3 is not among"),
    ("instance", lambda c: c.update(annotations=[]), "no annotation has a mask"),
    ("instance", lambda c: c.update(images=[], annotations=[]), "there is no image in it"),
    ("instance", lambda c: c["images"][0].update(width=33), r"\(24, 32\) for an image of \(24, 33\)"),
    ("instance", lambda c: c["images"][3].update(width=33), r"the annotations say \(\d+, 33\)"),
    ("instance", set_all_polygons([0.1, 0.1, 0.9, 0.1, 0.9, 0.5]), "must be pixels, not fractions"),
    ("instance", set_all_polygons([0, 0, 9, 0, 9, 4e9]), "image id 1: .* has a point more than 100"),
    ("instance", set_all_polygons([0, 0, 9, 0, 9, float("nan")]), "image id 1: an annotation has a point"),
    ("instance", set_all_polygons([0, 0, 9, 0, 9, 10**400]), "image id 1: .*int too large to convert"),
    (
        "instance",
        set_all_polygons([0, 0, 9, 0, 9, "x"]),
        "image id 1: 'segmentation' is .*'x'.*, expected a list",
    ),
    (
        "instance",
        lambda c: c["annotations"][0].update(bbox=[1, 2, 3]),
        r"1: 'bbox' is \[1, 2, 3\], expected four numbers",
    ),
    ("panoptic", lambda c: c["annotations"][1].update(image_id=1), "the image_id 1 occurs more than once"),
    ("instance", set_all_polygons([[0, 0], [9, 0, 1], [9, 5]]), "odd number of coordinates, 3"),
    (
        "instance",
        lambda c: c["images"][0].update(height="24"),
        "1: 'height' is '24', expected a whole number",
    ),
    ("instance", lambda c: c["images"][0].update(file_name=[]), r"1: 'file_name' is \[\], expected a text"),
    ("instance", lambda c: c["images"][0].update(id={}), "'id' is {}, expected a whole number"),
    ("instance", lambda c: c["annotations"][0].update(image_id=None), "image id None: 'image_id' is None"),
    ("instance", lambda c: c["annotations"][0].update(category_id="0"), "1: 'category_id' is '0', expected"),
    ("instance", lambda c: c["annotations"][0].update(iscrowd="0"), "1: 'iscrowd' is '0', expected 0 or 1"),
    ("instance", lambda c: c["categories"][0].update(name=None), "categories: 'name' is None, expected a"),
    ("instance", set_all_crowds, "all 5 masks are crowd regions; .*'iscrowd' 1.* --crowds-as-objects"),
    ("panoptic", lambda c: c["annotations"][1].update(segments_info=[3]), "2: 'segments_info' is not a list"),
    (
        "panoptic",
        lambda c: c["annotations"][1]["segments_info"][0].update(id=5),
        r"panoptic/0002\.png, image id 2: no pixel has the ids 5 of segments_info, but some have \d+",
    ),
    ("panoptic", lambda c: c["annotations"][0].pop("file_name"), "its first annotation has no 'file_name'"),
    ("panoptic", lambda c: c["annotations"][0].update(file_name=7), "first annotation: 'file_name' is 7"),
    ("panoptic", lambda c: c["annotations"][1].pop("file_name"), "image id 2: no 'file_name'"),
    ("panoptic", lambda c: c["categories"][0].pop("isthing"), "categories: no 'isthing'"),
    ("panoptic", lambda c: c["annotations"][2].update(file_name="9.png"), r"1 of 4 files .*panoptic/9\.png"),
    # Found by scripts/fuzz.py
    ("instance", lambda c: c["images"][0].update(file_name="a" * 5000), "1 of 4 files .*: .*aaa"),
    (
        "panoptic",
        lambda c: c["annotations"][0].update(file_name="a" * 5000),
        r"its PNG .*aaa.* is in none of",
    ),
    ("panoptic", lambda c: c["annotations"][0].update(file_name="\x1b\n"), r"its PNG \\x1b\\n is in none of"),
    (
        "panoptic",
        lambda c: c["annotations"][1].update(file_name="a" * 5000),
        r"1 of 4 files .*not exist: .*aaa",
    ),
    (
        "instance",
        lambda c: c["annotations"][0].update(area="9"),
        "id 1: 'area' is '9', expected a number",
    ),
    ("instance", lambda c: c["annotations"][0].update(area=-1), "'area' is -1, expected a number of pixels"),
    ("instance", lambda c: c["images"][0].update(width=10**400), r"for an image of \(24, 1000.*characters"),
    (
        "panoptic",
        lambda c: c["annotations"][0]["segments_info"][0].update(category_id=10**400),
        r"segment \d+: category_id 1000\d+\.\.\. is not among the categories",
    ),
    (
        "panoptic",
        lambda c: c["annotations"][0]["segments_info"][0].update(area=10**400),
        r"'area' is 1000\d+\.\.\., expected a number of pixels",
    ),
    (
        "instance",
        lambda c: c.update({"a" * 5000: c.pop("annotations")}),
        "no 'annotations', only a.*YOLO's data",
    ),
]


@pytest.mark.parametrize(("task", "change", "message"), ERRORS)
def test_broken_annotations_are_errors(synthetic, task, change, message):
    changed({"instance": synthetic.instances_json, "panoptic": synthetic.panoptic_json}[task], change)
    with pytest.raises(DatasetError, match=message) as error:
        register(synthetic, task)
    assert len(str(error.value)) < 550 and "\n" not in str(error.value)
    assert NAME not in DatasetCatalog and NAME not in MetadataCatalog.list()


def outside(content):
    content["annotations"][1]["segmentation"] = [[-50, -50, 300, -50, 300, 300]]


SQUARE = [1, 1, 9, 1, 9, 9, 1, 9]
DECISIONS = [  # change of the instance JSON, what the log says, images left
    (lambda c: c["annotations"][1].update(id=c["annotations"][0]["id"]), "annotations: the id", 4),
    (lambda c: c["images"][3].update(file_name="0001.png", height=24, width=32), "occurs more than once", 4),
    (outside, "1 annotations reach beyond their image and are clipped", 4),
    (lambda c: c["annotations"][0].update(bbox=[-90, 0, 10, 10]), "1 annotations reach beyond", 4),
    (lambda c: c["annotations"][1].update(segmentation=[]), "left out 1 annotations without a mask", 4),
    (lambda c: c["annotations"][1].pop("segmentation"), "left out 1 annotations without a mask", 4),
    (lambda c: c["categories"].append({"id": 9, "name": "cat"}), "no annotation is of the classes cat", 4),
    (lambda c: c["annotations"][1].update(iscrowd=1), "3 of 5 masks are crowd regions", 4),
    (lambda c: c["annotations"][0].update(segmentation=SQUARE), "1 annotations is a flat list of numbers", 4),
    (lambda c: c["categories"][0].update(color=None), "default colors for donut, whose 'color' is unread", 4),
    (lambda c: c["categories"][1].update(name="donut"), "the name donut occurs twice", 4),
    (lambda c: c["images"].pop(), "1 images have no annotations and are not used", 3),
]


@pytest.mark.parametrize(("change", "message", "left"), DECISIONS)
def test_decisions_are_logged(synthetic, caplog, change, message, left):
    changed(synthetic.instances_json, change)
    with caplog.at_level(logging.WARNING):
        assert len(register(synthetic).images) == left
    assert message in caplog.text


def test_sound_data_gives_no_warning(synthetic, caplog):
    with caplog.at_level(logging.WARNING):
        register(synthetic, crowds_as_objects=True)
    assert not caplog.text
    assert not any(a["iscrowd"] for record in DatasetCatalog.get(NAME) for a in record["annotations"])


def test_missing_images_are_counted_with_a_likely_place(synthetic):
    (synthetic.images / "0002.png").unlink()
    with pytest.raises(DatasetError, match=r"1 of 4 files that .* do not exist: .*0002\.png$"):
        register(synthetic)
    deeper = synthetic.images / "deeper"
    deeper.mkdir()
    with pytest.raises(DatasetError, match=r"4 of 4 .*\(.*/images/0001\.png does; 'file_name' is a path"):
        register_custom_dataset(NAME, str(deeper), str(synthetic.instances_json))


def test_a_folder_without_images_says_what_it_holds(synthetic, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for name in ["0001.heic", "0002.heic", "notes.txt"]:
        (other / name).touch()
    with pytest.raises(DatasetError, match=r"other: there are no images; it holds 2 \.heic, 1 \.txt\)$"):
        register_custom_dataset(NAME, str(other), str(synthetic.instances_json))


def test_a_warning_has_its_number_once(synthetic, caplog):
    for number in range(5):
        shutil.copy(synthetic.images / "0001.png", synthetic.images / f"z{number}.png")
    with caplog.at_level(logging.WARNING):
        register(synthetic, crowds_as_objects=True)
    (message,) = [text for text in caplog.messages if "have no annotations" in text]
    assert "5 images have no annotations" in message and message.endswith("z2.png, ...")


def test_paths_with_a_prefix_are_found(synthetic):
    def prefix(content):
        for image in content["images"]:
            image["file_name"] = f"/data/upload/{image['file_name']}"

    for task, file in (("instance", synthetic.instances_json), ("panoptic", synthetic.panoptic_json)):
        changed(file, prefix)
        assert {*register(synthetic, task).images} == {*map(str, synthetic.images.iterdir())}
        forget(NAME)


def test_an_unreadable_image_is_an_error(synthetic):
    (synthetic.images / "0001.png").write_text("no image")
    with pytest.raises(DatasetError, match=r"0001\.png, image id 1: not a readable image"):
        register(synthetic)


FOREIGN = [  # files, content of each, message
    ("a.json", {"shapes": [], "imagePath": "a.jpg"}, "its format is labelme's"),
    ("a.json", {"_via_settings": {}}, "its format is the VGG Image Annotator's"),
    ("a.json", [{"image_id": 1, "score": 0.5}], "it holds a list, as files of results do"),
    ("a.json", {"images": [], "categories": []}, "it has no 'annotations', only categories, images"),
    ("a.json", {}, "it has no 'images', only nothing"),
    ("a.xml", {}, "its format is Pascal VOC's"),
    ("a.txt", {}, "its format is text; YOLO's labels are given as"),
    ("folder/a.xml", {}, "no label PNGs, but files of Pascal VOC's"),
    ("folder/a.txt", {}, r"no label PNGs, but text .* not YOLO's .*folder/a\.txt: "),
    ("folder/a.json", {}, "no label PNGs, but one JSON, which may be meant: .*folder/a.json"),
    ("a.json", {"images": [], "categories": [], "annotations": None}, "'annotations' is not a list"),
    ("a.json", {"images": [3], "categories": [], "annotations": []}, "'images' is not a list of objects"),
    ("folder/a.jpg", {}, "no label PNGs, but files of JPEG, which changes values"),
    ("folder/.hidden.png", {}, "there are no label PNGs; "),
    ("folder/a.json folder/b.json", {}, "but files of JSONs that are not labelme's"),
]


@pytest.mark.parametrize(("files", "content", "message"), FOREIGN)
def test_other_formats_are_named_with_what_is_expected(tmp_path, files, content, message):
    (tmp_path / "folder").mkdir()
    for file in files.split():
        write_json(tmp_path / file, content)
    with pytest.raises(DatasetError, match=f"{message}.*expected one of: a COCO instance JSON"):
        find_format(str(tmp_path / "images"), str(tmp_path / ("folder" if "/" in files else files)))


def test_a_registered_name_is_kept(synthetic):
    register(synthetic)
    with pytest.raises(DatasetError, match=f"a dataset called '{NAME}' is registered already"):
        register(synthetic, "panoptic")
    assert MetadataCatalog.get(NAME).evaluator_type == "coco"


def test_missing_paths_are_errors(synthetic, tmp_path):
    for images, annotations in (
        (tmp_path / "none", synthetic.instances_json),
        (synthetic.images, tmp_path / "none"),
    ):
        with pytest.raises(DatasetError, match="none does not exist"):
            register_custom_dataset(NAME, str(images), str(annotations))


@pytest.fixture
def trained(synthetic, restored_catalogs):
    return register_custom_dataset("trained_of_a_test", str(synthetic.images), str(synthetic.instances_json))


CLASSES = [
    (lambda c: c["categories"][0].update(name="cat"), "only here: cat; only in the training data: donut"),
    (lambda c: c["categories"].append({"id": 9, "name": "cat"}), "its 3 classes .*only here: cat"),
    (lambda c: [row.update(id=7 - row["id"]) for row in c["categories"]], "order of their ids"),
]


@pytest.mark.parametrize(("change", "message"), CLASSES)
def test_other_classes_to_test_on_are_an_error(synthetic, trained, change, message):
    changed(synthetic.instances_json, change)
    with pytest.raises(DatasetError, match=message):
        register(synthetic, train_dataset=trained)


def test_another_task_to_test_on_is_an_error(synthetic, trained):
    with pytest.raises(DatasetError, match="is panoptic data, but what is trained on is instance data"):
        register(synthetic, "panoptic", train_dataset=trained)


def test_images_trained_on_and_tested_on_give_a_warning(synthetic, trained, caplog, tmp_path):
    copies = tmp_path / "copies"
    shutil.copytree(synthetic.images, copies)
    with Image.open(copies / "0001.png") as image:
        Image.eval(image, lambda value: 255 - value).save(copies / "0001.png")
    with caplog.at_level(logging.WARNING):
        register_custom_dataset(NAME, str(copies), str(synthetic.instances_json), train_dataset=trained)
    assert "3 images are both trained on and tested on" in caplog.text
