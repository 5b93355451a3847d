"""`mask2former check-dataset`: the report against annotation files, broken records, samples, wrong flags."""

import json
import re
import shutil
from collections import Counter

import numpy as np
import pytest
import script_runs
from catalogs import restored_catalogs
from dataset_reports import NAMES, TRAIN, annotations, check_classes, report_of, shapes
from full_disk import files_no_larger_than
from PIL import Image
from pycocotools.coco import COCO
from synthetic_datasets import cityscapes

from mask2former.data import DatasetCatalog, MetadataCatalog, register_coco_instances
from mask2former.data.datasets.shapes import CATEGORIES
from mask2former.tools import check_dataset
from mask2former.tools.check_dataset import main
from mask2former.utils.label_maps import read_segment_ids

__all__ = ["restored_catalogs", "shapes"]


def check_sizes(found, areas):
    assert (found["count"], found["area"]["least"], found["area"]["most"]) == (
        len(areas),
        min(areas),
        max(areas),
    )
    assert found["small"] == sum(area < 32**2 for area in areas)


def test_the_report_agrees_with_the_annotation_file(shapes, capsys):
    report = report_of(capsys, TRAIN, "--workers", "1")
    images = [Counter(s["category_id"] for s in row["segments_info"]) for row in annotations(shapes)]
    assert report["images"] == len(images) == 6
    check_classes(report["classes"], NAMES, images)
    areas = [(s["area"], s["category_id"] <= 3) for row in annotations(shapes) for s in row["segments_info"]]
    for group, is_thing in (("things", True), ("stuff", False)):
        check_sizes(report["object_sizes"][group], [area for area, thing in areas if thing == is_thing])
    assert report["objects_in_an_image"]["most"] == max(image.total() for image in images)
    assert report["share_of_pixels_without_class"] == 0
    assert report["broken"]["count"] == 0
    assert report["warnings"] == {}


def test_the_number_of_processes_does_not_matter(shapes, capsys):
    assert report_of(capsys, TRAIN, "--workers", "1") == report_of(capsys, TRAIN, "--workers", "2")


def test_a_sample_shows_the_ground_truth(shapes, capsys):
    report = report_of(capsys, TRAIN, "--workers", "1")
    assert len(report["samples"]) == 6
    assert report["samples"][0] == f"output/check_dataset/{TRAIN}/sample_1_000001.png"
    image = np.asarray(Image.open(shapes / "train" / "000001.jpg")).astype(int)
    drawn = np.asarray(Image.open(report["samples"][0])).astype(int)
    assert drawn.shape == (512, 512, 3)  # four times as large, to be legible
    ids = read_segment_ids(shapes / "panoptic_train" / "000001.png")
    for category in CATEGORIES[3:]:  # the stuff, of one color
        rows, columns = np.nonzero(ids // 1000 == category["id"])
        tinted = (image[rows, columns] + category["color"]) // 2
        differences = np.abs(drawn[4 * rows + 2, 4 * columns + 2] - tinted).max(1)
        assert (differences <= 1).mean() > 0.7  # elsewhere are outlines and the name


def test_broken_records_are_counted_and_the_check_goes_on(shapes, capsys):
    (shapes / "train" / "000001.jpg").unlink()
    png = shapes / "panoptic_train" / "000002.png"
    png.write_bytes(png.read_bytes()[:200])
    path = shapes / "annotations" / "panoptic_train.json"
    content = json.loads(path.read_text())
    content["annotations"][2]["segments_info"][0]["category_id"] = 77  # the reader of the file refuses it
    path.write_text(json.dumps(content))
    assert main([TRAIN, "--workers", "2"]) == 1
    out = capsys.readouterr().out
    assert "BROKEN RECORDS: 3" in out
    reasons = out[out.index("BROKEN") :]
    assert "train/000001.jpg, image id 1: no such file" in reasons
    assert f"{png}, image id 2: not a readable image" in reasons
    assert re.search(r"panoptic_train\.json, image id 3: segment \d+: category_id 77 is not among", reasons)
    assert len(list((shapes.parents[1] / "output" / "check_dataset" / TRAIN).iterdir())) == 3


@pytest.mark.parametrize(("task", "broken"), [("sem_seg", 1), ("instance_seg", 1), ("panoptic", 2)])
def test_missing_images_of_cityscapes_are_reported(task, broken, tmp_path, monkeypatch, capsys):
    """The panoptic JSON and the label maps both name the image."""
    cityscapes.draw(tmp_path)
    script_runs.run("prepare_cityscapes", tmp_path)
    (gone, *_) = (tmp_path / "cityscapes" / "leftImg8bit" / "val").rglob("frankfurt_000000*")
    gone.unlink()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    name = f"cityscapes_fine_{task}_val"
    report = report_of(capsys, name, "--workers", "1", "--output", str(tmp_path / "out"), code=1)
    assert (report["broken"]["count"], report["images"]) == (broken, 2)
    assert all("frankfurt_000000" in reason for reason in report["broken"]["first"])


def test_broken_records_beyond_the_first_are_only_counted(shapes, capsys, monkeypatch):
    shutil.rmtree(shapes / "panoptic_val")
    (shapes / "panoptic_val").mkdir()
    monkeypatch.setattr("mask2former.data.checks.summary.SHOWN", 1)
    assert main(["shapes_panoptic_val", "--workers", "1"]) == 1
    out = capsys.readouterr().out
    for line in ("BROKEN RECORDS: 2", "and 1 more", "none could be read", "samples drawn: 0"):
        assert line in out


@pytest.mark.parametrize("workers", ["1", "2"])
def test_images_above_the_limit_of_pixels_are_broken(shapes, capsys, workers):
    arguments = [TRAIN, "--limit", "3", "--workers", workers]
    report = report_of(capsys, *arguments, "--max-megapixels", "0.001", code=1)
    assert report["broken"]["count"] == 3
    assert "megapixels; the limit is 0.001" in report["broken"]["first"][0]
    report_of(capsys, *arguments)


def test_the_text_lists_the_report(shapes, capsys):
    assert main([TRAIN, "--queries", "3", "--workers", "1", "--output", "here"]) == 0
    lines = capsys.readouterr().out.splitlines()
    lines_of = {line[:20].strip(): line[20:].strip() for line in lines if line}
    assert lines_of["images"] == "6"
    assert lines_of["sizes"].endswith("most often 128 x 128 (6)")
    assert lines_of["annotations"] == "6 panoptic PNG"
    # Each image has two textures and three shapes or more.
    assert lines_of["queries"] == "3; images with more objects: 6"
    assert "no record is broken" in lines
    assert (shapes.parents[1] / "here" / "sample_6_000006.png").exists()


def test_limit_checks_the_first_records(shapes, capsys):
    report = report_of(capsys, TRAIN, "--limit", "2", "--workers", "1")
    assert report["images"] == len(report["samples"]) == 2


def test_images_shared_with_another_dataset_give_warnings(shapes, capsys):
    shutil.copy(shapes / "train" / "000003.jpg", shapes / "val" / "000002.jpg")
    report = report_of(capsys, TRAIN, "--against", "shapes_panoptic_val", "--workers", "1")
    ((kind, found),) = report["warnings"].items()
    assert "the other dataset" in kind
    assert found == {"count": 1, "first": [f"{shapes / 'train/000003.jpg'}: {shapes / 'val/000002.jpg'}"]}


def test_unusual_annotations_give_warnings(shapes, capsys):
    path = shapes / "annotations" / "instances_train.json"
    register_coco_instances("user", {}, path, shapes / "train")
    content = json.loads(path.read_text())
    content["images"].append(content["images"][0])
    content["annotations"][0]["bbox"] = [0, 0, 1, 1]
    content["annotations"][1]["segmentation"] = [[500, 500, 600, 500, 600, 600]]
    content["categories"].append({"id": 9, "name": "star"})
    path.write_text(json.dumps(content))
    report = report_of(capsys, "user", "--workers", "1")
    counts = {kind: found["count"] for kind, found in report["warnings"].items()}
    # The image that is listed twice shows all of its objects twice.
    assert counts == {
        "boxes that do not fit their masks": 2,
        "objects whose mask is empty; training leaves them out": 2,
        "image ids that several records have": 1,
        "images that several records show": 1,
    }
    assert report["never_seen"] == ["star"]
    assert main(["user", "--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert "never seen, 1 of 4: star" in out
    assert "boxes that do not fit their masks: 2\n  " in out


def test_images_without_annotations_are_checked_and_classes_need_names(shapes, capsys):
    DatasetCatalog.register("alone", lambda: [{"file_name": str(shapes / "val" / "000001.jpg")}])
    assert main(["alone", "--workers", "1"]) == 0
    assert "none: images alone" in capsys.readouterr().out
    DatasetCatalog.register("nameless", lambda: [{"file_name": "a.jpg", "annotations": []}])
    assert main(["nameless"]) == 2
    assert "metadata of 'nameless' has no 'thing_classes'" in capsys.readouterr().err


def test_the_ignore_label_is_255_by_default(shapes, capsys):
    Image.fromarray(np.full((128, 128), 255, np.uint8)).save("labels.png")
    record = {"file_name": str(shapes / "val" / "000001.jpg"), "sem_seg_file_name": "labels.png"}
    DatasetCatalog.register("ignored", lambda: [record])
    MetadataCatalog.get("ignored").set(stuff_classes=["one"])
    report = report_of(capsys, "ignored", "--workers", "1")
    assert report["share_of_pixels_without_class"] == report["images_without_objects"] == 1


def test_real_images_agree_with_pycocotools(shared, capsys, tmp_path):
    root = shared / "data" / "samples" / "super_gradients_tinycoco"
    path = root / "annotations" / "instances_val2017.json"
    register_coco_instances("tiny", {}, path, root / "images" / "val2017")
    report = report_of(capsys, "tiny", "--workers", "2", "--output", str(tmp_path))
    coco = COCO(str(path))
    objects = coco.loadAnns(coco.getAnnIds(iscrowd=False))
    areas = [int(coco.annToMask(annotation).sum()) for annotation in objects]
    check_sizes(report["object_sizes"]["objects"], areas)
    assert report["crowd_regions"] == len(coco.getAnnIds(iscrowd=True))
    counted = {entry["name"]: entry["objects"] for entry in report["classes"] if entry["objects"]}
    assert counted == Counter(coco.cats[annotation["category_id"]]["name"] for annotation in objects)


def test_the_report_of_cityscapes_agrees_with_its_images(tmp_path, monkeypatch, capsys):
    cityscapes.draw(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    report = report_of(capsys, "cityscapes_fine_instance_seg_train", "--workers", "1", "--queries", "5")
    names = {24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus"}
    names |= {31: "train", 32: "motorcycle", 33: "bicycle"}
    files = sorted((tmp_path / "cityscapes" / "gtFine" / "train").rglob("*_instanceIds.png"))
    found = [np.unique(np.asarray(Image.open(file))) for file in files]
    labels = [Counter(k for k in (ids // 1000).tolist() if k in names) for ids in found]
    check_classes(report["classes"], names, labels)
    assert report["crowd_regions"] == sum(int(np.isin(list(names), ids).sum()) for ids in found) >= 2
    assert report["images_without_objects"] == 1  # the last
    counts = [image.total() for image in labels]
    assert report["objects_in_an_image"]["most"] == max(counts)
    more = report["objects_in_an_image"]["images_with_more_than_queries"]
    assert more == sum(count > 5 for count in counts) > 0
    assert report["representation"] == {"RLE": sum(counts) + report["crowd_regions"]}
    assert report["image_sizes"]["commonest"] == [80, 160]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shapes_panoptic_trai"], "did you mean shapes_panoptic_train"),
        (["coco_2017_val"], "coco/annotations/instances_val2017.json does not exist"),
        ([TRAIN, "--against", "nothing"], "no dataset is called 'nothing'"),
    ],
)
def test_an_unknown_or_missing_dataset_is_one_line(shapes, capsys, arguments, message):
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either the NAME of a dataset, or --images"),
        ([TRAIN, "--images", "a"], "either the NAME of a dataset, or --images"),
        (["--images", "a"], "belong together"),
        ([TRAIN, "--classes", "a"], "--classes belongs to --images"),
        ([TRAIN, "--limit", "0"], "at least 1, not '0'"),
        ([TRAIN, "--workers", "many"], "not 'many'"),
    ],
)
def test_wrong_flags(capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err


def test_a_killed_process_is_one_line(shapes, capsys, monkeypatch):
    def killed(*_):
        raise check_dataset.BrokenProcessPool

    monkeypatch.setattr(check_dataset, "summaries", killed)
    assert main([TRAIN]) == 1
    assert "a process was killed" in capsys.readouterr().err


def test_a_full_disk_for_samples_leaves_the_report(shapes, capsys):
    with files_no_larger_than(0):
        assert main([TRAIN, "--limit", "1", "--workers", "1"]) == 1
    out, err = capsys.readouterr()
    assert "no record is broken" in out and "samples drawn: 0" in out
    assert re.search(r"^error: \[Errno 27\] File too large: '.*sample_1_000001\.png'$", err, re.MULTILINE)
