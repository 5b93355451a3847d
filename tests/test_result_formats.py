"""Results handed to other tools, opened by pycocotools, supervision and the importers of annotation tools."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch
from catalogs import restored_catalogs
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.mask import decode, frPyObjects, merge
from scipy import ndimage

from mask2former.data import register_custom_dataset
from mask2former.data.catalog import DatasetCatalog, MetadataCatalog
from mask2former.data.ground_truth.geometry import Geometry
from mask2former.data.ground_truth.readers import read_instances
from mask2former.result import Panoptic, Result, to_coco
from mask2former.structures import Instances, RunLengthMasks, runs

__all__ = ["restored_catalogs"]

SIZE = 60, 80  # of the image
NAMES = ["cup", "spoon", "table"]
CLASSES, SCORES = [1, 0, 1], [0.875, 0.75, 0.5]


def disc(center, radius):
    rows, columns = np.indices(SIZE)
    return (rows - center[0]) ** 2 + (columns - center[1]) ** 2 < radius**2


def masks():
    """Return a disc, a ring cut by the image's edge together with a lone pixel, and an empty mask."""
    ring = disc((5, 60), 15) & ~disc((5, 60), 6)
    ring[50, 70] = True
    return np.stack([disc((30, 20), 14), ring, np.zeros(SIZE, bool)])


def run_length(mask):
    """Return the runs of a mask down its columns."""
    flat = mask.T.ravel()
    spans = runs(flat)
    return torch.from_numpy(spans[flat[spans[:, 0]]])


@pytest.fixture
def result():
    found = Instances(
        SIZE,
        pred_masks=RunLengthMasks(SIZE, [run_length(mask) for mask in masks()]),
        pred_boxes=torch.zeros(3, 4),
        scores=torch.tensor(SCORES),
        pred_classes=torch.tensor(CLASSES),
    )
    ids = np.full(SIZE, 3, np.int32)
    for number, mask in enumerate(masks()[:2], start=1):
        ids[mask] = number
    ids[:, -1] = 0
    classes = [*CLASSES[:2], 2]
    segments = [{"id": i + 1, "category_id": k, "isthing": k < 2} for i, k in enumerate(classes)]
    return Result(np.zeros((*SIZE, 3), np.uint8), NAMES, None, Panoptic(ids, segments), found)


def true_masks(result, task):
    if task == "instance":
        return masks()[:2]
    return np.stack([result.panoptic.ids == i for i in (1, 2, 3)])


def box(mask):
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.fixture
def written(tmp_path):
    """Return a function that writes a COCO file, and returns its path."""

    def write(content):
        path = tmp_path / "annotations" / "instances_default.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
        return str(path)

    return write


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_pycocotools_reads_the_exact_masks_as_annotations_and_as_results(result, task, written):
    content = result.to_coco("a/1.png", task, rle=True)
    truth = COCO(written(content))
    (image,) = truth.loadImgs(truth.getImgIds())
    assert (image["file_name"], image["height"], image["width"]) == ("a/1.png", *SIZE)
    assert [category["name"] for category in truth.loadCats(truth.getCatIds())] == NAMES
    expected = true_masks(result, task)
    assert [item["area"] for item in content["annotations"]] == expected.sum((1, 2)).tolist()
    for coco in (truth, truth.loadRes(content["annotations"])):
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        np.testing.assert_array_equal([coco.annToMask(item) for item in annotations], expected)
        for item, mask in zip(annotations, expected, strict=True):
            left, top, width, height = item["bbox"]
            assert [left, top, left + width, top + height] == box(mask)
        names = [coco.loadCats(item["category_id"])[0]["name"] for item in annotations]
        assert names == ["spoon", "cup", "table"][: len(expected)]
        scores = [item.get("score") for item in annotations]
        assert scores == (SCORES[:2] if task == "instance" else [None] * 3)


def polygon_mask(polygons):
    return decode(merge(frPyObjects(polygons, *SIZE))).astype(bool)


def test_polygons_are_the_masks_without_their_holes(result):
    for item, mask in zip(result.to_coco("1.png", "instance")["annotations"], masks()[:2], strict=True):
        assert len(item["segmentation"]) == ndimage.label(mask, np.ones((3, 3)))[1]
        filled, drawn = ndimage.binary_fill_holes(mask), polygon_mask(item["segmentation"])
        assert (filled & drawn).sum() / (filled | drawn).sum() > 0.97
        assert sum(map(len, item["segmentation"])) / 2 < 60  # vertices, which people move


@pytest.mark.parametrize("seed", range(5))
def test_polygons_of_any_mask_are_valid(result, seed):
    mask = np.random.default_rng(seed).random(SIZE) < 0.3
    result.instances.pred_masks.runs[0] = run_length(mask)
    polygons = result.to_coco("1.png", "instance")["annotations"][0]["segmentation"]
    assert all(len(polygon) % 2 == 0 and len(polygon) >= 6 for polygon in polygons)
    points = np.concatenate(polygons).reshape(-1, 2)
    assert (points > 0).all() and (points < SIZE[::-1]).all()
    outside = polygon_mask(polygons) & ~ndimage.binary_dilation(ndimage.binary_fill_holes(mask))
    assert not outside.any()


def test_a_file_of_several_images_has_ids_of_its_own(result):
    nothing = dataclasses.replace(result, instances=result.instances[[]])
    results = {"1.png": result, "2.png": nothing, "3.png": result}
    content = to_coco(results, "instances")
    assert content == to_coco(iter(results.items()), "instance")
    assert [(image["id"], image["file_name"]) for image in content["images"]] == [
        (1, "1.png"),
        (2, "2.png"),
        (3, "3.png"),
    ]
    ids = [(item["id"], item["image_id"]) for item in content["annotations"]]
    assert ids == [(1, 1), (2, 1), (3, 3), (4, 3)]
    assert to_coco({}) == {"images": [], "annotations": [], "categories": []}


@pytest.mark.usefixtures("restored_catalogs")
@pytest.mark.parametrize("rle", [True, False])
def test_training_reads_the_file(result, rle, written, tmp_path):
    Image.fromarray(result.image).save(tmp_path / "1.png")
    path = written(result.to_coco("1.png", "instance", rle=rle))
    dataset = register_custom_dataset("predicted", str(tmp_path), path)
    assert (dataset.task, dataset.classes) == ("instance", tuple(NAMES))
    (record,) = DatasetCatalog.get("predicted")
    segments = read_instances(record, MetadataCatalog.get("predicted"), SIZE)
    which, found = segments.visible(Geometry.identity(*SIZE))
    assert [segments.classes[i] for i in which] == CLASSES[:2]
    if rle:
        np.testing.assert_array_equal(found, masks()[:2])


@pytest.mark.parametrize("task", ["instance", "panoptic", None])
def test_supervision_gets_all_of_an_object(result, task):
    found = result.to_supervision(task)
    expected = true_masks(result, task or "panoptic")
    np.testing.assert_array_equal(found.mask, expected)
    np.testing.assert_array_equal(found.xyxy, [box(mask) for mask in expected])
    assert found.class_id.tolist() == [1, 0, 2][: len(expected)]
    assert found.data["class_name"].tolist() == ["spoon", "cup", "table"][: len(expected)]
    if task == "instance":
        assert found.confidence.tolist() == SCORES[:2]
        assert found[found.confidence > 0.8].data["class_name"] == ["spoon"]
    else:
        assert found.confidence is None


def test_supervision_draws_counts_and_compares(result):
    import supervision

    found = result.to_supervision("instance")
    drawn = supervision.MaskAnnotator(opacity=1).annotate(result.image.copy(), found)
    np.testing.assert_array_equal(drawn.any(2), masks().any(0))
    assert supervision.LabelAnnotator().annotate(drawn, found).shape == drawn.shape
    assert found.area.tolist() == masks().sum((1, 2)).tolist()[:2]
    assert len(found.with_nms(0.5)) == 2
    nothing = dataclasses.replace(result, instances=result.instances[[]]).to_supervision("instance")
    assert nothing.is_empty() and nothing.mask.shape == (0, *SIZE)
    assert len(supervision.Detections.merge([found, nothing])) == 2


def test_supervision_reads_the_coco_file(result, written, tmp_path):
    import supervision

    Image.fromarray(result.image).save(tmp_path / "1.png")
    path = written(result.to_coco("1.png", "instance", rle=True))
    dataset = supervision.DetectionDataset.from_coco(str(tmp_path), path, force_masks=True)
    ((_, _, found),) = dataset
    assert [dataset.classes[k] for k in found.class_id] == ["spoon", "cup"]
    np.testing.assert_array_equal(found.mask, masks()[:2])


def test_without_supervision_the_error_says_what_to_install(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="pip install supervision"):
        result.to_supervision()


def test_results_without_objects_are_errors(result):
    semantic = Result(result.image, NAMES, np.zeros(SIZE, int))
    for convert in (semantic.to_supervision, lambda: semantic.to_coco("1.png")):
        with pytest.raises(ValueError, match=r'no objects; type result.save\("map.png", "semantic"\)'):
            convert()
    with pytest.raises(ValueError, match="there is no panoptic result; there is: semantic"):
        semantic.to_coco("1.png", "panoptic")
    other = dataclasses.replace(result, class_names=["a", "b", "c"])
    with pytest.raises(ValueError, match=r"2\.png has other class names"):
        to_coco({"1.png": result, "2.png": other})


@pytest.mark.parametrize("rle", [True, False])
def test_the_importer_of_cvat_reads_the_file(result, rle, written, tmp_path):
    datumaro = pytest.importorskip("datumaro", reason="datumaro, which is at odds with our OpenCV")
    written(result.to_coco("1.png", "instance", rle=rle))
    (tmp_path / "images").mkdir()
    (item,) = datumaro.Dataset.import_from(str(tmp_path), "coco_instances")
    kind = datumaro.AnnotationType.mask if rle else datumaro.AnnotationType.polygon
    found = [each for each in item.annotations if each.type == kind]
    found.sort(key=lambda each: each.id)
    assert item.id == "1" and [each.label for each in found] == ([1, 0] if rle else [1, 0, 0])
    if rle:
        np.testing.assert_array_equal([each.image for each in found], masks()[:2])


def test_the_importer_of_label_studio_reads_the_file(result, written, tmp_path):
    reason = "label-studio-sdk"
    importer = pytest.importorskip("label_studio_sdk.converter.imports.coco", reason=reason)
    importer.convert_coco_to_ls(written(result.to_coco("1.png", "instance")), str(tmp_path / "tasks.json"))
    (task,) = json.loads((tmp_path / "tasks.json").read_text())
    values = [item["value"] for item in task["annotations"][0]["result"] if item["type"] == "polygonlabels"]
    assert [value["polygonlabels"] for value in values] == [["spoon"], ["cup"], ["cup"]]
    scale = SIZE[1] / 100, SIZE[0] / 100  # points are in percent
    drawn = polygon_mask([(np.array(value["points"]) * scale).ravel().tolist() for value in values])
    filled = ndimage.binary_fill_holes(masks().any(0))
    assert (filled & drawn).sum() / (filled | drawn).sum() > 0.97
