"""LVIS' average precision: a reference implementation, cases computed by hand, evaluator and command."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils
from reference_metrics import boundary_iou, reference_average_precision
from score_command import score
from synthetic_evaluation import metrics_of, rle

from mask2former.evaluation.coco.ap import LVISEvaluator, average_precision
from mask2former.structures import Instances

SIZE = (40, 40)
NAMES = {4: "frequent", 9: "rare", 2: "common", 7: "fabled"}
CATEGORIES = [{"id": id, "name": name, "frequency": name[0]} for id, name in NAMES.items()]


def box(top: int, left: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def draw(seed: int, count: int = 10) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Draw images searched for some categories, some not exhaustively, and results near and far."""
    rng = np.random.default_rng(seed)
    images, annotations, results = [], [], []
    for image_id in range(1, count + 1):
        objects = [
            (int(rng.choice([4, 9, 2])), box(*rng.integers((0, 0, 4, 4), (20, 20, 20, 20))))
            for _ in range(rng.integers(0, 4))
        ]
        present = {category for category, _ in objects}
        absent = [c["id"] for c in CATEGORIES if c["id"] not in present]
        images.append(
            {
                "id": image_id,
                "height": SIZE[0],
                "width": SIZE[1],
                "neg_category_ids": [c for c in absent if rng.random() < 0.4],
                "not_exhaustive_category_ids": [c for c in present if rng.random() < 0.4],
            }
        )
        for category, mask in objects:
            record = {"image_id": image_id, "category_id": category}
            annotation = {**record, "id": len(annotations) + 1, "area": int(mask.sum())}
            annotations.append({**annotation, "segmentation": rle(mask)})
            moved = np.roll(mask, rng.integers(-2, 3, 2), (0, 1))
            results.append({**record, "segmentation": rle(moved), "score": round(float(rng.random()), 1)})
        results += [
            {
                "image_id": image_id,
                "category_id": int(rng.choice([4, 9, 2, 7])),
                "segmentation": rle(box(*rng.integers((0, 0, 4, 4), (20, 20, 20, 20)))),
                "score": round(float(rng.random()), 1),
            }
            for _ in range(4)
        ]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}, results


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_reference(seed):
    truth, results = draw(seed)
    scores = average_precision(truth, results, lvis_style=True)
    expected = reference_average_precision(truth, results, lvis=True)
    assert scores == pytest.approx(expected, nan_ok=True) and np.isnan(scores["AP-fabled"])
    assert 5 < average_precision(truth, results)["AP"] < scores["AP"] < 95
    bounded = average_precision(truth, results, lvis_style=True, boundary_ratio=0.05)
    expected = reference_average_precision(truth, results, boundary_iou(0.05), lvis=True)
    assert bounded == pytest.approx(expected, nan_ok=True) and bounded["AP"] < scores["AP"]


def one_image(**searched: list[int]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return an image with a "frequent" box, and two results: a false positive, then the box."""
    there, elsewhere = box(0, 0, 10, 10), box(20, 20, 10, 10)
    record = {"image_id": "a", "category_id": 4}
    image = {"neg_category_ids": [], "not_exhaustive_category_ids": [], **searched}
    truth = {
        "images": [{"id": "a", "height": SIZE[0], "width": SIZE[1], **image}],
        "annotations": [{**record, "id": 1, "area": 100, "segmentation": rle(there)}],
        "categories": CATEGORIES,
    }
    results = [
        {**record, "score": 0.9, "segmentation": rle(elsewhere)},
        {**record, "score": 0.8, "segmentation": rle(there)},
    ]
    return truth, results


def test_cases_computed_by_hand():
    # One of two results is right: precision 1/2 at every recall. If not exhaustive, the other is ignored
    assert average_precision(*one_image(), lvis_style=True)["APf"] == pytest.approx(50)
    truth, results = one_image(not_exhaustive_category_ids=[4])
    scores = average_precision(truth, results, lvis_style=True)
    assert scores["APf"] == scores["AP"] == pytest.approx(100) and np.isnan(scores["APr"])
    # "Fabled" has an object in another image only; in this one it is wrong if the image was searched for it
    elsewhere = {**truth["images"][0], "id": "b"}
    annotation = {**truth["annotations"][0], "id": 2, "image_id": "b", "category_id": 7}
    there = {**results[1], "image_id": "b", "category_id": 7, "score": 0.3}
    found = [there, {**results[0], "category_id": 7}]
    for negative, expected in (([], 100), ([7], 50)):
        images = [{**truth["images"][0], "neg_category_ids": negative}, elsewhere]
        both = {**truth, "images": images, "annotations": [*truth["annotations"], annotation]}
        scores = average_precision(both, [*results, *found], lvis_style=True)
        assert scores["AP-fabled"] == pytest.approx(expected)


@pytest.mark.parametrize(("before", "expected"), [(299, 100), (300, 0)])
def test_the_best_300_results_of_an_image_count(before, expected):
    truth, results = one_image()
    others = [{**results[0], "category_id": 2 + 5 * (number % 2), "score": 0.95} for number in range(before)]
    assert average_precision(truth, [*others, results[1]], lvis_style=True)["AP"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("images", "neg_category_ids", None), "image a: 'neg_category_ids' is None, expected a list"),
        (("categories", "frequency", "x"), "truth: category 4: 'frequency' is 'x', expected r, c or f"),
    ],
)
def test_missing_annotations_of_lvis_are_errors(change, message):
    truth, results = one_image()
    part, key, value = change
    truth[part] = [{**truth[part][0], key: value}, *truth[part][1:]]
    with pytest.raises(ValueError, match=message):
        average_precision(truth, results, lvis_style=True)


def test_evaluator_equals_the_command_on_the_files_it_wrote(tmp_path):
    truth, results = draw(5)
    (tmp_path / "lvis.json").write_text(json.dumps(truth))
    contiguous = {category["id"]: place for place, category in enumerate(CATEGORIES)}
    facts = {"thing_dataset_id_to_contiguous_id": contiguous, "evaluator_type": "lvis"}
    metadata = SimpleNamespace(json_file=str(tmp_path / "lvis.json"), **facts)
    records = []
    for image in truth["images"]:
        own = [result for result in results if result["image_id"] == image["id"]]
        masks = np.stack([mask_utils.decode(result["segmentation"]) for result in own]).astype(bool)
        instances = Instances(
            SIZE,
            pred_masks=torch.from_numpy(masks),
            pred_classes=torch.tensor([contiguous[result["category_id"]] for result in own]),
            scores=torch.tensor([result["score"] for result in own]),
        )
        records.append({"image_id": image["id"], "output": {"instances": instances}})
    evaluator = LVISEvaluator(metadata=metadata, output_dir=tmp_path, save_predictions=True, boundary=True)
    scores = metrics_of(evaluator, records)
    expected = reference_average_precision(truth, results, lvis=True)
    assert {name: scores[name] for name in expected} == pytest.approx(expected, nan_ok=True)
    files = ["--gt", metadata.json_file, "--results", tmp_path / "submission/instance.json"]
    assert score("instances", *files, "--lvis", "--boundary") == pytest.approx(scores, nan_ok=True)
