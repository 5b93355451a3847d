"""COCO's AP: the published figures, pycocotools for comparison, a case computed by hand, the evaluator."""

import json
import math
import re
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from score_command import score, score_error
from synthetic_evaluation import EITHER_IDS, SIZE, Replay, SyntheticDataset, metrics_of, results_of, rle

from mask2former.evaluation.coco.ap import COCOEvaluator, average_precision, average_recall
from mask2former.evaluation.evaluator import inference_on_dataset

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def test_published_figures(shared):
    sample = shared / "data/samples/cocoapi_fake_results"
    results = sample / "instances_val2014_fakesegm100_results.json"
    scores = score("instances", "--gt", sample / "instances_val2014_100.json", "--results", results)
    published = (sample / "val2014_fake_eval_res.txt").read_text().split("type=segm")[1].split("type=")[0]
    figures = [float(number) for number in re.findall(r"Precision.* = (0\.\d+)", published)]
    assert [round(scores[name] / 100, 3) for name in METRICS] == figures and len(figures) == 6


@pytest.mark.parametrize(("seed", "limits"), [(0, (32**2, 96**2)), (1, (32**2, 96**2)), (2, (60, 150))])
def test_equals_pycocotools(tmp_path, seed, limits):
    dataset = SyntheticDataset(
        tmp_path, image_ids=np.random.default_rng(seed).permutation(40)[:15].tolist(), seed=seed
    )
    truth = json.loads(dataset.instances.read_text())
    polygon = {"segmentation": [[2, 3, 20, 3, 20, 15, 2.5, 17]], "area": 230.0, "iscrowd": 0}
    truth["annotations"].append({**polygon, "category_id": 3, "image_id": truth["images"][0]["id"]})
    for number, annotation in enumerate(truth["annotations"], 1):
        annotation["id"] = number
    results = results_of([*dataset.disturbed, *dataset.maps], np.random.default_rng(seed))
    copies = json.loads(json.dumps([truth, results]))
    scores = average_precision(*copies, area_limits=limits)

    official_truth = COCO()
    official_truth.dataset = truth
    official_truth.createIndex()
    official = COCOeval(official_truth, official_truth.loadRes(results), "segm")
    official.params.areaRng = [[0, 1e10], [0, limits[0]], [*limits], [limits[1], 1e10]]
    official.evaluate()
    official.accumulate()
    official.summarize()
    expected = [np.nan if value < 0 else 100 * value for value in official.stats[:6]]
    assert np.array_equal([scores[name] for name in METRICS], expected, equal_nan=True)
    per_class = official.eval["precision"][..., 0, -1]
    for place, name in enumerate(["circle", "triangle-like"]):
        assert scores[f"AP-{name}"] == 100 * per_class[:, :, place].mean()
    assert 5 < scores["AP"] < 95

    official.params.useCats, official.params.maxDets = 0, [1, 10, 100]
    official.evaluate()
    official.accumulate()
    recall = official.eval["recall"][:, 0, 0, -1].mean()
    assert average_recall(truth, results) == pytest.approx(100 * recall)
    assert 5 < 100 * recall < 99


def one_image(ids: tuple[Any, ...] = (1,)) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a ground truth of a circle (100 pixels) and a box, and a result with 77 pixels of the circle."""
    mask, found, box = np.zeros((3, 20, 20), bool)
    mask[:10, :10] = box[15:, 15:] = True
    found[:10, :10] = np.arange(100).reshape(10, 10) < 77
    common = {"image_id": ids[0], "iscrowd": 0}
    truth = {
        "images": [{"id": id, "height": 20, "width": 20} for id in ids],
        "categories": [{"id": 8, "name": "box"}, {"id": 0, "name": "circle"}, {"id": 5, "name": "absent"}],
        "annotations": [
            {**common, "id": 0, "category_id": 0, "area": 100, "segmentation": rle(mask)},
            {**common, "id": 1, "category_id": 8, "area": 25, "segmentation": rle(box)},
        ],
    }
    results = [{"image_id": ids[0], "category_id": 0, "score": 0.3, "segmentation": rle(found)}]
    return truth, results


def test_a_case_computed_by_hand():
    # IoU 0.77 passes 0.50 to 0.75, six of ten thresholds; the box has no result, "absent" no ground truth
    scores = average_precision(*one_image())
    expected = {"AP-circle": 60, "AP-box": 0, "AP": 30, "AP50": 50, "AP75": 50, "APs": 30}
    assert {name: scores[name] for name in expected} == pytest.approx(expected)
    assert all(np.isnan(scores[name]) for name in ("APm", "APl", "AP-absent"))


def test_boxes_of_results_do_not_change_sizes():
    truth, results = one_image()
    boxed = [{**results[0], "bbox": [0, 0, 2000, 2000], "keypoints": []}]
    assert average_precision(truth, boxed) == pytest.approx(average_precision(truth, results), nan_ok=True)


def test_string_ids_give_the_same_scores():
    expected = average_precision(*one_image())
    truth, results = one_image(("ADE_val_2", "ADE_val_10"))
    before = json.dumps([truth, results])
    assert average_precision(truth, results) == pytest.approx(expected, nan_ok=True)
    assert json.dumps([truth, results]) == before  # the input is not changed


@EITHER_IDS
def test_perfect_and_empty_results_in_files(tmp_path, dataset):
    for results, expected in ((results_of(dataset.maps), 100), ([], 0)):
        (tmp_path / "results.json").write_text(json.dumps(results))
        scores = score("instances", "--gt", dataset.instances, "--results", tmp_path / "results.json")
        assert [scores[name] for name in ("AP", "AP50", "AP75", "APs")] == pytest.approx([expected] * 4)
        assert np.isnan(scores["APl"])


@pytest.mark.parametrize("empty", [["annotations"], ["images", "annotations"], ["categories", "annotations"]])
def test_an_empty_ground_truth_gives_nan(empty):
    truth, _ = one_image()
    assert np.isnan(average_precision({**truth, **{key: [] for key in empty}}, [])["AP"])


@EITHER_IDS
def test_evaluator_equals_the_command_on_the_file_it_wrote(tmp_path, dataset):
    records = dataset.records(dataset.disturbed)
    evaluator = COCOEvaluator(metadata=dataset.metadata, output_dir=tmp_path / "inference")
    results = metrics_of(evaluator, records[:1], records[1:])
    file = tmp_path / "inference/coco_instances_results.json"
    saved = json.loads(file.read_text())
    expected = [(r["image_id"], r["category_id"], r["segmentation"]) for r in results_of(dataset.disturbed)]
    assert [(r["image_id"], r["category_id"], r["segmentation"]) for r in saved] == expected
    assert 0 < results["AP"] < 100
    scores = score("instances", "--gt", dataset.instances, "--results", file)
    assert scores == pytest.approx(results, nan_ok=True)


def test_evaluator_without_instances_gives_zero(tmp_path, dataset):
    records = dataset.records([(image_id, np.zeros(SIZE, int), []) for image_id, *_ in dataset.maps])
    results = metrics_of(COCOEvaluator(metadata=dataset.metadata, output_dir=tmp_path), records)
    assert (results["AP"], results["AP50"]) == (0, 0)
    assert json.loads((tmp_path / "coco_instances_results.json").read_text()) == []


def test_results_without_annotations_are_saved_not_scored(tmp_path, dataset):
    truth = json.loads(dataset.instances.read_text())
    del truth["annotations"]
    dataset.instances.write_text(json.dumps(truth))
    evaluator = COCOEvaluator(metadata=dataset.metadata, output_dir=tmp_path / "inference")
    assert not inference_on_dataset(Replay(), [dataset.records(dataset.maps)], evaluator)
    assert json.loads((tmp_path / "inference/coco_instances_results.json").read_text())


@pytest.mark.parametrize("mask", [None, [], {}, [[1, 1, 5, 5]], "absent"])
def test_annotations_without_a_mask_are_left_out_with_a_warning(caplog, mask):
    truth, results = one_image()
    expected = average_precision(truth, results)
    row = {"id": 9, "image_id": 1, "category_id": 0, "segmentation": mask, "bbox": [1, 1, 4, 4]}
    truth["annotations"].append({key: value for key, value in row.items() if value != "absent"})
    assert average_precision(truth, results) == pytest.approx(expected, nan_ok=True, rel=0, abs=0)
    assert "AP leaves out 1 annotations without an RLE or a polygon of 3 points" in caplog.text


def to_polygons(number):
    """Return a change of ground truth: the box of 25 pixels as a polygon of such numbers."""
    return lambda truth: truth["annotations"][1].update(
        segmentation=[[number(x) for x in (15, 15, 20, 15, 20, 20, 15, 20)]]
    )


def ids_as(number):
    def change(truth):
        for image in truth["images"]:
            image["id"] = number(image["id"])
        for category in truth["categories"]:
            category["id"] = number(category["id"])
        for annotation in truth["annotations"]:
            annotation.update({key: number(annotation[key]) for key in ("image_id", "category_id")})

    return change


@pytest.mark.parametrize(
    "change",
    [
        ids_as(float),
        lambda truth: [annotation.update(iscrowd=None) for annotation in truth["annotations"]],
        lambda truth: [annotation.update(iscrowd=False) for annotation in truth["annotations"]],
        to_polygons(int),
        to_polygons(float),
        lambda truth: truth["annotations"][1].update(segmentation=[15, 15, 20, 15, 20, 20, 15, 20]),
        lambda truth: truth["annotations"][1].update(segmentation=[[15, 15], [20, 15], [20, 20], [15, 20]]),
        lambda truth: truth["annotations"][1].update(segmentation=[truth["annotations"][1]["segmentation"]]),
    ],
)
def test_other_spellings_of_values_give_the_same_scores(change):
    truth, results = one_image()
    expected = average_precision(truth, results)
    change(truth)
    assert average_precision(truth, results) == pytest.approx(expected, nan_ok=True, rel=0, abs=0)


def test_whole_floats_as_run_lengths_give_the_same_scores():
    truth, results = one_image()
    expected = average_precision(truth, results)
    counts = [0.0, *[10.0] * 19, 210.0]  # ten columns of ten pixels each
    truth["annotations"][0]["segmentation"] = {"size": [20, 20], "counts": counts}
    assert average_precision(truth, results) == pytest.approx(expected, nan_ok=True, rel=0, abs=0)


def test_category_ids_may_be_texts():
    truth, results = one_image()
    expected = average_precision(truth, results)
    for row in [*truth["annotations"], *results]:
        row["category_id"] = str(row["category_id"])
    for category in truth["categories"]:
        category["id"] = str(category["id"])
    assert average_precision(truth, results) == pytest.approx(expected, nan_ok=True, rel=0, abs=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 9}, "results: item 0: image_id 9 is not in the ground truth"),
        ({"category_id": 1}, "results: item 0: category_id 1 is not in the ground truth"),
        ({"category_id": 0.5}, "results: item 0: category_id 0.5 is not in the ground truth"),
        ({"category_id": False}, "results: item 0: category_id False is not in the ground truth"),
        ({"image_id": [1]}, r"results: item 0: image_id \[1\] is not in the ground truth"),
        ({"score": None}, "results: item 0: no key 'score'"),
        ({"score": "0.3"}, "results: item 0: 'score' is '0.3', expected a number"),
        ({"score": float("nan")}, "results: item 0: 'score' is nan, expected a number"),
        (
            {"segmentation": {"size": None, "counts": "a"}},
            r"image 1: a mask of \(height, width\) None for",
        ),
        (
            {"segmentation": {"size": [20, 20], "counts": "abc"}},
            "item 0, image 1: the counts are no run",
        ),
        ({"segmentation": {"size": [20, 20], "counts": "13"}}, "item 0, image 1: .* 4 of 400 pixels"),
        ({"segmentation": None}, "results: item 0: no key 'segmentation'"),
        ({"segmentation": [[0, 0, 1, 1, 1, 0]]}, "results: item 0: 'segmentation' is not a compressed RLE"),
        ({"segmentation": rle(np.zeros((5, 20)))}, r"\(5, 20\) for an image of \(20, 20\)"),
    ],
)
def test_invalid_results_are_errors(change, message):
    truth, results = one_image()
    changed = {key: value for key, value in {**results[0], **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        average_precision(truth, [changed])
    right = {**results[0], "score": 1}
    with pytest.raises(ValueError, match=message.replace("item 0", "item 2")):
        average_precision(truth, [right, results[0], changed, right])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "ground truth: 'images' is None, expected a list"),
        ({"annotations": {}}, r"ground truth: 'annotations' is \{\}, expected a list"),
        (
            {"area": "9"},
            r"annotations\[0\] \(id 0, image 1\): 'area' is '9', expected a number",
        ),
        ({"area": None}, r"annotations\[0\] \(id 0, image 1\): 'area' is None, expected a number"),
        ({"image_id": 1.5}, r"annotations\[0\]: image_id 1\.5 is not in the ground truth"),
        ({"category_id": [0]}, r"ground truth: annotations\[0\]: category_id \[0\] is not in"),
        ({"segmentation": "x"}, r"annotations\[0\] .*'segmentation' is 'x', expected a list of polygons"),
        ({"segmentation": {"size": [20, 20], "counts": [5, 3]}}, r"\(id 0, image 1\): .* 8 of 400 pixels"),
        ({"segmentation": {"size": [20, 20], "counts": "13"}}, r"\(id 0, image 1\): .* 4 of 400 pixels"),
        (
            {"segmentation": [[0, 0, 9, 0, 9, "9"]]},
            r"\(id 0, image 1\): 'segmentation' is .*'9'\]\], expected",
        ),
        ({"segmentation": [[0, 0, 9, 0, 9, None]]}, r"\(id 0, image 1\): 'segmentation' is .*, expected"),
        ({"segmentation": [[0, 0, 9, 0, 9, 9, 4]]}, r"\(id 0, image 1\): .*odd number of coordinates, 7"),
        ({"segmentation": [[0, 0, 9, 0, 9, 1e300]]}, r"\(id 0, image 1\): a point lies outside"),
        ({"iscrowd": 2}, r"\(id 0, image 1\): 'iscrowd' is 2, expected 0 or 1"),
        ({"iscrowd": "0"}, r"\(id 0, image 1\): 'iscrowd' is '0', expected 0 or 1"),
        ({"images": [{"id": 1, "height": 20, "width": "20"}]}, "image 1: 'width' is '20', expected a whole"),
        ({"images": [{"id": 1, "height": 20, "width": -1}]}, "image 1: 'width' is -1, expected a whole"),
        ({"images": [{"id": 1, "height": 20}]}, "ground truth: image 1: no key 'width'$"),
        (
            {"images": [{"id": 1, "height": 60_000, "width": 60_000}]},
            "image 1: 'height' and 'width' are 60000 and 60000; the limit is 200 megapixels",
        ),
    ],
)
def test_invalid_ground_truth_is_an_error(change, message):
    truth, results = one_image()
    target = truth if change.keys() <= truth.keys() else truth["annotations"][0]
    target.update(change)
    with pytest.raises(ValueError, match=message):
        average_precision(truth, results)


def test_recall_without_classes_ignores_the_class_of_a_result(dataset):
    truth = json.loads(dataset.instances.read_text())
    results = results_of(dataset.maps)
    other = {3: 90, 90: 3}
    wrong = [{**result, "category_id": other[result["category_id"]]} for result in results]
    assert average_recall(truth, wrong) == average_recall(truth, results) == pytest.approx(100)
    assert average_precision(truth, wrong)["AP"] < 50
    assert average_recall(truth, []) == 0
    assert math.isnan(average_recall({**truth, "annotations": []}, results))


def test_evaluator_measures_proposals_if_asked(dataset):
    evaluator = COCOEvaluator(metadata=dataset.metadata, proposals=True)
    metrics = metrics_of(evaluator, dataset.records(dataset.maps))
    assert metrics["AR@100"] == metrics["AP"] == pytest.approx(100)


def test_crowds_are_objects_if_the_metadata_says_so(dataset):
    """AP misses every object without results: 0 with objects, and nothing to find, NaN, with crowds alone."""
    truth = json.loads(dataset.instances.read_text())
    for annotation in truth["annotations"]:
        annotation["iscrowd"] = 1
    dataset.instances.write_text(json.dumps(truth))
    assert np.isnan(COCOEvaluator(metadata=dataset.metadata).evaluate()["segm"]["AP"])
    dataset.metadata.crowds_as_objects = True
    assert COCOEvaluator(metadata=dataset.metadata).evaluate()["segm"]["AP"] == 0


def test_the_metadata_may_say_what_is_small(dataset):
    dataset.metadata.area_limits = (1, 2)  # no object has an area of one pixel
    evaluator = COCOEvaluator(metadata=dataset.metadata)
    metrics = metrics_of(evaluator, dataset.records(dataset.maps))
    assert math.isnan(metrics["APs"]) and metrics["APl"] == pytest.approx(100)


def test_a_missing_ground_truth_is_an_error_before_the_model_runs(tmp_path):
    metadata = SyntheticDataset(tmp_path).metadata
    metadata.json_file = str(tmp_path / "absent.json")
    with pytest.raises(ValueError, match=r"absent\.json: no such file"):
        COCOEvaluator(metadata=metadata)


@pytest.mark.parametrize(
    "change", [{"area": None}, {"segmentation": {"size": [24, 32], "counts": [5, 3]}}, {"iscrowd": "x"}]
)
def test_a_broken_ground_truth_is_an_error_before_the_model_runs(dataset, change):
    truth = json.loads(dataset.instances.read_text())
    truth["annotations"][1].update(change)
    dataset.instances.write_text(json.dumps(truth))
    with pytest.raises(ValueError, match=r"annotations\[1\] \(id "):
        COCOEvaluator(metadata=dataset.metadata)


def test_command_reports_bad_input_in_one_line(tmp_path):
    truth, results = one_image()
    files = {"truth.json": truth, "results.json": results, "unannotated.json": {**truth, "annotations": [{}]}}
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    for gt, found, message in [
        ("absent.json", "results.json", "absent.json: no such file"),
        ("truth.json", "truth.json", "truth.json: holds a dict at the top, expected a list"),
        ("unannotated.json", "results.json", "unannotated.json: annotations[0]: no key 'image_id'"),
    ]:
        assert message in score_error("instances", "--gt", tmp_path / gt, "--results", tmp_path / found)
