"""Instance annotations join panoptic records by image id; what does not fit is an error that says where."""

import json

import pytest
from synthetic_coco import rectangle, uncompressed_rle

from mask2former.data import DatasetCatalog, DatasetError, MetadataCatalog, register_coco_panoptic
from mask2former.data.ground_truth.readers import read_things
from mask2former.data.instance_annotations import with_instances

NAME = "synthetic_joined"


@pytest.fixture
def join(synthetic, restored_catalogs):
    """Return a function that changes the instance JSON by `edit` and returns the joined records."""
    paths = synthetic.images, synthetic.panoptic_root, synthetic.panoptic_json
    register_coco_panoptic(NAME, {}, *paths, synthetic.instances_json)
    records, metadata = DatasetCatalog.get(NAME), MetadataCatalog.get(NAME)

    def joined(edit=lambda content: None, records=records):
        content = json.loads(synthetic.instances_json.read_text())
        edit(content)
        synthetic.instances_json.write_text(json.dumps(content))
        return [*with_instances(records, metadata)]

    return joined


def test_records_get_the_annotations_of_their_image_and_keep_the_rest(join):
    records = DatasetCatalog.get(NAME)
    joined = join()
    assert [{**record, "annotations": 0} for record in joined] == [{**r, "annotations": 0} for r in records]
    found = [[(a["category_id"], a["iscrowd"]) for a in record["annotations"]] for record in joined]
    assert found == [[(0, 0), (1, 0)], [(1, 0), (0, 1)], [(0, 1)], []]


def test_images_of_the_json_without_a_panoptic_record_are_left_out(join):
    def more(content):
        content["images"].insert(0, {"id": 99, "file_name": "99.png", "height": 4, "width": 4})
        content["annotations"].append({**content["annotations"][0], "image_id": 99, "segmentation": []})

    assert [record["image_id"] for record in join(more)] == [1, 2, 3, 5]


def test_names_that_differ_are_no_renumbering(join):
    """ADE20K calls a window "windowpane" in one file and "window " in the other."""
    assert len(join(lambda content: content["categories"][0].update(name="windowpane"))) == 4


def test_annotations_that_a_record_has_are_kept(join):
    records = [{**record, "annotations": [number]} for number, record in enumerate(DatasetCatalog.get(NAME))]
    assert join(records=records) == records


def changed(key, place, **values):
    return lambda content: content[key][place].update(values)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["images"].pop(3), r", images: no id 5, which is that of \S+0005\.png$"),
        (
            changed("images", 3, height=21),
            r", image id 5: \(height, width\) is \(21, 16\), .* say \(20, 16\)$",
        ),
        (changed("images", 3, id="5"), r", images: no id 5, which is that of \S+0005\.png$"),
        (
            changed("annotations", 1, category_id=90),
            r", image id 1: category_id 90 is not among the ",
        ),
        (
            changed("annotations", 1, category_id=8),
            r", image id 1: category_id 8 is not among the ",
        ),
        (changed("annotations", 1, image_id=6), r", image id 6: no such id among 'images'$"),
        (changed("annotations", 1, segmentation="x"), r", image id 1: 'segmentation' is 'x', expected"),
        (
            changed("categories", 1, id=3),
            r", categories: 'box' has the id 3, but 7 in the panoptic ann",
        ),
        (lambda c: c.pop("annotations"), " has no 'annotations'$"),
        (lambda c: c.pop("categories"), " has no 'categories'$"),
    ],
)
def test_a_json_that_does_not_fit_is_an_error_that_names_file_and_value(join, synthetic, edit, message):
    with pytest.raises(DatasetError, match=f"^{synthetic.instances_json}{message}"):
        join(edit)


def test_swapped_categories_are_found(join):
    """Both ids are known, so that no annotation is wrong by itself."""

    def swap(content):
        for category in content["categories"]:
            category["name"] = {"donut": "box", "box": "donut"}.get(category["name"], category["name"])

    with pytest.raises(DatasetError, match="categories: 'box' has the id 0, but 7 in the panoptic"):
        join(swap)


@pytest.mark.parametrize("label", [2, 3, 4, -1])
def test_annotations_of_a_users_record_must_be_things(join, label):
    mask = uncompressed_rle(rectangle((24, 32), 0, 0, 5, 5))
    record = {**DatasetCatalog.get(NAME)[0], "annotations": [{"category_id": label, "segmentation": mask}]}
    with pytest.raises(
        DatasetError, match=rf"0001\.png, .*: class {label}, but there are 2 \(things: 0, 1\)"
    ):
        read_things(record, MetadataCatalog.get(NAME), (24, 32))
