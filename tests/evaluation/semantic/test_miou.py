"""Mean IoU: a case computed by hand, a reference implementation, folders of PNGs, and the evaluator."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as mask_utils
from score_command import score, score_error
from synthetic_evaluation import CONTIGUOUS, SyntheticDataset, metrics_of

from mask2former.evaluation.semantic.miou import (
    SemSegEvaluator,
    confusion_matrix,
    mean_iou,
    mean_iou_of_folders,
    true_labels,
)


def scores_of(pairs: list[tuple[Any, Any]], names: str, ignore: int = 255) -> dict[str, float]:
    maps = [map(np.array, pair) for pair in pairs]
    counts = [confusion_matrix(*pair, len(names), ignore, ("truth", "prediction")) for pair in maps]
    return mean_iou(sum(counts), names)


def reference_scores(
    pairs: list[tuple[np.ndarray, np.ndarray]], num_classes: int, ignore: int
) -> dict[str, float]:
    """Return the metrics by their definition, pixel by pixel."""
    both = [pixel for truth, pred in pairs for pixel in zip(truth.flat, pred.flat, strict=True)]
    pixels = [(t, p) for t, p in both if t != ignore]
    scores: dict[str, float] = {"mIoU": 0, "fwIoU": 0, "mACC": 0, "pACC": 0}
    present = sorted({t for t, _ in pixels})
    if not present:
        return dict.fromkeys(scores, float("nan"))
    for c in present:
        hits = sum(t == c and p == c for t, p in pixels)
        either = sum(t == c or p == c for t, p in pixels)
        count = sum(t == c for t, _ in pixels)
        scores["mIoU"] += 100 * hits / either / len(present)
        scores["fwIoU"] += 100 * hits / either * count / len(pixels)
        scores["mACC"] += 100 * hits / count / len(present)
        scores["pACC"] += 100 * hits / len(pixels)
    return scores


def test_a_case_computed_by_hand():
    scores = scores_of([([[0, 0, 1], [1, 255, 2]], [[0, 1, 1], [1, 3, 0]])], "abcd")
    # a: 1 hit of 3 pixels in either; b: 2 of 3; c: 0 of 2; d is predicted only where the ground truth is
    # ignored
    expected = {"IoU-a": 100 / 3, "IoU-b": 200 / 3, "IoU-c": 0, "ACC-a": 50}
    expected |= {"mIoU": 100 / 3, "fwIoU": 40, "mACC": 50, "pACC": 60}
    assert {name: scores[name] for name in expected} == pytest.approx(expected)
    assert np.isnan(scores["IoU-d"]) and np.isnan(scores["ACC-d"])


@given(data=st.data(), num_classes=st.integers(1, 4), ignore=st.sampled_from([255, 4, 0]))
def test_equals_the_reference(data, num_classes, ignore):
    shape = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    labels = arrays(np.uint8, shape, elements=st.sampled_from([*range(num_classes), ignore]))
    pairs = data.draw(st.lists(st.tuples(labels, labels), min_size=1, max_size=3))
    expected = reference_scores(pairs, num_classes, ignore)
    scores = scores_of(pairs, "abcd"[:num_classes], ignore)
    assert {name: scores[name] for name in expected} == pytest.approx(expected, nan_ok=True)


def test_a_class_that_is_only_predicted_is_nan_and_lowers_others():
    scores = scores_of([([[0, 0]], [[0, 1]])], "ab")
    assert scores["mIoU"] == pytest.approx(50) and np.isnan(scores["IoU-b"])


def save_labels(folder: Path, labels: dict[str, Any]) -> Path:
    for name, values in labels.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array(values, np.uint8)).save(folder / name)
    return folder


def test_perfect_and_empty_folders(tmp_path):
    truth = save_labels(tmp_path / "truth", {"city/a.png": [[0, 1], [255, 1]], "b.png": [[2, 2]]})
    empty = save_labels(
        tmp_path / "empty", {"city/a.png": [[255] * 2] * 2, "b.png": [[255, 255]], "c.png": [[9]]}
    )
    perfect = mean_iou_of_folders(truth, truth, label_ids=range(3))
    assert [perfect[name] for name in ("mIoU", "fwIoU", "mACC", "pACC")] == [100] * 4
    nothing = mean_iou_of_folders(truth, empty, label_ids=range(3))
    assert [nothing[name] for name in ("mIoU", "fwIoU", "mACC", "pACC")] == [0] * 4


def test_any_number_of_threads_gives_the_same_figures(tmp_path):
    random = np.random.default_rng(0)
    truth, pred = (
        save_labels(tmp_path / name, {f"{i}.png": random.integers(4, size=(9, 7)) for i in range(5)})
        for name in ("truth", "pred")
    )
    folders = ["--gt-dir", truth, "--pred-dir", pred]
    for classes in (["--num-classes", 4], ["--label-ids", "3,0-2"]):
        alone, together = (score("semantic", *folders, *classes, "--workers", n) for n in (1, 3))
        assert alone == together and 0 < alone["mIoU"] < 100


def test_command_on_real_images(shared):
    sample = shared / "data/samples/panopticapi_sample/golden_semseg"
    scores = score("semantic", "--gt-dir", sample, "--pred-dir", sample, "--num-classes", 133)
    assert [*scores][:4] == ["mIoU", "fwIoU", "mACC", "pACC"]
    assert scores["mIoU"] == 100 and np.isnan(scores["IoU-4"])


def test_command_reports_bad_input_in_one_line(tmp_path):
    truth = save_labels(tmp_path / "truth", {"a.png": [[0, 3]]})
    small = save_labels(tmp_path / "small", {"a.png": [[0]]})
    (tmp_path / "nothing").mkdir()
    for gt, pred, classes, message in [
        (truth, small, 4, "small/a.png: the prediction is (1, 1) pixels, the ground truth (1, 2)"),
        (truth, truth, 3, "a.png: label 3 is neither one of the 3 classes nor the ignored label 255"),
        (truth, tmp_path / "nothing", 4, "a.png: no such file"),
        (tmp_path / "nothing", truth, 4, "nothing: no PNG or TIFF files"),
        (truth, truth, 0, "the classes are the labels []: expected 1 or more, and none twice"),
    ]:
        arguments = ["--gt-dir", gt, "--pred-dir", pred, "--num-classes", classes]
        assert message in score_error("semantic", *arguments)


def true_map(ids: np.ndarray, segments: list[dict[str, Any]]) -> np.ndarray:
    labels = np.full(ids.shape, 255, np.uint8)
    for segment in segments:
        labels[ids == segment["id"]] = CONTIGUOUS[segment["category_id"]]
    return labels


@pytest.mark.parametrize("as_labels", [True, False])
@pytest.mark.parametrize("semantic_files", [True, False])
def test_evaluator_with_semantic_and_panoptic_ground_truth(tmp_path, semantic_files, as_labels, dataset):
    records = dataset.records(dataset.disturbed)
    truths = [true_map(ids, segments) for _, ids, segments in dataset.maps]
    for record, labels in zip(records, truths, strict=True):
        record["sem_seg_file_name"] = str(tmp_path / f"semseg/{record['image_id']}.png")
        if semantic_files:
            save_labels(tmp_path / "semseg", {f"{record['image_id']}.png": labels})
            del record["pan_seg_file_name"], record["segments_info"]
    predicted = [record["output"]["sem_seg"].argmax(0).numpy() for record in records]
    if as_labels:
        for record, labels in zip(records, predicted, strict=True):
            record["output"] = {"label_map": torch.from_numpy(labels).int()}
    evaluator = SemSegEvaluator(metadata=dataset.metadata, output_dir=tmp_path / "inference")
    results = metrics_of(evaluator, records)
    expected = reference_scores(list(zip(truths, predicted, strict=True)), 4, 255)
    assert {name: results[name] for name in expected} == pytest.approx(expected) and 5 < results["mIoU"] < 95
    saved = json.loads((tmp_path / "inference/sem_seg_predictions.json").read_text())
    for record, labels in zip(records, predicted, strict=True):
        mine = [item for item in saved if item["file_name"] == record["file_name"]]
        masks = mask_utils.decode([item["segmentation"] for item in mine])
        np.testing.assert_array_equal(masks @ [CONTIGUOUS[item["category_id"]] for item in mine], labels)
        assert (masks.sum(-1) == 1).all()


def test_perfect_scores_give_100_and_no_images_give_nan(tmp_path, dataset):
    evaluator = SemSegEvaluator(metadata=dataset.metadata)
    assert metrics_of(evaluator, dataset.records(dataset.maps))["mIoU"] == 100
    assert np.isnan(metrics_of(evaluator)["mIoU"])


def test_labels_from_panoptic_images_equal_the_published_script(shared):
    sample = shared / "data/samples/panopticapi_sample"
    content = json.loads((sample / "panoptic_examples.json").read_text())
    contiguous = {category["id"]: place for place, category in enumerate(content["categories"])}
    for annotation in content["annotations"]:
        segments = [{**s, "category_id": contiguous[s["category_id"]]} for s in annotation["segments_info"]]
        file = sample / "panoptic_examples" / annotation["file_name"]
        _, labels = true_labels({"pan_seg_file_name": str(file), "segments_info": segments}, 255)
        golden = np.asarray(Image.open(sample / "golden_semseg" / annotation["file_name"]))
        np.testing.assert_array_equal(labels, golden)


def test_invalid_records_are_errors(tmp_path):
    metadata = SyntheticDataset(tmp_path).metadata
    evaluator = SemSegEvaluator(metadata=metadata)
    output = {"sem_seg": torch.zeros(4, 2, 2)}
    with pytest.raises(ValueError, match="image 7: no key 'sem_seg_file_name'"):
        evaluator.process([{"image_id": 7, "file_name": "x"}], [output])
    save_labels(tmp_path, {"large.png": [[4, 0], [0, 0]], "wide.png": [[0, 0, 0]], "raw.png": [[7, 8]]})
    for name, table, message in [
        ("absent", {}, r"absent\.png: no such file"),
        ("large", {}, r"large\.png: label 4 is neither one of the 4 classes"),
        ("wide", {}, r"wide\.png: the prediction is \(2, 2\) pixels, the ground truth \(1, 3\)"),
        ("raw", {"sem_seg_label_ids": {7: 0}}, r"raw\.png: label 8 is not among the known labels \[7\]"),
    ]:
        record = {"sem_seg_file_name": str(tmp_path / f"{name}.png"), "file_name": "x", **table}
        with pytest.raises(ValueError, match=message):
            evaluator.process([record], [output])
    _, labels = true_labels({**record, "sem_seg_label_ids": {7: 0, 8: 255}}, 255)
    assert labels.tolist() == [[0, 255]]
    del metadata.ignore_label
    with pytest.raises(ValueError, match="metadata of 'synthetic': 'ignore_label' is missing"):
        SemSegEvaluator(metadata=metadata)


def test_two_classes_of_one_name_are_measured_apart():
    metrics = mean_iou(np.diag([4, 2, 0]), ["a", "a"])
    assert {"IoU-a (0)", "IoU-a (1)"} <= metrics.keys() and "IoU-a" not in metrics
