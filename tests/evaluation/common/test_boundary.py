"""Boundaries of segments, boundary AP and boundary PQ, compared with reference implementations."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from reference_metrics import (
    boundary_iou,
    reference_average_precision,
    reference_boundary,
    reference_panoptic_counts,
)
from score_command import score, score_error
from synthetic_evaluation import CONTIGUOUS, SyntheticDataset, metrics_of, results_of, rle, save_panoptic

from mask2former.evaluation.coco.ap import COCOEvaluator, average_precision
from mask2former.evaluation.common.boundary import boundaries, boundary_distance, ratio_of
from mask2former.evaluation.panoptic.counts import Rules
from mask2former.evaluation.panoptic.quality import COCOPanopticEvaluator, panoptic_quality


@given(
    coarse=arrays(np.uint32, (4, 4), elements=st.integers(0, 2)),
    size=st.tuples(st.integers(1, 16), st.integers(1, 16)),
    distance=st.integers(1, 4),
)
def test_boundaries_equal_erosion(coarse, size, distance):
    labels = np.kron(coarse, np.ones((4, 4), np.uint32))[: size[0], : size[1]]
    expected = np.any([reference_boundary(labels == label, distance) for label in range(3)], axis=0)
    np.testing.assert_array_equal(boundaries(labels, distance), expected)


def test_boundary_widths():
    sizes = {(480, 640): 16, (405, 540): 14, (375, 500): 12, (3, 4): 1}  # before rounding 16, 13.5, 12.5, 0.1
    assert {size: boundary_distance(*size, 0.02) for size in sizes} == sizes
    assert boundary_distance(1024, 2048, 0.005) == 11
    ratios = {"coco": 0.02, "lvis": 0.02, "ade20k_panoptic_seg": 0.02, "cityscapes_panoptic_seg": 0.005}
    assert {kind: ratio_of(SimpleNamespace(evaluator_type=kind)) for kind in ratios} == ratios


@pytest.mark.parametrize(("seed", "ratio"), [(0, 0.02), (1, 0.06), (2, 0.04)])
def test_boundary_ap_equals_the_reference(tmp_path, seed, ratio):
    dataset = SyntheticDataset(tmp_path, image_ids=range(8), seed=seed)
    truth = json.loads(dataset.instances.read_text())
    results = results_of([*dataset.disturbed, *dataset.maps[:2]], np.random.default_rng(seed))
    scores = average_precision(truth, results, boundary_ratio=ratio)
    expected = reference_average_precision(truth, results, boundary_iou(ratio))
    assert scores == pytest.approx(expected, nan_ok=True)
    assert any(a["iscrowd"] for a in truth["annotations"])
    assert 1 < scores["AP"] < average_precision(truth, results)["AP"] - 1


@pytest.mark.parametrize(("size", "other", "right"), [((405, 540), 13, 388), ((375, 500), 13, 389)])
def test_half_pixels_are_rounded_as_published(size, other, right):
    """The boundary is 14 pixels wide for 13.5, and 12 for 12.5; other widths give another AP."""
    true, found = np.zeros((2, *size), bool)
    true[100:300, 100:400], found[100:300, 100:right] = True, True
    record = {"image_id": 1, "category_id": 1}
    truth = {
        "images": [{"id": 1, "height": size[0], "width": size[1]}],
        "categories": [{"id": 1, "name": "box"}],
        "annotations": [{**record, "id": 1, "area": int(true.sum()), "segmentation": rle(true)}],
    }
    results = [{**record, "score": 0.9, "segmentation": rle(found)}]
    expected, wrong = (
        reference_average_precision(truth, results, boundary_iou(ratio))["AP"]
        for ratio in (0.02, other / np.hypot(*size))
    )
    assert expected != wrong
    assert average_precision(truth, results, boundary_ratio=0.02)["AP"] == pytest.approx(expected)


@pytest.mark.parametrize(("seed", "ratio"), [(0, 0.02), (1, 0.05), (2, 0.1)])
def test_boundary_pq_equals_the_reference(tmp_path, seed, ratio):
    dataset = SyntheticDataset(tmp_path, image_ids=range(6), seed=seed)
    pairs = [(gt[1:], pred[1:]) for gt, pred in zip(dataset.maps, dataset.disturbed, strict=True)]
    rules = Rules(boundary_ratio=ratio)
    files = dataset.json, dataset.pngs, *save_panoptic(tmp_path / "pred", dataset.disturbed)
    results = panoptic_quality(*files, rules=rules)
    expected = sum(reference_panoptic_counts(*pair, CONTIGUOUS, ratio) for pair in pairs)
    for name, (iou, tp, fp, fn) in zip(dataset.metadata.stuff_classes, expected.T, strict=True):
        assert results[f"boundary_PQ-{name}"] == pytest.approx(100 * iou / (tp + fp / 2 + fn / 2))
        assert results[f"boundary_SQ-{name}"] == pytest.approx(100 * iou / max(tp, 1))
    plain = panoptic_quality(*files)
    assert {name: results[name] for name in plain} == pytest.approx(plain)
    assert 1 < results["boundary_PQ"] < results["PQ"]


def test_evaluators_equal_the_command(tmp_path, dataset):
    dataset.metadata.evaluator_type = "cityscapes_panoptic_seg"  # its ratio is not the flag's default
    out, records = tmp_path / "out", dataset.records(dataset.disturbed)
    files: dict[Any, list[Any]] = {
        COCOPanopticEvaluator: [
            *("panoptic", "--gt-json", dataset.json, "--gt-dir", dataset.pngs),
            *("--pred-json", out / "panoptic/predictions.json", "--pred-dir", out / "panoptic/predictions"),
        ],
        COCOEvaluator: [
            *("instances", "--gt", dataset.instances, "--results", out / "coco_instances_results.json")
        ],
    }
    for kind, arguments in files.items():
        results = metrics_of(kind(metadata=dataset.metadata, output_dir=out, boundary=True), records)
        assert score(*arguments, "--boundary", 0.005) == pytest.approx(results, nan_ok=True)
        plain = score(*arguments)
        assert plain.keys() | {f"boundary_{name}" for name in plain if name[0] != "n"} == results.keys()
        assert "the boundary ratio is 2.0, expected a part" in score_error(*arguments, "--boundary", 2)


def test_perfect_predictions_have_perfect_boundaries(tmp_path, dataset):
    dataset.metadata.evaluator_type = "coco_panoptic_seg"
    for kind, metric in ((COCOPanopticEvaluator, "boundary_PQ"), (COCOEvaluator, "boundary_AP")):
        results = metrics_of(kind(metadata=dataset.metadata, boundary=True), dataset.records(dataset.maps))
        assert results[metric] == pytest.approx(100)
