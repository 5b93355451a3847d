"""COCO's AP: the published figures, pycocotools as the oracle, a case worked out by hand, the evaluator."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_drawings import SIZE, DrawnSet, Replay, rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mask2former.evaluation.coco.ap import COCOEvaluator, average_precision, main
from mask2former.evaluation.evaluator import inference_on_dataset
from mask2former.structures import Instances

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def results_of(maps: list[Any], rng: np.random.Generator | None = None) -> list[dict[str, Any]]:
    """Results for (image id, map, segments); scores with ties if there is an rng."""
    return [
        {
            "image_id": image_id,
            "category_id": segment["category_id"],
            "segmentation": rle(ids == segment["id"]),
            "score": round(float(rng.random()), 1) if rng else 1.0,
        }
        for image_id, ids, segments in maps
        for segment in segments
        if segment["category_id"] in (3, 90)
    ]


def test_published_figures(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = shared / "data/samples/cocoapi_fake_results"
    results = sample / "instances_val2014_fakesegm100_results.json"
    assert (
        main(["--gt", str(sample / "instances_val2014_100.json"), "--results", str(results), "--json"]) == 0
    )
    scores = json.loads(capsys.readouterr().out)
    published = (sample / "val2014_fake_eval_res.txt").read_text().split("type=segm")[1].split("type=")[0]
    figures = [float(number) for number in re.findall(r"Precision.* = (0\.\d+)", published)]
    assert [round(scores[name] / 100, 3) for name in METRICS] == figures and len(figures) == 6


@pytest.mark.parametrize("seed", range(3))
def test_equals_pycocotools(tmp_path: Path, seed: int) -> None:
    drawn = DrawnSet(tmp_path, image_ids=np.random.default_rng(seed).permutation(40)[:15].tolist(), seed=seed)
    truth = json.loads(drawn.instances.read_text())
    polygon = {"segmentation": [[2, 3, 20, 3, 20, 15, 2.5, 17]], "area": 230.0, "iscrowd": 0}
    truth["annotations"].append({**polygon, "category_id": 3, "image_id": truth["images"][0]["id"]})
    for number, annotation in enumerate(truth["annotations"], 1):
        annotation["id"] = number
    results = results_of([*drawn.disturbed, *drawn.maps], np.random.default_rng(seed))
    scores = average_precision(json.loads(json.dumps(truth)), json.loads(json.dumps(results)))

    oracle_truth = COCO()
    oracle_truth.dataset = truth
    oracle_truth.createIndex()
    oracle = COCOeval(oracle_truth, oracle_truth.loadRes(results), "segm")
    oracle.evaluate()
    oracle.accumulate()
    oracle.summarize()
    expected = [np.nan if value < 0 else 100 * value for value in oracle.stats[:6]]
    assert [scores[name] for name in METRICS] == pytest.approx(expected, nan_ok=True)
    per_class = oracle.eval["precision"][..., 0, -1]
    for place, name in enumerate(["circle", "triangle-like"]):
        assert scores[f"AP-{name}"] == pytest.approx(100 * per_class[:, :, place].mean())
    assert 5 < scores["AP"] < 95


def one_image(ids: tuple[Any, ...] = (1,)) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A circle of 100 pixels and a box, and a result with 77 of the circle's pixels."""
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


def test_a_case_worked_out_by_hand() -> None:
    # IoU 0.77 passes 0.50 to 0.75, six of ten thresholds; the box has no result, "absent" no ground truth
    scores = average_precision(*one_image())
    expected = {"AP-circle": 60, "AP-box": 0, "AP": 30, "AP50": 50, "AP75": 50, "APs": 30}
    assert {name: scores[name] for name in expected} == pytest.approx(expected)
    assert all(np.isnan(scores[name]) for name in ("APm", "APl", "AP-absent"))


def test_a_box_in_a_result_does_not_change_its_size() -> None:
    truth, results = one_image()
    boxed = [{**results[0], "bbox": [0, 0, 2000, 2000], "keypoints": []}]
    assert average_precision(truth, boxed) == pytest.approx(average_precision(truth, results), nan_ok=True)


def test_string_ids_give_the_same() -> None:
    expected = average_precision(*one_image())
    truth, results = one_image(("ADE_val_2", "ADE_val_10"))
    before = json.dumps([truth, results])
    assert average_precision(truth, results) == pytest.approx(expected, nan_ok=True)
    assert json.dumps([truth, results]) == before  # numbers are given in memory only


@pytest.mark.parametrize("image_ids", [(5, 2, 11), ("ADE_val_1", "ADE_val_10", "b")])
def test_perfect_and_empty_results_through_files(
    tmp_path: Path, image_ids: tuple[Any, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = DrawnSet(tmp_path, image_ids, seed=1)
    for results, expected in ((results_of(drawn.maps), 100), ([], 0)):
        (tmp_path / "results.json").write_text(json.dumps(results))
        assert (
            main(["--gt", str(drawn.instances), "--results", str(tmp_path / "results.json"), "--json"]) == 0
        )
        scores = json.loads(capsys.readouterr().out)
        assert [scores[name] for name in ("AP", "AP50", "AP75", "APs")] == pytest.approx([expected] * 4)
        assert scores["APl"] is None


@pytest.mark.parametrize("part", ["images", "annotations", "categories"])
def test_a_truth_with_nothing_in_it(part: str) -> None:
    truth, _ = one_image()
    emptied = {"images": ("images", "annotations"), "categories": ("categories", "annotations")}.get(
        part, (part,)
    )
    scores = average_precision({**truth, **{key: [] for key in emptied}}, [])
    assert np.isnan(scores["AP"])


@pytest.mark.parametrize("image_ids", [(5, 2, 11), ("ADE_val_1", "ADE_val_10", "b")])
def test_evaluator_equals_the_command_on_the_file_it_wrote(
    tmp_path: Path, image_ids: tuple[Any, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = DrawnSet(tmp_path, image_ids)
    records = drawn.records(drawn.disturbed)
    evaluator = COCOEvaluator(metadata=drawn.metadata, output_dir=tmp_path / "inference")
    results = inference_on_dataset(Replay(), [records[:1], records[1:]], evaluator)["segm"]
    file = tmp_path / "inference/coco_instances_results.json"
    saved = json.loads(file.read_text())
    expected = [(r["image_id"], r["category_id"], r["segmentation"]) for r in results_of(drawn.disturbed)]
    assert [(r["image_id"], r["category_id"], r["segmentation"]) for r in saved] == expected
    assert 0 < results["AP"] < 100
    assert main(["--gt", str(drawn.instances), "--results", str(file), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert {k: np.nan if v is None else v for k, v in scores.items()} == pytest.approx(results, nan_ok=True)


def test_evaluator_without_instances_gives_zero(tmp_path: Path) -> None:
    drawn = DrawnSet(tmp_path)
    nothing = Instances(
        SIZE,
        pred_masks=torch.zeros(0, *SIZE, dtype=torch.bool),
        pred_classes=torch.zeros(0, dtype=torch.int64),
        scores=torch.zeros(0),
    )
    records = [{**record, "output": {"instances": nothing}} for record in drawn.records(drawn.maps)]
    evaluator = COCOEvaluator(metadata=drawn.metadata, output_dir=tmp_path)
    results = inference_on_dataset(Replay(), [records], evaluator)["segm"]
    assert (results["AP"], results["AP50"]) == (0, 0)
    assert json.loads((tmp_path / "coco_instances_results.json").read_text()) == []


def test_a_truth_without_annotations_is_saved_not_scored(tmp_path: Path) -> None:
    drawn = DrawnSet(tmp_path)
    truth = json.loads(drawn.instances.read_text())
    del truth["annotations"]
    drawn.instances.write_text(json.dumps(truth))
    evaluator = COCOEvaluator(metadata=drawn.metadata, output_dir=tmp_path / "inference")
    assert not inference_on_dataset(Replay(), [drawn.records(drawn.maps)], evaluator)
    assert json.loads((tmp_path / "inference/coco_instances_results.json").read_text())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 9}, "results: item 0: image_id 9 is not in the truth's JSON file"),
        ({"category_id": 1}, "results: item 0: category_id 1 is not in the truth's JSON file"),
        ({"category_id": 0.0}, "results: item 0: category_id 0.0 is not in the truth's JSON file"),
        ({"image_id": [1]}, r"results: item 0: image_id \[1\] is not in the truth's JSON file"),
        ({"score": None}, "results: item 0: no key 'score'"),
        ({"score": "0.3"}, "results: item 0: 'score' is '0.3', expected a number"),
        ({"score": float("nan")}, "results: item 0: 'score' is nan, expected a number"),
        ({"segmentation": {"size": None, "counts": "a"}}, r"the mask is None pixels, image 1 is \[20, 20\]"),
        ({"segmentation": {"size": [20, 20], "counts": "abc"}}, "truth or results holds a mask .*malformed"),
        ({"segmentation": None}, "results: item 0: no key 'segmentation'"),
        ({"segmentation": [[0, 0, 1, 1, 1, 0]]}, "results: item 0: 'segmentation' is not a compressed RLE"),
        ({"segmentation": rle(np.zeros((5, 20)))}, r"the mask is \[5, 20\] pixels, image 1 is \[20, 20\]"),
    ],
)
def test_bad_results_are_named(change: dict[str, Any], message: str) -> None:
    truth, results = one_image()
    changed = {key: value for key, value in {**results[0], **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        average_precision(truth, [changed])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "truth: 'images' is None, expected a list"),
        ({"annotations": {}}, r"truth: 'annotations' is \{\}, expected a list"),
        ({"area": "9"}, r"truth: annotations\[0\]: 'area' is '9', expected a number"),
        ({"category_id": [0]}, r"truth: annotations\[0\]: category_id \[0\] is not in"),
        ({"segmentation": "x"}, "truth or results holds a mask or flag that is none"),
        ({"iscrowd": None}, "truth or results holds a mask or flag that is none"),
    ],
)
def test_bad_truth_is_named(change: dict[str, Any], message: str) -> None:
    truth, results = one_image()
    target = truth if change.keys() <= truth.keys() else truth["annotations"][0]
    target.update(change)
    with pytest.raises(ValueError, match=message):
        average_precision(truth, results)


def test_the_truth_must_be_there_before_a_model_runs(tmp_path: Path) -> None:
    metadata = DrawnSet(tmp_path).metadata
    metadata.json_file = str(tmp_path / "absent.json")
    with pytest.raises(ValueError, match=r"absent\.json: no such file"):
        COCOEvaluator(metadata=metadata)


def test_command_reports_bad_input_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, results = one_image()
    files = {"truth.json": truth, "results.json": results, "unannotated.json": {**truth, "annotations": [{}]}}
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    for gt, found, message in [
        ("absent.json", "results.json", "absent.json: no such file"),
        ("truth.json", "truth.json", "truth.json: holds a dict at the top, expected a list"),
        ("unannotated.json", "results.json", "unannotated.json: annotations[0]: no key 'area'"),
    ]:
        assert main(["--gt", str(tmp_path / gt), "--results", str(tmp_path / found)]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
